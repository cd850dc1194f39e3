"""What the frozen networks make of each frame, kept for training."""
