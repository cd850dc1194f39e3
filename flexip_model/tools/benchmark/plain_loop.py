"""What people train adapters of this family with today, per step: everything encoded anew, in the one process.

It does what IP-Adapter's `tutorial_train_plus.py` does at its defaults, with this pack's adapter and encoders in place
of its own, so that the trained model is the same: the target is its own reference; VAE, image encoders and text encoder
run at every step; the frozen UNet stays in fp32 under autocast; AdamW as torch gives it, no averaged weights, no
clipping; no loading processes; the loss is fetched and printed at every step.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from ...data.format import Dataset
from ...train.configs.options import TrainConfig
from ...train.configs.sections import ConditioningDropout
from ...train.frozen import Frozen, load_frozen, pick_dtype
from ...train.samples.batch import Batch, Reference, Sample, collate
from ...train.start import begin
from ...train.step import TrainStep


class Pictures(TorchDataset):
    """Every group's first picture, as target and as its own reference."""

    def __init__(self, config: TrainConfig, frozen: Frozen) -> None:
        self.dataset, self.frozen, self.size = Dataset.open(config.data[0], "train"), frozen, config.size
        self.latent_side = config.size // 2 ** (len(frozen.vae.config.block_out_channels) - 1)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, number: int) -> Sample:
        from torchvision.transforms import functional as tv

        frame = self.dataset.group(number).frames[0]
        picture = self.dataset.picture(frame)

        def fitted(size: int) -> Tensor:
            resized = tv.resize(picture, [size], tv.InterpolationMode.BILINEAR)
            return tv.to_tensor(tv.center_crop(resized, [size]))

        no_image, no_text = ConditioningDropout().drop(float(torch.rand(())))
        text = "" if no_text else next(iter(frame.captions), "")
        encoded = self.frozen.tokenizer(text, padding="max_length", truncation=True, max_length=77, return_tensors="pt")
        return Sample(
            variant=False,
            pixels=fitted(self.size) * 2 - 1,
            reference=Reference(
                torch.ones(self.frozen.dino.tokens, dtype=torch.bool),
                clip_pixels=fitted(self.frozen.clip.image_size),
                dino_pixels=fitted(self.frozen.dino.image_size),
            ),
            no_image=bool(no_image),
            input_ids=encoded.input_ids[0],
            timestep=int(torch.randint(1000, ())),
            noise=torch.randn(4, self.latent_side, self.latent_side),
            gamma_drawn=0.0,
        )


def run_plain(config: TrainConfig, warmup: int, steps: int) -> tuple[float, float]:
    """Train `warmup`, then `steps` steps; nothing is kept.

    Returns:
        Samples per second, and the share of time in which the device had no batch.

    Raises:
        torch.OutOfMemoryError: the GPU is too small for the batch.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    frozen = load_frozen(config)
    adapter = begin(config, frozen).to(device)
    frozen.to(device, pick_dtype(config.precision))
    torch.nn.Module.to(frozen.unet, dtype=torch.float32)
    model = TrainStep(adapter, frozen, None, 0.0)
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    loader = DataLoader(
        Pictures(config, frozen), batch_size=config.batch, shuffle=True, drop_last=True, collate_fn=collate
    )
    batches = _endless(loader)
    started, waited = 0.0, 0.0
    for step in range(warmup + steps):
        if step == warmup:
            started, waited = time.perf_counter(), 0.0
        asked = time.perf_counter()
        batch = next(batches).to(device)
        waited += time.perf_counter() - asked
        with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            loss = model(batch).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        print(f"plain loop, step {step + 1}: loss {loss.item():.4f}", file=sys.stderr)
    if device.type == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    return steps * config.batch / seconds, waited / seconds


def _endless(loader: DataLoader) -> Iterator[Batch]:
    while True:
        yield from loader
