"""Samples: which one comes when, and how it is made."""
