"""Bypass, mute and delete in ComfyUI's real editor: the graph without the node, or a refusal that says why.

The editor joins a bypassed node's output to the input of the same place or, where that has another type, to the first
of its type. So the order of our inputs decides what comes out, and an old workflow must not depend on it.
"""

from __future__ import annotations

import copy
import io
import itertools
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from flexip_model.comfyui import ComfyClient, RunResult
from flexip_model.comfyui.client import Prompt
from flexip_model.common.errors import FlexIPError

from ..support.comfy_server import ALL_WORKFLOWS, WORKFLOWS, api_workflow, node_of

if TYPE_CHECKING:
    from playwright.sync_api import Page

SAVED = Path(__file__).resolve().parent / "saved_workflows"
ENCODE, APPLY, SWEEP, GRID = "FlexIPEncodeReference", "FlexIPApply", "FlexIPGammaSweep", "FlexIPSweepGrid"
DEMO, EXAMPLE = "FlexIPLoadDemo", "FlexIPExampleImage"
ENCODERS, ADAPTER = "FlexIPLoadEncoders", "FlexIPLoadAdapter"
STANDS_FOR = {ENCODE: ("positive", "negative"), APPLY: ("model",), SWEEP: ("model", "latent"), GRID: ("images",)}
"""The inputs that a graph without the node has in place of its outputs, as one reads them; other outputs have none."""

LOAD = "async graph => { await app.loadGraphData(graph); }"
PROMPT = "async () => (await app.graphToPrompt()).output"
SWITCH = """async ([kinds, command]) => {
    if (!kinds.length) return;
    app.canvas.deselectAll();
    app.canvas.selectItems(app.graph.nodes.filter(node => kinds.includes(node.type)));
    await app.extensionManager.command.execute(`Comfy.Canvas.ToggleSelectedNodes.${command}`);
}"""
MODES = "() => app.graph.nodes.filter(node => node.mode !== 0).map(node => [node.type, node.mode])"
DELETE = """kinds => {
    app.canvas.deselectAll();
    app.canvas.selectItems(app.graph.nodes.filter(node => kinds.includes(node.type)));
    app.canvas.deleteSelected();
}"""
BYPASS_AS_SUBGRAPH = """kinds => {
    const chosen = new Set(app.graph.nodes.filter(node => kinds.includes(node.type)));
    app.canvas.deselectAll();
    app.canvas.selectItems([...chosen]);
    app.graph.convertToSubgraph(chosen);
    app.graph.nodes.find(node => node.isSubgraphNode?.()).mode = 4;
}"""
WRONG_ENDS = """() => {
    const graphs = [app.graph, ...app.graph.nodes.filter(node => node.isSubgraphNode?.()).map(node => node.subgraph)];
    return graphs.flatMap(graph => graph.nodes.flatMap(node => (node.inputs ?? []).flatMap((input, place) => {
        const link = graph.getLink(input.link);
        return link && (link.target_id !== node.id || link.target_slot !== place) ? [`${node.type}.${input.name}`] : [];
    })));
}"""
SEPARATE_REFERENCE = """() => {
    const picture = LiteGraph.createNode('FlexIPExampleImage');
    const grid = app.graph.nodes.find(node => node.type === 'FlexIPSweepGrid');
    app.graph.add(picture);
    picture.connect(0, grid, grid.inputs.findIndex(input => input.name === 'reference'));
}"""

NO_TOKENS = "no prompt carries its tokens"
MISSING = "{}: Required input is missing ({})".format
NOTHING: tuple[str, ...] = ()

