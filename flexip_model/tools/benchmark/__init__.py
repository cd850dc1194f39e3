"""What the pack costs, as ratios of two things that one run measured in turn."""
