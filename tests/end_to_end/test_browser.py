"""The pack in ComfyUI's real editor, in headless Chromium: templates, nodes, Run, the picture."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import TimeoutError as PlaywrightTimeout

from ..support.comfy_server import ALL_WORKFLOWS, WITH_SHIPPED_MODEL, api_workflow
from ..support.editor import ARTIFACTS, MINUTES
from ..support.paths import ROOT

if TYPE_CHECKING:
    from playwright.sync_api import Page


def open_template(page: Page, name: str) -> None:
    """Choose a workflow of the pack in the template browser, as a person does."""
    dialog = page.get_by_role("dialog").filter(has_text="All Templates")
    page.wait_for_timeout(500)
    if not dialog.is_visible():  # it opens by itself on the first visit
        page.locator(".side-tool-bar-container").get_by_text("Templates").click()
    dialog.get_by_text("ComfyUI-FlexIP").first.click()
    dialog.get_by_text(f"Showing {len(ALL_WORKFLOWS)} of {len(ALL_WORKFLOWS)} templates").wait_for()
    card = dialog.get_by_test_id(f"template-workflow-{name}")
    page.wait_for_function("name => document.querySelector(`img[alt='${name}']`)?.naturalWidth > 0", arg=name)
    page.screenshot(path=ARTIFACTS / "templates.png")
    card.click()
    dialog.wait_for(state="hidden")


def missing_files(page: Page) -> str:
    """What the editor says of files that are not there: a dialog in older ones, a panel behind a notice in newer."""
    dialog, details = page.get_by_role("dialog").filter(has_text="Missing Models"), page.get_by_text("View details")
    dialog.or_(details).first.wait_for()
    if dialog.is_visible():
        text = dialog.inner_text()
        page.screenshot(path=ARTIFACTS / "missing-models.png")
        page.keyboard.press("Escape")
        dialog.wait_for(state="hidden")
        return text
    details.first.click()
    page.get_by_text("Missing Models").first.wait_for()
    page.screenshot(path=ARTIFACTS / "missing-models.png")
    return page.locator("body").inner_text()


OVERLAPS = """() => {
    const scale = app.canvas.ds.scale, title = id => app.graph.nodes.find(node => String(node.id) === id)?.title ?? id;
    const drawn = [...document.querySelectorAll('[data-node-id]')].map(element => {
        const box = element.getBoundingClientRect();
        return [title(element.dataset.nodeId), box.x, box.y, box.width, box.height];
    });
    const counted = app.graph.nodes.map(node => [node.title, ...Array.from(node.getBounding())]);
    const boxes = drawn.length ? drawn : counted, gap = drawn.length ? scale : 1, found = [];
    boxes.forEach((a, i) => boxes.slice(i + 1).forEach(b => {
        const beside = a[1] + gap >= b[1] + b[3] || b[1] + gap >= a[1] + a[3];
        if (!beside && a[2] + gap < b[2] + b[4] && b[2] + gap < a[2] + a[4])
            found.push(a[0] + ' and ' + b[0]);
    }));
    return [boxes.length, found];
}"""


@pytest.mark.parametrize("name", ALL_WORKFLOWS)
def test_workflow_opens_whole_and_is_its_api_form(editor: Page, name: str) -> None:
    ARTIFACTS.mkdir(parents=True, exist_ok=True)
    expected = api_workflow(name)
    picture = ARTIFACTS / f"{name}-{editor.renderer}.png"  # type: ignore[attr-defined]
    open_template(editor, name)
    sink = "FlexIPGammaSweep" if "FlexIPGammaSweep" in json.dumps(expected) else "FlexIPApply"
    if name not in WITH_SHIPPED_MODEL:
        said = missing_files(editor)  # the files that the user gets
        for file in ("v1-5-pruned-emaonly-fp16", "CLIP-ViT-H-14-laion2B-s32B-b79K", "dinov2-large"):
            assert file in said
        assert said.count("Download") >= 3, "a file without its source"
    editor.wait_for_function(
        "wanted => app.graph.nodes.filter(n => n.type !== 'MarkdownNote').length === wanted.count"
        " && app.graph.nodes.some(n => n.type === wanted.sink)",
        arg={"count": len(expected), "sink": sink},
    )
    if name in WITH_SHIPPED_MODEL:
        assert editor.get_by_role("dialog").count() == 0, "a dialog about something that is missing"
    unknown = editor.evaluate(
        "() => app.graph.nodes.map(n => n.type).filter(type => !LiteGraph.registered_node_types[type])"
    )
    assert unknown == []
    prompt = editor.evaluate("async () => (await app.graphToPrompt()).output")
    assert prompt == expected, f"workflows/{name}.json and its API form differ; export the API form again"

    if name in WITH_SHIPPED_MODEL:
        example = next(content["inputs"]["example"] for content in prompt.values() if "example" in content["inputs"])
        assert (ROOT / "models" / "demo" / "examples" / example).is_file()
        run_and_look(editor, name, sink)
    editor.evaluate("() => app.extensionManager.command.execute('Comfy.Canvas.FitView')")
    editor.wait_for_timeout(1000)
    editor.screenshot(path=picture)
    count, overlapping = editor.evaluate(OVERLAPS)
    assert count >= len(expected)
    assert overlapping == []


def run_and_look(page: Page, name: str, sink: str) -> None:
    """Press Run; the saved picture and what the encoders see come, in either way of drawing nodes.

    Each run has a prompt of its own: older hosts send no preview again of a node whose result they kept.
    """
    # A node's picture is loaded when the node is drawn, and only nodes in view are.
    page.evaluate("() => app.extensionManager.command.execute('Comfy.Canvas.FitView')")
    page.evaluate(
        """() => {
            const came = (window.came = []);  // by this workflow alone
            app.api.addEventListener('executed', event => came.push([event.detail.node, event.detail.output]));
        }"""
    )
    if page.renderer == "classic":  # type: ignore[attr-defined]
        shown = "node.imgs?.[0]?.naturalWidth ?? 0"
    else:
        shown = "document.querySelector(`[data-node-id='${node.id}'] img`)?.naturalWidth ?? 0"
    # A busy machine may skip the frame in which a new picture would have been taken: each look asks for another.
    find = "app.canvas?.setDirty(true, true); const node = app.graph.nodes.find(n => n.type === kind);"
    width = f"kind => {{ {find} return {shown}; }}"
    page.evaluate(
        """words => {
            const encode = app.graph.nodes.find(node => node.type === 'FlexIPEncodeReference');
            const link = encode.inputs.find(input => input.name === 'positive').link;
            app.graph.getNodeById(app.graph.links.get(link).origin_id).widgets[0].value += words;
        }""",
        f" {name} {page.renderer}",  # type: ignore[attr-defined]
    )
    page.get_by_test_id("queue-button").click()
    try:
        page.wait_for_function(width, arg="SaveImage", timeout=5 * MINUTES)
        page.wait_for_function(width, arg="FlexIPEncodeReference", timeout=3 * MINUTES)
    except PlaywrightTimeout:
        pytest.fail(f"a node without its picture; these had come: {page.evaluate('() => JSON.stringify(window.came)')}")
    saved = page.evaluate(width, "SaveImage")
    assert saved > 640 if sink == "FlexIPGammaSweep" else saved == 128


@pytest.mark.idle
def test_where_flexip_did_not_act_as_the_graph_says_the_samplers_node_tells(editor: Page) -> None:
    """The prompt goes to the sampler past Encode Reference; the sentence stays on the node after the run."""
    ARTIFACTS.mkdir(parents=True, exist_ok=True)
    workflow = json.loads((ROOT / "workflows" / "flexip_basic.json").read_text(encoding="utf-8"))
    editor.evaluate("workflow => app.loadGraphData(workflow)", workflow)
    editor.wait_for_function("() => app.graph.nodes.some(node => node.type === 'FlexIPApply')")
    editor.evaluate(
        """seed => {
            const find = type => app.graph.nodes.find(node => node.type === type);
            const encode = find('FlexIPEncodeReference'), sampler = find('KSampler');
            const text = app.graph.getNodeById(app.graph.links.get(encode.inputs[0].link).origin_id);
            text.connect(0, sampler, sampler.inputs.findIndex(input => input.name === 'positive'));
            sampler.widgets.find(widget => widget.name === 'seed').value = seed;
            app.queuePrompt(0);
        }""",
        100 + len(editor.renderer),  # type: ignore[attr-defined]  # a kept result tells nothing
    )
    shown = """() => app.graph.nodes.find(node => node.type === 'KSampler').widgets.some(
        widget => String(widget.value).includes('did not act on the positive prompt'))"""
    editor.wait_for_function(shown, timeout=3 * MINUTES)
    editor.wait_for_timeout(3000)
    assert editor.evaluate(shown)
    editor.screenshot(path=ARTIFACTS / f"warning-{editor.renderer}.png")  # type: ignore[attr-defined]
