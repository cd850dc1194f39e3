"""`benchmark card`: what only a machine with a GPU can say, in a few minutes and without network."""
