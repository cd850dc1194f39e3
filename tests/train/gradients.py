"""Started by a launcher in one or two processes: the gradients of one step, written by the first process."""

import sys
from pathlib import Path

from safetensors.torch import save_file

from flexip_model.train.samples.batch import collate
from flexip_model.train.samples.sample_set import open_samples
from flexip_model.train.trainer import Trainer
from tests.support.train_rig import config

if __name__ == "__main__":
    data, output, batch = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    trainer = Trainer(config(data, output / f"run-{batch}", batch=batch))
    samples = open_samples(trainer.config, trainer.frozen, 0, trainer.world_size)
    errors = trainer.model(collate([samples[t] for t in samples.sampler.tickets(0, trainer.rank)]))
    trainer.accelerator.backward(errors.mean())
    if trainer.is_main_process:
        gradients = {name: p.grad.contiguous() for name, p in trainer.adapter.named_parameters() if p.grad is not None}
        save_file(gradients, output / "gradients.safetensors")
