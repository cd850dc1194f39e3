"""One fault for each of the first 22 promises, and the test that must notice it.

python run.py test --plant=9        the tests of that promise with its fault planted: they must fail
python run.py test --plant=all      all of them (test_planted_faults.py does this)
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import pickle
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch


class Ground:
    """What a fault may change; all of it goes back when the test ends."""

    def __init__(self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
        self._request, self._monkeypatch = request, monkeypatch

    def fixture(self, name: str) -> Any:
        return self._request.getfixturevalue(name)

    def part(self, name: str) -> ModuleType:
        """A module of the pack as ComfyUI loads it."""
        return importlib.import_module(f"{self.fixture('pack').__name__}.{name}")

    def set(self, target: Any, name: str, value: Any) -> None:
        self._monkeypatch.setattr(target, name, value)

    def within(self) -> Any:
        """A place for changes that last for a moment."""
        return self._monkeypatch.context()


@dataclass(frozen=True)
class Fault:
    """A fault.

    Attributes:
        what: in a few words.
        plant: puts it in.
        test: the test function that must notice it.
        only: of its parametrized cases, those with this in their name.
    """

    what: str
    plant: Callable[[Ground], None]
    test: str
    only: str = ""

    def takes(self, item: pytest.Item) -> bool:
        return getattr(item, "originalname", "") == self.test and self.only in item.name


def changed_tree(ground: Ground, file: str, line: str) -> None:
    """A copy of the source tree in which one file has one line more."""
    from . import paths

    root = ground.fixture("tmp_path") / "tree"
    root.mkdir()
    for part in paths.PARTS:
        whole = paths.ROOT / part
        copy = shutil.copy if whole.is_file() else shutil.copytree
        copy(whole, root / part)
    with (root / file).open("a", encoding="utf-8") as text:
        text.write(f"\n{line}\n")
    ground.set(paths, "ROOT", root)


def eval_in_a_module(ground: Ground) -> None:
    changed_tree(ground, "nodes/schedule.py", 'NUMBER = eval("1 + 1")')


def writing_import(ground: Ground) -> None:
    changed_tree(ground, "flexip_model/method/gate.py", 'open(__file__ + ".log", "w").close()')


def pickle_fallback(ground: Ground) -> None:
    from flexip_model.files import adapter_file as checkpoint

    read = checkpoint.read_header

    def trusting(path: Any) -> Any:
        with contextlib.suppress(Exception):
            pickle.loads(Path(path).read_bytes())
        return read(path)

    ground.set(checkpoint, "read_header", trusting)


def joined_paths(ground: Ground) -> None:
    folders, load = ground.part("nodes.loading.folders"), ground.part("nodes.load")
    locate, paths = folders.locate, importlib.import_module("folder_paths")

    def careless(name: str, *kinds: str) -> Path:
        with contextlib.suppress(ValueError):
            found = Path(paths.get_folder_paths(kinds[0])[0]) / name
            if found.is_file():
                return found
        return locate(name, *kinds)

    ground.set(folders, "locate", careless)
    ground.set(load, "locate", careless)


def uncaught_errors(ground: Ground) -> None:
    from flexip_model.common.errors import FlexIPError
    from flexip_model.files import adapter_file as checkpoint

    read = checkpoint.read_header

    def raw(path: Any) -> Any:
        try:
            return read(path)
        except FlexIPError as error:
            raise error.__cause__ or error from None

    ground.set(checkpoint, "read_header", raw)


def no_limit_of_headers(ground: Ground) -> None:
    from flexip_model.files import safefile

    ground.set(safefile, "MAX_HEADER_BYTES", 10**9)


def no_finite_check(ground: Ground) -> None:
    from flexip_model.files import adapter_file as checkpoint

    ground.set(checkpoint, "_check_finite", lambda path, tensors: None)


def every_dino_is_the_right_one(ground: Ground) -> None:
    from flexip_model.encoders import dino

    ground.set(dino, "identify", lambda header: "DINOv2-L/14")


def swapped_branches(ground: Ground) -> None:
    run = ground.part("nodes.patch.run")
    weights = run.gate.weights
    ground.set(run.gate, "weights", lambda *given: weights(*given)[::-1])


def dropped_clone(ground: Ground) -> None:
    patch, rig = ground.part("nodes.patch.apply"), ground.fixture("rig")
    ground.set(rig, "model", rig.model.clone())  # so that the others' model stays clean
    apply = patch.apply_adapter

    def in_place(model: Any, applied: Any) -> Any:
        with ground.within() as moment:
            moment.setattr(type(model), "clone", lambda self: self)
            return apply(model, applied)

    ground.set(patch, "apply_adapter", in_place)


def deep_copies(ground: Ground) -> None:
    import copy

    applied, wrappers = ground.part("nodes.patch.applied").Applied, ground.part("nodes.patch.wrappers").Wrappers

    def copied(self: Any, memo: dict) -> Any:
        twin = copy.copy(self)
        memo[id(self)] = twin
        object.__setattr__(twin, "gamma", self.gamma.clone())
        return twin

    # Hosts differ in which of the two they reach first.
    ground.set(applied, "__deepcopy__", copied)
    ground.set(
        wrappers, "__deepcopy__", lambda self, memo: dataclasses.replace(self, applied=copied(self.applied, memo))
    )


def tokens_in_another_order(ground: Ground) -> None:
    step = ground.part("nodes.patch.run").Step
    begin = step.__init__

    def flipped(self: Any, applied: Any, run: Any, tokens: Any, **given: Any) -> None:
        begin(self, applied, run, dataclasses.replace(tokens, p=tokens.p.flip(0)), **given)

    ground.set(step, "__init__", flipped)


def kept_by_size(ground: Ground) -> None:
    def projected(self: Any, name: tuple, tokens: torch.Tensor) -> dict:
        return self.__dict__.setdefault("by_size", {}).setdefault((name, tokens.shape), {})

    ground.set(ground.part("nodes.patch.run").SamplingRun, "projected", projected)


def gammas_by_cond(ground: Ground) -> None:
    step = ground.part("nodes.patch.run").Step

    def per_row(self: Any, values: torch.Tensor, what: str) -> torch.Tensor:
        return values if values.shape[0] == 1 else values.repeat_interleave(self.rows // values.shape[0], 0)

    ground.set(step, "_per_row", per_row)


def zero_padding(ground: Ground) -> None:
    encode, conds = ground.part("nodes.encode"), importlib.import_module("comfy.conds")
    attach = encode.attach

    class Padded(conds.CONDCrossAttn):
        def concat(self, others: list) -> torch.Tensor:
            tokens = [self.cond, *(other.cond for other in others)]
            longest = max(one.shape[1] for one in tokens)
            return torch.cat([torch.nn.functional.pad(one, (0, 0, 0, longest - one.shape[1])) for one in tokens])

    def padded(loaded: Any, *given: Any) -> Any:
        out = attach(loaded, *given)
        for _, extras in out:
            extras["model_conds"][loaded.s_key] = Padded(extras["model_conds"][loaded.s_key].cond)
        return out

    ground.set(encode, "attach", padded)


def turned_grid(ground: Ground) -> None:
    step = ground.part("nodes.patch.run").Step
    on_grid = step._on_grid
    ground.set(step, "_on_grid", lambda self, mask, grid, what: on_grid(self, mask, grid[::-1], what))


def guessed_grid(ground: Ground, halve: Callable[[int], int]) -> None:
    """The grid of a layer from the latent's size and the layer's level, as a patch must that is not told."""

    def guess(self: Any, q: Any, options: dict) -> tuple[int, int]:
        height, width = options["original_shape"][-2:]
        for _ in range(self.site.level):
            height, width = halve(height), halve(width)
        return height, width

    ground.set(ground.part("nodes.patch.site_patch").SitePatch, "_grid", guess)


def rounded_down(ground: Ground) -> None:
    guessed_grid(ground, lambda side: side // 2)


def from_the_latent(ground: Ground) -> None:
    guessed_grid(ground, lambda side: -(-side // 2))


def keys_in_float32(ground: Ground) -> None:
    step = ground.part("nodes.patch.run").Step
    project = step._project

    def in_float32(self: Any, *given: Any) -> Any:
        self.like = self.like.float()
        return project(self, *given)

    ground.set(step, "_project", in_float32)


def divided_by_their_sum(ground: Ground) -> None:
    run = ground.part("nodes.patch.run")
    weights = run.gate.weights

    def normalized(*given: Any) -> Any:
        p, s = weights(*given)
        return p / (p + s), s / (p + s)

    ground.set(run.gate, "weights", normalized)


def weights_outside_comfyui(ground: Ground) -> None:
    ground.set(ground.part("nodes.patch.applied").Applied, "models", lambda self: [])


def dropped_patch(ground: Ground) -> None:
    patch = ground.part("nodes.patch.wrappers")

    class Alone(patch.SitePatch):
        def __init__(self, step: Any, site: Any, previous: Any, *given: Any) -> None:
            super().__init__(step, site, None, *given)

    ground.set(patch, "SitePatch", Alone)


FAULTS = {
    1: Fault("eval in a module", eval_in_a_module, "test_nothing_is_hidden_run_from_text_or_installed"),
    2: Fault(
        "a module that writes a file when it is imported", writing_import, "test_importing_every_module_touches_nothing"
    ),
    3: Fault("a pickle is tried first", pickle_fallback, "test_canaries_in_pickles_never_run"),
    4: Fault(
        "names are joined to the folder unchecked",
        joined_paths,
        "test_thirty_names_at_every_text_input_open_no_file_outside",
    ),
    5: Fault(
        "the parser's own errors come through",
        uncaught_errors,
        "test_nineteen_broken_files_give_one_sentence_with_their_path",
    ),
    6: Fault("no limit of a header's size", no_limit_of_headers, "test_a_header_bomb_is_bounded", "99 MB"),
    7: Fault(
        "the check for NaN is skipped",
        no_finite_check,
        "test_whole_files_with_wrong_content_are_refused_by_what_is_wrong",
    ),
    8: Fault(
        "any DINO is taken for DINOv2-L/14",
        every_dino_is_the_right_one,
        "test_other_models_are_refused_by_name",
        "dino",
    ),
    9: Fault(
        "the branches are swapped",
        swapped_branches,
        "test_gamma_one_is_the_preservation_branch_and_gamma_zero_the_other",
    ),
    10: Fault("the model is patched without a clone", dropped_clone, "test_base_patched_base_again"),
    11: Fault("clones copy tensors", deep_copies, "test_ten_clones_share_every_tensor"),
    12: Fault(
        "tokens in another order than the conds",
        tokens_in_another_order,
        "test_ten_layouts_give_what_one_cond_at_a_time_gives",
    ),
    13: Fault(
        "kept keys are found by their size", kept_by_size, "test_every_guider_gives_each_prompt_its_own_tokens", "False"
    ),
    14: Fault(
        "γ per cond in place of per picture", gammas_by_cond, "test_batches_of_latents_and_references_equal_singles"
    ),
    15: Fault("S is padded with zeros", zero_padding, "test_prompts_of_every_length_agree_joined_and_split", "77-154"),
    16: Fault("height and width are swapped", turned_grid, "test_a_quarter_lies_on_its_quarter_at_every_latent_size"),
    17: Fault("odd sizes are halved downwards", rounded_down, "test_tiled_and_merged_tokens_at_odd_sizes", "HyperTile"),
    18: Fault(
        "a layer's grid is guessed from the latent's", from_the_latent, "test_deep_shrink_at_every_factor", "1-2.0"
    ),
    19: Fault(
        "keys and values stay in float32", keys_in_float32, "test_dtypes_of_model_encoders_and_adapter", "torch.float16"
    ),
    20: Fault(
        "weights are divided by their sum",
        divided_by_their_sum,
        "test_no_backend_makes_a_black_picture",
        "attention_pytorch-False",
    ),
    21: Fault(
        "ComfyUI is not told of the adapter's weights",
        weights_outside_comfyui,
        "test_memory_modes_change_nothing",
        "novram",
    ),
    22: Fault(
        "what was in the slot is dropped", dropped_patch, "test_another_packs_patch_before_and_after_gives_one_result"
    ),
}
