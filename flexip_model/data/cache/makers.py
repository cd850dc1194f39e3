"""The three kinds of cache: what a network sees of a frame, and what is kept of its answer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from torch import Tensor

from ...common.errors import FlexIPError
from ...encoders import ClipEncoder, DinoEncoder, load_clip, load_dino
from ...files.safefile import read_header
from ...images.buckets import bucket_sizes, nearest
from ...images.crops import fit
from ...images.preprocess import keep_patches, normalize, prepare, reference_crop
from .manifest import Manifest, clip_manifest, dino_manifest, latents_manifest, tensor_name

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..format import Frame

VARIANTS = ("", "white", "flip", "white-flip", "keep", "white-keep", "flip-keep", "white-flip-keep")


class Views(NamedTuple):
    """What a network is to see of a frame.

    Attributes:
        pixels: by variant, (3, H, W) float32 each, normalized for the network.
        kept: tensors that are stored as they are, by variant.
        complaint: why a variant is missing.
    """

    pixels: dict[str, Tensor]
    kept: dict[str, Tensor]
    complaint: str = ""


class Maker(Protocol):
    """One kind of cache.

    Attributes:
        manifest: what the cache that it makes depends on.
        name: the network's name, for people.
        module: the network.
    """

    manifest: Manifest
    name: str
    module: Any

    def views(self, picture: Image, mask: Tensor | None, frame: Frame) -> Views:
        """Return what the network is to see of a frame; it runs in a thread."""

    def encode(self, pixels: Tensor) -> Tensor:
        """Return what is kept of each picture, from (B, 3, H, W) on the network's device and in its dtype."""


class LatentMaker:
    """Latents: the mode of the VAE's distribution times its scaling factor.

    The mode alone and no deviation beside it: SD1.5's kind of VAE is trained with so little weight on its prior that
    its own noise is far below the latents' deviation (`noise`; 0.001 % for the model that ships), the deviation would
    double the cache, and training without a cache takes the mode too (our choice).

    Attributes:
        noise: the VAE's own deviation as a share of the latents', in the pictures encoded last; None before.
    """

    def __init__(self, vae: Any, name: str, size: int, buckets: tuple[int, float] | None = None) -> None:
        factor = 2 ** (len(vae.config.block_out_channels) - 1)
        if size < factor or size % factor:
            raise FlexIPError(f"the size is {size} px; expected a multiple of {factor}, the VAE's factor")
        if buckets is not None and buckets[0] % factor:
            raise FlexIPError(f"buckets have a step of {buckets[0]} px; expected a multiple of {factor}, as the size")
        self.module: Any = vae
        self.name = name
        self.sizes = [(size, size)] if buckets is None else bucket_sizes(size, *buckets)
        self.noise: float | None = None
        self.manifest = latents_manifest(vae, size, buckets)

    def views(self, picture: Image, mask: Tensor | None, frame: Frame) -> Views:
        size = self.sizes[int(nearest(self.sizes, [picture.size])[0])]
        return Views({"": fit(picture, size, frame.box)}, {})

    def encode(self, pixels: Tensor) -> Tensor:
        found = self.module.encode(pixels).latent_dist
        self.noise = float(found.std.mean() / found.mode().std())
        return found.mode().float() * self.module.config.scaling_factor


