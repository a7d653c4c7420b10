"""A fit becomes a folder that says the same, or no folder."""

import contextlib
import json
import os
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from open_clip import create_model_and_transforms
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

import harness
from harness.cli.commands import main
from harness.dataset import Classes
from harness.deploy import export, forms, merging
from harness.deploy.card import Card, placeless
from harness.deploy.network import Network, open_lengths
from harness.errors import HarnessError
from harness.fitting.fitted import FittedModel
from harness.fitting.model import Model
from harness.method import CosineHead, Edit
from harness.records import predictions
from harness.towers import backbone
from tests import toy_backbone
from tests.conftest import EVERY_METHOD, PLUGINS, TOY
from tests.methods.test_contract import grafted, images, shake
from tests.records import worlds
from tests.toy import NAMES

METHODS = ["coop", "lora", "full", "taskres"]
PIXELS = (8, 3, 48, 48)
CLASSES = Classes("toy", NAMES, "a photo of a {}.")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """The results folder of short fits."""
    folder = tmp_path_factory.mktemp("results")
    harness.run(
        METHODS, "few_shot", "toy", shots=2, results=folder, plugins=[str(TOY)],
        settings={"engine.max_steps": 3, "lora.lr": 0.01}, cache_limit=0,
    )  # fmt: skip
    return folder


def exported(results, method, form, out, *more):
    options = ["--results", str(results), "--plugin", str(TOY), *more]
    return main(["export", method, "--form", form, "--out", str(out), *options])


def loaded(results, method):
    (record,) = (r for r in harness.leaderboard(results).records if r.run["method"] == method)
    return harness.load(record, plugins=[str(TOY)], device="cpu"), record


@pytest.mark.parametrize("method", ["lora", "full"])
def test_zero_shot_on_a_merged_checkpoint_predicts_what_the_fit_did(method, results, tmp_path):
    out = tmp_path / "merged"
    assert exported(results, method, "merged", out) == 0
    fitted, record = loaded(results, method)
    again = harness.run(
        "cupl", "few_shot", "toy", shots=2, results=tmp_path / "r", plugins=[str(TOY)],
        backbone=f"local-dir:{out}", cache_limit=0, class_texts=[out / "texts.json"],
    )  # fmt: skip
    found = [predictions.read(each, "test").classes for each in (record, again.records[0])]
    assert found[0].tolist() == found[1].tolist()
    texts = json.loads((out / "texts.json").read_text())
    assert texts == {name: [f"a photo of a {name}."] for name in fitted.class_names}
    assert backbone.load(f"local-dir:{out}").fingerprint != fitted.model.clip.fingerprint


def test_open_clip_alone_reads_a_merged_checkpoint(results, tmp_path):
    out = tmp_path / "merged"
    assert exported(results, "lora", "merged", out) == 0
    fitted, _ = loaded(results, "lora")
    model, _, transform = create_model_and_transforms(f"local-dir:{out}")
    assert transform.transforms[0].size == 48
    x = torch.randn(PIXELS)
    tokens = fitted.model.clip.tokenize(["a red disc"])
    with torch.no_grad():
        features, text = model.encode_image(x), model.encode_text(tokens)
    assert torch.allclose(features, fitted.features(x), atol=1e-4)
    frozen = backbone.load("emoji-mini").text(tokens)
    assert not torch.allclose(text, frozen, atol=1e-4)


@pytest.mark.parametrize("method", ["coop", "taskres"])
def test_a_classifier_on_the_plain_backbone_gives_the_logits_of_the_fit(method, results, tmp_path):
    out = tmp_path / "classifier"
    assert exported(results, method, "classifier", out) == 0
    fitted, _ = loaded(results, method)
    kept = load_file(out / "classifier.safetensors")
    x = torch.randn(PIXELS)
    features = F.normalize(backbone.load("emoji-mini").image(x), dim=-1)
    logits = F.linear(features, kept["weight"], kept.get("bias"))
    assert torch.allclose(logits, fitted.logits(x), atol=1e-4)


def test_pt2_takes_any_number_of_images(tmp_path):
    clip = toy_backbone.load()
    clip.image.blocks, clip.text.blocks = clip.image.blocks[:2], clip.text.blocks[:2]
    fitted = FittedModel(grafted("lora", clip), {})
    shake(fitted.model)
    forms.FORMS["pt2"](fitted, tmp_path, images(2, like=clip.logit_scale))
    with zipfile.ZipFile(tmp_path / "model.pt2") as file:
        written = b"".join(map(file.read, file.namelist()))
    for place in (Path(harness.__file__).parent, Path(torch.__file__).parent, Path.home()):
        assert str(place).encode() not in written  # where the code lies here concerns nobody
    network = torch.export.load(tmp_path / "model.pt2").module()
    for count in (1, 2, 5):
        x = images(count, like=clip.logit_scale)
        assert torch.allclose(network(x), fitted.logits(x), atol=1e-4)


