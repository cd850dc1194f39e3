"""`data caption` and `data cache` on the command line."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ..common.errors import FlexIPError
from ..common.extras import need

REQUIRED = {"pyarrow": "pyarrow", "PIL": "pillow"}
BUCKETS = (64, 2.0)
"""Step and limit where the command line does not say: those of a training config."""


def add_caption_and_cache(commands: argparse._SubParsersAction) -> None:
    """Add both subcommands to those of `python -m flexip_model data`."""
    _add_caption(commands)
    _add_cache(commands)


def _add_caption(commands: argparse._SubParsersAction) -> None:
    caption = commands.add_parser(
        "caption",
        help="write a caption for every frame that has none of its own",
        description="Write a caption for every frame that has none, or shares it with all frames of its clip. What is "
        "finished stays: run the same command again after an interruption. Under torchrun or accelerate launch the "
        "shards are shared out.",
    )
    caption.add_argument("folder", type=Path, metavar="DATA", help="made by `data pack`")
    caption.add_argument(
        "--captioner",
        choices=("qwen2-vl", "chat", "blip", "file"),
        default="qwen2-vl",
        help="qwen2-vl (the paper's); chat: another model with a chat template; blip: a model that "
        "captions unasked; file: what another tool wrote",
    )
    caption.add_argument("--model", metavar="FOLDER", help="the model, such as a local Qwen2-VL-7B-Instruct")
    caption.add_argument(
        "--download",
        action="store_true",
        help="let --model be a name on the Hugging Face hub; without it nothing is fetched",
    )
    caption.add_argument(
        "--captions",
        type=Path,
        metavar="FILE",
        help="for file: JSON lines with frame_id and caption, or a folder of FRAME_ID.txt",
    )
    caption.add_argument(
        "--form",
        choices=("detailed", "scene"),
        default="detailed",
        help="detailed: looks, action and scene, our reading of the paper (4.1; %(default)s); scene: without colors, "
        "materials and clothes, which are then the reference's alone to carry, and half as long",
    )
    caption.add_argument("--again", action="store_true", help="caption what has captions too, and replace them")
    caption.add_argument(
        "--keep-shared",
        action="store_true",
        help="leave a text that stands under all frames of a clip; the paper wants one for each frame (4.1)",
    )
    _add_device(caption, ("auto", "float32", "bfloat16", "float16"))
    caption.set_defaults(run=_caption)


def _add_cache(commands: argparse._SubParsersAction) -> None:
    cache = commands.add_parser(
        "cache",
        help="encode every frame once: VAE latents, CLIP [CLS], DINO features",
        description="Encode every frame of a data folder once, so that training need not. What is finished stays: run "
        "the same command again after an interruption. Under torchrun or accelerate launch the shards are shared out.",
    )
    cache.add_argument("folder", type=Path, metavar="DATA", help="made by `data pack`")
    cache.add_argument(
        "--vae", metavar="PLACE", help="an SD1.5 model in diffusers' layout, or its vae/; or a .safetensors of either"
    )
    cache.add_argument("--vae-configs", metavar="FOLDER", help="for a single file: diffusers' configs")
    cache.add_argument("--clip", metavar="FILE", help="OpenCLIP ViT-H/14, .safetensors")
    cache.add_argument("--dino", metavar="FILE", help="DINOv2-L/14, .safetensors; 0.5 MB a picture for 10 %% of speed")
    cache.add_argument("--size", type=int, default=512, help="of the targets, pixels (512, the paper's)")
    cache.add_argument(
        "--buckets",
        action="store_true",
        help="targets of any proportions, as the training config's buckets; see --bucket-step and --bucket-limit",
    )
    cache.add_argument("--bucket-step", type=int, metavar="PIXELS", help=f"as buckets.step ({BUCKETS[0]})")
    cache.add_argument("--bucket-limit", type=float, metavar="N", help=f"as buckets.limit ({BUCKETS[1]:g})")
    cache.add_argument(
        "--crop",
        choices=("pad", "center", "subject"),
        default="pad",
        help="of references, as the training config's references.crop (pad)",
    )
    cache.add_argument("--flips", action="store_true", help="mirrored pictures too")
    _add_device(cache, ("float32", "bfloat16", "float16"))
    cache.set_defaults(run=_cache)


def _add_device(parser: argparse.ArgumentParser, dtypes: tuple[str, ...]) -> None:
    parser.add_argument("--batch", type=int, default=16, help="pictures at a time (%(default)s)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda (auto: a GPU where there is one)")
    parser.add_argument("--dtype", choices=dtypes, default=dtypes[0], help="that the network computes in (%(default)s)")
    parser.add_argument("--threads", type=int, default=4, help="that decode pictures, per process (%(default)s)")
    parser.add_argument(
        "--processes", type=int, default=1, help="on this machine, sharing the shards and the GPUs (%(default)s)"
    )


def _caption(options: argparse.Namespace) -> None:
    need("training data", REQUIRED)
    from .caption.captioning import CaptionTask, caption

    task = CaptionTask(
        options.folder,
        options.captioner,
        options.model,
        captions=options.captions,
        download=options.download,
        batch=options.batch,
        device=options.device,
        dtype=options.dtype,
        threads=options.threads,
        form=options.form,
        again=options.again,
        keep_shared=options.keep_shared,
    )
    try:
        report = caption(task, options.processes)
    except KeyboardInterrupt:
        print("stopped; what was captioned is in the index, the same command goes on from here", file=sys.stderr)
        sys.exit(130)
    print("\n".join(report.lines()))


def _buckets(options: argparse.Namespace) -> tuple[int, float] | None:
    """Step and limit; None for squares.

    Raises:
        FlexIPError: one of them is given, and no buckets are asked for.
    """
    given = (options.bucket_step, options.bucket_limit)
    if not options.buckets:
        if given != (None, None):
            raise FlexIPError("--bucket-step and --bucket-limit are of buckets; give --buckets too, or leave them out")
        return None
    step, limit = (usual if value is None else value for value, usual in zip(given, BUCKETS, strict=True))
    return int(step), float(limit)


def _cache(options: argparse.Namespace) -> None:
    need("training data", REQUIRED)
    from .cache.encode import CacheTask, make_caches

    task = CacheTask(
        options.folder,
        options.vae,
        options.clip,
        options.dino,
        vae_configs=options.vae_configs,
        size=options.size,
        buckets=_buckets(options),
        crop=options.crop,
        flips=options.flips,
        batch=options.batch,
        device=options.device,
        dtype=options.dtype,
        threads=options.threads,
    )
    make_caches(task, options.processes)
