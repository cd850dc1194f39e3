"""`data caption` and `data cache` on the command line."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_caption_and_cache(commands: argparse._SubParsersAction) -> None:
    """Add both subcommands to those of `python -m flexip_model data`."""
    _add_cache(commands)


def _add_cache(commands: argparse._SubParsersAction) -> None:
    cache = commands.add_parser(
        "cache", help="encode every frame once: VAE latents, CLIP [CLS], DINO features",
        description="Encode every frame of a data folder once, so that training need not. What is finished stays: run "
        "the same command again after an interruption. Under torchrun or accelerate launch the shards are shared out.")
    cache.add_argument("folder", type=Path, metavar="DATA", help="made by `data pack`")
    cache.add_argument("--vae", metavar="FOLDER", help="an SD1.5 model in diffusers' layout, or its vae/")
    cache.add_argument("--clip", metavar="FILE", help="OpenCLIP ViT-H/14, .safetensors")
    cache.add_argument("--dino", metavar="FILE", help="DINOv2-L/14, .safetensors; 0.5 MB a picture for 10 %% of speed")
    cache.add_argument("--size", type=int, default=512, help="of the targets, pixels (512, the paper's)")
    cache.add_argument("--crop", choices=("pad", "center", "subject"), default="pad",
                       help="of references, as the training config's references.crop (pad)")
    cache.add_argument("--flips", action="store_true", help="mirrored pictures too")
    _add_device(cache, batch=16)
    cache.add_argument("--threads", type=int, default=4, help="that decode pictures, per process (4)")
    cache.add_argument("--processes", type=int, default=1, help="on this machine, sharing the shards and the GPUs (1)")
    cache.set_defaults(run=_cache)


def _add_device(parser: argparse.ArgumentParser, batch: int) -> None:
    parser.add_argument("--batch", type=int, default=batch, help=f"pictures at a time ({batch})")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda (auto: a GPU where there is one)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32",
                        help="that the network computes in (float32)")


def _cache(options: argparse.Namespace) -> None:
    from .encode import CacheTask, make_caches

    task = CacheTask(options.folder, options.vae, options.clip, options.dino, options.size, options.crop,
                     options.flips, options.batch, options.device, options.dtype, options.threads)
    make_caches(task, options.processes)
