"""The datasets on disk: what is there, what is missing, downloads, and a check of every image."""

import hashlib
import textwrap
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from harness.dataset import Dataset, FileDataset, Item, Lists, Published
from harness.decoding import HEIC
from harness.errors import HarnessError
from harness.files import shown
from harness.images.download import COOP
from harness.images.own import UserImages
from harness.records.tables import plain_table
from harness.registry import Plugin
from harness.splits import class_names, few_shot, read_lists

THREADS = 8


def status(plugins: Sequence[Plugin], root: Path | None) -> str:
    """A table of what is found of each dataset, and for what is not: where it is expected and where
    to get it."""
    rows, missing = [], []
    for plugin in plugins:
        dataset: Dataset = plugin.cls(**plugin.fixed)
        found, problem = _found(plugin.name, dataset, root)
        about = dataset.published
        rows.append(
            {
                "dataset": plugin.name,
                "found": found,
                "where": _place(dataset),
                "download": about.size if about else "–",
                "licence": about.licence if about else "–",
            }
        )
        if problem:
            missing.append(f"{plugin.name}: {problem} {_where(plugin.name, about)}")
    table = plain_table(rows)
    notes = [textwrap.fill(each, 100, break_long_words=False, break_on_hyphens=False)
             for each in missing]  # fmt: skip
    notes += [f"Lists (split files, class names) and layout: {COOP}"] if missing else []
    title = f"datasets below {root}" if root else "no --data-root was given, nor $DATA set"
    return "\n\n".join([title, table, "\n".join(notes)]).rstrip()


def _place(dataset: Dataset) -> str:
    if isinstance(dataset, FileDataset):
        return dataset.folder
    return str(getattr(dataset, "path", "") or "embedded")


def _found(name: str, dataset: Dataset, root: Path | None) -> tuple[str, str]:
    """What is there in a word or two, and a sentence on what is not."""
    try:
        lists = read_lists(name, dataset, root)
    except HarnessError as error:
        if not isinstance(dataset, FileDataset):
            return "missing" if dataset.published else "unusable", str(error)
        expected = (root or Path("DATA_ROOT")) / dataset.folder
        there = expected.is_dir()
        return ("incomplete", str(error)) if there else ("missing", f"expected in {expected}.")
    items = [item for part in lists.values() for item in part]
    if isinstance(dataset, FileDataset):
        absent = [item for item in items if not dataset.file(item, root).is_file()]
        if absent:
            first = dataset.file(absent[0], root)
            return (
                "incomplete",
                f"{len(absent):,} of {len(items):,} images are missing, such as {first}.",
            )
    return f"{len(items):,} images", ""


def _where(name: str, about: Published | None) -> str:
    if about is None:
        return ""
    if about.torchvision:
        return f"Images: `python -m harness data prepare {name}`."
    return f"Images: {about.home}."


# What CoOp's split files give for one shot and seed 1, of the first three classes in their order.
# Source: the lists of Lin et al., Multimodality Helps Unimodality (CVPR 2023), which CoOp's sampler
# draws from those files (https://github.com/linzhiqiu/cross_modal_adaptation, indices, MIT).
DRAWN = {
    "caltech101": ("Faces/image_0201", "Leopards/image_0123", "Motorbikes/image_0036"),
    "dtd": ("banded/banded_0117", "blotchy/blotchy_0136", "braided/braided_0172"),
    "eurosat": ("AnnualCrop/AnnualCrop_2365", "Forest/Forest_2046",
                "HerbaceousVegetation/HerbaceousVegetation_503"),
    "food101": ("apple_pie/3065929", "baby_back_ribs/891295", "baklava/307354"),
    "oxford_flowers": ("image_00144", "image_00347", "image_00578"),
    "oxford_pets": ("Abyssinian_141", "american_bulldog_200", "american_pit_bull_terrier_118"),
    "stanford_cars": ("cars_train/00467", "cars_train/05434", "cars_train/04341"),
    "sun397": ("a/abbey/sun_anunhwbsxmmdzwmk", "a/airplane_cabin/sun_ahtjutyciamzamkv",
               "a/airport_terminal/sun_abhavxyiuqqdxvgd"),
    "ucf101": ("Apply_Eye_Makeup/v_ApplyEyeMakeup_g14_c04",
               "Apply_Lipstick/v_ApplyLipstick_g24_c05", "Archery/v_Archery_g09_c04"),
}  # fmt: skip


