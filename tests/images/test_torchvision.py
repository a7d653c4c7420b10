"""torchvision:NAME on trees in torchvision's layout."""

import struct

import numpy as np
import pytest
from PIL import Image

from harness import registry
from harness.cli.commands import main
from harness.errors import HarnessError


def found(name):
    (plugin,) = registry.load().find("datasets", f"torchvision:{name}")
    return plugin.cls(**plugin.fixed)


def idx(path, values):
    """A file in MNIST's format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    head = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape)
    path.write_bytes(head + values.astype(np.uint8).tobytes())


def digits(root, name="MNIST", label=0):
    """20 images of each part, whose first pixel is their number."""
    raw = root / "torchvision" / name / name / "raw"
    for part, start in (("train", 0), ("t10k", 100)):
        images = np.zeros((20, 28, 28))
        images[:, 0, 0] = np.arange(20) + start
        idx(raw / f"{part}-images-idx3-ubyte", images)
        labels = np.arange(20) % 10
        labels[0] = label
        idx(raw / f"{part}-labels-idx1-ubyte", labels)
    return root


def test_labels_names_and_pixels_are_those_of_the_files(tmp_path):
    dataset = found("MNIST")
    lists = dataset.read(digits(tmp_path))
    assert [len(lists[part]) for part in ("train", "val", "test")] == [20, 0, 20]
    assert [(i.label, i.name) for i in lists["test"][:3]] == [(0, "0"), (1, "1"), (2, "2")]
    assert dataset.open(lists["test"][3], tmp_path).getpixel((0, 0)) == (103, 103, 103)


def test_reviews_are_read_with_their_validation_split(tmp_path):
    home = tmp_path / "torchvision" / "RenderedSST2" / "rendered-sst2"
    for part in ("train", "valid", "test"):
        for name in ("negative", "positive"):
            (home / part / name).mkdir(parents=True)
            Image.new("RGB", (8, 8), "white").save(home / part / name / "1.png")
    lists = found("renderedsst2").read(tmp_path)
    for part in ("train", "val", "test"):
        assert [item.name for item in lists[part]] == ["negative", "positive"]


def test_traffic_signs_have_the_names_that_clip_gives_their_numbers(tmp_path):
    home = tmp_path / "torchvision" / "GTSRB" / "gtsrb" / "GTSRB"
    for number in range(43):
        (home / "Training" / f"{number:05d}").mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(home / "Training" / f"{number:05d}" / "00000.ppm")
    (home / "Final_Test" / "Images").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(home / "Final_Test" / "Images" / "00000.ppm")
    table = home.parent / "GT-final_test.csv"
    table.write_text("Filename;ClassId\n00000.ppm;14\n")
    lists = found("GTSRB").read(tmp_path)
    assert [item.name for item in lists["test"]] == ["stop"]
    assert len({item.name for item in lists["train"]}) == 43
    assert lists["train"][12].name == "white and yellow diamond priority road"


def test_templates_are_those_of_clip_and_an_option_wins():
    assert found("MNIST").template == 'a photo of the number: "{}".'
    assert found("RenderedSST2").template == "a {} review of a movie."
    (plugin,) = registry.load().find("datasets", "torchvision:MNIST")
    assert plugin.cls(**plugin.fixed, template="{}!").template == "{}!"


@pytest.mark.parametrize("task", ["few_shot", "base2new"])
def test_tasks_run_on_it(tmp_path, task):
    command = ["run", "--methods", "adapter", "--tasks", task, "--datasets", "torchvision:MNIST"]
    command += ["--data-root", str(digits(tmp_path)), "--results", str(tmp_path / "r")]
    assert main([*command, "--shots", "1", "--set", "engine.max_steps=2"]) == 0


def test_a_label_without_a_class_is_refused(tmp_path):
    with pytest.raises(HarnessError, match="train has the label 77"):
        found("MNIST").read(digits(tmp_path, label=77))


def test_a_changed_pixel_changes_the_content(tmp_path):
    dataset = found("MNIST")
    before = dataset.content(digits(tmp_path))
    path = next(tmp_path.rglob("t10k-images*"))
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    assert dataset.content(tmp_path) != before


@pytest.mark.parametrize("name", ["MNIST", "CIFAR10", "CIFAR100", "STL10", "SVHN", "RenderedSST2"])
def test_a_set_that_is_not_there_says_how_to_get_it(tmp_path, name):
    with pytest.raises(HarnessError, match=f"data prepare torchvision:{name}"):
        found(name).read(tmp_path)


def test_a_pickle_that_is_not_the_published_one_is_not_opened(tmp_path):
    home = tmp_path / "torchvision" / "CIFAR10" / "cifar-10-batches-py"
    home.mkdir(parents=True)
    for name in [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch", "batches.meta"]:
        (home / name).write_bytes(b"cbuiltins\nexit\n(I5\ntR.")
    with pytest.raises(HarnessError, match="not found or corrupted"):
        found("CIFAR10").read(tmp_path)


def test_an_unknown_set_is_refused_with_those_that_are_known():
    with pytest.raises(HarnessError, match=r"torchvision:Nope is not read. Known: CIFAR10"):
        found("Nope")
