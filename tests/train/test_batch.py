"""A batch goes where tensors go: through loading processes, into pinned memory, onto a device."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from accelerate.utils import send_to_device
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data._utils.pin_memory import pin_memory

from flexip_model.train.samples.batch import Batch, Reference, Sample, collate

from ..support.train_rig import tensors_of


def sample(number: int, cached: bool = False) -> Sample:
    pixels = torch.full((3, 8, 8), float(number))
    return Sample(
        variant=number % 2 == 1,
        **({"latents": torch.full((4, 1, 1), float(number))} if cached else {"pixels": pixels}),
        reference=Reference(torch.ones(4, dtype=torch.bool), clip_pixels=pixels, dino_pixels=pixels),
        no_image=False,
        input_ids=torch.full((77,), number),
        timestep=number,
        noise=torch.zeros(4, 1, 1),
        gamma_drawn=number / 8,
        complaints=("it is gone",) * (0),
    )


@pytest.fixture
def mixed() -> Batch:
    """Latents of samples 1 and 2 from a cache, of 0 and 3 to be made."""
    return collate([sample(number, cached=number in (1, 2)) for number in range(4)])


def test_a_feature_is_completed_in_the_order_of_the_samples(mixed: Batch) -> None:
    assert len(mixed) == 4 and mixed.timesteps.tolist() == [0, 1, 2, 3]
    latents = mixed.latents.complete(lambda pixels: pixels[:, :1, :1, :1].expand(-1, 4, -1, -1) + 10)
    assert latents[:, 0, 0, 0].tolist() == [10, 1, 2, 13]
    assert mixed.cls.complete(lambda pixels: pixels[:, 0, 0]).shape == (4, 8)


def test_loading_processes_hand_over_the_batch_that_is_made_here() -> None:
    samples: Any = [sample(number) for number in range(4)]
    [batch] = DataLoader(samples, batch_size=4, collate_fn=collate, num_workers=1)
    here, there = tensors_of(collate(samples)), tensors_of(batch)
    assert here.keys() == there.keys() and all(torch.equal(here[name], there[name]) for name in here)


def test_every_tensor_is_sent_and_pinned(mixed: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = tensors_of(send_to_device(mixed, torch.device("meta"), non_blocking=True))
    assert sent.keys() == tensors_of(mixed).keys() and {value.device.type for value in sent.values()} == {"meta"}
    monkeypatch.setattr(Tensor, "pin_memory", lambda self: self.to("meta"))  # the real one needs an accelerator
    pinned = tensors_of(pin_memory(mixed))
    assert pinned.keys() == tensors_of(mixed).keys() and {value.device.type for value in pinned.values()} == {"meta"}
