"""`recommend` as a user sees it: the answer in words, and as numbers."""

import contextlib
import io
import json
import shlex

import pytest

from harness.cli import recommend_text
from harness.cli.arguments import parser
from harness.cli.commands import main
from harness.runs import recommend
from harness.runs.folds import Folded
from harness.runs.ladder import climb, rungs
from harness.runs.recommend import Recommendation
from tests.runs.test_ladder import measure_with
from tests.runs.test_recommend import folder
from tests.toy import Toy

METHODS = "zero_shot,lfa"


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """The command after its first looks are taken."""
    home = folder(tmp_path_factory.mktemp("own") / "discs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recommend, "rungs", lambda *given: rungs(*given)[:2])
        command = ["recommend", "--datasets", f"folder:{home}", "--budget", "1h", "--shots", "1",
                   "--methods", METHODS, "--results", str(tmp_path_factory.mktemp("results")),
                   "--template", "a drawing of a {}."]  # fmt: skip
        assert main(command) == 0
        yield command


@pytest.fixture(scope="module")
def numbers(given):
    return _printed([*given, "--json"])


@pytest.fixture(scope="module")
def text(given):
    return _printed(given)


def _printed(command):
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert main(command) == 0
    return out.getvalue()


def test_the_answer_names_a_method_and_how_sure_that_is(text):
    assert text.lstrip().startswith("Take ")
    assert "at most 5%, for all looks together" in " ".join(text.split())
    assert "(difference, 95%: " in text
    assert "highest of 2 on the same images, and so on average a little too high" in " ".join(
        text.split()
    )


def test_the_answer_says_how_to_train_the_method_on_all_images(text, given):
    (line,) = [line for line in text.splitlines() if line.strip().startswith("python -m harness")]
    arguments = parser().parse_args(shlex.split(line)[3:])
    assert arguments.command == "run"
    assert arguments.datasets == given[2]
    assert arguments.template == ["a drawing of a {}."]


def test_the_answer_says_what_was_forecast_and_spent(text):
    assert "| look" in text
    assert "forecast" in text
    assert "of 60 min." in text


def test_nothing_but_numbers_is_printed_as_json(numbers):
    found = json.loads(numbers, parse_constant=pytest.fail)
    assert found["method"] in METHODS.split(",")
    assert found["error_of_all_looks"] == pytest.approx(0.05)
    first, second = found["looks"]
    assert (first["folds"], second["folds"]) == (1, 2)
    assert second["kept"] == second["runs"] == 8
    assert {p["first"] for p in second["pairs"]} <= {*METHODS.split(",")}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--budget", "10 parsecs"], "is not a time such as 90s, 10m or 2h"),
        (["--shots", "1,2"], "recommend takes one number"),
        (["--shots", "0"], "--shots must be at least 1"),
        (["--template", "a drawing"], "has no {} for the class name"),
        (["--datasets", "folder:nowhere"], "No such file or directory"),
        (["--methods", "cupl,zero_shot"], "Compare it with `run --class-texts FILE`"),
    ],
)
def test_a_request_that_cannot_be_met_is_refused(given, capsys, options, sentence):
    assert main([*given, *options]) == 2
    assert sentence in capsys.readouterr().err


def test_images_that_cannot_be_read_stop_it_or_are_left_out_and_said(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(recommend, "rungs", lambda *given: rungs(*given)[:1])
    home = folder(tmp_path / "discs", train=4)
    (home / "train" / "red" / "0.png").write_bytes(b"no image")
    command = ["recommend", "--datasets", f"folder:{home}", "--budget", "1h", "--shots", "1",
               "--methods", "zero_shot,tip_adapter", "--results", str(tmp_path / "r")]  # fmt: skip
    assert main(command) == 2
    assert "leave them out with --on-bad-image skip" in capsys.readouterr().err
    assert main([*command, "--on-bad-image", "skip"]) == 0
    printed = capsys.readouterr()
    assert "left out: 1 image that cannot be read, such as train/red/0.png." in printed.err
    assert "--on-bad-image skip" in printed.out  # in the command that trains on all images


def test_how_far_it_is_ahead_of_zero_shot_is_said_after_that_was_beaten():
    accuracy = {"zero_shot": 0.2, "lora": 0.8, "tcp": 0.78, "lfa": 0.78}
    climbed = climb(rungs(4, 5), list(accuracy), measure_with(lambda name, _: accuracy[name],
                                                              time_for=accuracy))  # fmt: skip
    assert "zero_shot" not in climbed.last.look.labels
    counts = {"fine": 950, "broken": 50}
    data = Folded(name="own", dataset=Toy(), folds=["1"] * 5, counts=counts, has_val=True, asked=4,
                  shots=4)  # fmt: skip
    found = Recommendation(data=data, backbone="", climb=climbed, records={}, refused={}, budget=1,
                           spent=1, prepared=0, looks=(), needs=None, uses_val=False)  # fmt: skip
    said = " ".join(recommend_text._sure(found))
    assert "It was, with 4 shots, 1 fold, 2 seeds, 60.00 points ahead of zero_shot" in said
    assert "The largest class has 950 images and the smallest 50: accuracy counts images" in said
