"""A recommendation for somebody's own images, on a small folder of drawings."""

import random
import shutil
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from harness import config, registry
from harness.dataset import Item
from harness.errors import HarnessError
from harness.images.cache import Disk
from harness.images.contents import DIGESTS
from harness.records.store import Store
from harness.runs.budget import Spending, seconds_of, written
from harness.runs.folds import Fold, assigned, fold_count, folded
from harness.runs.plan import Request
from harness.runs.recommend import recommend
from harness.tasks.datasets.folder import Folder as OwnFolder
from tests.toy import Toy

NAMES = ("red", "green", "blue")


def folder(home, train=2):
    """Discs in class folders of train, val and test; those of test are no images at all."""
    drawn = random.Random(0)
    for name in NAMES:
        for part, number in (("train", train), ("val", 1), ("test", 1)):
            (home / part / name).mkdir(parents=True)
            for n in range(number):
                path = home / part / name / f"{n}.png"
                if part == "test":
                    path.write_bytes(b"no image")
                    continue
                image = Image.new("RGB", (48, 48), (drawn.randrange(256),) * 3)
                ImageDraw.Draw(image).ellipse((8 + n, 8, 36, 36), fill=name)
                image.save(path)
    return home


def request(home, cache, **fields):
    given = {"methods": "zero_shot,tip_adapter", "shots": [1], "datasets": f"folder:{home}"}
    return Request(**{
        "tasks": "few_shot", "backbone": "emoji-mini", "seeds": [1], "disk": Disk(cache, 2**28),
        **given, **fields,
    })  # fmt: skip


def made_by(store):
    """A clock that stands still until the four runs of the first look are there, whatever the
    machine."""
    return lambda: 50.0 * (len([*store.folder.rglob("*shots-seed*.json")]) >= 4)


@pytest.fixture(scope="module")
def looked(tmp_path_factory):
    """A recommendation whose budget ended after the first look; and what was opened for it."""
    home = folder(tmp_path_factory.mktemp("own") / "discs")
    store = Store(tmp_path_factory.mktemp("results"))
    opened = []
    usual = DIGESTS.of
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DIGESTS, "of", lambda paths: opened.extend(paths) or usual(paths))
        found = recommend(request(home, store.folder / "cache"), registry.load(), store, 60.0,
                          made_by(store))  # fmt: skip
    return found, home, store, opened


def test_it_ends_where_the_forecast_of_the_next_look_exceeds_the_budget(looked):
    found, *_ = looked
    assert [str(each.rung) for each in found.looks] == ["1 shot, 1 fold, 2 seeds"]
    assert found.spent == 50
    assert found.needs > 10
    assert "the next look (1 shot, 2 folds, 2 seeds" in found.climb.ended


def test_no_test_image_is_opened(looked):
    _, _, store, opened = looked  # they are no images: a run that read one would have failed
    assert opened
    assert not [path for path in opened if "test" in path.parts]
    lists = [path.read_text() for path in (store.folder / "splits").iterdir()]
    assert lists
    assert not [each for each in lists if "test/" in each]


def test_its_runs_are_records_like_all_others(looked):
    found, _, store, _ = looked
    records = store.records()
    assert {record.run["dataset"] for record in records} == {"folder:discs.fold1of2"}
    assert {record.run["task"] for record in records} == {"few_shot"}
    assert [len(each) for each in found.records.values()] == [2, 2]


def test_the_same_call_goes_on_with_what_is_kept_whatever_became_of_the_test_images(looked):
    _, home, store, _ = looked
    (home / "test" / "red" / "0.png").write_bytes(b"another one")
    found = recommend(request(home, store.folder / "cache"), registry.load(), store, 1e-6)
    assert [(each.runs, each.kept) for each in found.looks] == [(4, 4)]


def test_a_budget_below_the_first_look_says_what_that_needs(looked, tmp_path):
    _, home, store, _ = looked
    with pytest.raises(HarnessError, match=r"the first look \(1 shot, .* Give --budget \d+"):
        recommend(request(home, store.folder / "cache"), registry.load(), Store(tmp_path / "r"),
                  1e-9, lambda: 0.0)  # fmt: skip


def test_ctrl_c_says_what_is_kept(looked, tmp_path, monkeypatch):
    _, home, store, _ = looked
    fresh = Store(tmp_path / "results")
    usual, count = Store.write, []

    def write(self, *given):
        count.append(1)
        if len(count) == 3:
            raise KeyboardInterrupt
        return usual(self, *given)

    monkeypatch.setattr(Store, "write", write)
    with pytest.raises(KeyboardInterrupt, match="2 runs are finished and kept in"):
        recommend(request(home, store.folder / "cache"), registry.load(), fresh, 1e6)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"datasets": "caltech101"}, "recommend is for images of your own"),
        ({"datasets": "emoji_food"}, "are not independent of each other"),
        ({"datasets": "emoji_food,emoji_people"}, "recommend takes one dataset, not 2"),
        ({"methods": "zero_shot"}, "at least two methods, not zero_shot alone"),
        ({"methods": "zero_sht,lora"}, "Did you mean 'zero_shot'?"),
    ],
)
def test_what_cannot_be_answered_is_refused_with_a_reason(looked, fields, sentence):
    _, home, store, _ = looked
    with pytest.raises(HarnessError) as error:
        recommend(request(home, store.folder / "cache", **fields), registry.load(), store, 1e6)
    assert sentence in str(error.value)


def test_a_class_with_one_training_image_is_refused_with_its_name(tmp_path):
    home = folder(tmp_path / "discs")
    (home / "train" / "green" / "1.png").unlink()
    with pytest.raises(HarnessError, match="the class 'green' has 1 training image"):
        recommend(request(home, tmp_path / "c"), registry.load(), Store(tmp_path / "r"), 1e6)


