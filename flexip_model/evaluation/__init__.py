"""Judging generated pictures: judges that were not trained for it, scores per subject, intervals."""
