"""A run as one page that needs nothing beside it, and two runs against each other."""
