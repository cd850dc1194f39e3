"""Networks that `torch.compile` made: code that was compiled for other patches is never used for ours, or for none.

ComfyUI's compile node tells the compiler not to look at `transformer_options` again, where patches live. Code that was
compiled without FlexIP would then run with it, and leave it out without a word; and the other way round it would ask
for patches that are not there. What the compiler looks at each time, for every piece of a network, is PyTorch's global
state. So that is made another one for each form of patches, at a place where nothing else reads it: autocast of a kind
of device that is never in a ComfyUI.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

WRAPPER = "torch.compile"
"""The name of the wrapper with which ComfyUI compiles a network (`comfy_api.torch_helpers`)."""
DEVICE = "ipu"
SIGNS = sorted({value for value in vars(torch).values() if isinstance(value, torch.dtype)}, key=str)

_signs: dict[Hashable, torch.dtype] = {}


@contextmanager
def own_code(network: nn.Module, form: Hashable, wrappers: Mapping[str, Any]) -> Iterator[None]:
    """Within, a compiled network uses code that was compiled for patches of this form, or compiles it.

    Args:
        network: the diffusion model, or the compiled module in its place.
        form: all that the patches' computation depends on but tensors.
        wrappers: those around the model, by name.
    """
    if WRAPPER not in wrappers and not hasattr(network, "_orig_mod"):
        yield
        return
    if form not in _signs:
        if len(_signs) == len(SIGNS):
            torch.compiler.reset()
            _signs.clear()
        _signs[form] = SIGNS[len(_signs)]
    before = torch.is_autocast_enabled(DEVICE), torch.get_autocast_dtype(DEVICE)
    torch.set_autocast_enabled(DEVICE, True)
    torch.set_autocast_dtype(DEVICE, _signs[form])
    try:
        yield
    finally:
        torch.set_autocast_enabled(DEVICE, before[0])
        torch.set_autocast_dtype(DEVICE, before[1])
