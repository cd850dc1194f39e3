"""The report and the comparison of two runs: what stands in them, and the page in a real browser."""

import re
import shutil

import pytest

from flexip_model.__main__ import main
from flexip_model.evaluation.report.content import build, shown
from flexip_model.evaluation.scoring.store import Run
from flexip_model.evaluation.summary.table import Figure

from ..support.editor import ARTIFACTS
from .making import scored_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return scored_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def page(run):
    assert main(["evaluate", "report", str(run)]) == 0
    return (run / "report.html").read_text(encoding="utf-8")


def test_the_page_is_one_file(page):
    addresses = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert len(addresses) > 30
    assert all(address.startswith(("data:", "#")) for address in addresses)
    assert "<script" not in page and "url(" not in page


def test_the_page_names_what_was_left_out(page, run):
    content = build(Run(run))
    assert set(content["left_out"]) == {"Scores", "Empty columns"}
    assert len(content["left_out"]["Scores"]) == 3 and len(content["left_out"]["Empty columns"]) == 7
    assert page.count("cup_1_0.7.png is missing") == 3
    assert "huggingface.co/IDEA-Research/grounding-dino-base" in page


def test_empty_columns_have_no_cells_and_marks_stand_at_the_values(page):
    head = re.search(r'id="table1">\n<tr>(.*?)</tr>', page)[1]
    assert re.findall("<th>(.*?)</th>", head) == ["Method", "mRank", "CLIP-T", "CLIP-I", "DINO-I"]
    other = re.search(r'<tr class="method"><td>other</td>(.*?)</tr>', page)[1]
    assert other.count("*") == 3 and other.count("second") == 2
    best = re.search(r'<tr class="method"><td>mine gamma=1</td>(.*?)</tr>', page)[1]
    assert best.count('class="best"') == 2
    paper = re.search(r'<tr class="paper"><td>ELITE</td>(.*?)</tr>', page)[1]
    assert re.findall("<td>(.*?)</td>", paper) == ["6.2", "0.269", "0.793", "0.657"]


def test_the_markdown_has_the_same_table(page, run):
    text = (run / "report.md").read_text(encoding="utf-8")
    rows = [line for line in text.split("## Table 1")[1].split("mRank is over")[0].splitlines() if line.startswith("|")]
    assert len(rows) == 2 + 7 + 9
    assert len({row.count("|") for row in rows}) == 1
    assert "cup_1_0.7.png is missing" in text and "data:" not in text


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        (Figure(0.28412, 0.27, 0.3, 5, 9, 0, 0), "0.284 [0.270, 0.300]"),
        (Figure(0.28412, 0.27, 0.3, 5, 9, 1, 2), "0.284*† [0.270, 0.300]"),
        (Figure(5.437, 5.437, 5.437, 1, 9, 0, 0), "5.44"),
        (Figure(83.91, 80, 88, 5, 9, 0, 0), "83.9 [80.0, 88.0]"),
    ],
)
def test_cells(cell, text):
    assert shown(cell) == text


def test_a_run_against_itself_differs_nowhere(run, tmp_path, capsys):
    other = tmp_path / "other"
    shutil.copytree(run, other)
    assert main(["evaluate", "compare", str(run), str(other)]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| mine") or "| other" in line]
    assert len(rows) == 5 * 3 and all("| +0.0000 |" in row and row.endswith("| 1 |") for row in rows)
    record = (other / "run.json").read_text(encoding="utf-8")
    (other / "run.json").write_text(re.sub(r'"hash": "....', '"hash": "0000', record), encoding="utf-8")
    assert main(["evaluate", "compare", str(run), str(other)]) == 0
    assert capsys.readouterr().out.count("its weights differ") == 3


def test_a_folder_that_is_no_run_is_told(tmp_path, capsys):
    assert main(["evaluate", "report", str(tmp_path)]) == 2
    assert "is no scored run" in capsys.readouterr().err


def test_the_page_opens_in_a_browser(page, run, browser):
    tab = browser.new_page(viewport={"width": 1300, "height": 1000})
    told, asked = [], []
    tab.on("console", lambda message: told.append(message.text))
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto((run / "report.html").as_uri())
    assert tab.locator("#table1 tr").count() == 1 + 7 + 1 + 9
    assert tab.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    assert tab.locator("img.curve").count() == 3 and tab.locator("#scatter").count() == 1
    assert tab.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert told == [] and all(url.startswith(("file:", "data:")) for url in asked)
    ARTIFACTS.mkdir(parents=True, exist_ok=True)
    tab.screenshot(path=str(ARTIFACTS / "evaluation_report.png"), full_page=True)
    tab.close()


def test_a_run_without_any_weights_has_empty_columns_and_a_page(run, tmp_path):
    """The sweeps are measured by pixels; nothing else can be, and nothing is invented."""
    named = ["--benchmark", str(run.parent / "benchmark"), "--pictures", f"mine={run.parent / 'mine'}"]
    assert main(["evaluate", "score", *named, "--out", str(tmp_path), "--device", "cpu"]) == 0
    assert main(["evaluate", "report", str(tmp_path)]) == 0
    content = build(Run(tmp_path))
    assert content["metrics"] == [] and content["rows"][0].label == "mine"
    assert content["sweeps"].distance == "pixels"
    assert set(content["control"]["mine"]["as it is"]) >= {"largest_jump", "path_ratio"}
    assert "spearman_preservation" not in content["control"]["mine"]["as it is"]
    assert len(content["left_out"]["Empty columns"]) == 9
    assert content["left_out"]["Empty columns"][0].startswith("CLIP-T, CLIP-I, CLIP-I (subject) stay empty. CLIP ViT-B")
