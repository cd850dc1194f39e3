"""FlexIP (Huang et al., arXiv 2504.07405): the method, its files, its training and evaluation.

The mathematics is `method`, which imports torch alone; everything else stands on it (`pyproject.toml` says in which
order). Nothing here imports ComfyUI.
"""

__version__ = "0.1.0"
