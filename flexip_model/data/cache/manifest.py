"""What a cache is made of, whether it still fits, and reading it.

A cache lies in `caches/KEY/`: `manifest.json`, and for each shard NAME-000000.tar a `NAME-000000.safetensors`, whose
tensors are named by frame: `FRAME_ID`, and variants of it `FRAME_ID:flip`, `FRAME_ID:white`, `FRAME_ID:white-flip`; a
DINO cache has `FRAME_ID:keep`, `FRAME_ID:white-keep` and so on too, the patches that lie on picture and subject, where
these are not all. A frame that could not be read is absent.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import KW_ONLY, asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ...common.errors import FlexIPError, UnreadableError
from ...encoders import ClipEncoder, DinoEncoder
from ...encoders.weights import weights_hash
from ...files.safefile import atomic
from ...images import crops
from ..format import shard_path
from ..format.remote import Remote

if TYPE_CHECKING:
    from ..format import Frame

CACHE_KINDS = {"latents": "VAE latents", "clip": "CLIP [CLS] embeddings", "dino": "DINO patch features"}
REFERENCE_VERSION = {"center": 3, "pad": 2, "subject": 2}
"""The version of what a cache holds of references in each crop mode, as `preprocess.prepare` and `reference_crop` make
them; raise it when that changes. `center` follows the subject's box since 3."""
OPEN_FILES = 64
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Manifest:
    """What decides a cache's values, so that two caches with equal manifests are interchangeable.

    Attributes:
        kind: one of `CACHE_KINDS`.
        weights: the hash of the network's weights (`encoders.weights.weights_hash`).
        size: side of the pictures that the network saw, pixels.
        crop: which part of a frame it saw: for latents `square`, or the sizes of `buckets.bucket_sizes` by step and
            limit; for references a crop mode of `preprocess.prepare`.
        version: the version of the crop's rule.
        flips: whether mirrored pictures are in it too.
    """

    kind: str
    weights: str
    _: KW_ONLY
    size: int
    crop: str
    version: int
    flips: bool = False

    @property
    def key(self) -> str:
        """The folder's name: kind and 12 hexadecimal digits of the rest."""
        text = json.dumps(asdict(self), sort_keys=True)
        return f"{self.kind}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"

    def serves(self, wanted: Manifest) -> bool:
        """Whether everything that `wanted` asks for is in this cache."""
        return not self.differences(wanted)

    def differences(self, wanted: Manifest) -> list[str]:
        """What keeps this cache from serving `wanted`, in words."""
        what = {"latents": "VAE", "clip": "CLIP encoder", "dino": "DINO encoder"}[self.kind]
        found = []
        if self.weights != wanted.weights:
            found.append(f"another {what} (weights {self.weights}, now {wanted.weights})")
        if self.size != wanted.size:
            found.append(f"another size ({self.size} px, now {wanted.size} px)")
        if (self.crop, self.version) != (wanted.crop, wanted.version):
            found.append(f"another crop ({self.crop} {self.version}, now {wanted.crop} {wanted.version})")
        if wanted.flips and not self.flips:
            found.append("no mirrored pictures, which are asked for now")
        return found


def latents_manifest(vae: Any, size: int, buckets: tuple[int, float] | None = None) -> Manifest:
    """Describe the latents of diffusers' `AutoencoderKL` at `size` px, or in buckets of its area by their step and
    limit; targets are never mirrored.

    The hash covers the encoding half alone and the scaling: a VAE with another decoder gives the same latents.
    """
    half = {k: v for k, v in vae.state_dict().items() if k.startswith(("encoder.", "quant_conv."))}
    weights = f"{weights_hash(half)}*{vae.config.scaling_factor:g}"
    crop = "square" if buckets is None else f"buckets of {buckets[0]} px, at most {buckets[1]:g} to 1"
    return Manifest("latents", weights, size=size, crop=crop, version=crops.VERSION)


def clip_manifest(encoder: ClipEncoder, crop: str = "pad", flips: bool = False) -> Manifest:
    """Describe a CLIP encoder's [CLS] of references in this crop mode (`preprocess.prepare`)."""
    return Manifest(
        "clip", encoder.weights_hash, size=encoder.image_size, crop=crop, version=REFERENCE_VERSION[crop], flips=flips
    )


def dino_manifest(encoder: DinoEncoder, crop: str = "pad", flips: bool = False) -> Manifest:
    """Describe a DINO encoder's patch features of references in this crop mode (`preprocess.prepare`)."""
    return Manifest(
        "dino", encoder.weights_hash, size=encoder.image_size, crop=crop, version=REFERENCE_VERSION[crop], flips=flips
    )


def list_caches(folder: str | Path) -> dict[str, Manifest]:
    """The caches of a data folder by key; the key is the folder's name.

    Raises:
        FlexIPError: a manifest is damaged, or its folder was renamed.
    """
    return {
        path.parent.name: read_manifest(path.parent)[0]
        for path in sorted((Path(folder) / "caches").glob(f"*/{MANIFEST}"))
    }


