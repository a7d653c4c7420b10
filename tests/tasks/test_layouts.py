"""The real datasets, read from small trees in the layout in which CoOp's users have them."""

import json
import tracemalloc

import pytest
from PIL import Image

from harness.cli.commands import main
from harness.dataset import Item
from harness.errors import HarnessError
from harness.records.store import Store
from harness.splits import class_names, few_shot
from harness.tasks.datasets.imagenet import ClassFolders
from tests.conftest import PLUGINS

SPLIT_FILES = {  # dataset: (folder of the items' paths, split file, a real path, its class name)
    "caltech101": (
        "caltech-101/101_ObjectCategories", "caltech-101/split_zhou_Caltech101.json",
        "Faces/image_0345.jpg", "face",
    ),
    "oxford_pets": (
        "oxford_pets/images", "oxford_pets/split_zhou_OxfordPets.json",
        "Abyssinian_201.jpg", "abyssinian",
    ),
    "stanford_cars": (
        "stanford_cars", "stanford_cars/split_zhou_StanfordCars.json",
        "cars_train/00001.jpg", "2012 Audi TTS Coupe",
    ),
    "oxford_flowers": (
        "oxford_flowers/jpg", "oxford_flowers/split_zhou_OxfordFlowers.json",
        "image_05118.jpg", "passion flower",
    ),
    "food101": (
        "food-101/images", "food-101/split_zhou_Food101.json",
        "apple_pie/1005649.jpg", "apple_pie",
    ),
    "sun397": (
        "sun397/SUN397", "sun397/split_zhou_SUN397.json",
        "a/apse/indoor/sun_ablvmwlfbkvpkdym.jpg", "indoor apse",
    ),
    "dtd": (
        "dtd/images", "dtd/split_zhou_DescribableTextures.json",
        "polka-dotted/polka-dotted_0071.jpg", "polka-dotted",
    ),
    "eurosat": (
        "eurosat/2750", "eurosat/split_zhou_EuroSAT.json",
        "AnnualCrop/AnnualCrop_1.jpg", "Annual Crop Land",
    ),
    "ucf101": (
        "ucf101/UCF-101-midframes", "ucf101/split_zhou_UCF101.json",
        "Apply_Eye_Makeup/v_ApplyEyeMakeup_g08_c01.jpg", "Apply_Eye_Makeup",
    ),
}  # fmt: skip
PROMPTS = {
    "caltech101": "a photo of a face.",
    "oxford_pets": "a photo of a abyssinian, a type of pet.",
    "stanford_cars": "a photo of a 2012 Audi TTS Coupe.",
    "oxford_flowers": "a photo of a passion flower, a type of flower.",
    "food101": "a photo of apple pie, a type of food.",
    "sun397": "a photo of a indoor apse.",
    "dtd": "polka-dotted texture.",
    "eurosat": "a centered satellite photo of Annual Crop Land.",
    "ucf101": "a photo of a person doing Apply Eye Makeup.",
}


def dataset(name):
    plugin = PLUGINS.plugins["datasets"][name]
    return plugin.cls(**plugin.fixed)


def draw(path, size=(9, 7), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, 77).save(path)


def split_file(root, name, path=None, **parts):
    """A tree with one image and a split file of two classes; `parts` replace those of the file."""
    folder, split, real, label = SPLIT_FILES[name]
    draw(root / folder / real, mode="L")
    rows = {
        part: [[path or f"{below}{real}", 0, label], [f"{below}other/{real}", 1, "another"]]
        for part, below in (("train", "a/"), ("val", "b/"), ("test", ""))
    }
    (root / split).write_text(json.dumps(rows | parts))
    return dataset(name)


def test_datasets_without_a_split_file_are_asked_as_coop_asks():
    names = ("imagenet", "imagenetv2", "imagenet_sketch", "imagenet_a", "imagenet_r")
    assert {dataset(name).template for name in names} == {"a photo of a {}."}
    assert dataset("fgvc_aircraft").template == "a photo of a {}, a type of aircraft."


