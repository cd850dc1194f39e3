"""The base alone: it learns its words before any adapter, as Stable Diffusion did before FlexIP."""