# workflow, bypassed, muted, what is refused ("": nothing), whether there are pictures
CASES = [
    ("flexip_basic", [ENCODE], NOTHING, NO_TOKENS, False),
    ("flexip_basic", [APPLY], NOTHING, "", True),
    ("flexip_basic", [ENCODE, APPLY], NOTHING, "", True),
    ("flexip_basic", [DEMO], NOTHING, MISSING(APPLY, "model"), False),
    ("flexip_basic", [DEMO, APPLY, ENCODE], NOTHING, MISSING("KSampler", "model"), False),
    ("flexip_basic", NOTHING, [ENCODE], MISSING("KSampler", "positive"), False),
    ("flexip_basic", NOTHING, [APPLY], MISSING("KSampler", "model"), False),
    ("flexip_basic", NOTHING, [ENCODE, APPLY], MISSING("KSampler", "negative"), False),
    ("flexip_basic", NOTHING, [DEMO], MISSING(ENCODE, "encoders"), False),
    ("flexip_basic", [APPLY], [ENCODE], MISSING("KSampler", "negative"), False),
    ("flexip_basic", [ENCODE], [APPLY], MISSING("KSampler", "model"), False),
    ("flexip_gamma_sweep", [ENCODE], NOTHING, NO_TOKENS, False),
    ("flexip_gamma_sweep", [SWEEP], NOTHING, MISSING(GRID, "gammas"), True),
    ("flexip_gamma_sweep", [GRID], NOTHING, "", True),
    ("flexip_gamma_sweep", [SWEEP, ENCODE], NOTHING, MISSING(GRID, "gammas"), True),
    ("flexip_gamma_sweep", [SWEEP, GRID], NOTHING, "", True),
    ("flexip_gamma_sweep", [ENCODE, GRID], NOTHING, NO_TOKENS, False),
    ("flexip_gamma_sweep", [SWEEP, ENCODE, GRID], NOTHING, "", True),
    ("flexip_gamma_sweep", NOTHING, [ENCODE], MISSING("KSampler", "positive"), False),
    ("flexip_gamma_sweep", NOTHING, [SWEEP], MISSING("KSampler", "latent_image"), False),
    ("flexip_gamma_sweep", NOTHING, [GRID], MISSING("SaveImage", "images"), True),
    ("flexip_gamma_sweep", NOTHING, [SWEEP, GRID], MISSING("KSampler", "model"), False),
    ("flexip_gamma_sweep", [SWEEP, ENCODE], [GRID], MISSING("SaveImage", "images"), True),
    ("flexip_gamma_sweep", [GRID], [SWEEP], MISSING("KSampler", "model"), False),
    ("flexip_gamma_sweep_sd15", [ENCODERS], NOTHING, MISSING(ENCODE, "encoders"), False),
    ("flexip_gamma_sweep_sd15", [ADAPTER], NOTHING, MISSING(SWEEP, "adapter"), False),
    ("flexip_gamma_sweep_sd15", [EXAMPLE], NOTHING, MISSING(ENCODE, "image"), False),
    ("flexip_gamma_sweep_sd15", NOTHING, [ENCODERS], MISSING(ENCODE, "encoders"), False),
    ("flexip_gamma_sweep_sd15", NOTHING, [ADAPTER], MISSING(ENCODE, "adapter"), False),
    ("flexip_gamma_sweep_sd15", NOTHING, [EXAMPLE], MISSING(ENCODE, "image"), False),
]


def without(prompt: Prompt, bypassed: list[str], muted: list[str]) -> Prompt:
    """The graph without these kinds of nodes: past a bypassed one its inputs go on, at a muted one the links end."""
    out = copy.deepcopy(prompt)
    for kind in (*bypassed, *muted):
        taken, stands_for = node_of(out, kind), STANDS_FOR.get(kind, ()) if kind in bypassed else ()
        inputs = out.pop(taken)["inputs"]
        for node in out.values():
            for name, value in list(node["inputs"].items()):
                if not isinstance(value, list) or value[0] != taken:
                    continue
                given = inputs.get(stands_for[value[1]]) if value[1] < len(stands_for) else None
                if given is None:
                    del node["inputs"][name]
                else:
                    node["inputs"][name] = given
    return out


RUNS = itertools.count()
Outcome = tuple[str, list[tuple[tuple[int, int], bytes]]]


def outcome(client: ComfyClient, prompt: Prompt) -> Outcome:
    """What is refused, and the pixels of all pictures. One step; every picture is saved anew, not kept from before."""
    prompt = copy.deepcopy(prompt)
    for node in prompt.values():
        if node["class_type"] == "KSampler":
            node["inputs"]["steps"] = 1
        if node["class_type"] == SWEEP:
            node["inputs"]["gammas"] = "0, 1"
        if node["class_type"] in ("SaveImage", "PreviewImage"):
            node["class_type"] = "SaveImage"
            node["inputs"]["filename_prefix"] = f"bypass/{next(RUNS)}"
    with ThreadPoolExecutor(1) as apart:  # the browser's driver has this thread's event loop
        try:
            result: RunResult = apart.submit(client.run, prompt).result()
        except FlexIPError as refusal:
            return str(refusal), []
        found = []
        for node in result.outputs:
            if prompt[node]["class_type"] == "SaveImage":
                for file in apart.submit(client.pictures, result, node).result():
                    picture = Image.open(io.BytesIO(file)).convert("RGB")
                    found.append((picture.size, picture.tobytes()))
    return result.refused + result.error, sorted(found)


@pytest.fixture(scope="module")
def wanted() -> dict[str, Outcome]:
    """Outcomes of graphs without a node, by graph: both ways of drawing nodes want the same."""
    return {}


def saved_workflow(name: str) -> dict:
    """A workflow as the editor saves it, of the shipped ones or of `saved_workflows`."""
    folder = WORKFLOWS if name in ALL_WORKFLOWS else SAVED
    return json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))


def switch(page: Page, bypassed: list[str], muted: list[str]) -> None:
    """Select and switch, as Ctrl+B and Ctrl+M do."""
    page.evaluate(SWITCH, [list(bypassed), "Bypass"])
    page.evaluate(SWITCH, [list(muted), "Mute"])
    expected = [[kind, 4] for kind in bypassed] + [[kind, 2] for kind in muted]
    assert sorted(page.evaluate(MODES)) == sorted(expected)


def name_of(value: object) -> str:
    return "+".join(value).replace("FlexIP", "") or "none" if isinstance(value, (list, tuple)) else str(value)


