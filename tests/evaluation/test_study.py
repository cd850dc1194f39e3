"""The user study: a blind page in a real browser, and its files to Table 1's columns."""

import json
import re

import pytest

from flexip_model.__main__ import main
from flexip_model.evaluation.benchmarks.opening import open_benchmark

from .making import scored_run, tiny_benchmark, tiny_pictures

METHODS = ("ours", "theirs")
TOLD = ("study already", "6 samples", "two methods", "swept=FOLDER@gamma=VALUE", "no pictures of swept at gamma=0.5")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    benchmark = tiny_benchmark(folder / "benchmark")
    for place, name in enumerate(METHODS):
        tiny_pictures(folder / name, benchmark, shift=90 * place)
    return folder


def command(world, out, samples=4, methods=METHODS):
    named = [part for name in methods for part in ("--pictures", f"{name}={world / name}")]
    place = ["--benchmark", str(world / "benchmark"), "--out", str(out), "--samples", str(samples)]
    return ["evaluate", "study", *place, *named]


@pytest.fixture(scope="module")
def kit(world):
    assert main(command(world, world / "kit")) == 0
    return world / "kit"


def key_of(kit):
    return json.loads((kit / "key.json").read_text(encoding="utf-8"))


def answer(kit, folder, name, rule, leave=()):
    """An evaluator's file: for each sample and question the picture of the method that `rule` names."""
    key, answers = key_of(kit), []
    for number in range(len(key["samples"])):
        for question in ("flex", "id-pres"):
            method = rule(number, question)
            code = next(c for c, m in key["owners"].items() if m == method and c.startswith(f"{number:02}-"))
            answers.append({"sample": number, "question": question, "choice": code})
    path = folder / f"{name}.json"
    kept = [a for a in answers if (a["sample"], a["question"]) not in leave]
    path.write_text(json.dumps({"study": key["study"], "evaluator": name, "answers": kept}))
    return path


def test_the_page_is_one_file_and_names_no_method(kit):
    page = (kit / "study.html").read_text(encoding="utf-8")
    assert not any(name in page for name in METHODS)
    assert not re.findall(r'(?:src|href)="(?!data:)', page)
    key = key_of(kit)
    assert len(key["samples"]) == 4 and set(key["owners"].values()) == set(METHODS)
    assert {sample["subject"] for sample in key["samples"]} == {"dog", "cup", "hat"}


def test_a_study_in_a_browser_comes_back_as_shares(kit, browser, tmp_path, capsys):
    """A person who chooses the left picture for the text and the right one for the subject, and goes back once."""
    tab = browser.new_page()
    errors = []
    tab.on("pageerror", lambda error: errors.append(str(error)))
    tab.goto((kit / "study.html").as_uri())
    tab.click("#begin")
    assert tab.locator("#next").is_disabled()
    chosen = {}
    for step in range(8):
        buttons = tab.locator("#pictures button")
        assert buttons.count() == 2
        assert tab.evaluate("[...document.images].filter(i => i.src).every(i => i.complete && i.naturalWidth > 0)")
        button = buttons.nth(step % 2)
        code = button.get_attribute("data-code")
        button.click()
        chosen[int(code.split("-")[0]), ("flex", "id-pres")[step % 2]] = code
        if step == 3:
            tab.reload()
            tab.click("#begin")
            assert tab.locator("#count").inner_text() == "4 of 8"
            tab.click("#back")
            tab.click("#next")
        tab.click("#next")
    with tab.expect_download() as saved:
        tab.click("#save")
    saved.value.save_as(tmp_path / "answers.json")
    tab.close()
    assert errors == []
    value = json.loads((tmp_path / "answers.json").read_text())
    assert {(a["sample"], a["question"]): a["choice"] for a in value["answers"]} == chosen
    assert main(["evaluate", "study-result", str(kit / "key.json"), str(tmp_path / "answers.json")]) == 0
    assert "1 evaluators" in capsys.readouterr().out