def check_cache(folder: str | Path, wanted: Manifest) -> str:
    """The key of a cache that serves what is wanted.

    Raises:
        FlexIPError: there is none of the kind, or what there is was made with something else, which is named.
    """
    caches = list_caches(folder)
    of_kind = {key: manifest for key, manifest in caches.items() if manifest.kind == wanted.kind}
    fitting = [key for key, manifest in of_kind.items() if manifest.serves(wanted)]
    if fitting:
        return wanted.key if wanted.key in fitting else fitting[0]
    what = CACHE_KINDS[wanted.kind]
    if not of_kind:
        raise FlexIPError(f"{folder} has no cache of {what}; make one with `python -m flexip_model data cache`")
    nearest = min(of_kind, key=lambda key: len(of_kind[key].differences(wanted)))
    raise FlexIPError(
        f"the cache of {what} in {Path(folder) / 'caches' / nearest} is stale, it was made with "
        f"{' and '.join(of_kind[nearest].differences(wanted))}; make a new one with "
        "`python -m flexip_model data cache` (the old one may be deleted)"
    )


def read_manifest(folder: Path) -> tuple[Manifest, dict[str, Any]]:
    """A cache folder's manifest, and what else stands in the file (encoder's name, dtype).

    Raises:
        FlexIPError: it is missing, damaged, or another folder's.
    """
    path = folder / MANIFEST
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        made_by = {entry.name: content["made_by"][entry.name] for entry in fields(Manifest)}
        manifest = Manifest(**made_by)
        whole = manifest.kind in CACHE_KINDS and manifest.key == folder.name
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FlexIPError(f"{path} cannot be read ({error!r}); delete {folder} and make the cache again") from error
    if not whole:
        raise FlexIPError(f"{path} does not belong to a folder of this name; delete {folder} and make the cache again")
    return manifest, {key: value for key, value in content.items() if key != "made_by"}


def write_manifest(folder: Path, manifest: Manifest, more: Mapping[str, Any]) -> None:
    """Put a manifest into a cache folder, atomically.

    Raises:
        FlexIPError: the disk refuses.
    """
    with atomic(folder / MANIFEST) as temporary:
        text = json.dumps({"made_by": asdict(manifest), **more}, indent=2, ensure_ascii=False)
        temporary.write_text(text + "\n", encoding="utf-8")


def cache_file(folder: str | Path, key: str, shard: str) -> Path:
    """Where a cache holds the frames of a shard."""
    return Path(folder) / "caches" / key / f"{shard_path(Path(folder), shard).stem}.safetensors"


class CacheReader:
    """Cached tensors of frames, on the CPU; it can be pickled and forked, each process opens its own files.

    Args:
        folder: the data folder.
        key: the cache's key, from `check_cache`.
        remote: where the cache's files are fetched from when they are not in `folder`.

    Raises:
        FlexIPError: as `read_manifest`.
    """

    def __init__(self, folder: str | Path, key: str, remote: Remote | None = None) -> None:
        self.folder, self.key, self.remote = Path(folder), key, remote
        self.manifest, _ = read_manifest(self.folder / "caches" / key)
        self._start()

    def get(self, frame: Frame, white: bool = False, flip: bool = False) -> Tensor | None:
        """A frame's tensor in float32, or None where the cache does not hold it.

        Args:
            frame: of the data folder's index; its `caches` must name this cache.
            white: the frame is shown on white where its mask is black; latents have no such variant.
            flip: the picture is mirrored.

        Returns:
            Latents: (4, H / 8, W / 8) of the target's size, the mode of the VAE's distribution times its scaling
            factor; CLIP: (C,), the projected [CLS]; DINO: (M, W), the patches in row order.

        Raises:
            UnreadableError: the cache's file of this shard is missing or damaged.
        """
        value = self._read(frame, "-".join(["white"] * white + ["flip"] * flip))
        return None if value is None else value.float()

    def keep(self, frame: Frame, white: bool = False, flip: bool = False) -> Tensor | None:
        """Tell which patches of `get(frame, white, flip)` in a DINO cache are to be read.

        Returns:
            (M,) bool in row order, false for padding and, with `white`, for what is not the subject; None for all.
        """
        value = self._read(frame, "-".join(["white"] * white + ["flip"] * flip + ["keep"]))
        return None if value is None else value.bool()

    def _read(self, frame: Frame, variant: str) -> Tensor | None:
        if self.key not in frame.caches:
            return None
        file, names = self._open(frame.shard)
        name = tensor_name(frame.frame_id, variant)
        return file.get_tensor(name) if name in names else None

    def _open(self, shard: str) -> tuple[Any, frozenset[str]]:
        from safetensors import SafetensorError, safe_open

        if self._process != os.getpid():
            self._start()
        found = self._files.pop(shard, None)
        if found is None:
            path = cache_file(self.folder, self.key, shard)
            try:
                if self.remote is not None:
                    path = self.remote.fetch(path.relative_to(self.folder).as_posix())
                file = safe_open(str(path), framework="pt")
                found = file, frozenset(file.keys())
            except (OSError, SafetensorError) as error:
                raise UnreadableError(
                    f"{path} cannot be read ({error}); delete it and run `python -m flexip_model data cache` again"
                ) from error
            while len(self._files) >= OPEN_FILES:
                self._files.popitem(last=False)
        self._files[shard] = found
        return found

    def _start(self) -> None:
        self._process = os.getpid()
        self._files: OrderedDict[str, tuple[Any, frozenset[str]]] = OrderedDict()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.folder, self.key, self.remote)


def tensor_name(frame_id: str, variant: str) -> str:
    """A tensor's name in a cache file: the frame's, and a variant's after a colon."""
    return f"{frame_id}:{variant}" if variant else frame_id
