"""Tensors of an old `torch.save` file, without unpickling it.

Weights on package indexes are often pickles, which run code when they are loaded. `pickletools` of the standard library
only lists a pickle's instructions; here the few that describe a dict of tensors are followed with plain data, and any
other is refused. Covers the format of torch before 1.6 (four pickles, then the storages' bytes).
"""

from __future__ import annotations

import io
import pickletools
import struct
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...common.errors import FlexIPError

_MAGIC = 0x1950A86A20F9469CFC6C
_DTYPES = {"torch FloatStorage": torch.float32, "torch LongStorage": torch.int64}


class _Call(NamedTuple):
    """What a pickle would call: kept as words, never looked up."""

    name: Any
    arguments: Any


def read_torch_file(path: Path) -> dict[str, Tensor]:
    """Names to tensors (views of one copy in memory).

    Raises:
        FlexIPError: not such a file, or one that holds anything but a dict of float or int tensors.
    """
    stream = io.BytesIO(path.read_bytes())
    try:
        if _data(stream) != _MAGIC:
            raise ValueError("no magic number")
        _data(stream), _data(stream)
        described, order = _data(stream), _data(stream)
        kinds = {call.arguments[1]: _DTYPES[call.arguments[0]] for call in _storages(described)}
        storages = {}
        for key in order:
            count = struct.unpack("<q", stream.read(8))[0]
            content = stream.read(count * kinds[key].itemsize)
            storages[key] = torch.frombuffer(bytearray(content), dtype=kinds[key], count=count)
        return {name: _tensor(call, storages) for name, call in _pairs(described)}
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RuntimeError, struct.error) as error:
        raise FlexIPError(
            f"{path} is not a weights file of torch before 1.6 with nothing but tensors in it ({error})"
        ) from error


def _pairs(described: Any) -> list[tuple[str, Any]]:
    pairs = described.arguments if isinstance(described, _Call) else described
    return list(pairs.items())


def _storages(described: Any) -> list[Any]:
    return [call.arguments[0] for _, call in _pairs(described)]


def _tensor(call: Any, storages: dict[str, Tensor]) -> Tensor:
    if call.name != "torch._utils _rebuild_tensor_v2":
        raise ValueError(f"it would call {call.name}")
    storage, offset, shape, stride = call.arguments[:4]
    return storages[storage.arguments[1]].as_strided(shape, stride, offset)


def _data(stream: io.BytesIO) -> Any:
    """The next pickle of a stream as plain data; calls become `_Call`s."""
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[Any, Any] = {}

    def above_mark() -> list[Any]:
        start = marks.pop()
        taken = stack[start:]
        del stack[start:]
        return taken

    for code, argument, _ in pickletools.genops(stream):
        name = code.name
        if name in ("BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1", "GLOBAL"):
            stack.append(argument)
        elif name in ("NEWTRUE", "NEWFALSE", "NONE"):
            stack.append({"NEWTRUE": True, "NEWFALSE": False, "NONE": None}[name])
        elif name in ("EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE"):
            stack.append({"EMPTY_DICT": {}, "EMPTY_LIST": [], "EMPTY_TUPLE": ()}[name])
        elif name == "MARK":
            marks.append(len(stack))
        elif name == "TUPLE":
            stack.append(tuple(above_mark()))
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            count = int(name[-1])
            stack[-count:] = [tuple(stack[-count:])]
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name in ("APPENDS", "SETITEMS", "SETITEM"):
            values = above_mark() if name != "SETITEM" else [stack.pop(-2), stack.pop()]
            if name == "APPENDS":
                stack[-1].extend(values)
            else:
                target = stack[-1].arguments if isinstance(stack[-1], _Call) else stack[-1]
                target.update(zip(values[::2], values[1::2], strict=True))
        elif name == "BINPERSID":
            # ("storage", kind, key, device, size, view)
            stack.append(_Call("storage", stack.pop()[1:]))
        elif name == "REDUCE":
            values = stack.pop()
            called = stack.pop()
            stack.append(_Call(called, {} if called == "collections OrderedDict" else values))
        elif name == "BUILD":  # attributes of an ordered dict, such as `_metadata`
            stack.pop()
        elif name not in ("PROTO", "STOP"):
            raise ValueError(f"the instruction {name}")
    return stack.pop()
