"""The pack in ComfyUI's real editor, in headless Chromium: templates, nodes, Run, the picture."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from flexip_model.server import ComfyServer

from .comfy_server import ALL_WORKFLOWS, ROOT, WITH_SHIPPED_MODEL, api_workflow

if TYPE_CHECKING:
    from playwright.sync_api import Page

ARTIFACTS = ROOT / "out" / "artifacts"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "msedge")
PLACES = (
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "C:/Program Files/Google/Chrome/Application/chrome.exe",
    "C:/Program Files (x86)/Microsoft/Edge/Application/msedge.exe",
)
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
MINUTES = 60_000
"""Milliseconds; generous, because a machine with two busy cores is slow and not wrong."""


def browser_path() -> str:
    """An installed Chromium; on a machine of Debian's kind, as root, it is installed."""
    found = _installed()
    if found is None and shutil.which("apt-get") and hasattr(os, "geteuid") and os.geteuid() == 0:
        subprocess.run(["apt-get", "update", "-qq"], check=False)
        install = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", "chromium"]
        subprocess.run(install, env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"}, check=False)
        found = _installed()
    if found is None:
        pytest.fail(
            "no Chromium is installed, and the browser tests need one: `sudo apt-get install chromium` on Debian and "
            "Ubuntu, `brew install --cask google-chrome` on macOS, Chrome or Edge on Windows",
            pytrace=False,
        )
    return found


def _installed() -> str | None:
    on_path = [path for name in BROWSERS if (path := shutil.which(name))]
    return next(iter(on_path), None) or next((place for place in PLACES if Path(place).is_file()), None)


@pytest.fixture(scope="module")
def editor(server: ComfyServer) -> Iterator[Page]:
    """ComfyUI's editor in a new browser, its template browser not yet used."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=browser_path(), args=ARGUMENTS)
        page = browser.new_page(viewport={"width": 2560, "height": 1300})
        page.set_default_timeout(3 * MINUTES)
        page.goto(server.url)
        page.wait_for_function("window.app && window.app.graph && window.app.extensionManager")
        yield page
        browser.close()


def open_template(page: Page, name: str) -> None:
    """Choose a workflow of the pack in the template browser, as a person does."""
    dialog = page.get_by_role("dialog").filter(has_text="All Templates")
    if name != ALL_WORKFLOWS[0]:  # it opens by itself on the first visit
        page.locator(".side-tool-bar-container").get_by_text("Templates").click()
    dialog.get_by_text("ComfyUI-FlexIP").first.click()
    dialog.get_by_text("Showing 3 of 3 templates").wait_for()
    card = dialog.get_by_test_id(f"template-workflow-{name}")
    page.wait_for_function("name => document.querySelector(`img[alt='${name}']`)?.naturalWidth > 0", arg=name)
    page.screenshot(path=ARTIFACTS / "templates.png")
    card.click()
    dialog.wait_for(state="hidden")


@pytest.mark.parametrize("name", ALL_WORKFLOWS)
def test_workflow_opens_whole_and_is_its_api_form(editor: Page, name: str) -> None:
    ARTIFACTS.mkdir(parents=True, exist_ok=True)
    expected = api_workflow(name)
    open_template(editor, name)
    sink = "FlexIPGammaSweep" if "FlexIPGammaSweep" in json.dumps(expected) else "FlexIPApply"
    missing_models = editor.get_by_role("dialog").filter(has_text="Missing Models")
    if name in WITH_SHIPPED_MODEL:
        editor.wait_for_function(
            "wanted => app.graph.nodes.filter(n => n.type !== 'MarkdownNote').length === wanted.count"
            " && app.graph.nodes.some(n => n.type === wanted.sink)",
            arg={"count": len(expected), "sink": sink},
        )
        assert editor.get_by_role("dialog").count() == 0, "a dialog about something that is missing"
    else:
        missing_models.wait_for()  # the files that the user gets; each with its source
        for file in ("v1-5-pruned-emaonly-fp16", "CLIP-ViT-H-14-laion2B-s32B-b79K", "dinov2-large"):
            assert file in missing_models.inner_text()
        editor.screenshot(path=ARTIFACTS / f"{name}-missing-models.png")
        editor.keyboard.press("Escape")
        missing_models.wait_for(state="hidden")
    unknown = editor.evaluate(
        "() => app.graph.nodes.map(n => n.type).filter(type => !LiteGraph.registered_node_types[type])"
    )
    assert unknown == []
    prompt = editor.evaluate("async () => (await app.graphToPrompt()).output")
    assert prompt == expected, f"workflows/{name}.json and its API form differ; export the API form again"

    if name in WITH_SHIPPED_MODEL:
        example = next(content["inputs"]["example"] for content in prompt.values() if "example" in content["inputs"])
        assert (ROOT / "models" / "demo" / "examples" / example).is_file()
        editor.get_by_test_id("queue-button").click()
        editor.wait_for_function(
            "() => app.graph.nodes.some(n => n.type === 'SaveImage' && n.imgs?.length && n.imgs[0].naturalWidth > 0)",
            timeout=5 * MINUTES,
        )
        width = editor.evaluate("() => app.graph.nodes.find(n => n.type === 'SaveImage').imgs[0].naturalWidth")
        assert width > 640 if sink == "FlexIPGammaSweep" else width == 128
    editor.evaluate("() => app.extensionManager.command.execute('Comfy.Canvas.FitView')")
    editor.wait_for_timeout(1000)
    editor.screenshot(path=ARTIFACTS / f"{name}.png")
