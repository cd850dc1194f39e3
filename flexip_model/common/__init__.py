"""What every room here may use: the one exception, optional packages, γ as text, signals, processes, what a user sees.

It imports no other room.
"""
