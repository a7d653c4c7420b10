"""What holds for every kind of dataset, on the same tree of images in the layout of each."""

import json
import os
import re

import numpy as np
import pytest
from PIL import Image

from harness import config, registry
from harness.cli.commands import main
from harness.errors import HarnessError
from harness.images import library, list_files
from harness.runs import plan as planning
from harness.runs.context import Context
from harness.runs.remarks import remarks
from harness.splits import read_lists
from tests.conftest import PLUGINS
from tests.tasks.kinds import KINDS, Kind, encoded, picture

TASKS = ("few_shot", "base2new", "cross_dataset", "domain_generalization")


def marked(kinds):
    return [
        pytest.param(kind, id=kind.name, marks=[pytest.mark.datasets] * (kind.name == "hf"))
        for kind in kinds
    ]


every = pytest.mark.parametrize("kind", marked(KINDS))
written = pytest.mark.parametrize("kind", marked(k for k in KINDS if k.name != "embedded"))
encodings = pytest.mark.parametrize("kind", marked(k for k in KINDS if k.encoded))


@pytest.fixture
def plan(tmp_path, toy):
    """plan(kind, name): the runs of zero_shot by task; transfer is from the dataset to itself."""

    def planned(kind, name, tasks="few_shot", root=tmp_path, given=None):
        found = registry.load()
        given_settings = [(task, "source", name) for task in TASKS[2:] if task in tasks]
        given_settings += [("torchvision", "template", kind.template)] * bool(kind.template)
        request = planning.Request(
            methods="zero_shot", tasks=tasks, datasets=name, backbone="toy", shots=[1], seeds=[1],
            bindings=[config.Binding(*each, "--set") for each in given_settings],
        )  # fmt: skip
        runs = planning.plan(request, found, context=Context(toy, root, given=given))
        return {run.task.name: run for run in runs}

    return planned


def opened(kind: Kind, root, tree):
    """The dataset of a tree, its lists, and where it lies."""
    (plugin,) = registry.load().find("datasets", kind.write(root, tree))
    dataset = plugin.cls(**plugin.fixed)
    return plugin, dataset, read_lists(plugin.name, dataset, root)


def test_every_layout_is_among_the_kinds():
    layouts = {n for n, each in PLUGINS.plugins["datasets"].items() if each.lacks_path}
    assert layouts <= {kind.name.partition("-")[0] for kind in KINDS}


@every
def test_every_task_plans_and_trains_on_no_test_image(kind, tmp_path, plan):
    runs = plan(kind, kind.write(tmp_path, kind.tree()), ",".join(TASKS))
    assert {*runs} == {*TASKS}
    (whole,) = runs["few_shot"].evaluated.values()
    halves = runs["base2new"].evaluated
    for run in runs.values():
        trained = {item.path for item in run.train.items}
        assert trained
        for split in run.evaluated.values():
            assert trained.isdisjoint(item.path for item in split.items)
    assert halves["base"].classes.names + halves["new"].classes.names == whole.classes.names
    assert len(halves["base"].items) + len(halves["new"].items) == len(whole.items)
    for task in TASKS[2:]:
        (split,) = runs[task].evaluated.values()
        assert split.fingerprint == whole.fingerprint


@every
def test_labels_count_classes_and_names_are_those_of_the_tree(kind, tmp_path):
    tree = kind.tree()
    _, dataset, found = opened(kind, tmp_path, tree)
    names = {item.label: item.name for item in found["test"]}
    assert [*sorted(names)] == [*range(len(names))]
    if kind.any_classes:
        assert [names[label] for label in sorted(names)] == [*tree["test"]]
    if kind.name != "embedded":
        assert len(found["test"]) == sum(map(len, tree["test"].values()))
        label = found["test"][-1].label
        pixels = np.asarray(dataset.open(found["test"][-1], tmp_path))
        assert pixels[5, 5, 0] == 5 * label


class Backwards:
    """The entries of a folder, the last one first."""

    def __init__(self, entries):
        self.entries = iter([*entries][::-1])

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def __iter__(self):
        return self

    def __next__(self):
        return next(self.entries)


@every
def test_another_process_and_another_order_of_listing_give_the_same_key(
    kind, tmp_path, plan, monkeypatch
):
    name = kind.write(tmp_path, kind.tree())
    before = plan(kind, name)["few_shot"]

    scandir, listdir = os.scandir, os.listdir

    monkeypatch.setattr(os, "scandir", lambda *given: Backwards(scandir(*given)))
    monkeypatch.setattr(os, "listdir", lambda *given: listdir(*given)[::-1])
    after = plan(kind, name)["few_shot"]
    assert after.identity == before.identity
    assert after.train.classes.template == before.train.classes.template


@written
def test_a_changed_byte_of_an_image_is_another_run(kind, tmp_path, plan):
    tree, keys = kind.tree(), []
    for number, more in enumerate((b"", b"\0" * kind.sizes)):
        image = tree["test"][kind.classes[0]]
        image[0] = picture(2, 0, 50 + number) + more
        root = tmp_path / str(number)
        root.mkdir()
        keys.append(plan(kind, kind.write(root, tree), root=root)["few_shot"].key)
    assert len({*keys}) == 2


@every
def test_lists_that_are_written_and_given_back_change_nothing_but_the_list(kind, tmp_path, plan):
    name = kind.write(tmp_path, kind.tree())
    command = ["data", "lists", "--datasets", name, "--shots", "1", "--out", str(tmp_path / "l")]
    assert main([*command, "--data-root", str(tmp_path)]) == 0
    drawn = plan(kind, name)["few_shot"]
    given = plan(kind, name, given=list_files.read(tmp_path / "l"))["few_shot"]
    assert given.train.items == drawn.train.items
    assert given.key != drawn.key
    assert {k: v for k, v in given.identity.items() if k not in ("list", "lists")} == drawn.identity


