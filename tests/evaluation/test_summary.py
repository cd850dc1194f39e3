"""Ranks as published, figures over subjects, tests with correction, and the figures of a knob."""

import math

import numpy as np
import pytest

from flexip_model.evaluation.pictures.beside import COPY, TRUE
from flexip_model.evaluation.scoring.store import Run
from flexip_model.evaluation.summary.control import DEFINITIONS, TAIL, Sweep, figures, hypervolume, summarize
from flexip_model.evaluation.summary.ranks import mean_ranks, ranked_metrics, read_tables
from flexip_model.evaluation.summary.sweeps import read_sweeps
from flexip_model.evaluation.summary.table import Comparison, compare_methods, frame, holm
from flexip_model.evaluation.summary.table import figures as table_figures

from .making import scored_run


def test_the_paper_s_mean_ranks_come_out_as_published():
    tables = read_tables()
    assert len(tables) == 9
    values = {name: row.values for name, row in tables.items()}
    found = mean_ranks(values, behind={name: row.behind for name, row in tables.items()})
    assert {name: round(rank, 1) for name, rank in found.items()} == {n: row.mean_rank for n, row in tables.items()}
    plain = mean_ranks(values)
    assert plain["ELITE"] == pytest.approx(6.1) and plain["MoMA"] == pytest.approx(5.9)
    assert [name for name in found if abs(found[name] - plain[name]) > 1e-9] == ["ELITE", "MoMA"]


def test_the_paper_s_tables_are_whole():
    tables = read_tables()
    assert tables["FlexIP"].values["id-pres"] == 76.8 and tables["MoMA"].values["semantic"] == 38.3
    assert sum("match" in row.values for row in tables.values()) == 6
    assert sum("flex" in row.values for row in tables.values()) == 6
    assert "flex" not in tables["ELITE"].values


def test_a_metric_that_one_method_lacks_is_left_out_for_all():
    values = {"a": {"clip-t": 0.3, "dino-i": 0.5}, "b": {"clip-t": 0.2, "dino-i": math.nan}, "c": {"clip-t": 0.2}}
    assert ranked_metrics(values) == ["clip-t"]
    assert mean_ranks(values) == {"a": 1.0, "b": 2.5, "c": 2.5}
    assert mean_ranks({"a": {}, "b": {}}) == {} == mean_ranks({})


def test_holm():
    """Worked by hand: 0.01 × 4, 0.015 × 3 (0.045), 0.04 × 2 = 0.08, and 0.05 may not fall below that."""
    assert holm([0.04, 0.01, 0.05, 0.015]) == pytest.approx([0.08, 0.04, 0.08, 0.045])
    assert holm([]) == []


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return Run(scored_run(tmp_path_factory.mktemp("run")))


def test_figures_are_means_of_subjects_and_count_what_is_left_out(run):
    table = frame(run)
    found = table_figures(table)
    assert list(found) == [*(f"mine gamma={g}" for g in ("0", "0.25", "0.5", "1")), "other", COPY, TRUE]
    cell = found["other"]["dino-i"]
    assert (cell.subjects, cell.pictures, cell.left_out, cell.missed) == (3, 5, 1, 0)
    own = [v for v in run.values() if v["method"] == "other" and v["metric"] == "dino-i" and not math.isnan(v["value"])]
    means = [np.mean([v["value"] for v in own if v["subject"] == s]) for s in ("dog", "cup", "hat")]
    assert cell.value == pytest.approx(float(np.mean(means)), abs=1e-6)
    assert cell.low <= cell.value + 1e-3 and cell.high >= cell.value - 1e-3
    assert found[COPY]["dino-i"].value == pytest.approx(1, abs=1e-5)


def test_methods_are_compared_and_what_stands_beside_is_not(run):
    found = compare_methods(frame(run))
    assert {(c.first, c.second) for c in found} == {(f"mine gamma={g}", "other") for g in ("0", "0.25", "0.5", "1")}
    assert all(isinstance(c, Comparison) and c.p <= c.corrected <= 1 and c.subjects == 3 for c in found)


def test_sweeps_of_a_run(run):
    sweeps = read_sweeps(run)
    assert sweeps.preservation == "dino-i" and sweeps.distance == "dino" and sweeps.left_out == []
    assert list(sweeps.of_method) == ["mine"] and len(sweeps.of_method["mine"]) == 6
    found = summarize(sweeps.of_method["mine"])
    assert set(found["as it is"]) == {*DEFINITIONS, TAIL} == set(found["recalibrated"])
    assert found["as it is"]["path_ratio"] == found["recalibrated"]["path_ratio"]


def on_a_line(subject, positions, knob=None, preservation=None):
    """A sweep whose pictures lie on a line."""
    at = np.array(positions, float)
    x = np.linspace(0, 1, len(at)) if knob is None else np.array(knob, float)
    kept = at if preservation is None else np.array(preservation, float)
    return Sweep(subject, x, np.abs(at[:, None] - at[None]), kept, 1 - kept)


