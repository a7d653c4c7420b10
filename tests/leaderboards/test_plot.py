"""The picture of accuracy against a cost: it is the records', it is XML, its names can be read."""

import dataclasses
import itertools
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from harness.cli.commands import main
from harness.errors import HarnessError
from harness.leaderboards.leaderboard import render
from harness.leaderboards.placement import labels
from harness.records.store import read_all
from tests.conftest import ROOT
from tests.leaderboards.test_leaderboard import grid

SVG = "{http://www.w3.org/2000/svg}"


def costing(parameters, **more):
    """Records of a method that trains so many parameters."""
    cost = {"trainable_parameters": parameters}
    return [dataclasses.replace(each, cost=cost) for each in grid(**more)]


def texts(svg):
    """The texts of a picture by what they say, with their classes."""
    return {e.text: e.get("class", "") for e in ElementTree.fromstring(svg).iter(f"{SVG}text")}


def draw(*groups):
    return render(itertools.chain(*groups), "svg", pareto="params")


def test_the_committed_picture_is_that_of_the_committed_records(capsys):
    results = ROOT / "results"
    folders = [str(results / "reference"), str(results / "efficiency")]
    what = ["--task", "base2new", "--pareto", "fit", "--format", "svg"]
    assert main(["leaderboard", "--results", *folders, *what]) == 0
    assert (results / "pareto.svg").read_text(encoding="utf-8") == capsys.readouterr().out


def test_only_a_method_that_none_beats_is_on_the_front():
    better = costing(10, method="cheap")
    worse = costing(20, method="dear")
    drawn = texts(draw(better, worse))
    assert "best" in drawn["cheap"]
    assert "best" not in drawn["dear"]


@pytest.mark.parametrize("name", ["<script>&\"'", "a]]>b", "bell\x07 and escape\x1b[2J", "\ud800"])
def test_any_name_gives_a_picture_that_parses(name):
    drawn = texts(draw(costing(10, method=name)).encode().decode())
    shown = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in name)
    assert shown in drawn


def test_names_of_a_crowd_cover_neither_one_another_nor_a_dot():
    points = {f"method-{i}": (400 + i % 5, 250 + i // 5) for i in range(20)}
    boxes = labels(points, (0, 0, 800, 500))
    for (_, a), (_, b) in itertools.combinations(boxes.items(), 2):
        assert a[0] >= b[2] or b[0] >= a[2] or a[1] >= b[3] or b[1] >= a[3]
    for left, top, right, bottom in boxes.values():
        assert not any(left < x < right and top < y < bottom for x, y in points.values())


def test_a_method_that_lacks_runs_is_named_and_not_drawn():
    drawn = texts(draw(costing(10), costing(20, method="half")[:2]))
    assert "half" not in drawn
    assert "no score or no cost: half" in drawn


def test_a_cost_of_nothing_is_drawn():
    assert "zero_shot" in texts(draw(costing(0, method="zero_shot")))


def test_a_picture_without_a_cost_is_refused():
    with pytest.raises(HarnessError, match="Add --pareto params"):
        render(grid(), "svg")


def test_a_picture_of_several_tables_is_refused():
    other = costing(10)
    for each in other:
        each.run["backbone"] = "ViT-B-16"
    other = [replace(each, key=f"of another backbone {each.key}") for each in other]
    with pytest.raises(HarnessError, match="make several"):
        draw(costing(10), other)


def test_costs_that_were_measured_with_other_caps_say_so():
    kept = read_all([ROOT / "results" / "efficiency"])
    (measured,) = (each for each in kept if each.run["method"] == "adapter")
    settings = measured.run["settings"]
    weights = measured.run["fingerprints"]["weights"]

    def scored(**more):
        return [replace(each, run={**each.run, "settings": {**settings, **more}})
                for each in grid(method="adapter", weights=weights)]  # fmt: skip

    other = [*scored(max_steps=7), measured]
    said = "fit was measured otherwise than the scores: max_steps 300 for 7."
    assert said in " ".join(render(other, pareto="fit").split())
    assert "unlike the scores: max_steps 300 for 7" in render(other, "svg", pareto="fit")
    for form in ("markdown", "svg"):
        assert "the scores:" not in render([*scored(), measured], form, pareto="fit")