def test_the_folder_says_what_it_is(results, tmp_path):
    out = tmp_path / "classifier"
    assert exported(results, "coop", "classifier", out) == 0
    _, record = loaded(results, "coop")
    assert json.loads((out / "classes.json").read_text()) == list(CLASSES.names)
    assert json.loads((out / "preprocessing.json").read_text())["size"] == [48, 48]
    card = (out / "README.md").read_text(encoding="utf-8")
    score = record.scores["test"]
    for said in (
        "| backbone | emoji-mini (weights ",
        f"training images {record.run['fingerprints']['train']}",
        f"| few_shot | test | {100 * score['accuracy']:.2f} | ",
        "14 training images of toy: logits differ by at most",
        "The licences of both hold",
        "\n    python -m harness",
        "| engine | max_epochs=30, max_steps=3, ",
    ):
        assert said in card
    assert f"| {score['total']} | {record.key} |" in card


@pytest.mark.parametrize(
    ("method", "form", "why"),
    [
        ("adapter", "merged", r"it edits image\.blocks\.4\.attn"),
        ("cocoop", "merged", "texts of its own for each image"),
        ("clip_adapter", "merged", "it has a head of its own"),
        ("lora", "classifier", "lora changes the image tower"),
        ("clip_adapter", "classifier", "no linear function of the normalised image feature"),
        ("tip_adapter", "classifier", "no linear function of the normalised image feature"),
    ],
)
def test_a_form_that_a_fit_does_not_have_says_why(method, form, why, toy, tmp_path):
    fitted = FittedModel(grafted(method, toy), {})
    with pytest.raises(merging.NoSuchForm, match=why):
        forms.FORMS[form](fitted, tmp_path, None)


def test_the_forms_that_a_fit_has_are_named_and_nothing_is_left(results, tmp_path, capsys):
    assert exported(results, "coop", "merged", tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert "it edits text.tokens" in said
    assert "Choose --form classifier, onnx or pt2." in said
    assert exported(results, "lora", "classifier", tmp_path / "out") == 2
    assert "Choose --form merged, onnx or pt2." in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SafetensorError("28")])
