"""Scores of pictures, one by one, into a run's folder; a run that was cut off goes on where it was."""
