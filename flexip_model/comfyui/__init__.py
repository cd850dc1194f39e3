"""A real ComfyUI as a child process, with this pack in it: for `run.py`, the tests and the benchmarks.

Nothing here imports ComfyUI; it is started with its own `main.py` and spoken to over loopback, as any client does.
"""

from .client import ComfyClient, RunResult
from .process import ComfyServer

__all__ = ["ComfyClient", "ComfyServer", "RunResult"]
