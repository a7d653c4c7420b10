"""torchvision:NAME on trees in torchvision's layout."""

import hashlib
import importlib.util

import numpy as np
import pytest
from PIL import Image

from harness import registry
from harness.cli.commands import main
from harness.errors import HarnessError
from harness.images import library
from tests.tasks.kinds import idx


def found(name):
    (plugin,) = registry.load().find("datasets", f"torchvision:{name}")
    return plugin.cls(**plugin.fixed)


def drawn(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), "white").save(path)


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
            drawn(home / part / name / "1.png")
    lists = found("renderedsst2").read(tmp_path)
    for part in ("train", "val", "test"):
        assert [item.name for item in lists[part]] == ["negative", "positive"]


def signs(root, classes=43):
    home = root / "torchvision" / "GTSRB" / "gtsrb"
    for number in range(classes):
        drawn(home / "GTSRB" / "Training" / f"{number:05d}" / "00000.ppm")
        drawn(home / "GTSRB" / "Final_Test" / "Images" / f"{number:05d}.ppm")
    lines = [f"{number:05d}.ppm;{number}" for number in range(classes)]
    (home / "GT-final_test.csv").write_text("\n".join(["Filename;ClassId", *lines]))
    return root


def test_traffic_signs_have_the_names_that_clip_gives_their_numbers(tmp_path):
    lists = found("GTSRB").read(signs(tmp_path))
    assert lists["train"][12].name == "white and yellow diamond priority road"
    assert lists["test"][14].name == "stop"


def test_a_class_folder_that_is_missing_does_not_shift_the_others(tmp_path):
    folder = signs(tmp_path) / "torchvision" / "GTSRB" / "gtsrb" / "GTSRB" / "Training" / "00007"
    (folder / "00000.ppm").unlink()
    folder.rmdir()
    with pytest.raises(HarnessError, match="has images of 42 classes; the set has 43"):
        found("GTSRB").read(tmp_path)


def test_countries_are_numbered_by_the_order_of_their_codes(tmp_path):
    home = tmp_path / "torchvision" / "Country211" / "country211"
    for part in ("train", "valid", "test"):
        for number in range(211):
            (home / part / f"{number:03d}").mkdir(parents=True)
            (home / part / f"{number:03d}" / "1.jpg").touch()
    lists = found("Country211").read(tmp_path)
    assert [len(lists[part]) for part in ("train", "val", "test")] == [211] * 3
    names = [item.name for item in lists["val"]]
    assert [names[number] for number in (0, 1, 49, 210)] == [
        "Andorra", "United Arab Emirates", "Germany", "Zimbabwe"
    ]  # fmt: skip


def faces(root, monkeypatch, name, header, usages):
    """FER2013 as one table, of an image of each class and usage."""
    import torchvision.datasets

    path = root / "torchvision" / "FER2013" / "fer2013" / name
    path.parent.mkdir(parents=True)
    lines = [header]
    for usage in usages:
        for label in range(7):
            values = {
                "emotion": str(label),
                "Usage": usage,
                "pixels": " ".join([str(label)] * 2304),
            }
            lines.append(",".join(values[column.strip()] for column in header.split(",")))
    path.write_text("\n".join(lines))
    known = dict(torchvision.datasets.FER2013._RESOURCES)
    for key, (file, _) in known.items():
        if file == name:
            known[key] = (file, hashlib.md5(path.read_bytes()).hexdigest())
    monkeypatch.setattr(torchvision.datasets.FER2013, "_RESOURCES", known)
    return root


@pytest.mark.parametrize(
    ("name", "header"),
    [("fer2013.csv", "emotion,pixels,Usage"), ("icml_face_data.csv", "emotion, Usage, pixels")],
)
def test_faces_are_read_from_either_table_with_both_test_parts(tmp_path, monkeypatch, name, header):
    faces(tmp_path, monkeypatch, name, header, ("Training", "PublicTest", "PrivateTest"))
    dataset = found("FER2013")
    lists = dataset.read(tmp_path)
    assert [len(lists[part]) for part in ("train", "val", "test")] == [7, 0, 14]
    assert [item.name for item in lists["train"]] == [
        "angry", "disgusted", "fearful", "happy", "sad", "surprised", "neutral"
    ]  # fmt: skip
    assert dataset.open(lists["test"][-1], tmp_path).getpixel((0, 0)) == (6, 6, 6)


def test_faces_that_are_not_there_say_where_they_are_found(tmp_path, capsys):
    with pytest.raises(HarnessError, match=r"Get it from https://www.kaggle.com/c/"):
        found("FER2013").read(tmp_path)
    assert main(["data", "prepare", "torchvision:FER2013", "--data-root", str(tmp_path)]) == 2
    assert "cannot be downloaded by a command" in capsys.readouterr().err
    assert not [*tmp_path.rglob("*preparing*")]


