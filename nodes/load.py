"""Load FlexIP Encoders, Load FlexIP Adapter."""

from __future__ import annotations

import logging

import comfy.model_management
from comfy_api.latest import io

from ..flexip_model.common.errors import FlexIPError
from ..flexip_model.files.adapter_file import load_adapter_file
from .host import fields, show_text
from .loading.folders import check, files, fingerprint, locate, preferred
from .wires import FlexIPAdapterType, FlexIPEncoders, manage_adapter, manage_encoders

CATEGORY = "FlexIP"
NO_DINO = "none (enough for an imported IP-Adapter)"


class FlexIPLoadEncoders(io.ComfyNode):
    """Both image encoders from local files."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        clip, dino = files("clip_vision"), files("clip_vision", "dinov2")
        return io.Schema(
            node_id="FlexIPLoadEncoders",
            display_name="Load FlexIP Encoders",
            category=CATEGORY,
            description="Loads the two image encoders that FlexIP looks at a reference with: OpenCLIP ViT-H/14 "
            "(what it is) and DINOv2-L/14 (what it looks like). Local files only.",
            inputs=[
                io.Combo.Input(
                    "clip_vision",
                    options=clip,
                    default=preferred(clip, "vit-h", "vit_h", "image_encoder"),
                    tooltip="OpenCLIP ViT-H/14 (laion2B) in models/clip_vision; the file that IPAdapter users have. "
                    "open_clip's and transformers' key formats are both read.",
                ),
                io.Combo.Input(
                    "dinov2",
                    options=[*dino, NO_DINO],
                    default=preferred(dino, "dino"),
                    tooltip="DINOv2-L/14 without registers in models/dinov2 or models/clip_vision. transformers' and "
                    "facebookresearch's key formats are both read. An imported IP-Adapter needs none.",
                ),
            ],
            outputs=[
                FlexIPEncoders.Output(
                    "encoders", display_name="encoders", tooltip="Both encoders, for FlexIP Encode Reference."
                )
            ],
            **fields(io.Schema, search_aliases=["clip vision", "dinov2", "image encoder", "ip-adapter encoder"]),
        )

    @classmethod
    def validate_inputs(cls, clip_vision: str, dinov2: str) -> bool | str:
        found = check(clip_vision, "clip_vision")
        return found if found is not True or dinov2 == NO_DINO else check(dinov2, "clip_vision", "dinov2")

    @classmethod
    def fingerprint_inputs(cls, clip_vision: str, dinov2: str) -> str:
        paths = [locate(clip_vision, "clip_vision")]
        if dinov2 != NO_DINO:
            paths.append(locate(dinov2, "clip_vision", "dinov2"))
        return fingerprint(*paths)

    @classmethod
    def execute(cls, clip_vision: str, dinov2: str) -> io.NodeOutput:
        from ..flexip_model.encoders import Encoders, load_clip, load_dino

        clip = load_clip(locate(clip_vision, "clip_vision"))
        comfy.model_management.throw_exception_if_processing_interrupted()
        dino = None if dinov2 == NO_DINO else load_dino(locate(dinov2, "clip_vision", "dinov2"))
        return io.NodeOutput(manage_encoders(Encoders(clip, dino)))


class FlexIPLoadAdapter(io.ComfyNode):
    """An adapter file, strictly read."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FlexIPLoadAdapter",
            display_name="Load FlexIP Adapter",
            category=CATEGORY,
            description="Loads a FlexIP adapter, or an imported IP-Adapter, from models/flexip. An adapter that was "
            "never trained is only loaded when its file name says untrained.",
            inputs=[
                io.Combo.Input(
                    "adapter_name",
                    options=files("flexip"),
                    tooltip="A .safetensors file in models/flexip, written by this pack's trainer or by "
                    "`python -m flexip_model convert`.",
                )
            ],
            outputs=[
                FlexIPAdapterType.Output(
                    "adapter",
                    display_name="adapter",
                    tooltip="The adapter, for FlexIP Encode Reference and for Apply FlexIP: connect the same to both.",
                )
            ],
            **fields(io.Schema, search_aliases=["ip-adapter model", "ipadapter loader", "adapter loader"]),
        )

    @classmethod
    def validate_inputs(cls, adapter_name: str) -> bool | str:
        return check(adapter_name, "flexip")

    @classmethod
    def fingerprint_inputs(cls, adapter_name: str) -> str:
        return fingerprint(locate(adapter_name, "flexip"))

    @classmethod
    def execute(cls, adapter_name: str) -> io.NodeOutput:
        path = locate(adapter_name, "flexip")
        info, tensors = load_adapter_file(path)
        if not info.trained:
            if "untrained" not in path.name.lower():
                raise FlexIPError(
                    f"{path.name} was never trained, so its pictures would mean nothing; to use it on purpose, for a "
                    "test, give it a name with the word untrained"
                )
            logging.warning("FlexIP: %s is UNTRAINED, its pictures mean nothing", path.name)
            show_text("UNTRAINED adapter: its pictures mean nothing")
        return io.NodeOutput(manage_adapter(info, tensors, path.name))
