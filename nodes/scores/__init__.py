"""Scores of pictures in the graph, and the γ at which a score reaches a target."""
