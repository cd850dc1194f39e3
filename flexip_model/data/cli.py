"""`python -m flexip_model data …`: make, check and show data folders."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..common.errors import FlexIPError
from ..common.extras import need
from .commands_encode import add_caption_and_cache

REQUIRED = {"pyarrow": "pyarrow", "PIL": "pillow", "av": "av", "pycocotools": "pycocotools"}


def add_commands(commands: Any) -> None:
    """Add `data` and its own commands to an argparse sub-parser collection; imports nothing heavy."""
    data = commands.add_parser("data", help="training data: pack, check, show, caption, cache")
    inner = data.add_subparsers(title="data commands", required=True, metavar="COMMAND")
    _add_pack(inner)

    merge = inner.add_parser("merge", help="make one dataset of what several processes packed (RANK, WORLD_SIZE)")
    merge.add_argument("folder", type=Path, metavar="DATA")
    merge.add_argument("name", metavar="NAME", help="the dataset's name: pack's --name, or its LAYOUT")
    merge.set_defaults(run=_merge)

    validate = inner.add_parser("validate", help="check a data folder: index, shards, every frame's bytes")
    validate.add_argument("folder", type=Path, metavar="DATA")
    validate.add_argument("--quick", action="store_true", help="only the index and the sizes of the shards")
    validate.set_defaults(run=_validate)

    show = inner.add_parser("show", help="what a data folder holds, and its licenses")
    show.add_argument("folder", type=Path, metavar="DATA")
    show.set_defaults(run=_show)
    add_caption_and_cache(inner)


def _add_pack(inner: Any) -> None:
    pack = inner.add_parser("pack", help="make a dataset from pictures, videos, views, or one of Table 3's layouts")
    pack.add_argument(
        "layout", metavar="LAYOUT", help="pictures, videos, views, or a data set's name; see docs/data.md"
    )
    pack.add_argument("source", type=Path, metavar="SOURCE", help="the folder to read; it is never changed")
    pack.add_argument("folder", type=Path, metavar="DATA", help="the data folder; made when it is missing")
    pack.add_argument("--name", help="the dataset's name in the data folder (default: LAYOUT)")
    pack.add_argument("--license", default="", help="goes into the index (default: the data set's own)")
    pack.add_argument(
        "--quality",
        choices=("base", "high"),
        help="high is what the last 40,000 of the paper's steps "
        "train on (default: Table 3's; base for your own material)",
    )
    pack.add_argument("--val", type=float, default=0.01, metavar="SHARE", help="for validation (default %(default)s)")
    pack.add_argument(
        "--heldout",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="never trained on, nor are copies of it (default %(default)s)",
    )
    pack.add_argument(
        "--exclude",
        type=Path,
        nargs="+",
        action="extend",
        default=[],
        metavar="PLACE",
        help="folders of pictures, or files of hashes, that must not get in, such as a benchmark's",
    )
    pack.add_argument(
        "--near",
        type=int,
        default=6,
        metavar="BITS",
        help="pictures whose difference hashes differ in at most this many of 64 bits are looked at "
        "as possible copies (default %(default)s)",
    )
    pack.add_argument(
        "--short-side",
        type=int,
        default=640,
        metavar="PIXELS",
        help="larger pictures are made this small (default %(default)s)",
    )
    pack.add_argument(
        "--min-side", type=int, default=64, metavar="PIXELS", help="smaller pictures are left out (default %(default)s)"
    )
    pack.add_argument("--views", type=int, default=8, help="most frames of a group without video (default %(default)s)")
    pack.add_argument("--frames", type=int, default=4, help="most frames of a video's shot (default %(default)s)")
    pack.add_argument(
        "--gap",
        type=float,
        default=0.1,
        metavar="SHARE",
        help="least distance of frames, as a share of the video's length (default %(default)s)",
    )
    pack.add_argument(
        "--gap-of",
        choices=("video", "shot"),
        default="video",
        help="whose length: `shot` for long videos with short shots (default %(default)s)",
    )
    pack.add_argument(
        "--similarity",
        type=float,
        nargs=2,
        default=(0.4, 0.985),
        metavar=("LOW", "HIGH"),
        help="frames share at least LOW of their colors and are at most HIGH the same (default 0.4 0.985)",
    )
    pack.add_argument(
        "--broken",
        type=float,
        default=0.05,
        metavar="SHARE",
        help="stop when more than this share is unreadable (default %(default)s)",
    )
    pack.add_argument("--processes", type=int, default=1, help="processes that decode (default %(default)s)")
    pack.add_argument(
        "--shard-megabytes",
        type=float,
        default=256,
        metavar="MB",
        help="size of a shard, the work that a kill loses at most (default %(default)s)",
    )
    pack.set_defaults(run=_pack)


def _pack(options: argparse.Namespace) -> None:
    need("training data", REQUIRED)
    from .pack.frame_choice import VideoChoice
    from .pack.layouts import Choice, find_layout
    from .pack.packing import PackTask, pack

    layout = find_layout(options.layout)
    low, high = options.similarity
    choice = Choice(
        options.views, VideoChoice(frames=options.frames, gap=options.gap, gap_of=options.gap_of, low=low, high=high)
    )
    pack(
        PackTask(
            layout.name,
            options.source,
            options.folder,
            options.name or layout.name,
            license=options.license,
            quality=options.quality or "",
            val=options.val,
            heldout=options.heldout,
            exclude=tuple(options.exclude),
            near=options.near,
            short_side=options.short_side,
            min_side=options.min_side,
            choice=choice,
            broken=options.broken,
            processes=options.processes,
            max_bytes=int(options.shard_megabytes * 2**20),
        )
    )


def _merge(options: argparse.Namespace) -> None:
    need("training data", REQUIRED)
    from .pack.merging import merge

    merge(options.folder, options.name)


def _validate(options: argparse.Namespace) -> None:
    need("training data", REQUIRED)
    from .validate import validate

    check = validate(options.folder, options.quick)
    for text in check.first:
        print(text)
    if check.errors:
        raise FlexIPError(
            f"{options.folder} is damaged: {check.errors:,} errors in {check.groups:,} groups, the first "
            "are above; pack the datasets that they name again"
        )
    print(f"{options.folder}: {check.groups:,} groups, {check.frames:,} frames, no error")
    for sentence in check.captions.sentences():
        print(sentence)


def _show(options: argparse.Namespace) -> None:
    need("training data", REQUIRED)
    from .validate import show

    print(show(options.folder))