@pytest.mark.parametrize("name", SPLIT_FILES)
def test_a_split_file_gives_lists_prompts_and_rgb_images(name, tmp_path):
    read = split_file(tmp_path, name)
    lists = read.read(tmp_path)
    assert class_names(lists["train"]) == [SPLIT_FILES[name][3], "another"]
    assert [len(lists[part]) for part in ("train", "val", "test")] == [2, 2, 2]
    image = read.open(lists["test"][0], tmp_path)
    assert image.mode == "RGB"
    assert image.size == (9, 7)
    spoken = SPLIT_FILES[name][3].replace("_", " ")
    assert read.template.replace("{}", spoken) == PROMPTS[name]


@pytest.mark.parametrize("path", ["../../secret.jpg", "/etc/passwd", "a/../../b.jpg"])
def test_a_path_that_leaves_the_datasets_folder_is_refused(path, tmp_path):
    read = split_file(tmp_path, "dtd", path=path)
    with pytest.raises(HarnessError, match="leaves the dataset's folder"):
        read.read(tmp_path)


def test_aircraft_takes_labels_from_the_order_of_variants(tmp_path):
    home = tmp_path / "fgvc_aircraft"
    draw(home / "images" / "1025794.jpg")
    (home / "variants.txt").write_text("707-320\n727-200\nA300B4\n")
    for part in ("train", "val", "test"):
        (home / f"images_variant_{part}.txt").write_text("1025794 727-200\n1340192 A300B4\n")
    read = dataset("fgvc_aircraft")
    (first, second) = read.read(tmp_path)["val"]
    assert (first.path, first.label, first.name) == ("1025794.jpg", 1, "727-200")
    assert second.label == 2
    assert read.open(first, tmp_path).size == (9, 7)
    (home / "images_variant_val.txt").write_text("1025794 727 200\n")
    with pytest.raises(HarnessError, match="has no variant '727 200'"):
        read.read(tmp_path)


def imagenet(root, folder="imagenet", below="images/val", classes=("n01440764", "n01443537")):
    lines = "n01440764 tench\nn01443537 goldfish\nn01484850 great white shark\n"
    (root / folder).mkdir(parents=True, exist_ok=True)
    (root / folder / "classnames.txt").write_text(lines)
    for number, each in enumerate(classes):
        for image in range(number + 2):
            draw(root / folder / below / each / f"x_{image}.JPEG")


def test_imagenet_is_read_in_sorted_order_and_val_is_drawn_beyond_the_shots(tmp_path):
    classes = ("n01484850", "n01440764", "n01443537")
    for below in ("images/train", "images/val"):
        imagenet(tmp_path, below=below, classes=classes)
    lists = dataset("imagenet").read(tmp_path)
    assert class_names(lists["test"]) == ["tench", "goldfish", "great white shark"]
    assert [item.path for item in lists["train"]][:2] == [
        "images/train/n01440764/x_0.JPEG",
        "images/train/n01440764/x_1.JPEG",
    ]
    train, val = few_shot(lists["train"], lists["val"], 1, 1)
    assert len(train) == len(val) == 3
    assert not set(train) & set(val)


def test_a_list_of_class_folders_is_what_a_list_of_its_items_is():
    folders = [("a/x", 0, "one", ["1", "2"]), ("a/y", 1, "two", []), ("a/z", 2, "three", ["1"])]
    items = [Item("a/x/1", 0, "one"), Item("a/x/2", 0, "one"), Item("a/z/1", 2, "three")]
    found = ClassFolders(folders)
    assert list(found) == [found[place] for place in range(3)] == found[:] == items
    assert [found[place] for place in (2, 0, -2)] == [items[2], items[0], items[1]]
    assert found[::-2] == items[::-2]
    assert items[1] in found
    assert not ClassFolders([])
    with pytest.raises(IndexError):
        found[3]


def test_a_long_list_of_class_folders_holds_names_and_no_items():
    tracemalloc.start()
    folders = ((f"train/n{c:08}", c, "name", [f"n_{i:05}" for i in range(1000)]) for c in range(50))
    found = ClassFolders(folders)
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert len(found) == 50_000
    assert held / len(found) < 16  # a name and a slash are eight bytes


