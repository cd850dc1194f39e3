"""FlexIP (Huang et al., arXiv 2504.07405): the method, its files, its training and evaluation.

The mathematics (`config`, `sites`, `resampler`, `gate`, `attention`, `adapter`) imports torch alone; the hosts,
the encoders and the command line stand on it. Nothing here imports ComfyUI.
"""

__version__ = "0.1.0"