@dataclass
class Findings:
    """What `verify` found in a dataset: a table, sentences on what is wrong, and on what is not
    read."""

    table: str
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def verify(plugin: Plugin, root: Path | None) -> Findings:
    """Counts the images per class and split, opens each of them, and looks for images that are in
    train and in test.

    Raises:
        HarnessError: the lists cannot be read or used.
    """
    dataset: Dataset = plugin.cls(**plugin.fixed)
    read = read_lists(plugin.name, dataset, root)
    lists = {part: items for part, items in read.items() if items}
    about, rows, problems = dataset.published, [], []
    classes = len(class_names(lists.get("train") or lists["test"]))
    problems += unlike_published(plugin.name, dataset, lists, classes)
    for part, items in lists.items():
        each = Counter(item.label for item in items).values()
        expected = about.images[part] if about and part in about.images else None
        rows.append(
            {
                "split": part,
                "images": len(items),
                "published": expected or "–",
                "classes": classes,
                "images a class": f"{min(each)}-{max(each)}",
            }
        )
    digests, bad = _digests(plugin.name, dataset, root, lists)
    problems += bad
    for one, other in (("train", "test"), ("train", "val"), ("val", "test")):
        here, there = digests.get(one, {}), digests.get(other, {})
        problems += [
            f"{path} of {one} shows the same pixels as {there[digest]} of {other}."
            for digest, path in here.items()
            if digest in there
        ]
    return Findings(plain_table(rows), problems, unread(plugin.name, dataset, root))


def unread(name: str, dataset: Dataset, root: Path | None) -> list[str]:
    """Sentences on the files and columns of a dataset that are not read."""
    found = []
    left_out = dataset.left_out(root)
    if left_out:
        counts = ", ".join(f"{count:,} {shown(suffix)}" for suffix, count in left_out.items())
        heic = not HEIC.isdisjoint(left_out)
        hint = " pip install 'vlm-peft-harness[heic]' reads HEIC." if heic else ""
        found.append(f"left out, {name}: {counts}; not read as images.{hint}")
    if isinstance(dataset, UserImages):
        found += dataset.notes()
    return found


def unlike_published(name: str, dataset: Dataset, lists: Lists, classes: int) -> list[str]:
    """A sentence on counts of images and classes that are not the published ones, or on a split
    with the same counts that is not CoOp's."""
    about = dataset.published
    if about is None:
        return []
    counts = [(f"{part} images", len(lists.get(part, ())), n) for part, n in about.images.items()]
    counts.append(("classes", classes, about.classes))
    other = [f"{here:,} {what} instead of {n:,}" for what, here, n in counts if here not in (0, n)]
    if other:
        return [f"unlike the published {name}: {', '.join(other)}."]
    known = DRAWN.get(name)
    drawn = few_shot(lists.get("train", ()), lists.get("val", ()), 1, 1)[0][:3] if known else []
    if known and tuple(item.path.rpartition(".")[0] for item in drawn) != known:
        return [
            f"unlike the published {name}: another split with the same counts, perhaps one that "
            "CoOp's code drew itself because it found no split file. Its numbers are not those of "
            f"papers. Take the file that {COOP} links."
        ]
    return []


def _digests(
    name: str, dataset: Dataset, root: Path | None, lists: Lists
) -> tuple[dict[str, dict[str, str]], list[str]]:
    """The path of each image by a hash of its pixels, by part; and what cannot be opened."""

    def digest(item: Item) -> tuple[str, str]:
        try:
            image = dataset.open(item, root)
        except HarnessError as error:
            return "", str(error)
        return hashlib.sha256(repr(image.size).encode() + image.tobytes()).hexdigest(), ""

    found: dict[str, dict[str, str]] = {}
    bad = []
    total = sum(map(len, lists.values()))
    with (
        ThreadPoolExecutor(THREADS) as pool,
        tqdm(total=total, desc=f"opening {name}", unit="image", disable=None) as bar,
    ):
        for part, items in lists.items():
            for start in range(0, len(items), 1000):
                some = items[start : start + 1000]
                for item, (value, error) in zip(some, pool.map(digest, some), strict=True):
                    bar.update()
                    if error:
                        bad.append(error.partition(" `python")[0])
                    else:
                        found.setdefault(part, {})[value] = item.path
    return found, bad
