"""Fixtures around ComfyUI's real editor, in headless Chromium, with both of its ways of drawing nodes."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from filelock import FileLock

from flexip_model.comfyui import ComfyServer

from .paths import ROOT

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

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
    """An installed Chromium; on a machine of Debian's kind, as root, it is installed.

    One of the tests' processes does so while the others wait: half of it is there before it runs.
    """
    with FileLock(Path(tempfile.gettempdir()) / "flexip-chromium.lock"):
        return _found_or_installed()


def _found_or_installed() -> str:
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


RENDERERS = ("classic", "nodes-2.0")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A headless browser."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=browser_path(), args=ARGUMENTS)
        yield running
        running.close()


@pytest.fixture(scope="module", params=RENDERERS)
def editor(server: ComfyServer, browser: Browser, request: pytest.FixtureRequest) -> Iterator[Page]:
    """ComfyUI's editor with one of its two ways of drawing nodes; its template browser not yet used."""
    context = browser.new_context(viewport={"width": 2560, "height": 1300})
    page = context.new_page()
    page.set_default_timeout(3 * MINUTES)
    page.goto(server.url)
    page.wait_for_function("window.app && window.app.graph && window.app.extensionManager")
    page.evaluate("on => app.extensionManager.setting.set('Comfy.VueNodes.Enabled', on)", request.param != "classic")
    page.renderer = request.param  # type: ignore[attr-defined]
    yield page
    context.close()