def test_an_even_knob():
    found = figures(on_a_line("a", [0, 1, 2, 3, 4]))
    assert found["largest_jump"] == pytest.approx(1) and found["deviation"] == pytest.approx(0)
    assert found["path_ratio"] == pytest.approx(1) and found["triangle_deficit"] == pytest.approx(0)
    assert found["spearman_preservation"] == pytest.approx(1) and found["spearman_fidelity"] == pytest.approx(-1)
    assert found["csm_preservation"] == pytest.approx(0) and found["range_preservation"] == 4


def test_a_jump():
    """Steps 1, 7, 1, 1: K · max / Σ = 4 · 7 / 10; after the second picture the path is at 0.8 and the knob at 0.5."""
    found = figures(on_a_line("a", [0, 1, 8, 9, 10]))
    assert found["largest_jump"] == pytest.approx(2.8) and found["deviation"] == pytest.approx(0.3)
    assert found["csm_preservation"] == pytest.approx(float(np.std([1, 7, 1, 1])))


def test_scores_in_clumps_are_what_slideredit_counts():
    """0, 1, 8.5, 9, 10 in five bins of 2: counts 2, 0, 0, 0, 3 where 1 each is even, so (1 + 1 + 1 + 1 + 4) / 4."""
    clumped, even = figures(on_a_line("a", [0, 1, 8.5, 9, 10])), figures(on_a_line("a", [0, 1, 2, 3, 4]))
    assert clumped["chi_preservation"] == pytest.approx(2) == clumped["chi_fidelity"]
    assert even["chi_preservation"] == 0 and math.isnan(figures(on_a_line("a", [3, 3, 3]))["chi_preservation"])
    unequal = on_a_line("a", [0, 1, 4, 5], knob=[0, 0.2, 0.8, 1])
    assert figures(unequal)["chi_preservation"] == pytest.approx(4 / 3)
    assert figures(unequal, unequal.knob)["chi_preservation"] == pytest.approx(0)


def test_unequal_steps_of_the_knob_are_no_jumps():
    found = figures(on_a_line("a", [0, 1, 4, 5], knob=[0, 0.2, 0.8, 1]))
    assert found["largest_jump"] == pytest.approx(1) and found["deviation"] == pytest.approx(0)


def test_a_detour():
    """0 → 2 → 1: the path is 3 long and ends 1 away; the deficit is (2 + 1 − 1) / 1."""
    found = figures(on_a_line("a", [0, 2, 1]))
    assert found["path_ratio"] == pytest.approx(3) and found["triangle_deficit"] == pytest.approx(2)


def test_a_dead_knob_has_no_evenness_and_no_range():
    found = figures(on_a_line("a", [3, 3, 3]))
    for name in ("largest_jump", "deviation", "path_ratio", "triangle_deficit", "spearman_preservation"):
        assert math.isnan(found[name])
    assert found["range_preservation"] == 0
    assert "largest_jump" not in summarize([on_a_line("a", [3, 3, 3])])["as it is"]


def test_a_recalibration_takes_away_what_is_the_parametrization_s_alone():
    """All subjects jump at the same place: uneven as it is, even when recalibrated. One that jumps elsewhere stays."""
    same = [on_a_line(name, [0, 1, 8, 9, 10]) for name in "abc"]
    found = summarize(same)
    assert found["as it is"]["largest_jump"]["value"] == pytest.approx(2.8)
    assert found["recalibrated"]["largest_jump"]["value"] == pytest.approx(1)
    assert found["recalibrated"]["csm_preservation"]["value"] == pytest.approx(0, abs=1e-9)
    assert found["recalibrated"]["chi_preservation"]["value"] == 0 < found["as it is"]["chi_preservation"]["value"]
    assert found["as it is"]["spearman_preservation"] == found["recalibrated"]["spearman_preservation"]
    mixed = summarize([*same, on_a_line("d", [0, 1, 2, 9, 10])])
    assert mixed["recalibrated"][TAIL]["value"] > 2


def test_hypervolume_is_the_area_below_the_steps():
    assert hypervolume(np.array([1.0, 2.0, 3.0]), np.array([3.0, 2.0, 1.0])) == pytest.approx(3 + 2 + 1)
    assert hypervolume(np.array([2.0, 1.0]), np.array([2.0, 1.0])) == pytest.approx(4)
    assert math.isnan(hypervolume(np.array([math.nan]), np.array([1.0])))


def test_nan_scores_give_nan_and_not_a_figure():
    found = figures(on_a_line("a", [0, 1, 2], preservation=[0, math.nan, 1]))
    assert math.isnan(found["spearman_preservation"]) and math.isnan(found["range_preservation"])
    assert math.isnan(found["csm_preservation"]) and found["largest_jump"] == pytest.approx(1)
