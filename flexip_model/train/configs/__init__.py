"""A run's config: its options with the paper's defaults, how a YAML file becomes one, and the files that ship."""