def test_shares_are_means_over_evaluators_and_add_up(kit, tmp_path):
    files = [
        answer(kit, tmp_path, "a", lambda n, q: "ours" if q == "id-pres" or n == 0 else "theirs"),
        answer(kit, tmp_path, "b", lambda n, q: "ours" if q == "id-pres" else "theirs"),
    ]
    out = tmp_path / "shares.json"
    assert main(["evaluate", "study-result", str(kit / "key.json"), *map(str, files), "--out", str(out)]) == 0
    shares = json.loads(out.read_text())
    assert shares["ours"]["id-pres"]["value"] == 100 and shares["theirs"]["id-pres"]["value"] == 0
    assert shares["ours"]["flex"]["value"] == 12.5 and shares["theirs"]["flex"]["value"] == 87.5
    assert shares["ours"]["flex"]["low"] == 0 and shares["ours"]["flex"]["high"] == 25


def test_files_that_do_not_count_are_named(kit, tmp_path, capsys):
    good = answer(kit, tmp_path, "a", lambda n, q: "ours")
    half = answer(kit, tmp_path, "half", lambda n, q: "ours", leave={(2, "flex")})
    again = tmp_path / "again.json"
    again.write_text(good.read_text())
    other = tmp_path / "other.json"
    other.write_text(json.dumps({**json.loads(good.read_text()), "study": "x", "evaluator": "c"}))
    broken = tmp_path / "broken.json"
    broken.write_text("{")
    wrong = tmp_path / "wrong.json"
    wrong.write_text(good.read_text().replace('"evaluator": "a"', '"evaluator": "w"').replace("00-", "77-"))
    files = [str(path) for path in (good, half, again, other, broken, wrong)]
    assert main(["evaluate", "study-result", str(kit / "key.json"), *files]) == 0
    out = capsys.readouterr().out
    assert out.count("it is not counted") == 5
    for part in (
        "1 evaluators",
        "first flex of 2",
        "has sent a file already",
        "another study",
        "no picture of sample 0",
    ):
        assert part in out
    assert main(["evaluate", "study-result", str(kit / "key.json"), str(half)]) == 2
    assert "no file counts" in capsys.readouterr().err


def test_what_cannot_be_a_study_is_refused(world, kit, tmp_path, capsys):
    assert main(command(world, kit)) == 2
    assert main(command(world, tmp_path, samples=9)) == 2
    assert main(command(world, tmp_path, methods=("ours",))) == 2
    swept = tiny_pictures(world / "swept", open_benchmark(world / "benchmark"), (0.0, 1.0))
    assert swept.is_dir()
    assert main(command(world, tmp_path, methods=("ours", "swept"))) == 2
    one = [*command(world, tmp_path / "one", methods=("ours",)), "--pictures", f"swept={swept}@gamma=1"]
    assert main(one) == 0
    assert main([*command(world, tmp_path / "none", methods=("ours",)), "--pictures", f"swept={swept}@gamma=0.5"]) == 2
    told = capsys.readouterr().err.splitlines()
    for line, part in zip(told, TOLD, strict=True):
        assert part in line


def test_the_report_has_the_study_s_columns(kit, world, tmp_path):
    run = scored_run(tmp_path / "run")
    shares = {"other": {q: {"value": 61.4, "low": 50.0, "high": 70.0} for q in ("flex", "id-pres")}}
    (tmp_path / "shares.json").write_text(json.dumps(shares))
    assert main(["evaluate", "report", str(run), "--study", str(tmp_path / "shares.json")]) == 0
    page = (run / "report.html").read_text(encoding="utf-8")
    other = re.search(r'<tr class="method"><td>other</td>(.*?)</tr>', page)[1]
    assert other.count("61.4 [50.0, 70.0]") == 2
    assert "76.8" in re.search(r'<tr class="paper"><td>FlexIP</td>(.*?)</tr>', page)[1]
