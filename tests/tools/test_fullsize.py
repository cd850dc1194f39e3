"""SD1.5, both encoders and the adapter at their real sizes, on random weights, through ComfyUI on the CPU."""

from __future__ import annotations

from math import prod

import pytest

from flexip_model.tools.fullsize import MEMORY_LIMIT, run_fullsize
from flexip_model.tools.sd15_shapes import text_shapes, unet_shapes, vae_shapes

from ..support.comfy_server import comfyui_path


@pytest.mark.parametrize(
    ("shapes", "weights"), [(unet_shapes, 859_520_964), (vae_shapes, 83_653_863), (text_shapes, 123_060_480)]
)
def test_counts_are_those_of_sd15(shapes, weights: int) -> None:
    assert sum(map(prod, shapes().values())) == weights


def test_the_whole_path_runs_within_memory(capsys: pytest.CaptureFixture[str]) -> None:
    segments = run_fullsize(comfyui_path())  # raises where a picture is wrong or memory too high
    assert {"CheckpointLoaderSimple", "FlexIPEncodeReference", "FlexIPGammaSweep", "KSampler", "VAEDecode"} <= {
        segment.name for segment in segments
    }
    assert 3 < max(segment.peak for segment in segments) <= MEMORY_LIMIT
    printed = capsys.readouterr().out
    assert "RANDOM" in printed
    assert "peak memory" in printed
