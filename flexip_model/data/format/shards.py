"""Write shards: a tar and its index rows appear together when complete, and a second run goes on after the last."""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ...common.errors import FlexIPError
from ...common.processes import Share
from ...files.safefile import atomic, sync
from .locks import STARTING, dataset_lock, tables_lock
from .parts import DONE, SHARE_SHARDS, complete_parts, read_done, write_index
from .schema import (
    FOLDER_FILE,
    GROUP_KINDS,
    QUALITIES,
    ROLES,
    SCHEMA,
    SPLITS,
    Frame,
    Group,
    NewFrame,
    NewGroup,
    check_name,
    read_folder_file,
    write_folder_file,
)

MAX_BYTES = 256 << 20
"""Bytes of a shard (our choice): what an interrupted run repeats at most, and large enough for object storage."""
HEADER = tarfile.BLOCKSIZE
PROGRESS = b"flexip.progress"
FULL = "; free some space and run the same command again: it goes on after the last complete shard"


class ShardWriter:
    """One dataset of a data folder, written shard by shard; the index appears at `close`.

    A group lies in one shard. Each complete shard has its rows in `index/NAME.parts/`, so that a process that was
    killed loses the shard in hand alone; a new writer on the same folder and name then has `resumed`.

    Args:
        folder: made when missing; an existing data folder gets one more dataset.
        dataset: letters, digits, `_` and `-`.
        license: goes into the index with every group that has none of its own.
        note: free text for `flexip-data.json`.
        max_bytes: a shard is closed when it is larger than this.
        share: which of several writers of the dataset this is; each has its own numbers of shards and its own folder in
            `index/NAME.parts/`, ends with `finish_share`, and `SharedDataset` makes the index of all.

    Attributes:
        resumed: the `progress` of the last complete shard of an earlier run, or None.
        groups, frames: how many lie in complete shards and in the one in hand.

    Raises:
        FlexIPError: the dataset exists already or is being written by another process, a bad name, or a disk that takes
            no files.
    """

    def __init__(
        self,
        folder: str | Path,
        dataset: str,
        license: str,
        note: str = "",
        *,
        max_bytes: int = MAX_BYTES,
        share: Share = Share(),  # noqa: B008
    ) -> None:
        self.folder, self.dataset, self.license, self.note = Path(folder), check_name(dataset), license, note
        self.max_bytes = max_bytes
        self.index = self.folder / "index" / f"{dataset}.parquet"
        self._whole = self._parts = self.folder / "index" / f"{dataset}.parts"
        self._first = share.rank * SHARE_SHARDS
        self.resumed: dict[str, Any] | None = None
        self.groups = self.frames = 0
        self._file: io.BufferedWriter | None = None
        self._rows: list[dict[str, Any]] = []
        self._progress: dict[str, Any] = {}
        if (self.folder / FOLDER_FILE).exists():
            read_folder_file(self.folder)
        own = f"{share.rank}-of-{share.world_size}"
        self._lock = dataset_lock(self.folder, dataset if share.world_size == 1 else f"{dataset}.{own}")
        try:
            self._begin(share, own)
        except BaseException:
            self.abandon()
            raise

    def _begin(self, share: Share, own: str) -> None:
        """Refuse what would be mixed with something else, and find what an earlier run has done."""
        if self.index.exists():
            self._clear_parts()  # of a run that was killed after its last step but one
            raise FlexIPError(
                f"{self.folder} has a dataset {self.dataset!r} already; choose another --name, or delete "
                f"{self.index} and its shards first"
            )
        if share.world_size > 1:
            self._parts = self._whole / own
        try:
            self._parts.mkdir(parents=True, exist_ok=True)
            (self.folder / "shards").mkdir(exist_ok=True)
        except OSError as error:
            raise FlexIPError(f"{self.folder} cannot be written ({error.strerror})") from error
        # A share's folder is there before it looks for others, so that of two that do not agree one sees the other.
        if share.world_size > 1:
            dataset_lock(self.folder, self.dataset, STARTING).release()
        others = [path.name for path in self._whole.glob("*") if not path.name.endswith(f"-of-{share.world_size}")]
        if others if share.world_size > 1 else any("-of-" in name for name in others):
            raise FlexIPError(
                f"an unfinished run of {self.dataset!r} was shared out in another way ({sorted(others)[0]} in "
                f"{self._whole}): repeat it as it was, or delete {self._whole} to begin anew"
            )
        indexes = self.index.parent.glob(f".{self.dataset}.*.tmp") if share.world_size == 1 else ()
        for leftover in chain(self._parts.glob(".*.tmp"), indexes):
            leftover.unlink()
        for leftover in (self.folder / "shards").glob(f".{self.dataset}-*.tar.tmp"):
            # The whole name: a dataset "pets" must not take what is written of "pets-2" for its own.
            number = re.fullmatch(rf"\.{self.dataset}-(\d+)\.tar\.tmp", leftover.name)
            if number and (share.world_size == 1 or int(number[1]) // SHARE_SHARDS == share.rank):
                leftover.unlink()
        done = self._complete()
        for part in done:
            metadata = pq.read_metadata(part)
            self.groups += metadata.num_rows
            self.frames += int((metadata.metadata or {}).get(b"flexip.frames", 0))
            self.resumed = json.loads((metadata.metadata or {})[PROGRESS])
        self._shard = self._first + len(done)

    def _complete(self) -> list[Path]:
        return complete_parts(self._parts)

    @property
    def done(self) -> dict[str, Any] | None:
        """What `finish_share` noted of this share before, or None."""
        path = self._parts / DONE
        return read_done(path) if path.exists() else None

    def finish_share(self, record: dict[str, Any]) -> None:
        """Complete the last shard, and note that this share of the dataset is done.

        Args:
            record: JSON for whoever merges the shares.

        Raises:
            FlexIPError: a full disk, or a shard that is no longer there.
        """
        self.flush()
        names = [f"{self.dataset}-{self._first + number:06}.tar" for number in range(len(self._complete()))]
        try:
            sizes = [(self.folder / "shards" / name).stat().st_size for name in names]
        except OSError as error:
            raise FlexIPError(
                f"a shard that an earlier run completed cannot be read ({error}): bring it back, or delete "
                f"{self._parts} to begin this share anew"
            ) from error
        more = {"shards": sizes, "license": self.license, "note": self.note}
        with atomic(self._parts / DONE) as temporary:
            temporary.write_text(json.dumps({**record, **more}), encoding="utf-8")
        self._lock.release()

    def add(self, groups: NewGroup | Sequence[NewGroup], progress: dict[str, Any] | None = None) -> None:
        """Write groups into one shard, then close it when it is large enough.

        Args:
            groups: all that came of one item of the source: none of them is written without the others.
            progress: JSON that says how far the source was read; `resumed` gives back the last one of a full shard.

        Raises:
            FlexIPError: a value outside the format, or a full disk.
        """
        groups = [groups] if isinstance(groups, NewGroup) else list(groups)
        for group in groups:
            _check(group)
        try:
            for group in groups:
                if self._file is None:
                    self._temporary = self.folder / "shards" / f".{self.dataset}-{self._shard:06}.tar.tmp"
                    self._file = self._temporary.open("wb")
                    self._tar = tarfile.TarFile(fileobj=self._file, mode="w", format=tarfile.USTAR_FORMAT)
                self._rows.append(self._write(group).to_row())
                self.groups += 1
                self.frames += len(group.frames)
        except OSError as error:
            self.abandon()
            raise FlexIPError(f"{self.folder} cannot be written ({error.strerror or error}){FULL}") from error
        self._progress = progress or {}
        if self._file is not None and self._file.tell() >= self.max_bytes:
            self.flush()

    def flush(self) -> None:
        """Complete the shard in hand: tar first, then its rows, each by rename."""
        if self._file is None:
            return
        name = f"{self.dataset}-{self._shard:06}.tar"
        try:
            self._tar.close()
            self._file.close()
            sync(self._temporary)
            self._temporary.replace(self.folder / "shards" / name)
        except OSError as error:
            self.abandon()
            raise FlexIPError(f"{self.folder} cannot be written ({error.strerror or error}){FULL}") from error
        frames = sum(len(row["frames"]) for row in self._rows)
        table = pa.Table.from_pylist(self._rows, SCHEMA).replace_schema_metadata(
            {PROGRESS: json.dumps(self._progress), "flexip.frames": str(frames)}
        )
        with atomic(self._parts / f"{self._shard - self._first:06}.parquet") as temporary:
            pq.write_table(table, temporary, compression="zstd")
        self._file, self._rows = None, []
        self._shard += 1

    def parts(self) -> Iterator[pa.RecordBatch]:
        """Yield the rows of the complete shards, in order; the licenses and splits are those of `add`."""
        for part in self._complete():
            yield from pq.ParquetFile(part).iter_batches()

    def close(self, change: Callable[[pa.RecordBatch], pa.RecordBatch] | None = None) -> None:
        """Complete the last shard and write the index.

        Args:
            change: applied to the rows on their way into the index, such as dropping what may not be trained on.
        """
        self.flush()
        with tables_lock(self.folder):
            datasets = read_folder_file(self.folder) if (self.folder / FOLDER_FILE).exists() else {}
            write_folder_file(self.folder, {**datasets, self.dataset: {"license": self.license, "note": self.note}})
            batches = (batch if change is None else change(batch) for batch in self.parts())
            write_index(self.index, batches)
        self._clear_parts()
        self._lock.release()

    def _clear_parts(self) -> None:
        for part in chain(self._whole.glob("*.parquet"), self._whole.glob("*-of-*/*")):
            part.unlink(missing_ok=True)  # a merge that ends now removes them too
        for folder in (*self._whole.glob("*-of-*"), self._whole):
            with suppress(OSError):
                folder.rmdir()

    def abandon(self) -> None:
        """Throw away the shard in hand; complete shards stay, for a later writer to go on from."""
        if self._file is not None:
            with suppress(OSError):
                self._file.close()
            self._temporary.unlink(missing_ok=True)
        self._file, self._rows = None, []
        with suppress(OSError):  # only an empty folder goes
            self._parts.rmdir()
        self._lock.release()

    def _write(self, group: NewGroup) -> Group:
        number = sum(len(row["frames"]) for row in self._rows)
        frames = tuple(self._write_frame(frame, number + i) for i, frame in enumerate(group.frames))
        return Group(
            group_id=group.group_id,
            dataset=self.dataset,
            kind=group.kind,
            quality=group.quality,
            license=group.license or self.license,
            split=group.split,
            frames=frames,
        )

    def _write_frame(self, frame: NewFrame, number: int) -> Frame:
        digest = hashlib.sha256(frame.picture).hexdigest()
        # The hash in the name: a cache made from other bytes can never pass for this frame's.
        frame_id = f"{self.dataset}-{self._shard:06}-{number:05}-{digest[:8]}"
        suffix = "png" if frame.picture.startswith(b"\x89PNG") else "jpg"
        offset = self._member(f"{frame_id}.{suffix}", frame.picture)
        mask_offset = None if frame.mask is None else self._member(f"{frame_id}.mask.png", frame.mask)
        return Frame(
            frame_id=frame_id,
            shard=f"{self.dataset}-{self._shard:06}.tar",
            offset=offset,
            bytes=len(frame.picture),
            mask_offset=mask_offset,
            mask_bytes=None if frame.mask is None else len(frame.mask),
            width=frame.width,
            height=frame.height,
            time=frame.time,
            role=frame.role,
            box=frame.box,
            captions=frame.captions,
            sharpness=frame.sharpness,
            hash=digest,
            dhash=frame.dhash,
        )

    def _member(self, name: str, content: bytes) -> int:
        assert self._file is not None
        offset = self._file.tell() + HEADER
        entry = tarfile.TarInfo(name)
        entry.size, entry.mode = len(content), 0o644
        self._tar.addfile(entry, io.BytesIO(content))
        return offset


def _check(group: NewGroup) -> None:
    for value, allowed, what in (
        (group.kind, GROUP_KINDS, "kind"),
        (group.quality, QUALITIES, "quality"),
        (group.split, SPLITS, "split"),
    ):
        if value not in allowed:
            raise FlexIPError(f"group {group.group_id!r} has {what} {value!r}, expected one of {', '.join(allowed)}")
    if not group.frames:
        raise FlexIPError(f"group {group.group_id!r} has no frames")
    for frame in group.frames:
        if frame.role not in ROLES:
            raise FlexIPError(f"group {group.group_id!r} has a role {frame.role!r}, expected {', '.join(ROLES)}")
        if not frame.picture.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n")):
            raise FlexIPError(f"group {group.group_id!r} has a picture that is neither JPEG nor PNG")
