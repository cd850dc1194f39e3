"""The small model's training, stage by stage, and its export."""
