"""FlexIP Encode Reference: P from the picture, S from each prompt's own text, both onto the conditioning."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import comfy.conds
import comfy.model_management
import comfy.utils
import torch
from comfy_api.latest import io, ui
from torch import Tensor

from ..flexip_model.common.errors import FlexIPError
from ..flexip_model.encoders import Views, check_encoders, other_weights
from ..flexip_model.images.preprocess import AS_TRAINED, CROPS, trained_crop
from ..flexip_model.method.adapters import Adapter, ReferenceFeatures
from .host import fields
from .wires import Embeds, FlexIPAdapterType, FlexIPEmbeds, FlexIPEncoders, LoadedAdapter, LoadedEncoders

CATEGORY = "FlexIP"
RECENT = 8
Conditioning = list[list[Any]]


class PictureNumbers(comfy.conds.CONDRegular):
    """For each row of the model's batch the number of its picture and how many there are, (R, 1, 2).

    ComfyUI asks each entry for as many rows as there are pictures, and joins them as it joins the pictures; other packs
    repeat and cut them like any other tensor that comes with a row.
    """

    def __init__(self, cond: Tensor | None = None) -> None:
        super().__init__(torch.zeros(1, 1, 2, dtype=torch.long) if cond is None else cond)

    def process_cond(self, batch_size: int, **kwargs: Any) -> PictureNumbers:
        places = torch.arange(batch_size)
        return self._copy_with(torch.stack([places, torch.full_like(places, batch_size)], dim=1)[:, None])


def encode_features(
    encoders: LoadedEncoders, views: Views, adapter: type[Adapter]
) -> tuple[ReferenceFeatures, ReferenceFeatures]:
    """Features of each reference (B, …), and those of no reference (1, …); one picture at a time.

    The features of the last `RECENT` pictures are kept with the encoders: another prompt encodes nothing again.

    Args:
        views: `Encoders.look` of the references.
        adapter: the kind that the features are for.
    """
    progress = comfy.utils.ProgressBar(len(views))
    found = []
    for index in range(len(views)):
        comfy.model_management.throw_exception_if_processing_interrupted()
        view = views[index]
        make = partial(_load_and_call, encoders, encoders.encoders.features, view, adapter)
        found.append(_remembered(encoders, _name(adapter.kind, *view.clip, *view.dino), make))
        progress.update(1)
    keep = None
    if any(f.keep is not None for f in found):
        keep = torch.cat(
            [f.patches.new_ones(f.patches.shape[:2], dtype=torch.bool) if f.keep is None else f.keep for f in found]
        )
    features = ReferenceFeatures(torch.cat([f.cls for f in found]), torch.cat([f.patches for f in found]), keep)
    null = partial(_load_and_call, encoders, encoders.encoders.null, 1, adapter)
    return features, _remembered(encoders, f"null {adapter.kind}", null)


def _load_and_call(encoders: LoadedEncoders, make: Callable[..., ReferenceFeatures], *given: Any) -> ReferenceFeatures:
    encoders.load()
    return make(*given)


def _remembered(encoders: LoadedEncoders, name: str, make: Callable[[], ReferenceFeatures]) -> ReferenceFeatures:
    """What was made under this name before, else made now and kept on the CPU."""
    recent = encoders.recent
    if name not in recent:
        recent[name] = make().to(comfy.model_management.intermediate_device())
    recent.move_to_end(name)
    while len(recent) > RECENT:
        recent.popitem(last=False)
    return recent[name]


def _name(kind: str, *tensors: Tensor | None) -> str:
    digest = hashlib.sha256(kind.encode())
    for tensor in tensors:
        digest.update(b"none" if tensor is None else f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        if tensor is not None:
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def embed(loaded: LoadedAdapter, features: ReferenceFeatures, null: ReferenceFeatures) -> Embeds:
    """P of several references of one subject, side by side, and the mean of their [CLS] (our choice).

    In attention, P of the same picture twice is P of that picture once, and so is the mean of its [CLS].
    """
    device = loaded.load()
    to = comfy.model_management.intermediate_device()
    with torch.no_grad():
        p = loaded.adapter.preservation(features.to(device))
        empty = loaded.adapter.preservation(null.to(device))
    cls = features.cls.mean(0, keepdim=True).to(to)
    return Embeds(loaded.tag, p.flatten(0, 1)[None].to(to), empty.to(to), cls, features.to(to))


def attach(loaded: LoadedAdapter, conditioning: Conditioning, p: Tensor, cls: Tensor) -> Conditioning:
    """A copy of the conditioning in which each entry carries P, and S made from that entry's own text.

    Every entry is kept with its area, mask, range and hooks. S is made here, from the text as it is: ComfyUI pads
    prompts of unequal length by repeating them, after which S could not be made any more. Repeating S and P themselves
    changes nothing: a softmax over repeated keys gives the same mean.

    Raises:
        FlexIPError: the text's width is not the adapter's; an entry carries tokens of this adapter already.
    """
    device, to = loaded.load(), comfy.model_management.intermediate_device()
    width = loaded.adapter.config.text_width
    out = []
    for entry in conditioning:
        text, extras = entry[0], dict(entry[1])
        conds = dict(extras.get("model_conds", {}))
        if loaded.p_key in conds:
            raise FlexIPError(
                "this prompt already carries a subject: FlexIP Encode Reference stands after another one with the same "
                "adapter, and the second would replace the first; for several pictures of one subject connect a batch, "
                "for two subjects encode a prompt for each, give each its place by Conditioning (Set Mask), and join "
                "them by Conditioning (Combine)"
            )
        conds[loaded.p_key] = comfy.conds.CONDCrossAttn(p)
        conds[loaded.index_key] = PictureNumbers()
        if loaded.adapter.has_personalization and text is not None:
            if text.shape[-1] != width:
                raise FlexIPError(
                    f"the prompt's text is {text.shape[-1]} wide, the adapter {loaded.name} reads {width}; connect "
                    "prompts that were encoded with the CLIP of the base model that the adapter is for"
                )
            comfy.model_management.throw_exception_if_processing_interrupted()
            with torch.no_grad():
                source = text.to(device=device, dtype=torch.float32)
                s = loaded.adapter.personalization(source, cls.to(source).expand(source.shape[0], -1))
            conds[loaded.s_key] = comfy.conds.CONDCrossAttn(s.to(to))
            extras[loaded.text_key] = text
        extras["model_conds"] = conds
        out.append([text, extras])
    return out


def _trained(adapter: LoadedAdapter, masked: bool) -> str:
    """The crop that the adapter's references had in training; the log says so where its file does not tell."""
    info = adapter.info
    if info.crop not in CROPS:
        told = "does not say how its references were cropped" if info.crop is None else f"names a crop {info.crop!r}"
        logging.info("FlexIP: %s %s; Encode Reference takes center, the middle", adapter.name, told)
    if masked and info.white == 0:
        logging.info("FlexIP: %s was trained without masks; the picture may be kept better without one", adapter.name)
    return trained_crop(info.crop, masked)


