"""What every room here may use: the one exception, optional packages, γ as text, processes. Imports no other room."""
