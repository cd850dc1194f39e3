"""The stages of making the small model, each reading from and writing into one folder."""

from __future__ import annotations

import logging
from math import inf
from pathlib import Path

from .making.plan import STAGES, Plan

log = logging.getLogger(__name__)

EXAMPLES = {
    "sheep": "1f411",
    "turtle": "1f422",
    "wolf": "1f43a",
    "cupcake": "1f9c1",
    "tomato": "1f345",
    "house": "1f3e0",
}
"""Reference pictures that ship: held-out subjects."""
SHIPPED = Path(__file__).parents[2] / "models" / "demo"


class Workshop:
    """The stages.

    Args:
        work: downloads, store, tokenizer, text encoder and one folder per trained stage.
        out: where `export` writes.
        plan: of the trained stages.
    """

    def __init__(self, work: Path, out: Path, plan: Plan | None = None) -> None:
        self.work, self.out, self.plan = work, out, plan or Plan()

    def data(self) -> None:
        """Packages, subject store and tokenizer."""
        from .making.finished import STORE, TOKENIZER
        from .scenes.store import build
        from .scenes.words import write_tokenizer

        store = build(self.work / "downloads", self.work / STORE)
        write_tokenizer(store.split(heldout=False), self.work / TOKENIZER)

    def heldout(self) -> Path:
        """Draw the list of held-out drawings anew, as `heldout.json` was; returns the file."""
        from .making.finished import STORE, need
        from .scenes.store import INDEX, Store, write_heldout

        need(self.work / STORE / INDEX, "data")
        path = self.work / "heldout.json"
        write_heldout(Store.open(self.work / STORE), path)
        return path

    def scenes(self, groups: int) -> None:
        """Scenes with drawings that are not held out, as a data folder in `out`; see `write_dataset`."""
        from .making.finished import STORE, need
        from .scenes.compose import Composer
        from .scenes.dataset import write_dataset
        from .scenes.store import INDEX, Store

        need(self.work / STORE / INDEX, "data")
        write_dataset(Composer(Store.open(self.work / STORE).split(heldout=False)), self.out, groups)

    def probe(self) -> None:
        """Tell what linear readers make of the parts of the exported model; see `evaluation.probes`."""
        from .evaluation.probes import probe, report
        from .making.finished import STORE, need
        from .scenes.store import INDEX

        need(self.work / STORE / INDEX, "data")
        log.info(report(probe(self.out, self.work / STORE)))

    def names(self) -> None:
        """The text encoder, written in fp16 as it ships."""
        import torch

        from .making.finished import STORE, TEXT, TOKENIZER, need
        from .making.names import train_names
        from .scenes.store import INDEX, Store
        from .scenes.words import Words

        need(self.work / STORE / INDEX, "data")
        if (self.work / TEXT / "config.json").exists():
            return
        torch.manual_seed(1)
        store = Store.open(self.work / STORE).split(heldout=False)
        text = train_names(store, Words(self.work / TOKENIZER), self.plan.names, self.work)
        text.half().save_pretrained(self.work / TEXT)

    def bring(self, folder: Path) -> None:
        """What a machine with a card and without a network needs."""
        from .evaluation.judge import fetch
        from .making.travel import bring

        bring(self.work, folder, fetch(self.work / "downloads"))

    def train(
        self,
        until: str = STAGES[-1],
        *,
        start_vae: Path | None = None,
        seconds: float = inf,
        processes: int | None = None,
        brought: Path | None = None,
        returned: Path | None = None,
        returns: Path | None = None,
        start: Path | None = None,
        networks: Path | None = None,
    ) -> bool:
        """One leg of training; False if it ended before all was trained.

        Args:
            until: the last of `STAGES` that is wanted.
            start_vae, seconds, processes, start: of `Legs`.
            brought: a folder that `bring` wrote, in place of the stages `data` and `names`.
            returned: a folder that `returns` was, whose finished stages are gone on from.
            returns: where the finished stages go; see `write_returns`.
            networks: a folder that `export` wrote, such as the one that ships, whose networks stand for their stages.
        """
        from .making.finished import take_exported
        from .making.legs import Legs
        from .making.travel import take_returned, unpack_brought, write_returns

        if brought is not None:
            unpack_brought(brought, self.work)
        if returned is not None:
            take_returned(returned, self.work)
        if networks is not None:
            take_exported(networks, self.work)
        legs = Legs(self.work, self.plan, start_vae, seconds=seconds, processes=processes, start=start)
        try:
            done = legs.go(until)
        finally:
            legs.close()
            if returns is not None:
                write_returns(self.work, returns, self.plan.wanted)
        log.info("all is trained" if done else "the leg is over; the same command goes on from here")
        return done

    def export(self, returned: Path | None = None) -> None:
        """Write the shipped folder, with its examples."""
        from .making.finished import export_model
        from .making.travel import take_returned
        from .scenes.sources import STATIC, fetch
        from .stages import export

        if returned is not None:
            take_returned(returned, self.work)
        export_model(self.work, self.out)
        export.save_examples(fetch(STATIC, self.work / "downloads"), EXAMPLES, self.out / "examples")
        log.info(f"{self.out}: {export.folder_bytes(self.out) / 1e6:.1f} MB")