class ReferenceMaker:
    """CLIP's [CLS] or DINO's patches of a frame as a reference: as it is and, where it has a mask, on white.

    The white background is our choice: the reference is to show the subject and nothing else.
    """

    def __init__(self, encoder: ClipEncoder | DinoEncoder, crop: str, flips: bool) -> None:
        manifest = clip_manifest if isinstance(encoder, ClipEncoder) else dino_manifest
        self.module: Any = encoder
        self.name, self.encoder, self.crop = encoder.name, encoder, crop
        self.manifest = manifest(encoder, crop, flips)  # type: ignore[arg-type]

    def views(self, picture: Image, mask: Tensor | None, frame: Frame) -> Views:
        size = self.encoder.image_size
        plain = prepare(picture, size, None, reference_crop(self.crop, picture.size, frame.box, False))
        pixels, kept, complaint = {"": plain.pixels[0]}, self._keep("", plain.subject), ""
        try:
            if mask is not None:
                crop = reference_crop(self.crop, picture.size, frame.box, True)
                seen = prepare(picture, size, mask[None], crop)
                pixels["white"] = seen.pixels[0]
                kept |= self._keep("white", seen.subject)
        except FlexIPError as error:
            complaint = str(error)
        if self.manifest.flips:
            pixels |= {f"{name}-flip".lstrip("-"): value.flip(-1) for name, value in pixels.items()}
        ready = {name: normalize(value, self.encoder.mean, self.encoder.std) for name, value in pixels.items()}
        return Views(ready, kept, complaint)

    def _keep(self, variant: str, subject: Tensor | None) -> dict[str, Tensor]:
        keep = keep_patches(subject, self.encoder.patch)
        if keep is None or not isinstance(self.encoder, DinoEncoder):
            return {}
        side = self.encoder.image_size // self.encoder.patch
        grid = keep[0].byte().view(side, side)
        kept = {"keep": grid.flatten()} | ({"flip-keep": grid.flip(-1).flatten()} if self.manifest.flips else {})
        return {f"{variant}-{name}".lstrip("-"): value for name, value in kept.items()}

    def encode(self, pixels: Tensor) -> Tensor:
        found = self.encoder(pixels)
        return (found if isinstance(found, Tensor) else found.cls).float()


def load_vae(path: str | Path, configs: str | Path | None = None) -> Any:
    """Load a VAE in fp32 on the CPU: diffusers' layout, its own folder or a model folder with `vae/` in it; or a
    `.safetensors` file of a VAE or of a whole model, in either layout of keys.

    Args:
        configs: for a file, a folder as the first kind, whose config it takes; weights need not be in it.

    Raises:
        FlexIPError: no such place, no safetensors in it, a file without configs, or not diffusers' `AutoencoderKL`.
    """
    from diffusers import AutoencoderKL

    place = Path(path)
    if place.is_file():
        read_header(place)
        if configs is None:
            raise FlexIPError(
                f"{place} is a file, which has no configs; name the folder vae/ of an SD1.5 model in diffusers' layout "
                "with --vae-configs (its weights are not read)"
            )
    folder = _vae_folder(configs if place.is_file() and configs is not None else place)
    try:
        if place.is_file():
            vae = AutoencoderKL.from_single_file(
                str(place), config=str(folder), local_files_only=True, low_cpu_mem_usage=False
            )
        else:
            vae = AutoencoderKL.from_pretrained(
                folder, use_safetensors=True, local_files_only=True, low_cpu_mem_usage=False
            )
    except Exception as error:  # of whatever kind diffusers raises
        raise FlexIPError(f"the VAE in {place} cannot be loaded ({' '.join(str(error).split())[:300]})") from error
    return vae.float().eval().requires_grad_(False)


def _vae_folder(path: str | Path) -> Path:
    """Where a VAE's config.json lies: the folder itself, or vae/ in it."""
    folder = Path(path) / "vae" if (Path(path) / "vae").is_dir() else Path(path)
    if not (folder / "config.json").is_file():
        raise FlexIPError(
            f"there is no VAE in {path}: no config.json; give the folder vae/ of an SD1.5 model in diffusers' layout"
        )
    return folder


def load_makers(
    vae: str | None,
    clip: str | None,
    dino: str | None,
    *,
    size: int,
    crop: str,
    flips: bool,
    vae_configs: str | None = None,
    buckets: tuple[int, float] | None = None,
) -> list[Maker]:
    """Make the kinds of cache that were asked for, their networks in fp32 on the CPU.

    Raises:
        FlexIPError: nothing was asked for, or a file is not what it should be.
    """
    makers: list[Maker] = []
    if vae is not None:
        makers.append(LatentMaker(load_vae(vae, vae_configs), str(vae), size, buckets))
    if clip is not None:
        makers.append(ReferenceMaker(load_clip(clip), crop, flips))
    if dino is not None:
        makers.append(ReferenceMaker(load_dino(dino), crop, flips))
    if not makers:
        raise FlexIPError("nothing to cache; give --vae FOLDER, --clip FILE or --dino FILE")
    for maker in makers:
        maker.module.float().eval().requires_grad_(False)
    return makers


def all_names(frame_ids: Sequence[str]) -> list[str]:
    """Every name that any maker may give a tensor of these frames: the room that a file's header needs."""
    return [tensor_name(frame_id, variant) for frame_id in frame_ids for variant in VARIANTS]
