"""Model folders: what is registered with ComfyUI, which files there are, and what to say when one is missing."""

from __future__ import annotations

from pathlib import Path

import folder_paths

from ...flexip_model.common.errors import FlexIPError

NONE_FOUND = "(no file found)"
EXTENSIONS = (".safetensors", ".sft")
SOURCES = {
    "flexip": (
        "no FlexIP adapter for SD1.5 is published; train one, or turn an IP-Adapter file into one with "
        "`python -m flexip_model convert`"
    ),
    "clip_vision": (
        "OpenCLIP ViT-H/14: model.safetensors of the Hugging Face repository laion/CLIP-ViT-H-14-laion2B-s32B-b79K, "
        "or models/image_encoder/model.safetensors of h94/IP-Adapter"
    ),
    "dinov2": "DINOv2-L/14: model.safetensors of the Hugging Face repository facebook/dinov2-large",
}


def register_folders() -> None:
    """Tell ComfyUI about `models/flexip` and `models/dinov2`, keeping what others registered under these names."""
    for kind in ("flexip", "dinov2"):
        folder_paths.add_model_folder_path(kind, str(Path(folder_paths.models_dir) / kind))
        folders, extensions = folder_paths.folder_names_and_paths[kind]
        folder_paths.folder_names_and_paths[kind] = (folders, set(extensions) | folder_paths.supported_pt_extensions)


def files(*kinds: str) -> list[str]:
    """Names of the safetensors files in these folders, to be asked anew each time; never empty."""
    found = [name for kind in kinds for name in folder_paths.get_filename_list(kind) if name.endswith(EXTENSIONS)]
    return sorted(set(found)) or [NONE_FOUND]


def preferred(names: list[str], *parts: str) -> str:
    """The first name that holds one of the parts (in any case), as a combo's default; else the first name."""
    return next((n for n in names if any(part in n.lower() for part in parts)), names[0])


def locate(name: str, *kinds: str) -> Path:
    """The path of a file that was chosen in one of these folders.

    Raises:
        FlexIPError: there is none; the message names the file, where to get it, the folders and what they hold.
    """
    for kind in kinds:
        path = folder_paths.get_full_path(kind, name)
        if path is not None:
            return Path(path)
    searched = [folder for kind in kinds for folder in folder_paths.get_folder_paths(kind)]
    seen = sorted({file for kind in kinds for file in folder_paths.get_filename_list(kind)})
    wanted = "no file is chosen" if name == NONE_FOUND else f'"{name}" is not there'
    home = folder_paths.get_folder_paths(kinds[-1])[0]
    raise FlexIPError(
        f"{wanted}; looked in {', '.join(searched)} and saw {', '.join(seen) if seen else 'nothing'}. "
        f"What is needed: {SOURCES[kinds[-1]]}. Put it into {home} and press R in the editor."
    )


def check(name: str, *kinds: str) -> bool | str:
    """For `validate_inputs`: true, or `locate`'s message, in place of ComfyUI's "value not in list"."""
    try:
        locate(name, *kinds)
    except FlexIPError as error:
        return str(error)
    return True


def fingerprint(*paths: Path) -> str:
    """Changes when one of the files is replaced, so that ComfyUI loads it anew."""
    return "|".join(f"{path}:{path.stat().st_mtime_ns}:{path.stat().st_size}" for path in paths)
