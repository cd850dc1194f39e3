"""Started by a launcher in two processes, each with an output folder of its own, as on machines that share no disk.

Arguments: data, output, steps, and the step after which the second process gets SIGTERM (0: never).
"""

import json
import os
import signal
import sys
from pathlib import Path

from flexip_model.common.console import shown_log
from flexip_model.files.adapter_file import tensors_hash
from flexip_model.train.trainer import Trainer
from tests.support.train_rig import config


class Interrupted(Trainer):
    """A run whose second process is told to end when the step is over and its checkpoint, if any, written."""

    stop = 0

    def stepped(self) -> None:
        super().stepped()
        if self.rank == 1 and self.step == self.stop:
            signal.raise_signal(signal.SIGTERM)


if __name__ == "__main__":
    data, output, steps, stop = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    trainer = Interrupted(config(data, output / os.environ["RANK"], batch=4, stages=[{"steps": steps}]))
    trainer.stop = stop
    code = 0
    try:
        with shown_log():
            trainer.run()
    except SystemExit as ended:
        code = int(ended.code or 0)
    end = {"step": trainer.step, "weights": tensors_hash(dict(trainer.adapter.named_parameters())), "code": code}
    (output / f"end-{trainer.rank}.json").write_text(json.dumps(end))