def test_imagenet_without_a_class_folder_says_which(tmp_path):
    for below in ("images/train", "images/val"):
        imagenet(tmp_path, below=below)
    with pytest.raises(HarnessError, match="n01484850"):
        dataset("imagenet").read(tmp_path)


def test_imagenetv2_folders_are_lines_of_classnames(tmp_path):
    below = "imagenetv2-matched-frequency-format-val"
    imagenet(tmp_path, "imagenetv2", below, ("0", "2", "1"))
    lists = dataset("imagenetv2").read(tmp_path)
    assert not lists["train"]
    assert class_names(lists["test"]) == ["tench", "goldfish", "great white shark"]
    assert [item.label for item in lists["test"]] == [0, 0, 1, 1, 1, 1, 2, 2, 2]


def test_imagenet_sketch_has_all_classes(tmp_path):
    classes = ("n01440764", "n01443537", "n01484850")
    imagenet(tmp_path, "imagenet-sketch", "images", classes)
    assert len(class_names(dataset("imagenet_sketch").read(tmp_path)["test"])) == 3


@pytest.mark.parametrize(
    ("name", "folder", "below"),
    [
        ("imagenet_a", "imagenet-adversarial", "imagenet-a"),
        ("imagenet_r", "imagenet-rendition", "imagenet-r"),
    ],
)
def test_imagenet_a_and_r_number_the_classes_that_are_there(name, folder, below, tmp_path):
    imagenet(tmp_path, folder, below, ("n01484850", "n01440764"))
    (tmp_path / folder / below / "README.txt").write_text("not a class")
    test = dataset(name).read(tmp_path)["test"]
    assert class_names(test) == ["tench", "great white shark"]
    assert dataset(name).open(test[0], tmp_path).mode == "RGB"


@pytest.mark.parametrize("name", [*SPLIT_FILES, "fgvc_aircraft", "imagenet", "imagenet_r"])
def test_missing_data_says_what_was_expected_where(name, tmp_path):
    with pytest.raises(HarnessError, match="--data-root"):
        dataset(name).read(None)
    with pytest.raises(HarnessError, match="no such folder"):
        dataset(name).read(tmp_path)
    (tmp_path / dataset(name).folder).mkdir()
    with pytest.raises(HarnessError, match=str(tmp_path)):
        dataset(name).read(tmp_path)


def test_a_split_file_that_is_none_is_an_error_that_names_it(tmp_path):
    read = split_file(tmp_path, "dtd")
    (tmp_path / SPLIT_FILES["dtd"][1]).write_text('{"train": []}')
    with pytest.raises(HarnessError, match=r"split_zhou_DescribableTextures\.json is not one"):
        read.read(tmp_path)


def test_an_image_that_cannot_be_read_is_an_error_that_names_it(tmp_path):
    read = split_file(tmp_path, "dtd")
    folder, _, real, _ = SPLIT_FILES["dtd"]
    (tmp_path / folder / real).write_bytes(b"not an image")
    with pytest.raises(HarnessError, match=r"polka-dotted_0071\.jpg cannot be read"):
        read.open(read.read(tmp_path)["test"][0], tmp_path)


