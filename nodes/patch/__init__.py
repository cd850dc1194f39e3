"""The patch on the model's attention: what a node sets, what a run knows, what sits at each layer."""