def test_a_full_disk_is_one_sentence_and_nothing_is_left(
    error, results, tmp_path, capsys, monkeypatch
):
    def full(*_):
        raise error

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    assert exported(results, "coop", "classifier", tmp_path / "out") == 2
    assert str(error.args[-1]) in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_what_is_interrupted_leaves_nothing(stop, results, tmp_path, monkeypatch):
    def interrupted(*_):
        raise stop

    monkeypatch.setattr(export, "_difference", interrupted)
    with contextlib.suppress(SystemExit):
        assert exported(results, "coop", "classifier", tmp_path / "out") == 130
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_there_is_not_written_over(results, tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("mine")
    assert exported(results, "coop", "classifier", tmp_path) == 2
    assert "is there already" in capsys.readouterr().err
    assert exported(results, "coop", "classifier", tmp_path / ("x" * 300)) == 2
    assert "cannot be made: File name too long" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("shift", ["logits", "labels"])
def test_another_answer_than_the_fits_is_refused_and_nothing_is_left(
    shift, results, tmp_path, capsys, monkeypatch
):
    truth = merging.classifier

    def wrong(fitted):
        made = truth(fitted)
        made["weight"] = made["weight"] * 1.001 if shift == "logits" else made["weight"].roll(1, 0)
        return made

    monkeypatch.setattr(merging, "classifier", wrong)
    assert exported(results, "coop", "classifier", tmp_path / "out") == 2
    assert "Nothing was written" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_other_images_than_those_of_the_fit_are_not_called_so(results, tmp_path):
    out = tmp_path / "out"
    assert exported(results, "coop", "classifier", out, "--data", "emoji_food") == 0
    said = (
        "64 images of emoji_food, of which images, class names or templates are not those that it "
        "was fitted on: logits differ"
    )
    assert said in (out / "README.md").read_text()


def test_own_images_are_known_as_those_of_the_fit_under_its_templates_without_the_damaged(tmp_path):
    for part in ("train", "test"):
        for name, color in (("red", "red"), ("blue", "blue")):
            folder = tmp_path / "own" / part / name
            folder.mkdir(parents=True)
            Image.new("RGB", (8, 8 if part == "train" else 9), color).save(folder / "0.png")
    (tmp_path / "own" / "train" / "red" / "1.png").write_bytes(b"damaged")
    made = harness.run(
        ["taskres", "lora"], "few_shot", f"folder:{tmp_path / 'own'}", shots=2,
        results=tmp_path / "r", template=["a {}.", "the {}."], cache_limit=0,
        settings={"engine.max_steps": 1, "engine.on_bad_image": "skip"},
    )  # fmt: skip
    for record in made.records:  # taskres averages both templates, lora takes the first
        fitted = harness.load(record, device="cpu")
        said = export.compared(fitted, f"folder:{tmp_path / 'own'}", None, PLUGINS).source
        assert said == "2 training images of folder:own", record.run["method"]


def test_a_card_shows_markup_in_names_as_it_is():
    run = {
        "method": "coop", "dataset": "folder:a|<b>\n", "backbone": "local-dir:<i>", "code": "c",
        "shots": 1, "seed": 1, "hyperparameters": {"context": "a|b"}, "overrides": {}, "given": [],
        "settings": {"max_epochs": 1}, "fingerprints": {"weights": "w", "train": "t"},
    }  # fmt: skip
    card = Card(run, 2, [], ["export", "a b", "`x`\n# y"], "MIT").text("onnx", "noise")
    assert "# coop on folder:a\\|&lt;b>\\n\n" in card
    assert "| hyperparameters | context=a\\|b |" in card
    assert "\n    export 'a b' '`x`\\n# y'\n" in card
    assert "learned from folder:a\\|&lt;b>\\n (MIT)." in card


@pytest.mark.parametrize(("given", "said"), [
    ("folder:/home/ann/patients", "folder:patients"), ("/home/ann/r/fits/a.safetensors",
     "a.safetensors"), ("--out=../x/y", "--out=y"), ("~/data", "data"), ("--seed", "--seed"),
    ("hf-hub:openai/clip", "hf-hub:openai/clip"), ("lora", "lora"), ("a/b", "a/b"),
    ("dra.rank=8", "dra.rank=8"), ("local-dir:./w", "local-dir:w"),
    ("--data=folder:/home/a/b", "--data=folder:b"), ("timm/vit.b:/home/a/w", "timm/vit.b:w"),
    ("folder:C:\\Users\\a", "folder:a"), ("C:\\Users\\a\\b", "b"),
    ("tip_x.beta=0.5", "tip_x.beta=0.5"),
    ("a photo of a {}.", "a photo of a {}."), ("--template=a: b/c", "--template=a: b/c"),
])  # fmt: skip
def test_a_card_names_no_folders_of_this_machine(given, said):
    assert placeless(given) == said


def test_what_was_scored_on_validation_images_is_no_test_on_a_card(tmp_path):
    """And what looked wrong is said."""
    store = worlds.write(tmp_path, {"lora": 0.6}, seeds=(1,), settings={"split": "val"})
    (record, _) = store.records()
    record = replace(record, checks=["the loss rose"])
    run = {**record.run, "fingerprints": {"weights": "w", "train": "t"}}
    card = Card(run, 2, [record], ["export"]).text("onnx", "noise")
    assert "| base2new, scored on validation images | base |" in card
    assert "It looks wrong: the loss rose." in card


def test_without_its_data_random_pixels_are_compared_and_the_card_says_so(
    results, tmp_path, monkeypatch
):
    def gone(*_):
        raise HarnessError("not here")

    monkeypatch.setattr(export, "prepared_of", gone)
    out = tmp_path / "out"
    assert exported(results, "coop", "classifier", out) == 0
    assert "64 images of random pixels, since those of the fit" in (out / "README.md").read_text()


@pytest.mark.parametrize("damage", ["truncated", "foreign", "classes", "pipe"])
def test_a_damaged_or_foreign_fit_is_one_sentence(damage, results, tmp_path, capsys):
    weights = next(results.glob("fits/*"))
    broken = tmp_path / "broken.weights.safetensors"
    if damage == "truncated":
        broken.write_bytes(weights.read_bytes()[:-100])
    elif damage == "foreign":
        save_file({"x": torch.zeros(2)}, broken)
    elif damage == "classes":
        save_file({"x": torch.zeros(2)}, broken, {"run": "{}", "classes": "[]"})
    else:
        os.mkfifo(broken)
    assert exported(results, str(broken), "pt2", tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert "does not hold a fit that can be loaded" in said
    assert "Traceback" not in said


def test_a_truncated_merged_checkpoint_is_one_sentence(results, tmp_path):
    out = tmp_path / "merged"
    assert exported(results, "lora", "merged", out) == 0
    weights = out / "open_clip_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(HarnessError, match="is damaged or no safetensors file"):
        backbone.load(f"local-dir:{out}")


def test_a_fit_is_exported_by_its_file_with_the_scores_beside_it(results, tmp_path):
    _, record = loaded(results, "coop")
    moved = tmp_path / "r"
    shutil.copytree(results, moved)
    weights = moved / "fits" / f"{record.fit}.weights.safetensors"
    assert exported(results, str(weights), "classifier", tmp_path / "out") == 0
    assert record.key in (tmp_path / "out" / "README.md").read_text()


def test_around_a_fit_that_was_moved_no_records_are_looked_for(results, tmp_path, capsys):
    _, record = loaded(results, "coop")
    (tmp_path / "sub").mkdir()
    (tmp_path / "mine.json").write_text("{}")  # which would be named in a warning
    moved = tmp_path / "sub" / "x.weights.safetensors"
    shutil.copy(results / "fits" / f"{record.fit}.weights.safetensors", moved)
    assert exported(results, str(moved), "classifier", tmp_path / "out") == 0
    assert "The record of the run was not beside" in (tmp_path / "out" / "README.md").read_text()
    assert not capsys.readouterr().err


class Squared(Edit):
    def forward(self, x, y, at):
        return y + x * x


class Shifted(Edit):
    def forward(self, x, y, at):
        return 2 * y + x.flip(-1) + 1


def test_an_edit_is_merged_if_it_is_linear_whatever_its_class(toy):
    fitted = FittedModel(Model(toy, EVERY_METHOD["zero_shot"].cls(), CLASSES, 1), {})
    fitted.model.edits = {"image.blocks.3.q": Shifted(), "text.blocks.2.k": Shifted()}
    changed = merging.merged(fitted.model)
    attention = toy.image.blocks[3].attn
    x = torch.randn(4, 48)
    made = F.linear(x, changed[id(attention.weight)], changed[id(attention.bias)]).chunk(3, -1)
    wanted = F.linear(x, attention.weight, attention.bias).chunk(3, -1)
    assert torch.allclose(made[0], 2 * wanted[0] + x.flip(-1) + 1, atol=1e-5)
    assert torch.equal(made[1], wanted[1])
    fitted.model.edits = {"image.blocks.3.q": Squared()}
    with pytest.raises(HarnessError, match=r"at image\.blocks\.3\.q is not linear"):
        merging.merged(fitted.model)


class Deciding(CosineHead):
    def forward(self, image, text, given):
        logits = super().forward(image, text, given)
        return logits if float(logits.sum()) > 0 else -logits


def test_what_cannot_be_traced_is_one_sentence_with_the_methods_name(mini, tmp_path):
    fitted = FittedModel(Model(mini, EVERY_METHOD["zero_shot"].cls(), CLASSES, 1), {})
    fitted.model.trained["head"] = Deciding()
    images = export.Compared(torch.randn(PIXELS), "noise")
    with pytest.raises(HarnessError, match="tracing zero_shot failed"):
        export.export(fitted, "pt2", tmp_path / "out", None, images)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("size", "own", "error", "passes"), [
    (50, 0, 9e-5, True), (50, 0, 2e-4, False), (500, 0, 4e-4, True), (500, 0, 6e-4, False),
    (50, 1e-4, 3e-4, True), (50, 1e-4, 5e-4, False),
])  # fmt: skip
def test_logits_may_differ_in_proportion_to_their_size_or_to_the_fits_own_rounding(
    size, own, error, passes
):
    logits = torch.tensor([[size, 0.0]] * 6, dtype=torch.float64)
    fitted = SimpleNamespace(logits=lambda x: logits[: len(x)] + own * (len(x) < 6))

    def compared():
        return export._difference(fitted, lambda part: logits[: len(part)] + error, logits, "pt2")

    if passes:
        assert compared() == pytest.approx(error)
    else:
        with pytest.raises(HarnessError, match="cannot be exported as pt2"):
            compared()


def test_two_images_are_enough_to_compare():
    def logits(x):
        assert len(x)  # an empty batch is refused
        return x

    fitted = SimpleNamespace(logits=logits)
    assert export._difference(fitted, logits, torch.eye(2), "pt2") == 0


def test_lengths_are_pythons_again_after_tracing(mini):
    from harness.methods import coop

    network = Network(FittedModel(Model(mini, EVERY_METHOD["coop"].cls(), CLASSES, 1), {}))
    with open_lengths(network):
        assert "len" in vars(coop)
        assert coop.len([1, 2]) == 2
    assert "len" not in vars(coop)