class FlexIPEncodeReference(io.ComfyNode):
    """A reference onto the prompts."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FlexIPEncodeReference",
            display_name="FlexIP Encode Reference",
            category=CATEGORY,
            description="Looks at a reference picture and puts what FlexIP needs onto both prompts: what the subject "
            "looks like (P), and the prompt as seen with the subject in mind (S). Shows what the encoders see. Place "
            "it last before the sampler, after nodes that combine or change prompts.",
            inputs=[  # the prompts first, in the outputs' places: a bypass then joins each to its own
                io.Conditioning.Input("positive", tooltip="The prompt. Areas, masks and ranges are kept."),
                io.Conditioning.Input("negative", tooltip="The negative prompt. It carries the tokens of no subject."),
                FlexIPEncoders.Input("encoders", tooltip="From Load FlexIP Encoders, or the demo model."),
                FlexIPAdapterType.Input("adapter", tooltip="The adapter; connect the same to Apply FlexIP."),
                io.Image.Input(
                    "image",
                    tooltip="The subject. A batch is several pictures of one subject; all of them are used together.",
                ),
                io.Combo.Input(
                    "crop",
                    options=[AS_TRAINED, *CROPS],
                    default=AS_TRAINED,
                    tooltip="How the picture becomes square. as trained: as the adapter's file says its references "
                    "were; center: the middle; pad: all of it, on white; subject: a square around the mask.",
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="White where the subject is: the background turns white and its patches are dropped. "
                    "Load Image gives the transparent part of a picture: invert that.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(
                    "positive_out", display_name="positive", tooltip="The prompt with P and S, for the sampler."
                ),
                io.Conditioning.Output(
                    "negative_out", display_name="negative", tooltip="The negative prompt with the null P and its S."
                ),
                FlexIPEmbeds.Output(
                    "embeds", display_name="embeds", tooltip="The tokens of the reference, for other FlexIP nodes."
                ),
            ],
            **fields(
                io.Schema,
                search_aliases=["ip-adapter encode", "image prompt", "subject reference", "reference image"],
                has_intermediate_output=True,
            ),
        )

    @classmethod
    def execute(
        cls,
        encoders: LoadedEncoders,
        adapter: LoadedAdapter,
        image: Tensor,
        positive: Conditioning,
        negative: Conditioning,
        crop: str,
        mask: Tensor | None = None,
    ) -> io.NodeOutput:
        clip, dino = encoders.encoders.clip, encoders.encoders.dino
        check_encoders(adapter.adapter.config, clip, dino)
        for sentence in other_weights(adapter.info.encoders, clip, dino):
            logging.warning("FlexIP: %s: %s", adapter.name, sentence)
        if crop == AS_TRAINED:
            crop = _trained(adapter, mask is not None)
        views = encoders.encoders.look(image, mask, crop)
        features, null = encode_features(encoders, views, type(adapter.adapter))
        seen = encoders.encoders.preview(views)
        embeds = replace(embed(adapter, features, null), seen=seen)
        return io.NodeOutput(
            attach(adapter, positive, embeds.preservation, embeds.cls),
            attach(adapter, negative, embeds.null, null.cls),
            embeds,
            ui=ui.PreviewImage(seen, cls=cls),
        )
