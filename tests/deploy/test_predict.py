"""A fit names images in files and folders, and says what it cannot read or tell apart."""

import csv

import pytest
import torch

import harness
from harness import registry
from harness.cli.commands import main
from harness.deploy import predict
from harness.deploy.calibration import Calibration, calibrated, temperature
from harness.errors import HarnessError
from harness.fitting.fitted import FittedModel
from harness.fitting.model import Model
from harness.methods.zero_shot import ZeroShot
from harness.runs.context import Context
from tests.conftest import TOY
from tests.toy import NAMES, Toy


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """The results folder of a short fit and of one that knows the fitted classes alone."""
    folder = tmp_path_factory.mktemp("results")
    harness.run(
        ["clip_adapter", "taskres", "tip_adapter"], "few_shot", "toy", shots=2, results=folder,
        plugins=[str(TOY)], settings={"engine.max_steps": 2}, cache_limit=0,
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Discs of the toy dataset as files, in a folder with others that are none."""
    folder, toy = tmp_path_factory.mktemp("pictures"), Toy()
    for number, item in enumerate(toy.read(None)["test"][::4]):
        place = folder / f"sub{number % 2}"
        place.mkdir(exist_ok=True)
        toy.open(item, None).save(place / f"{number}.png")
    (folder / "sub0" / "notes.txt").write_text("no image")
    (folder / ".hidden.png").write_bytes(b"no image")
    return folder


def called(fitted, *arguments: object) -> int:
    options = ["--results", str(fitted), "--plugin", str(TOY), "--device", "cpu"]
    return main(["predict", *map(str, arguments), *options])


def test_a_folder_is_named_in_natural_order_with_the_probabilities_of_the_fit(
    fitted, pictures, tmp_path
):
    out = tmp_path / "predictions.csv"
    assert called(fitted, "clip_adapter", pictures, "--top", 3, "--out", out) == 0
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    paths = predict.images_of([str(pictures)])
    assert [row["image"] for row in rows] == list(map(str, paths))
    assert [path.name for path in paths[:6]] == ["0.png", "2.png", "4.png", "6.png", "8.png",
                                                 "10.png"]  # fmt: skip
    (record,) = (r for r in harness.leaderboard(fitted).records
                 if r.run["method"] == "clip_adapter")  # fmt: skip
    logits = harness.load(record, plugins=[str(TOY)], device="cpu").logits(paths)
    values, labels = logits.softmax(-1).topk(3)
    for row, value, label in zip(rows, values.tolist(), labels.tolist(), strict=True):
        assert [row["class"], row["class_2"], row["class_3"]] == [NAMES[each] for each in label]
        assert float(row["probability_2"]) == pytest.approx(value[1], abs=6e-5)
    assert not list(tmp_path.glob("*.part"))


def test_an_unreadable_image_is_named_left_out_and_makes_the_exit_code_1(
    fitted, pictures, tmp_path, capsys
):
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"\x89PNG")
    assert called(fitted, "clip_adapter", bad, pictures / "sub0" / "0.png") == 1
    said = capsys.readouterr()
    assert "bad.png cannot be read as an image" in said.err
    assert "1 of 2 images could not be read" in said.err
    assert "0.png" in said.out


def test_photographs_that_need_an_extra_are_not_left_out_unseen(
    fitted, tmp_path, capsys, monkeypatch
):
    Toy().open(Toy().read(None)["test"][0], None).save(tmp_path / "a.png")
    (tmp_path / "b.HEIC").write_bytes(b"of a telephone")
    monkeypatch.setattr(predict, "SUFFIXES", predict.SUFFIXES - predict.HEIC)
    monkeypatch.setattr(predict._below, "__defaults__", (predict.SUFFIXES,))
    assert called(fitted, "clip_adapter", tmp_path) == 1
    assert "left out: 1 HEIC image. pip install" in capsys.readouterr().err


def test_other_class_names_are_asked_by_name_or_refused_with_the_reason(
    fitted, pictures, tmp_path, capsys
):
    names = tmp_path / "names.txt"
    names.write_text("\ufeffa dark disc\n\na bright disc\n", encoding="utf-8")
    image = pictures / "sub0" / "0.png"
    assert called(fitted, "clip_adapter", image, "--top", 9, "--classes", names) == 0
    shown = capsys.readouterr().out
    assert "a dark disc" in shown
    assert "a bright disc" in shown
    assert called(fitted, "taskres", image, "--classes", names) == 2
    assert "classifies only the classes that it was fitted on" in capsys.readouterr().err
    names.write_text("disc\ndisc\n")
    assert called(fitted, "clip_adapter", image, "--classes", names) == 2
    assert "'disc' is given twice" in capsys.readouterr().err


def test_below_the_threshold_of_the_zero_shot_margin_it_is_none_of_these(
    fitted, pictures, tmp_path
):
    (record,) = (r for r in harness.leaderboard(fitted).records
                 if r.run["method"] == "clip_adapter")  # fmt: skip
    model = harness.load(record, plugins=[str(TOY)], device="cpu").model
    zero_shot = FittedModel(Model(model.clip, ZeroShot(), model.classes, 0), {})
    logits = zero_shot.logits(predict.images_of([str(pictures)]))
    best = logits.softmax(-1).topk(2).values
    margins = (best[:, 0] - best[:, 1]).tolist()
    threshold = sum(margins) / len(margins)
    out = tmp_path / "predictions.csv"
    assert called(fitted, "clip_adapter", pictures, "--threshold", threshold, "--out", out) == 0
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row, margin in zip(rows, margins, strict=True):
        assert float(row["margin"]) == pytest.approx(margin, abs=6e-5)
        assert row["answer"] == ("none of these" if margin < threshold else row["class"])
    assert len({row["answer"] == "none of these" for row in rows}) == 2
    assert called(fitted, "clip_adapter", pictures, "--threshold", 1.5) == 2


def test_a_single_class_has_a_margin_of_one():
    assert predict.margins_of(torch.tensor([[3.0], [-2.0]])).tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("given", "said"),
    [("nothing.png", "there is no image"), ("no/*.png", "there is no image"), (".", "no images")],
)
def test_what_is_no_image_is_said_before_anything_is_loaded(
    given, said, fitted, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert called(fitted, "clip_adapter", given) == 2
    assert said in capsys.readouterr().err


def test_a_file_is_one_fit_and_leaves_nothing_to_choose(fitted, pictures, capsys):
    assert called(fitted, "one.safetensors", pictures, "--seed", 2, "--task", "base2new") == 2
    assert "is a file, and so one fit: leave out --task and --seed." in capsys.readouterr().err


def test_a_temperature_has_the_highest_likelihood_and_is_judged_on_the_other_half():
    draws = torch.Generator().manual_seed(1)
    true = torch.randn(4000, 5, generator=draws)
    labels = torch.multinomial(true.softmax(-1), 1, generator=draws)[:, 0]
    logits = 3 * true  # three times too sure
    found = Calibration.of(logits, labels)
    assert found.temperature == pytest.approx(3, rel=0.05)
    assert found.before > 0.15
    assert found.after < 0.03
    grid = [torch.nn.functional.cross_entropy(logits.double() / t, labels) for t in (2, 3, 4)]
    at = torch.nn.functional.cross_entropy(
        logits.double() / temperature(logits.double(), labels), labels
    )
    assert at <= min(grid)


def test_without_mistakes_there_is_no_temperature():
    logits = torch.eye(4).repeat(3, 1)
    with pytest.raises(HarnessError, match="12 of 12 validation images are named correctly"):
        Calibration.of(logits, torch.arange(4).repeat(3))


def test_calibration_takes_the_validation_images_of_the_fit_and_no_others(
    fitted, pictures, capsys, monkeypatch
):
    assert called(fitted, "clip_adapter", pictures / "sub0" / "0.png", "--calibrate") == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "On 14 validation images the expected calibration error goes from" in said
    monkeypatch.setattr(
        "harness.fitting.fitted.FittedModel.__init__",
        lambda self, model, run: self.__dict__.update(
            model=model, _known={},
            run={**run, "fingerprints": {**run["fingerprints"], "train": "another"}},
        ),
    )  # fmt: skip
    assert called(fitted, "clip_adapter", pictures / "sub0" / "0.png", "--calibrate") == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "has other training images, class names or templates than this fit had" in said


def test_what_chose_a_methods_settings_does_not_calibrate_it(fitted, monkeypatch):
    (record,) = (r for r in harness.leaderboard(fitted).records
                 if r.run["method"] == "tip_adapter")  # fmt: skip
    loaded, seen = harness.load(record, plugins=[str(TOY)], device="cpu"), []
    split = Context.split

    def noted(self, run, name, subset, part):
        found = split(self, run, name, subset, part)
        seen.append((part, {item.path for item in found.items}))
        return found

    monkeypatch.setattr(Context, "split", noted)
    calibrated(loaded, None, None, registry.load([str(TOY)]))
    parts = dict(seen)
    assert len(parts["further"]) == len(parts["validation"]) == 2 * len(NAMES)
    assert not parts["further"] & (parts["validation"] | parts["training"])
    assert parts["further"] <= {item.path for item in Toy().read(None)["val"]}


def test_a_fit_computes_float32_as_it_is_whatever_the_process_was_told(fitted, monkeypatch):
    """PyTorch would round what convolutions are given to TF32 on a card."""
    loaded = harness.load(harness.leaderboard(fitted).records[0], plugins=[str(TOY)], device="cpu")
    seen, start = [], Model.prefix

    def noted(self, *args):
        seen.append((torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()))
        return start(self, *args)

    monkeypatch.setattr(Model, "prefix", noted)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    torch.set_float32_matmul_precision("high")
    try:
        loaded.logits(torch.zeros(1, *loaded.model.clip.pixels.shape))
        after = torch.get_float32_matmul_precision()
    finally:
        torch.set_float32_matmul_precision("highest")
    assert {*seen} == {(False, "highest")}
    assert (torch.backends.cudnn.allow_tf32, after) == (True, "high")
