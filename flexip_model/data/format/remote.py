"""A data folder in object storage: its small files are mirrored, its shards are read where they lie.

`s3://bucket/data`, `gs://bucket/data` and whatever else pyarrow's file systems know; credentials come from where they
look for them (environment, profile, machine role). The index and the manifests are copied into a local folder when a
run begins, pictures are read by range requests, and a cache's file is fetched whole when its first frame is asked for.
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...common.errors import FlexIPError
from ...files.safefile import atomic

MIRRORS = Path.home() / ".cache" / "flexip" / "data"
CHUNK = 8 << 20
_SMALL = re.compile(r"flexip-data\.json|index/[^/]+\.parquet|caches/[^/]+/manifest\.json")


def is_remote(folder: str | Path) -> bool:
    """Whether a data folder is named by a URI."""
    return "://" in str(folder)


@dataclass
class Remote:
    """One remote data folder; it can be pickled and forked, each process makes its own connection.

    Attributes:
        uri: the folder's address.
    """

    uri: str
    _process: int = field(default=0, repr=False)
    _files: Any = field(default=None, repr=False)
    _base: str = field(default="", repr=False)

    @property
    def mirror(self) -> Path:
        """The local folder for copies of this one's files."""
        return MIRRORS / hashlib.sha256(self.uri.rstrip("/").encode()).hexdigest()[:16]

    def _connect(self) -> Any:
        from pyarrow import ArrowException
        from pyarrow.fs import FileSystem

        if self._process != os.getpid():
            try:
                self._files, self._base = FileSystem.from_uri(self.uri.rstrip("/"))
            except (ArrowException, OSError, ValueError) as error:
                raise FlexIPError(
                    f"{self.uri} cannot be reached ({error}); expected a URI such as s3://bucket/folder"
                ) from error
            self._process = os.getpid()
        return self._files

    def synchronize(self) -> Path:
        """Copy `flexip-data.json`, the index and the caches' manifests where they changed; returns the mirror.

        Raises:
            FlexIPError: it cannot be reached, or is no data folder.
        """
        from pyarrow.fs import FileSelector, FileType

        files = self._connect()
        try:
            found = files.get_file_info(FileSelector(self._base, recursive=True))
        except OSError as error:
            raise FlexIPError(f"{self.uri} cannot be listed ({error}); is the name right, may you read it?") from error
        for info in found:
            name = info.path.removeprefix(self._base).lstrip("/")
            if info.type == FileType.File and _SMALL.fullmatch(name):
                target, changed = self.mirror / name, int(info.mtime.timestamp()) if info.mtime else 0
                status = target.stat() if target.exists() else None
                if status is None or (status.st_size, int(status.st_mtime)) != (info.size, changed):
                    self._copy(name)
                    os.utime(target, (changed, changed))
        return self.mirror

    def fetch(self, name: str) -> Path:
        """A copy of a file in the mirror, made when it is not there."""
        target = self.mirror / name
        if not target.exists():
            self._copy(name)
        return target

    def _copy(self, name: str) -> None:
        with self.open(name) as source, atomic(self.mirror / name) as temporary, temporary.open("wb") as file:
            while block := source.read(CHUNK):
                file.write(block)

    def open(self, name: str) -> Any:
        """A file to seek in and read from.

        Raises:
            FlexIPError: it is not there or cannot be read.
        """
        try:
            return self._connect().open_input_file(f"{self._base}/{name}")
        except OSError as error:
            raise FlexIPError(f"{self.uri}/{name} cannot be read ({error})") from error

    def __reduce__(self) -> tuple[Any, ...]:
        return Remote, (self.uri,)
