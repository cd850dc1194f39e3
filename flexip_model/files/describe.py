"""What `inspect` prints of an adapter file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..method.adapters import adapter_class
from .adapter_file import expected_shapes, read_info


def describe(path: Path) -> str:
    """What an adapter file is, in lines for a person.

    Raises:
        FlexIPError: see `adapter_file.read_info`; the sentence names what the file is instead.
    """
    info = read_info(path)
    config = info.config
    kind = adapter_class(config)
    weights = 0
    for shape in expected_shapes(config).values():
        size = 1
        for side in shape:
            size *= side
        weights += size
    lines = [
        f"{path.name}: {kind.description}",
        f"  format version  {info.metadata['flexip.format_version']}",
        f"  weights         {weights:,} in {path.stat().st_size:,} bytes",
        f"  trained         {'yes' if info.trained else 'NO: a bootstrap, its pictures mean nothing'}",
    ]
    for key, value in sorted(info.training.items()):
        if key != "trained":
            first, *others = _plain(value) or [""]
            lines += [f"    {key:<14}{first}", *(" " * 18 + other for other in others)]
    lines.append(f"  UNet            SD1.5's structure, channels {config.channels}, context {config.token_width}")
    lines.append(
        f"  resampler       width {config.width}, depth {config.depth}, {config.heads} heads of {config.head_width}, "
        f"{config.queries} {kind.queries_are}"
    )
    if kind.has_personalization:
        lines.append(f"  gate            α {config.alpha}, β {config.beta}{', learned' * config.learnable_gate}")
    lines.append(f"  dial            {config.calibration_in_words}")
    lines.append(f"  features        CLIP [CLS] {config.clip_width}, retrieval {config.retrieval_width}")
    for role, encoder in sorted(info.encoders.items()):
        lines.append(f"    {role:<14}{encoder.get('name', '?')} {encoder.get('hash', '')}".rstrip())
    for key in ("title", "date", "license"):
        if info.metadata.get(f"modelspec.{key}"):
            lines.append(f"  {key:<16}{info.metadata[f'modelspec.{key}']}")
    return "\n".join(lines)


def _plain(value: Any) -> list[str]:
    """JSON for a person, as lines: a list has one for each entry, and no entry is told from the next by a mark that its
    own text may hold."""
    if isinstance(value, list):
        return [line for held in value for line in _plain(held)]
    if isinstance(value, dict):
        return [", ".join(f"{key} {', '.join(_plain(held))}" for key, held in value.items())]
    return [str(value)]
