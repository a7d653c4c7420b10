"""An exported folder names images in a process that has neither torch nor this harness."""

import contextlib
import importlib.util
import io
import json
import os
import re
import runpy
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

import harness
from harness.cli.commands import main
from harness.deploy import forms
from harness.errors import HarnessError
from harness.records import predictions
from harness.towers.backbone import EMBEDDED
from harness.towers.checkpoint import CONFIG, WEIGHTS
from tests.conftest import EVERY_METHOD, METHODS, PLUGINS, ROOT, TOY
from tests.toy import NAMES

pytest.importorskip("onnxruntime", reason="needs the extra [export]")
pytest.importorskip("onnxscript", reason="needs the extra [export]")

pytestmark = pytest.mark.export
FOUR = ["coop", "adapter", "lora", "clip_adapter"]
ALONE = """
import pathlib, runpy, sys
for name in ("torch", "torchvision", "open_clip", "harness", "safetensors"):
    sys.modules[name] = None  # importing it fails
sys.argv = sys.argv[1:]
sys.path.insert(0, str(pathlib.Path(sys.argv[0]).parent))  # as `python predict.py` does
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


def of_name(dataset):
    """A dataset."""
    plugin = PLUGINS.plugins["datasets"][dataset]
    return plugin.cls(**plugin.fixed)


def written(dataset, items, folder):
    """Images of a dataset as files, in order."""
    folder.mkdir()
    source, paths = of_name(dataset), []
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
    of = {item.path: item for item in of_name("emoji_food").read(None)["test"]}
    scored = predictions.read(found.records[0], "test").split.paths
    places = range(0, len(scored), len(scored) // 64)[:64]
    paths = written("emoji_food", [of[scored[place]] for place in places], folder / "images")
    return found.records, places, paths


@pytest.mark.parametrize("method", FOUR)
def test_without_torch_the_labels_are_those_of_the_record(method, food, tmp_path):
    records, places, paths = food
    (record,) = (r for r in records if r.run["method"] == method)
    assert exported(record.folder, method, tmp_path / "out") == 0
    found, done = alone(tmp_path / "out", *paths)
    assert (done.returncode, done.stderr) == (0, "")
    labels, names = predictions.read(record, "test").classes, harness.load(record).class_names
    assert len(found) == 64
    assert found == [names[int(labels[place])] for place in places]


@pytest.fixture(scope="module")
def every(tmp_path_factory):
    """A folder with images of the toy dataset, a file of texts of its classes, and the embedded
    backbone with two blocks a tower."""
    folder = tmp_path_factory.mktemp("every")
    texts = {name: [name, f"a {name} disc", "round"] for name in NAMES}
    (folder / "texts.json").write_text(json.dumps(texts))
    written("toy", of_name("toy").read(None)["test"], folder / "images")
    shallow = shutil.copytree(EMBEDDED / "emoji-mini", folder / "shallow")
    config = json.loads((shallow / CONFIG).read_text())
    for part in ("vision_cfg", "text_cfg"):
        config["model_cfg"][part]["layers"] = 2
    (shallow / CONFIG).write_text(json.dumps(config))
    whole = load_file(shallow / WEIGHTS)
    deep = re.compile(r"resblocks\.(?![01]\.)")
    save_file({n: each for n, each in whole.items() if not deep.search(n)}, shallow / WEIGHTS)
    return folder


def fitted(method, folder):
    """The record of a fit of two steps, on the embedded backbone where two blocks are too few."""
    settings = {"engine.max_steps": 2} | ({"plot.iterations": 9} if method == "plot" else {})
    for backbone in (f"local-dir:{folder / 'shallow'}", "emoji-mini"):
        with contextlib.suppress(HarnessError):
            return harness.run(
                [method, "cupl"],  # which reads the texts
                "few_shot", "toy", shots=4, results=folder / "r", plugins=[str(TOY)], jobs=1,
                backbone=backbone, settings=settings, cache_limit=0,
                class_texts=[folder / "texts.json"],
            ).records[0]  # fmt: skip
    return pytest.fail("no backbone carries it")


# one of each class: a variant has the same modules, and all of them take half as long again
@pytest.mark.parametrize("method", [n for n in METHODS if not EVERY_METHOD[n].fixed])
def test_every_method_says_by_its_file_what_the_record_says(method, every, tmp_path, monkeypatch):
    record = fitted(method, every)
    assert record.status != "failed", record.error
    if record.fit is None:
        pytest.skip(f"nothing is fitted: {record.error}")
    assert exported(record.folder, record.key, tmp_path / "out") == 0
    monkeypatch.syspath_prepend(tmp_path / "out")
    predict = runpy.run_path(str(tmp_path / "out" / "predict.py"))
    paths = sorted((every / "images").iterdir(), key=lambda path: int(path.stem))
    found = [best for ((best, _),) in predict["named"]([*map(predict["pixels"], paths)], top=1)]
    assert found == [NAMES[int(label)] for label in predictions.read(record, "test").classes]


@pytest.fixture(scope="module")
def folder(food, tmp_path_factory):
    """An exported folder."""
    out = tmp_path_factory.mktemp("out") / "clip_adapter"
    assert exported(food[0][0].folder, "clip_adapter", out) == 0
    return out


@pytest.fixture(scope="module")
def module(folder):
    """Its predict.py."""
    sys.path.insert(0, str(folder))
    spec = importlib.util.spec_from_file_location("exported_predict", folder / "predict.py")
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    sys.path.remove(str(folder))
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
    if kind == "I;16":
        return Image.fromarray(np.asarray(noise).astype(np.uint16) * 257)
    return Image.merge("RGB", bands[:3]).convert(kind)


@pytest.mark.parametrize(
    "kind", ["tall", "exact", "RGB", "RGBA", "L", "LA", "P", "1", "I;16", "CMYK"]
)
def test_pixels_are_the_engines_to_the_last_bit(kind, module, food, mini, tmp_path):
    path = tmp_path / ("image.tiff" if kind == "CMYK" else "image.png")
    made(kind).save(path)
    fitted = harness.load(food[0][-1], device="cpu")
    wanted = fitted.preprocess(path).numpy()
    assert abs(module.pixels(path) - wanted).max() < 1e-6


def test_a_turned_photograph_is_turned(module, food, tmp_path):
    path = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    made("tall").save(path, exif=exif)
    wanted = harness.load(food[0][-1], device="cpu").preprocess(path).numpy()
    assert abs(module.pixels(path) - wanted).max() < 1e-6


def test_what_is_no_image_is_named_and_the_others_are_not_held_up(folder, food, tmp_path):
    wide = tmp_path / "wide.tiff"
    Image.fromarray(np.array([[-1, 70000]], np.int32)).save(wide)
    (tmp_path / "page.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    found, done = alone(folder, wide, tmp_path / "page.eps", tmp_path / "none.png", food[2][0])
    assert len(found) == 1
    assert done.returncode == 1
    assert "its values go from -1 to 70000" in done.stderr
    assert done.stderr.count("cannot be read: ") == 3


def test_a_truncated_model_is_one_sentence(folder, food, tmp_path):
    shutil.copytree(folder, tmp_path / "cut")
    model = tmp_path / "cut" / "model.onnx"
    model.write_bytes(model.read_bytes()[:-5000])
    _, done = alone(tmp_path / "cut", food[2][0])
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "model.onnx cannot be read" in done.stderr


def test_weights_that_are_too_large_for_one_file_lie_beside_the_model(food, tmp_path, monkeypatch):
    records, _, paths = food
    monkeypatch.setattr(forms, "ONE_FILE", 1000)
    out = tmp_path / "out"
    assert exported(records[0].folder, "clip_adapter", out) == 0
    weights = out / "model.onnx.data"
    assert weights.stat().st_size > 10 * (out / "model.onnx").stat().st_size
    moved = out.rename(tmp_path / "moved")
    fit = harness.load(next(r for r in records if r.run["method"] == "clip_adapter"))
    label = int(fit.logits(paths[:1]).argmax())
    assert alone(moved, paths[0])[0] == [fit.class_names[label]]
    os.truncate(moved / "model.onnx.data", 5000)
    _, done = alone(moved, paths[0])
    assert "model.onnx cannot be read" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture
def client(folder, tmp_path, monkeypatch):
    """A client of the server in the README."""
    testclient = pytest.importorskip("fastapi.testclient", reason="needs the extra [serve]")
    pytest.importorskip("multipart", reason="needs the extra [serve]")
    shutil.copytree(folder, tmp_path / "food")
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(# serve\.py\n.*?)```", text, re.S)
    (tmp_path / "serve.py").write_text(block)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
    monkeypatch.delitem(sys.modules, "predict", raising=False)
    yield testclient.TestClient(runpy.run_path("serve.py")["app"])
    sys.modules.pop("predict", None)


def sent(client, content):
    return client.post("/", files={"image": ("image", content)})


def test_the_server_of_the_readme_names_an_image(client, food, folder):
    path = food[2][0]
    answer = sent(client, path.read_bytes())
    assert answer.status_code == 200
    found = answer.json()
    assert len(found) == 5
    logits = harness.load(next(r for r in food[0] if r.run["method"] == "clip_adapter")).logits
    best = logits([path]).softmax(-1).topk(5)
    assert [each["probability"] for each in found] == pytest.approx(
        best.values[0].tolist(), abs=1e-4
    )


def bomb():
    """A small PNG of fifty million pixels."""
    stream = io.BytesIO()
    Image.new("1", (7100, 7100)).save(stream, "png")
    return stream.getvalue()


@pytest.mark.parametrize(
    ("content", "status"),
    [(b"no image", 415), (b"", 415), (b"%!PS-Adobe-3.0 EPSF-3.0\n", 415), ("bomb", 415),
     (bytes(11 * 2**20), 413)],
    ids=["text", "nothing", "postscript", "bomb", "huge"],
)  # fmt: skip
def test_the_server_of_the_readme_refuses_what_is_no_image_or_too_large(content, status, client):
    answer = sent(client, bomb() if content == "bomb" else content)
    assert answer.status_code == status


def test_the_server_of_the_readme_refuses_a_request_without_length_or_image(client):
    assert client.post("/", content=iter([b"x"] * 9)).status_code == 411
    assert client.post("/", data={"other": "x"}).status_code == 422