def all_fifteen(root):
    """A tree of every dataset: four classes, of each some images in every split."""
    wnids = ("n01440764", "n01443537", "n01484850", "n01491361")
    words = ("tench", "shark", "goldfish", "shark")  # a name twice, as ImageNet has
    for folder, below in (
        ("imagenet", "images/train"),
        ("imagenet", "images/val"),
        ("imagenetv2", "imagenetv2-matched-frequency-format-val"),
        ("imagenet-sketch", "images"),
        ("imagenet-adversarial", "imagenet-a"),
        ("imagenet-rendition", "imagenet-r"),
    ):
        home = root / folder
        few = wnids[:2] if folder in ("imagenet-adversarial", "imagenet-rendition") else wnids
        for number, wnid in enumerate(few):
            name = str(number) if folder == "imagenetv2" else wnid
            for image in range(4 if below == "images/train" else 1):
                draw(home / below / name / f"{wnid}_{image}.JPEG")
        lines = [f"{wnid} {word}" for wnid, word in zip(wnids, words, strict=True)]
        (home / "classnames.txt").write_text("\n".join(lines) + "\n")
    for folder, split, real, label in SPLIT_FILES.values():
        rows = {part: [] for part in ("train", "val", "test")}
        for number, name in enumerate((label, "hot air balloon", "ring-tailed lemur", "T shirt")):
            for place, part in enumerate(("train", "train", "val", "test")):
                path = real.replace(".jpg", f"_{number}{place}.jpg")
                draw(root / folder / path)
                rows[part].append([path, number, name])
        (root / split).write_text(json.dumps(rows))
    home = root / "fgvc_aircraft"
    variants = ("707-320", "727-200", "A300B4", "Yak-42")
    (home / "images").mkdir(parents=True)
    (home / "variants.txt").write_text("\n".join(variants) + "\n")
    for place, part in enumerate(("train", "val", "test")):
        numbers = [f"10{number}{place}" for number in range(4)]
        for number in numbers:
            draw(home / "images" / f"{number}.jpg")
        lines = [f"{n} {variant}" for n, variant in zip(numbers, variants, strict=True)]
        (home / f"images_variant_{part}.txt").write_text("\n".join(lines) + "\n")


TRAINED = ("imagenet", "fgvc_aircraft", *SPLIT_FILES)
SHIFTED = ("imagenetv2", "imagenet_sketch", "imagenet_a", "imagenet_r")


@pytest.mark.slow
def test_every_task_runs_on_all_fifteen_datasets_as_published(tmp_path):
    """On the embedded backbone, which is small, with the source and targets of the papers."""
    all_fifteen(tmp_path / "data")
    results = tmp_path / "runs"

    def run(methods, tasks, *arguments):
        chosen = ["--methods", methods, "--tasks", tasks, "--shots", "1"]
        places = ["--data-root", str(tmp_path / "data"), "--results", str(results)]
        return main(["run", *chosen, *places, "--set", "engine.max_steps=1", *arguments])

    cross = ("--set", "cross_dataset.source=imagenet")
    shifted = ("--set", "domain_generalization.source=imagenet")
    assert run("adapter", "base2new", "--datasets", ",".join(TRAINED)) == 0
    assert run("adapter", "few_shot", "--datasets", "imagenet,fgvc_aircraft,dtd") == 0
    assert run("adapter", "cross_dataset,domain_generalization", *cross, *shifted) == 0
    assert run("tip_adapter", "domain_generalization", *shifted) == 0
    assert run("tip_adapter", "cross_dataset", "--datasets", "imagenet,dtd", *cross) == 0
    records = Store(results).records()
    ended = {(r.run["method"], r.run["task"], r.run["dataset"]): r for r in records}
    total = {key: {n: s["total"] for n, s in r.scores.items()} for key, r in ended.items()}
    for name in TRAINED:
        assert total["adapter", "base2new", name] == {"base": 2, "new": 2}
        assert total["adapter", "cross_dataset", name] == {"test": 4}
    for name in ("imagenet", "fgvc_aircraft", "dtd"):
        assert total["adapter", "few_shot", name] == {"test": 4}
    for name in SHIFTED:
        classes = 2 if name in ("imagenet_a", "imagenet_r") else 4
        assert total["adapter", "domain_generalization", name] == {"test": classes}
    # a classifier of the fitted classes serves the variants, which have no others
    for name in SHIFTED:
        assert ended["tip_adapter", "domain_generalization", name].status == "done"
    assert ended["tip_adapter", "cross_dataset", "imagenet"].status == "done"
    assert ended["tip_adapter", "cross_dataset", "dtd"].status == "not applicable"
    fits = {r.fit for (method, task, _), r in ended.items() if method == "adapter"
            and task in ("cross_dataset", "domain_generalization")}  # fmt: skip
    assert len(fits) == 1
    assert len(ended) == 11 + 3 + (11 + 5) + 5 + 2