@pytest.mark.parametrize(("workflow", "bypassed", "muted", "refusal", "shows"), CASES, ids=name_of)
def test_bypass_and_mute_are_the_graph_without_the_node(
    editor: Page,
    client: ComfyClient,
    wanted: dict[str, Outcome],
    workflow: str,
    bypassed: list[str],
    muted: list[str],
    refusal: str,
    shows: bool,
) -> None:
    editor.evaluate(LOAD, saved_workflow(workflow))
    switch(editor, bypassed, muted)
    prompt = editor.evaluate(PROMPT)
    expected = without(api_workflow(workflow), bypassed, muted)
    said, pictures = outcome(client, prompt)
    name = json.dumps(expected)
    if name not in wanted:
        wanted[name] = outcome(client, expected)
    assert (said, pictures) == wanted[name]
    assert refusal in said if refusal else said == ""
    assert bool(pictures) == shows
    assert prompt == expected


@pytest.mark.parametrize("command", ["Bypass", "Mute"])
def test_a_grid_without_its_reference_is_still_a_grid(editor: Page, client: ComfyClient, command: str) -> None:
    editor.evaluate(LOAD, saved_workflow("flexip_gamma_sweep"))
    editor.evaluate(SEPARATE_REFERENCE)
    switch(editor, *(([EXAMPLE], []) if command == "Bypass" else ([], [EXAMPLE])))
    expected = api_workflow("flexip_gamma_sweep")
    del expected[node_of(expected, GRID)]["inputs"]["reference"]
    prompt = editor.evaluate(PROMPT)
    said, pictures = outcome(client, prompt)
    assert said == "" and (said, pictures) == outcome(client, expected)


@pytest.mark.parametrize(
    ("workflow", "kind"),
    [("flexip_basic", ENCODE), ("flexip_basic", APPLY), ("flexip_gamma_sweep", SWEEP), ("flexip_gamma_sweep", GRID)],
)
def test_a_deleted_node_leaves_its_links_joined(editor: Page, workflow: str, kind: str) -> None:
    """The editor joins a deleted node's links like those of a bypassed one."""
    editor.evaluate(LOAD, saved_workflow(workflow))
    editor.evaluate(DELETE, [kind])
    assert editor.evaluate(PROMPT) == without(api_workflow(workflow), [kind], [])


def test_a_bypassed_subgraph_of_encode_and_apply_is_the_graph_without_both(editor: Page) -> None:
    """The editor orders a subgraph's sockets by those of the nodes in it."""
    editor.evaluate(LOAD, saved_workflow("flexip_basic"))
    editor.evaluate(BYPASS_AS_SUBGRAPH, [ENCODE, APPLY])
    prompt, expected = editor.evaluate(PROMPT), without(api_workflow("flexip_basic"), [ENCODE, APPLY], [])
    # Older editors leave the nodes of a bypassed subgraph in the prompt, where nothing asks for them.
    assert {node: content for node, content in prompt.items() if ":" not in node} == expected


@pytest.mark.parametrize("name", ALL_WORKFLOWS)
def test_links_of_a_shipped_workflow_end_where_its_file_says(editor: Page, name: str) -> None:
    """The editor mends places of links as it loads, so a file with wrong ones would open all the same."""
    saved = saved_workflow(name)
    editor.evaluate(LOAD, saved)
    loaded = editor.evaluate("() => JSON.parse(JSON.stringify(app.graph.serialize()))")
    assert sorted(loaded["links"]) == sorted(saved["links"])
    for node, given in zip(loaded["nodes"], saved["nodes"], strict=True):
        assert [entry["name"] for entry in node.get("inputs", [])] == [entry["name"] for entry in given["inputs"]]
    assert editor.evaluate(WRONG_ENDS) == []


def saved_before(name: str) -> dict[str, Any]:
    """What a shipped workflow gave when its crop was the center; a saved one keeps what it has."""
    graph = api_workflow(name)
    (encode,) = [node for node in graph.values() if node["class_type"] == ENCODE]
    encode["inputs"]["crop"] = "center"
    return graph


@pytest.mark.parametrize("name", ["flexip_gamma_sweep", "flexip_basic"])
def test_a_workflow_saved_before_the_inputs_moved_gives_the_same_prompt(editor: Page, name: str) -> None:
    editor.evaluate(LOAD, saved_workflow(f"{name}_before_reorder"))
    assert editor.evaluate(PROMPT) == saved_before(name)
    assert editor.evaluate(WRONG_ENDS) == []
    switch(editor, [ENCODE], [])
    assert editor.evaluate(PROMPT) == without(saved_before(name), [ENCODE], [])


def test_a_subgraph_saved_before_the_inputs_moved_gives_the_same_prompt(editor: Page) -> None:
    saved = saved_workflow("flexip_basic_in_a_subgraph_before_reorder")
    (entry,) = [node for node in saved["nodes"] if node["type"] not in ("MarkdownNote",) and len(node["type"]) == 36]
    editor.evaluate(LOAD, saved)
    prompt = json.loads(json.dumps(editor.evaluate(PROMPT)).replace(f'"{entry["id"]}:', '"'))
    assert prompt == saved_before("flexip_basic")
    assert editor.evaluate(WRONG_ENDS) == []
