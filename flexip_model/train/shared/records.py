"""What a run writes of itself beside its checkpoints: `log.jsonl`, TensorBoard's files, previews.

None of it is worth a step: where something cannot be written, the run says so, goes on, and tries again next time.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...common.errors import FlexIPError
from ...files.safefile import atomic

if TYPE_CHECKING:
    from PIL.Image import Image


class Records:
    """The files of one run; a run that goes on continues them after its checkpoint's step.

    Args:
        folder: the run's.
        step: the one that the run begins or goes on from; entries of later steps are taken out, since these steps
            come again.
        say: tells a person a sentence.
        trackers: as `open_trackers` gives them; they get each entry too.
    """

    def __init__(self, folder: Path, step: int, say: Callable[[str], None], trackers: Sequence[Any] = ()) -> None:
        self._folder, self._say, self._trackers = folder, say, trackers
        self._writer: Any = None
        # TensorBoard hides what was written from this step on: it comes again. What the step itself wrote does not.
        self._hidden_from: int | None = step + 1
        self._hook = threading.excepthook
        threading.excepthook = self._on_thread_error
        with self._told(folder / "log.jsonl"):
            _cut(folder / "log.jsonl", step)

    def entry(self, step: int, values: Mapping[str, float]) -> None:
        """Write one line of the log, and its values for TensorBoard."""
        path = self._folder / "log.jsonl"
        line = json.dumps({"step": step, **{key: round(value, 6) for key, value in values.items()}}) + "\n"
        with self._told(path):
            size = path.stat().st_size if path.exists() else 0
            try:
                with path.open("a", encoding="utf-8") as file:
                    file.write(line)
            except OSError:
                if path.exists():
                    os.truncate(path, size)  # half a line would spoil the next
                raise

        def add(writer: Any) -> None:
            for name, value in values.items():
                writer.add_scalar(name, value, step)

        self._board(add)
        for tracker in self._trackers:
            try:
                tracker.log(dict(values), step=step)
            except Exception as error:  # of whatever kind the tracker's package raises
                self._say(f"{tracker.name} did not take the entry of step {step} ({error}); the run goes on")

    def preview(self, step: int, sheet: Image) -> None:
        """Write a preview as a PNG, and for TensorBoard."""
        from torchvision.transforms.functional import pil_to_tensor

        path = self._folder / "previews" / f"step-{step:07d}.png"
        with self._told(path), atomic(path) as temporary:
            sheet.save(temporary, "PNG")
        self._board(lambda writer: writer.add_image("sweep", pil_to_tensor(sheet), step))

    def close(self) -> None:
        if self._writer is not None:
            with self._told(self._folder / "logs"):
                self._writer.close()
        for tracker in self._trackers:
            try:
                tracker.finish()
            except Exception as error:
                self._say(f"{tracker.name} did not end well ({error})")
        threading.excepthook = self._hook

    @contextmanager
    def _told(self, path: Path) -> Iterator[None]:
        """Within it, what cannot be written is said."""
        try:
            yield
        except (OSError, FlexIPError) as error:
            reason = (error.strerror if isinstance(error, OSError) else None) or error
            self._say(f"{path} cannot be written ({reason}); the run goes on without this entry")

    def _board(self, write: Callable[[Any], object]) -> None:
        """Call `write` with TensorBoard's writer; with a new one after one that failed."""
        with self._told(self._folder / "logs"):
            try:
                if self._writer is None:
                    from torch.utils.tensorboard import SummaryWriter

                    self._writer = SummaryWriter(str(self._folder / "logs"), purge_step=self._hidden_from)
                    self._hidden_from = None
                write(self._writer)
                self._writer.flush()
            except OSError:
                self._writer = None
                raise

    def _on_thread_error(self, args: threading.ExceptHookArgs) -> None:
        """TensorBoard writes in a thread, which would print a traceback; its error is raised here too, and said."""
        ours = type(args.thread).__module__.startswith("tensorboard.") and isinstance(args.exc_value, OSError)
        if not ours:
            self._hook(args)


def _cut(path: Path, step: int) -> None:
    """Take lines of later steps out of a log, and what a kill left of a line."""
    if not path.is_file():
        return
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    kept = [line for line in lines if _step_of(line) <= step]
    if kept != lines:
        with atomic(path) as temporary:
            temporary.write_text("".join(kept), encoding="utf-8")


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"]) if line.endswith("\n") else float("inf")
    except (ValueError, KeyError, TypeError):
        return float("inf")
