"""Where the training pictures come from: pinned npm packages, checked by SHA-256."""

from __future__ import annotations

import json
import shutil
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

from ...common.errors import FlexIPError
from ...files.safefile import sha256


@dataclass(frozen=True)
class Package:
    """One published archive: npm name, exact version, SHA-256 of the `.tgz`, license of the contents."""

    name: str
    version: str
    sha256: str
    license: str

    @property
    def filename(self) -> str:
        return f"{self.name.lstrip('@').replace('/', '-')}-{self.version}.tgz"


ANIMATED = (
    Package(
        "@lobehub/fluent-emoji-anim-1",
        "1.0.0",
        "4c03ac178c1eabf2e2a16dd498f3cc2b92dc30ec3466ae38fdc497d4774c99ea",
        "MIT",
    ),
    Package(
        "@lobehub/fluent-emoji-anim-2",
        "1.0.0",
        "e431da8172e394036c330faa77648d6fbbae1fd3b0be95637c4497c9075019c0",
        "MIT",
    ),
    Package(
        "@lobehub/fluent-emoji-anim-3",
        "1.0.0",
        "3624d0c34c819c1794b74ccf6ae9034adff7c4cb6318dd2a645145f0196feb43",
        "MIT",
    ),
    Package(
        "@lobehub/fluent-emoji-anim-4",
        "1.0.0",
        "3d4c08f1e321f70808ef4996aba0ab575a9d97b6c56ffffc92cf6161a7836aa3",
        "MIT",
    ),
)
STATIC = Package(
    "@lobehub/fluent-emoji-3d", "1.1.0", "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58", "MIT"
)
FLAT = Package(
    "@iconify-json/fluent-emoji-flat",
    "1.2.6",
    "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175",
    "MIT",
)
HIGH_CONTRAST = Package(
    "@iconify-json/fluent-emoji-high-contrast",
    "1.2.6",
    "0b92d48c90d2200bd499e3cdd09a127ca6a8c8ddefd34c35eb5a1e4994012ae0",
    "MIT",
)
NAMES = Package(
    "unicode-emoji-json", "0.9.0", "ae7efacb55533385bf8767d613dbd36c71226669759d95919a6e9059f5e4c401", "MIT"
)
NOTO = Package(
    "@iconify-json/noto", "1.2.9", "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad", "Apache-2.0"
)
TWEMOJI = Package(
    "@iconify-json/twemoji", "1.2.5", "19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7", "CC-BY-4.0"
)
PACKAGES = (STATIC, *ANIMATED, FLAT, HIGH_CONTRAST, NOTO, TWEMOJI, NAMES)


def fetch(package: Package, folder: Path) -> Path:
    """Path of the package's archive in `folder`; downloaded with `npm pack` unless it lies there.

    Raises:
        FlexIPError: npm is missing, the download failed, or the archive is not the recorded one.
    """
    path = folder / package.filename
    if not path.exists():
        npm = shutil.which("npm")
        if npm is None:
            raise FlexIPError(
                "npm was not found; it is needed to fetch the training pictures: install Node.js "
                f"or put {package.filename} into {folder}."
            )
        folder.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(
            [npm, "pack", f"{package.name}@{package.version}", "--pack-destination", str(folder)],
            capture_output=True,
            text=True,
        )
        if done.returncode != 0 or not path.exists():
            raise FlexIPError(f"npm could not fetch {package.name}@{package.version}: {done.stderr.strip()[-400:]}")
    digest = sha256(path)
    if digest != package.sha256:
        raise FlexIPError(
            f"{path} is not the recorded {package.name}@{package.version}: SHA-256 {digest}, "
            f"expected {package.sha256}. Delete it and run again."
        )
    return path


def read_json(archive: Path, member: str) -> dict:
    """A JSON file of an npm archive, by its path below `package/`."""
    with tarfile.open(archive) as tar:
        handle = tar.extractfile(f"package/{member}")
        if handle is None:
            raise FlexIPError(f"{archive} has no package/{member}.")
        return json.load(handle)


def read_drawings(archive: Path) -> dict[str, tuple[str, int]]:
    """Drawings of an Iconify archive: hex code points to the body of an SVG and its side."""
    names, icons = read_json(archive, "chars.json"), read_json(archive, "icons.json")
    return {
        code: (icons["icons"][name]["body"], icons["width"]) for code, name in names.items() if name in icons["icons"]
    }


def read_assets(archive: Path, wanted: set[str]) -> dict[str, bytes]:
    """Pictures of a Fluent archive: file stem (hex code points) to WebP bytes, only those in `wanted`."""
    found = {}
    with tarfile.open(archive) as tar:
        for member in tar:
            stem = Path(member.name).stem
            if member.name.endswith(".webp") and stem in wanted:
                handle = tar.extractfile(member)
                if handle is not None:
                    found[stem] = handle.read()
    return found
