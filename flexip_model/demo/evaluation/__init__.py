"""What the small model's pictures are worth: judges that saw nothing of it, and figures over held-out subjects."""
