"""Hosts with dynamic VRAM: layers hold nothing until their weights come, and models have another manager class.

Where the host has such layers, they are switched on; an older host gets layers of that behavior. What only a card has
(weights that are paged in) is not covered here.
"""

import contextlib
import importlib

import pytest
import torch
from safetensors.torch import load_file, save_file

from flexip_model.method.adapters import FlexIPAdapter

from ...support.comfy_rig import CLOSE, difference, prompt


def empty_linear(monkeypatch, linear):
    """`comfy.ops` Linear as newer hosts have it: weight and bias are None until a state dict is loaded."""

    def build(self, in_features, out_features, bias=True, device=None, dtype=None):
        torch.nn.Module.__init__(self)
        self.in_features, self.out_features, self._wants_bias = in_features, out_features, bias
        self.weight = self.bias = None

    def load(self, state, prefix, metadata, strict, missing, unexpected, errors):
        for name in ("weight", "bias") if self._wants_bias else ("weight",):
            if prefix + name in state:
                setattr(self, name, torch.nn.Parameter(state[prefix + name].clone(), requires_grad=False))
            else:
                missing.append(prefix + name)

    monkeypatch.setattr(linear, "__init__", build)
    monkeypatch.setattr(linear, "_load_from_state_dict", load, raising=False)


@pytest.fixture
def lazy(comfy, monkeypatch):
    """Switches the host's layers to lazy ones; called in the middle of a test."""

    def switch():
        ops, memory = importlib.import_module("comfy.ops"), None
        with contextlib.suppress(ModuleNotFoundError):
            memory = importlib.import_module("comfy.memory_management")
        if hasattr(memory, "aimdo_enabled"):
            monkeypatch.setattr(memory, "aimdo_enabled", True)
        else:
            empty_linear(monkeypatch, ops.disable_weight_init.Linear)
        assert ops.manual_cast.Linear(2, 2).weight is None

    return switch


def drawn(rig, parts):
    """A latent of two steps from the parts that Load FlexIP Demo Model gives, and its picture."""
    model, clip, vae, encoders, adapter, image = parts
    encode, own = rig.part("nodes.encode"), rig.with_tensors(rig.tensors)
    own.model, own.adapter = model, adapter
    features, null = encode.encode_features(encoders, encoders.encoders.look(image), FlexIPAdapter)
    embeds = encode.embed(adapter, features, null)
    positive = encode.attach(adapter, prompt(clip, "a cat"), embeds.preservation, embeds.cls)
    negative = encode.attach(adapter, prompt(clip, ""), embeds.null, null.cls)
    patched = own.apply(0.6)
    calls = own.calls(patched, positive, negative, sigmas=(5.0, 2.0, 0.0))
    with torch.inference_mode():
        return *(call.out for call in calls), vae.decode(calls[-1].x)


@pytest.mark.parametrize("which", ["tiny", "shipped"])
def test_the_model_that_ships_draws_the_same_with_layers_that_are_empty_until_loaded(
    pack, rig, nodes, lazy, tiny_folder, monkeypatch, which
):
    demo = importlib.import_module(f"{pack.__name__}.nodes.demo")
    if which == "tiny":
        monkeypatch.setattr(demo, "FOLDER", tiny_folder)
    example = demo.examples()[0]
    with torch.inference_mode():
        eager = drawn(rig, nodes["FlexIPLoadDemo"].execute(example).args)
        lazy()
        late = drawn(rig, nodes["FlexIPLoadDemo"].execute(example).args)
    assert difference(eager, late) <= CLOSE
    assert float(eager[0].std()) > 1e-3


@pytest.mark.parametrize("damage", ["missing weight", "missing bias", "other shape", "one too many"])
def test_damage_is_named_with_empty_layers_too(pack, lazy, tiny_folder, tmp_path, damage):
    folders = importlib.import_module(f"{pack.__name__}.nodes.loading.diffusers_folder")
    error = importlib.import_module(f"{pack.__name__}.flexip_model.common.errors").FlexIPError
    for part in ("unet", "scheduler"):
        (tmp_path / part).mkdir()
        for file in (tiny_folder / part).iterdir():
            (tmp_path / part / file.name).write_bytes(file.read_bytes())
    file = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    tensors, layer = load_file(file), "mid_block.attentions.0.transformer_blocks.0.ff.net.2"
    if damage == "other shape":
        tensors[f"{layer}.weight"] = tensors[f"{layer}.weight"].T.contiguous()
    elif damage == "one too many":
        tensors["mid_block.attentions.0.transformer_blocks.0.attn2.to_q.bias"] = torch.zeros(64)
    else:
        del tensors[f"{layer}.{damage.split()[1]}"]
    save_file(tensors, file)
    lazy()
    with pytest.raises(error, match=r"unet (does not hold what its|has tensors that SD1.5's UNet lacks)"):
        folders.load_unet(tmp_path)


def test_models_are_managed_by_the_class_that_the_host_uses(pack, nodes, demo, rig, monkeypatch):
    patcher = importlib.import_module("comfy.model_patcher")

    class Newer(patcher.ModelPatcher):
        pass

    monkeypatch.setattr(patcher, "CoreModelPatcher", Newer, raising=False)
    parts = nodes["FlexIPLoadDemo"].execute("gradient.png").args
    managed = [parts[0], parts[4].patcher, *parts[3].patchers]
    assert [type(one) for one in managed] == [Newer] * 4
    for patcher_of in (parts[0], parts[1].patcher, parts[2].patcher):
        if hasattr(patcher_of, "cached_patcher_init"):  # a host that makes models anew without dynamic VRAM
            make, arguments = patcher_of.cached_patcher_init
            assert type(make(*arguments, disable_dynamic=True)) is patcher.ModelPatcher
    static = rig.part("nodes.loading.diffusers_folder").load_unet(rig.folder, disable_dynamic=True)
    assert type(static) is patcher.ModelPatcher
    conds = rig.encode(*rig.prompts())
    assert difference(rig.predict(rig.apply(0.5, model=static), *conds), rig.predict(rig.apply(0.5), *conds)) == 0