@written
def test_show_prints_what_it_holds_also_as_json(kind, tmp_path, capsys):
    name = kind.write(tmp_path, kind.tree())
    assert main(["show", name, "--data-root", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert main(["show", name, "--data-root", str(tmp_path), "--json"]) == 0
    about = json.loads(capsys.readouterr().out)
    assert f"{len(about['classes'])} classes: base {about['classes'][0]!r} to" in printed
    assert about["prompts"][0] in printed
    assert about["splits"]["test"]["images"] == sum(about["splits"]["test"]["by_class"])


@written
def test_a_copy_of_a_training_image_in_test_is_said_by_name(kind, tmp_path, plan):
    tree = kind.tree()
    tree["test"][kind.classes[0]][1] = tree["train"][kind.classes[0]][2]
    plugin, _, found = opened(kind, tmp_path, tree)
    one, other = found["train"][2].path, found["test"][1].path
    problems = library.verify(plugin, tmp_path).problems
    assert f"{one} of train shows the same pixels as {other} of test." in problems
    if kind.own:
        said = remarks([*plan(kind, kind.write(tmp_path, tree)).values()])
        assert any(f"{other} = {one}" in each for each in said)


@pytest.mark.parametrize("kind", marked(k for k in KINDS if k.any_classes))
@pytest.mark.parametrize(
    ("part", "said"),
    [("test", r"test has the class 'elk', and train has not"),
     ("train", r"(the class 'elk' has no test images|train has the class 'elk', and val has not)")],
)  # fmt: skip
def test_parts_with_other_classes_are_refused_by_name(kind, part, said, tmp_path):
    tree = kind.tree()
    tree[part]["elk"] = [picture(2, 9, 9)]
    with pytest.raises(HarnessError, match=said):
        opened(kind, tmp_path, tree)


@pytest.mark.parametrize("kind", marked(k for k in KINDS if k.any_classes))
def test_a_test_part_without_images_is_refused(kind, tmp_path, plan):
    tree = kind.tree()
    tree["test"] = {}
    if kind.name == "csv":  # whose lines name no part that is empty: what it calls val is scored
        (run,) = plan(kind, kind.write(tmp_path, tree)).values()
        assert [item.path[:3] for item in run.evaluated["test"].items] == ["val"] * 4
        return
    with pytest.raises(HarnessError, match=r"no (test )?(images|rows)"):
        plan(kind, kind.write(tmp_path, tree))


CLEAR = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
PALETTE = Image.new("P", (4, 4), 1)
PALETTE.putpalette([200, 0, 0, 0, 0, 0])
DEEP = Image.fromarray(np.full((4, 4), 257 * 100, np.uint16))
MODES = {
    "RGBA": (encoded(CLEAR), (255, 255, 255)),
    "LA": (encoded(CLEAR.convert("LA")), (255, 255, 255)),
    "palette": (encoded(PALETTE, transparency=1), (255, 255, 255)),
    "16 bits": (encoded(DEEP), (100, 100, 100)),
    "CMYK": (encoded(Image.new("CMYK", (8, 8), (255, 0, 0, 0)), "JPEG"), (0, 255, 255)),
}


@encodings
def test_images_of_odd_modes_are_shown_as_a_viewer_shows_them(kind, tmp_path):
    tree = kind.tree()
    for name, (image, _) in zip(kind.classes * 2, MODES.values(), strict=False):
        tree["test"][name] = [image, *tree["test"][name]]
    _, dataset, found = opened(kind, tmp_path, tree)
    seen = {item.path: dataset.open(item, tmp_path) for item in found["test"]}
    colours = [image.getpixel((1, 1)) for image in seen.values()]
    for mode, (_, colour) in MODES.items():
        assert colours.count(colour) >= sum(c == colour for _, c in MODES.values()), mode


@encodings
def test_only_the_users_own_images_are_turned_upright(kind, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    tree = kind.tree()
    tree["test"][kind.classes[0]] = [encoded(Image.new("RGB", (8, 4)), "JPEG", exif=exif)]
    _, dataset, found = opened(kind, tmp_path, tree)
    assert dataset.open(found["test"][0], tmp_path).size == ((4, 8) if kind.own else (8, 4))


@encodings
def test_images_that_cannot_be_read_are_named(kind, tmp_path):
    tree = kind.tree()
    whole = encoded(Image.effect_noise((64, 64), 50), "JPEG")
    tree["test"][kind.classes[0]] = [b"no image", whole[: len(whole) // 2]]
    plugin, _, found = opened(kind, tmp_path, tree)
    problems = library.verify(plugin, tmp_path).problems
    for item in found["test"][:2]:
        file = plugin.cls(**plugin.fixed).file(item, tmp_path)
        wrong = re.escape(str(file or item.path))
        assert any(re.search(f"{wrong} cannot be read as an image", each) for each in problems)


@encodings
def test_an_image_is_decoded_to_rgb_whatever_its_size(kind, tmp_path):
    tree = kind.tree()
    tree["test"][kind.classes[0]] = [encoded(Image.new("1", (1, 3), 1))]
    _, dataset, found = opened(kind, tmp_path, tree)
    image = dataset.open(found["test"][0], tmp_path)
    assert (image.mode, image.size, image.getpixel((0, 2))) == ("RGB", (1, 3), (255, 255, 255))
