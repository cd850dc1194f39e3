"""Which sample comes when, and what it is made of."""
