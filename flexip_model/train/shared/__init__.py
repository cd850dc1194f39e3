"""The parts that every training here shares: the loop, averaged weights, exact checkpoints."""
