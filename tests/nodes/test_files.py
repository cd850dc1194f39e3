"""Files that users put into ComfyUI's model folders: listed, missing, refused."""

import importlib
import os
import shutil
from pathlib import Path

import pytest

from flexip_model.files.adapter_file import save_adapter

from ..support.helpers import tiny_adapter, tiny_config


def test_a_missing_file_is_named_with_its_source_and_folder(nodes, comfy_base):
    text = nodes["FlexIPLoadEncoders"].validate_inputs("ViT-H.safetensors", "x.safetensors")
    assert '"ViT-H.safetensors" is not there' in text and "laion/CLIP-ViT-H-14-laion2B-s32B-b79K" in text
    assert str(comfy_base / "models" / "clip_vision") in text
    text = nodes["FlexIPLoadAdapter"].validate_inputs("(no file found)")
    assert "no file is chosen" in text and str(comfy_base / "models" / "flexip") in text and "convert" in text
    options = nodes["FlexIPLoadAdapter"].INPUT_TYPES()["required"]["adapter_name"][1]["options"]
    assert options == ["(no file found)"]


def test_files_are_listed_anew_and_loaded(nodes, comfy_base, tiny_folder):
    folders = {name: comfy_base / "models" / name for name in ("flexip", "clip_vision", "dinov2")}
    for folder in folders.values():
        folder.mkdir(parents=True, exist_ok=True)
    adapter = tiny_adapter()
    for name, trained in (("good", True), ("empty", False), ("empty_untrained", False)):
        save_adapter(
            folders["flexip"] / f"{name}.safetensors",
            adapter.config,
            adapter.state_dict(),
            training={"trained": trained},
        )
    shutil.copy(tiny_folder / "encoders" / "clip_vision.safetensors", folders["clip_vision"] / "vit-h.safetensors")
    shutil.copy(tiny_folder / "encoders" / "dinov2.safetensors", folders["dinov2"] / "dino.safetensors")
    (folders["dinov2"] / "pickle.bin").write_bytes(b"x")
    try:
        load = nodes["FlexIPLoadAdapter"]
        options = load.INPUT_TYPES()["required"]["adapter_name"][1]["options"]
        assert options == ["empty.safetensors", "empty_untrained.safetensors", "good.safetensors"]
        assert load.validate_inputs("good.safetensors") is True
        assert load.execute("good.safetensors").args[0].info.trained
        assert load.execute("empty_untrained.safetensors").args[0].name == "empty_untrained.safetensors"
        with pytest.raises(ValueError, match="empty.safetensors was never trained"):
            load.execute("empty.safetensors")
        before = load.fingerprint_inputs("good.safetensors")
        os.utime(folders["flexip"] / "good.safetensors", (1, 1))
        assert load.fingerprint_inputs("good.safetensors") != before
        encoders = nodes["FlexIPLoadEncoders"]
        required = encoders.INPUT_TYPES()["required"]
        *options, no_dino = required["dinov2"][1]["options"]
        assert options == ["dino.safetensors", "vit-h.safetensors"]
        assert required["dinov2"][1]["default"] == "dino.safetensors"
        found = encoders.execute("vit-h.safetensors", "dino.safetensors").args[0]
        assert found.encoders.clip.width == tiny_config().clip_width
        assert encoders.validate_inputs("vit-h.safetensors", no_dino) is True
        assert encoders.fingerprint_inputs("vit-h.safetensors", no_dino)
        assert encoders.execute("vit-h.safetensors", no_dino).args[0].encoders.dino is None
        text = encoders.validate_inputs("vit-h.safetensors", "gone.safetensors")
        assert "pickle.bin" in text and "facebook/dinov2-large" in text
        assert f"Put it into {folders['dinov2']} and" in text
    finally:
        for file in (file for folder in folders.values() for file in folder.iterdir()):
            file.unlink()


@pytest.mark.promise(4)
def test_paths_stay_inside_their_folders(nodes, comfy_base, tmp_path):
    (comfy_base / "secret.safetensors").write_bytes(b"x")
    for name in ("../../secret.safetensors", str(comfy_base / "secret.safetensors"), "..\\..\\secret.safetensors"):
        assert isinstance(nodes["FlexIPLoadAdapter"].validate_inputs(name), str)
        assert isinstance(nodes["FlexIPLoadEncoders"].validate_inputs(name, name), str)
        assert isinstance(nodes["FlexIPLoadDemo"].validate_inputs(name), str)


def test_folders_of_others_are_kept(pack):
    folders = importlib.import_module(f"{pack.__name__}.nodes.loading.folders")
    paths = importlib.import_module("folder_paths")
    paths.add_model_folder_path("dinov2", "/somewhere/else")
    folders.register_folders()
    assert "/somewhere/else" in paths.get_folder_paths("dinov2")
    assert str(Path(paths.models_dir) / "dinov2") in paths.get_folder_paths("dinov2")
    paths.folder_names_and_paths["dinov2"][0].remove("/somewhere/else")