def test_one_class_alone_is_refused(tmp_path):
    home = folder(tmp_path / "discs")
    for part in ("train", "val", "test"):
        for name in ("red", "green"):
            shutil.rmtree(home / part / name)
    with pytest.raises(HarnessError, match="training images of 1 class"):
        recommend(request(home, tmp_path / "c"), registry.load(), Store(tmp_path / "r"), 1e6)


ITEMS = [Item(f"{name}/{n}", label, name, f"{name}{n // 3}")
         for label, name in enumerate(NAMES) for n in range(15)]  # fmt: skip


SKIP = config.bind("engine.on_bad_image", "skip", "--on-bad-image")


def test_folds_are_dealt_over_the_images_that_can_be_read(tmp_path):
    """Else the damaged class, all of whose other images lie in one fold, would not be scored."""
    home = folder(tmp_path / "discs", train=10)
    paths = [item for item in OwnFolder(path=str(home)).read(None)["train"] if item.name == "red"]
    places = assigned(Toy(), paths, 5)
    for item, place in zip(paths, places, strict=True):
        if place:
            (home / item.path).write_bytes(b"no image")
    (home / "val" / "red" / "0.png").write_bytes(b"no image")
    known = registry.load()
    found = folded(request(home, tmp_path / "cache", bindings=[SKIP]), known)
    assert len(found.gone) == 9
    assert (found.counts["red"], found.counts["blue"]) == (2, 10)
    scored = list[Item]()
    for plugin in known.find("datasets", found.folds):
        lists = plugin.cls(**plugin.fixed).read(None)
        assert {item.name for item in lists["train"]} == set(NAMES)
        scored += lists["test"]
    assert len(scored) == 22
    with pytest.raises(HarnessError, match=r"and not engine\.split"):
        folded(request(home, tmp_path, bindings=[config.bind("engine.split", "val", "x")]), known)
    for item in paths:
        (home / item.path).write_bytes(b"no image")
    with pytest.raises(HarnessError, match="none of the training images of the class 'red' can"):
        folded(request(home, tmp_path / "cache", bindings=[SKIP]), registry.load())


def test_a_group_is_in_one_fold_and_a_class_in_all():
    own = assigned(Toy(), ITEMS, 5)
    folds = {}
    for item, fold in zip(ITEMS, own, strict=True):
        assert folds.setdefault(item.group, fold) == fold
    for name in NAMES:
        assert {f for i, f in zip(ITEMS, own, strict=True) if i.name == name} == set(range(5))


def test_folds_depend_on_paths_and_not_on_their_order():
    there = dict(zip(ITEMS, assigned(Toy(), ITEMS, 4), strict=True))
    back = dict(zip(ITEMS[::-1], assigned(Toy(), ITEMS[::-1], 4), strict=True))
    assert there == back


def test_copies_of_an_image_are_in_one_fold(tmp_path):
    home = folder(tmp_path / "discs", train=6)
    for path in sorted((home / "train").rglob("*.png")):
        shutil.copy(path, path.with_name(f"copy of {path.name}"))
    dataset = OwnFolder(path=str(home))
    items = dataset.read(None)["train"]
    where = dict(zip((item.path for item in items), assigned(dataset, items, 5), strict=True))
    assert len({*where.values()}) == 5
    for path, fold in where.items():
        if "copy of" in path:
            assert where[path.replace("copy of ", "")] == fold


def test_copies_count_as_one_unit_and_join_their_groups(tmp_path):
    home = folder(tmp_path / "discs", train=4)
    (first, second, *_) = sorted((home / "train" / "red").iterdir())
    shutil.copy(first, first.with_name("copy.png"))
    fold = Fold(base=OwnFolder(path=str(home)), whole="w", number=0, folds=2)
    lists = fold.read(None)
    items = [*lists["train"], *lists["test"]]
    reds = [item for item in items if item.name == "red"]
    assert len({fold.unit(item) for item in reds}) == len(reds) - 1
    groups = {first.name: "a", second.name: "b", "copy.png": "b"}
    grouped = [item._replace(group=groups.get(Path(item.path).name, "")) for item in reds]
    where = assigned(OwnFolder(path=str(home)), grouped, 2)
    joined = {n for item, n in zip(grouped, where, strict=True) if item.group in ("a", "b")}
    assert len(joined) == 1


def test_a_fold_holds_out_its_part_of_train_and_keeps_val():
    whole = Toy().read(None)
    number = fold_count("toy", Toy(), Toy().read(None)["train"])
    assert number == 5
    folds = [Fold(base=Toy(), whole="toy", number=n, folds=number).read(None) for n in range(5)]
    held_out = [item for fold in folds for item in fold["test"]]
    assert sorted(held_out) == sorted(whole["train"])
    for fold in folds:
        assert fold["val"] == whole["val"]
        assert sorted([*fold["train"], *fold["test"]]) == sorted(whole["train"])


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("10m", 600), ("1.5h", 5400)])
def test_a_budget_is_read(text, seconds):
    assert seconds_of(text) == seconds
    assert seconds_of(written(seconds)) >= seconds


@pytest.mark.parametrize("text", ["10", "m", "-1m", "0s", "10 parsecs", "1e9h", "99999d"])
def test_a_budget_that_is_no_time_is_refused(text):
    with pytest.raises(HarnessError, match="--budget"):
        seconds_of(text)


def test_a_forecast_is_corrected_by_those_before():
    spending = Spending(100.0, lambda: 0.0)
    assert spending.corrected(10.0) == 10.0
    spending.learn(10.0, 30.0)
    assert spending.corrected(10.0) == 30.0
