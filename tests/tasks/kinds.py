"""The same small tree of images, written in the layout of each kind of dataset."""

import csv
import io
import json
import struct
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

Tree = dict[str, dict[str, list[bytes]]]  # by part and class the images as encoded bytes
NAMES = ("ant", "bee", "cow", "dog")
COUNTS = {"train": 3, "val": 1, "test": 2}


@dataclass(frozen=True)
class Kind:
    """A kind of dataset: how a tree is written, and what it can hold.

    write: writes a tree below a folder and returns the dataset's name for --datasets. own: of the
    user, shown upright and told copies of in the plan. encoded: an image is kept as it was given.
    sizes: known by the sizes of its files alone. any_classes: it has the classes of the tree.
    """

    name: str
    write: Callable[[Path, Tree], str]
    classes: Sequence[str] = NAMES
    parts: Sequence[str] = ("train", "val", "test")
    own: bool = True
    encoded: bool = True
    sizes: bool = False
    any_classes: bool = True
    template: str = ""  # where its own is too long for the toy backbone

    def tree(self) -> Tree:
        """Images that all differ."""
        return {
            part: {
                name: [picture(place, label, number) for number in range(COUNTS[part])]
                for label, name in enumerate(self.classes)
            }
            for place, part in enumerate(self.parts)
        }


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def picture(part: int, label: int, number: int) -> bytes:
    """A picture unlike all others, also as MNIST's grey ones; stored without compression, so that
    all have one size."""
    image = Image.new("RGB", (28, 28), (5 * label, 5 * label, 5 * label))
    image.putpixel((0, 0), (80 * part, 80 * part, 80 * part))
    image.putpixel((1, 0), (number, number, number))
    return encoded(image, "BMP")


def rows(tree: Tree):
    """Part, class, number and image of all of a tree."""
    for part, classes in tree.items():
        for name, images in classes.items():
            for number, image in enumerate(images):
                yield part, name, number, image


def kept(path: Path, image: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(image)


def labels(tree: Tree) -> dict[str, int]:
    names = dict.fromkeys(name for classes in tree.values() for name in classes)
    return {name: label for label, name in enumerate(names)}


def coop(root: Path, tree: Tree) -> str:
    listed: dict[str, list] = {part: [] for part in ("train", "val", "test")}
    for part, name, number, image in rows(tree):
        path = f"{part}/{name}_{number}.bmp"
        kept(root / "dtd" / "images" / path, image)
        listed[part].append([path, labels(tree)[name], name])
    (root / "dtd" / "split_zhou_DescribableTextures.json").write_text(json.dumps(listed))
    return "dtd"


def folder(root: Path, tree: Tree) -> str:
    for part in tree:
        (root / "zoo" / part).mkdir(parents=True, exist_ok=True)
    for part, name, number, image in rows(tree):
        kept(root / "zoo" / part / name / f"{number}.bmp", image)
    return f"folder:{root / 'zoo'}"


def csv_list(root: Path, tree: Tree) -> str:
    lines = [("path", "label", "split")]
    for part, name, number, image in rows(tree):
        path = f"{part}-{name}-{number}.bmp"
        kept(root / "listed" / path, image)
        lines.append((path, name, part))
    with (root / "listed" / "zoo.csv").open("w", newline="") as file:
        csv.writer(file).writerows(lines)
    return f"csv:{root / 'listed' / 'zoo.csv'}"


def shards(root: Path, tree: Tree) -> str:
    home = root / "shards"
    for part, classes in tree.items():
        (home / part).mkdir(parents=True, exist_ok=True)
        with tarfile.open(home / part / "0.tar", "w") as tar:
            for _, name, number, image in rows({part: classes}):
                for suffix, content in (("bmp", image), ("cls", str(labels(tree)[name]).encode())):
                    member = tarfile.TarInfo(f"{name}{number}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    (home / "classnames.txt").write_text("\n".join(labels(tree)))
    return f"wds:{home}"


def hf(root: Path, tree: Tree) -> str:
    import datasets

    names = labels(tree)
    types = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=[*names]))
    parts = {
        part: [
            {"image": {"bytes": image, "path": None}, "label": names[name]}
            for _, name, _, image in rows({part: classes})
        ]
        for part, classes in tree.items()
    }
    usual = {"image": [], "label": []}
    made = {
        part: datasets.Dataset.from_list(some, features=types) if some
        else datasets.Dataset.from_dict(usual, features=types)
        for part, some in parts.items()
    }  # fmt: skip
    datasets.DatasetDict(made).save_to_disk(str(root / "saved"))
    return f"hf:{root / 'saved'}"


def idx(path: Path, values: np.ndarray) -> None:
    """A file in MNIST's format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    head = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape)
    path.write_bytes(head + values.astype(np.uint8).tobytes())


def digits(root: Path, tree: Tree) -> str:
    raw = root / "torchvision" / "MNIST" / "MNIST" / "raw"
    for part, prefix in (("train", "train"), ("test", "t10k")):
        some = [*rows({part: tree[part]})]
        grey = [np.asarray(Image.open(io.BytesIO(image)).convert("L")) for *_, image in some]
        idx(raw / f"{prefix}-images-idx3-ubyte", np.stack(grey))
        idx(raw / f"{prefix}-labels-idx1-ubyte", np.array([int(name) for _, name, *_ in some]))
    return "torchvision:MNIST"


def signs(root: Path, tree: Tree) -> str:
    home = root / "torchvision" / "GTSRB" / "gtsrb"
    lines = ["Filename;ClassId"]
    for part, name, number, image in rows(tree):
        if part == "train":
            kept(home / "GTSRB" / "Training" / name / f"{number}.ppm", image)
        else:
            kept(home / "GTSRB" / "Final_Test" / "Images" / f"{name}-{number}.ppm", image)
            lines.append(f"{name}-{number}.ppm;{int(name)}")
    (home / "GT-final_test.csv").write_text("\n".join(lines))
    return "torchvision:GTSRB"


def embedded(root: Path, tree: Tree) -> str:
    return "emoji_animals"


KINDS = (
    Kind("coop", coop, own=False, sizes=True),
    Kind("folder", folder),
    Kind("csv", csv_list),
    Kind("hf", hf),
    Kind("wds", shards),
    Kind("torchvision-arrays", digits, tuple("0123456789"), ("train", "test"), own=False,
         encoded=False, any_classes=False),
    Kind("torchvision-files", signs, tuple(f"{n:05d}" for n in range(43)), ("train", "test"),
         own=False, any_classes=False, template="{}"),
    Kind("embedded", embedded, own=False, encoded=False, any_classes=False),
)  # fmt: skip