def test_patches_without_the_package_say_what_to_install(monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: None if n == "h5py" else real(n))
    with pytest.raises(HarnessError, match=r"pip install 'vlm-peft-harness\[datasets\]'"):
        found("PCAM")


@pytest.mark.datasets
def test_patches_are_read_from_their_tables(tmp_path):
    import h5py

    home = tmp_path / "torchvision" / "PCAM" / "pcam"
    home.mkdir(parents=True)
    for place, part in enumerate(("train", "valid", "test")):
        images = np.arange(4, dtype=np.uint8)[:, None, None, None] + np.zeros(
            (4, 9, 9, 3), np.uint8
        )
        for letter, values in (("x", images + 10 * place), ("y", np.array([0, 1, 1, 0]))):
            file = home / f"camelyonpatch_level_2_split_{part}_{letter}.h5"
            with h5py.File(file, "w") as table:
                table[letter] = values if letter == "x" else values.reshape(4, 1, 1, 1)
    dataset = found("PCAM")
    lists = dataset.read(tmp_path)
    assert [item.label for item in lists["val"]] == [0, 1, 1, 0]
    assert lists["test"][1].name == "lymph node containing metastatic tumor tissue"
    assert dataset.open(lists["test"][3], tmp_path).getpixel((0, 0)) == (23, 23, 23)


@pytest.mark.parametrize(
    ("name", "count", "first", "last"),
    [
        ("CIFAR10", 18, "a photo of a {}.", "a photo of the big {}."),
        ("CIFAR100", 18, "a photo of a {}.", "a photo of the big {}."),
        ("STL10", 2, "a photo of a {}.", "a photo of the {}."),
        ("MNIST", 1, 'a photo of the number: "{}".', 'a photo of the number: "{}".'),
        ("GTSRB", 3, 'a zoomed in photo of a "{}" traffic sign.',
         'a close up photo of a "{}" traffic sign.'),
        ("PCAM", 1, "this is a photo of {}", "this is a photo of {}"),
        ("RenderedSST2", 1, "a {} review of a movie.", "a {} review of a movie."),
        ("Country211", 5, "a photo i took in {}.", "a photo showing the country of {}."),
        ("FER2013", 6, "a photo of a {} looking face.", "look at how {} they are."),
        ("FashionMNIST", 1, "a photo of a {}.", "a photo of a {}."),
    ],
)  # fmt: skip
def test_templates_are_those_of_clip(name, count, first, last):
    templates = registry.load().plugins["datasets"]["torchvision"].cls(path=name).template
    templates = templates.split("\n")
    assert (len({*templates}), templates[0], templates[-1]) == (count, first, last)


def test_a_template_that_is_given_wins():
    (plugin,) = registry.load().find("datasets", "torchvision:MNIST")
    assert plugin.cls(**plugin.fixed, template="{}!").template == "{}!"


def test_a_label_without_a_class_is_refused(tmp_path):
    with pytest.raises(HarnessError, match="has the label 77; the set has 10"):
        found("MNIST").read(digits(tmp_path, label=77))


@pytest.mark.parametrize("content", [b"", b"\xff" * 2000, b"\0\0\x08\3\0\0\0\x14"])
def test_a_damaged_file_is_one_sentence(tmp_path, content):
    next(digits(tmp_path).rglob("train-images*")).write_bytes(content)
    with pytest.raises(HarnessError, match="torchvision:MNIST cannot be read from"):
        found("MNIST").read(tmp_path)


@pytest.mark.parametrize("count", [10, 30])
def test_images_without_labels_and_labels_without_images_are_refused(tmp_path, count):
    path = next(digits(tmp_path).rglob("train-labels*"))
    idx(path, np.arange(count) % 10)
    with pytest.raises(HarnessError, match=f"has 20 images and {count} labels"):
        found("MNIST").read(tmp_path)


def test_a_set_that_lacks_images_is_told_by_their_number(tmp_path):
    (plugin,) = registry.load().find("datasets", "torchvision:MNIST")
    problems = library.verify(plugin, digits(tmp_path)).problems
    assert any("MNIST: 20 train images instead of 60,000, " in each for each in problems)


@pytest.mark.parametrize("name", ["MNIST", "KMNIST", "CIFAR10", "CIFAR100", "STL10", "SVHN",
                                  "RenderedSST2", "Country211"])  # fmt: skip
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


@pytest.mark.parametrize(("name", "ours"), [("dtd", "dtd"), ("Flowers102", "oxford_flowers")])
def test_a_set_of_the_fields_benchmark_is_named_as_it_is_read(name, ours):
    with pytest.raises(HarnessError, match=f"is read as {ours}, with the lists that the field"):
        found(name)
