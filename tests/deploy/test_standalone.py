"""An exported folder names images in a process that has neither torch nor this harness."""

import json
import os
import subprocess
import sys

import pytest
from PIL import Image

import harness
from harness.cli.commands import main
from harness.images.pixels import normalise
from harness.records import predictions
from tests.conftest import METHODS, PLUGINS, TOY
from tests.toy import NAMES

pytest.importorskip("onnxruntime", reason="needs the extra [export]")
pytest.importorskip("onnxscript", reason="needs the extra [export]")

FOUR = ["coop", "adapter", "lora", "clip_adapter"]
ALONE = """
import runpy, sys
for name in ("torch", "torchvision", "open_clip", "harness", "safetensors"):
    sys.modules[name] = None  # importing it fails
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def exported(results, method, out):
    options = ["--results", str(results), "--plugin", str(TOY)]
    return main(["export", method, "--form", "onnx", "--out", str(out), *options])


def alone(folder, *paths):
    """What predict.py prints of images: the names in order, and the finished process."""
    paths_of = [str(path) for path in sys.path if path]
    done = subprocess.run(
        [sys.executable, "-c", ALONE, str(folder / "predict.py"), *map(str, paths)],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(paths_of)},
    )  # fmt: skip
    return [line.split("\t")[1] for line in done.stdout.splitlines()], done


def written(dataset, items, folder):
    """Images of a dataset as files, in order."""
    folder.mkdir()
    source = PLUGINS.plugins["datasets"][dataset].cls()
    paths = []
    for number, item in enumerate(items):
        paths.append(folder / f"{number}.png")
        source.open(item, None).save(paths[-1])
    return paths


@pytest.fixture(scope="module")
def food(tmp_path_factory):
    """Short fits on emoji, and 64 of the images that they were scored on."""
    folder = tmp_path_factory.mktemp("food")
    found = harness.run(
        FOUR, "few_shot", "emoji_food", shots=2, results=folder / "r", cache_limit=0,
        settings={"engine.max_steps": 6},
    )  # fmt: skip
    items = PLUGINS.plugins["datasets"]["emoji_food"].cls().read(None)["test"]
    places = range(0, len(items), len(items) // 64)[:64]
    paths = written("emoji_food", [items[place] for place in places], folder / "images")
    return found.records, places, paths


@pytest.mark.parametrize("method", FOUR)
def test_without_torch_the_labels_are_those_of_the_record(method, food, tmp_path):
    records, places, paths = food
    (record,) = (r for r in records if r.run["method"] == method)
    assert exported(record.folder, method, tmp_path / "out") == 0
    found, done = alone(tmp_path / "out", *paths)
    assert (done.returncode, done.stderr) == (0, "")
    read = predictions.read(record, "test")
    assert len(found) == 64
    assert found == [read.split.names[int(read.classes[place])] for place in places]


@pytest.fixture(scope="module")
def every(tmp_path_factory):
    """Fits of two steps of every method."""
    folder = tmp_path_factory.mktemp("every")
    texts = {name: [name, f"a {name} disc", "round"] for name in NAMES}
    (folder / "texts.json").write_text(json.dumps(texts))
    found = harness.run(
        METHODS, "few_shot", "toy", shots=4, results=folder / "r", plugins=[str(TOY)],
        settings={"engine.max_steps": 2}, class_texts=[folder / "texts.json"], cache_limit=0,
    )  # fmt: skip
    items = PLUGINS.plugins["datasets"]["toy"].cls().read(None)["test"]
    return {r.run["method"]: r for r in found.records}, written("toy", items, folder / "images")


@pytest.mark.export
@pytest.mark.parametrize("method", METHODS)
def test_every_method_says_without_torch_what_the_record_says(method, every, tmp_path):
    records, paths = every
    record = records[method]
    if record.fit is None:
        pytest.skip(f"nothing is fitted: {record.error}")
    assert exported(record.folder, record.key, tmp_path / "out") == 0
    found, done = alone(tmp_path / "out", *paths)
    assert (done.returncode, done.stderr) == (0, "")
    read = predictions.read(record, "test")
    assert found == [NAMES[int(label)] for label in read.classes]


@pytest.fixture(scope="module")
def folder(food, tmp_path_factory):
    """An exported folder."""
    out = tmp_path_factory.mktemp("out") / "clip_adapter"
    assert exported(food[0][0].folder, "clip_adapter", out) == 0
    return out


@pytest.fixture(scope="module")
def module(folder):
    """Its predict.py."""
    import importlib.util

    spec = importlib.util.spec_from_file_location("exported_predict", folder / "predict.py")
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def made(kind):
    """An image of some shape or mode."""
    noise = Image.effect_noise((90, 61), 80)
    bands = [noise.rotate(angle) for angle in (0, 90, 180, 270)]
    if kind == "tall":
        return Image.merge("RGB", bands[:3]).resize((47, 301))
    if kind == "exact":
        return Image.merge("RGB", bands[:3]).resize((48, 48))
    if kind == "RGBA":
        return Image.merge("RGBA", bands)
    return Image.merge("RGB", bands[:3]).convert(kind)


@pytest.mark.parametrize("kind", ["tall", "exact", "RGB", "RGBA", "L", "LA", "P", "1", "CMYK"])
def test_pixels_are_the_engines_to_the_last_bit(kind, module, food, mini, tmp_path):
    path = tmp_path / ("image.tiff" if kind == "CMYK" else "image.png")
    made(kind).save(path)
    fitted = harness.load(food[0][-1], device="cpu")
    wanted = fitted.preprocess(path).numpy()
    assert abs(module.pixels(path) - wanted).max() < 1e-6
    assert normalise.__module__ == "harness.images.pixels"


def test_a_turned_photograph_is_turned(module, food, tmp_path):
    path = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    made("tall").save(path, exif=exif)
    wanted = harness.load(food[0][-1], device="cpu").preprocess(path).numpy()
    assert abs(module.pixels(path) - wanted).max() < 1e-6


def test_what_is_no_image_is_named_and_the_others_are_not_held_up(folder, food, tmp_path):
    wide = tmp_path / "wide.png"
    Image.new("I;16", (60, 60)).save(wide)
    (tmp_path / "page.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    found, done = alone(folder, wide, tmp_path / "page.eps", tmp_path / "none.png", food[2][0])
    assert len(found) == 1
    assert done.returncode == 1
    assert "it has more than eight bits a channel" in done.stderr
    assert done.stderr.count("cannot be read: ") == 3


def test_a_truncated_model_is_one_sentence(folder, food, tmp_path):
    import shutil

    shutil.copytree(folder, tmp_path / "cut")
    model = tmp_path / "cut" / "model.onnx"
    model.write_bytes(model.read_bytes()[:-5000])
    _, done = alone(tmp_path / "cut", food[2][0])
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "model.onnx cannot be read" in done.stderr
