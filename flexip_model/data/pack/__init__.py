"""Sources in many layouts become datasets of the one format."""
