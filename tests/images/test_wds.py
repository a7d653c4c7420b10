"""Tar shards as wds:PATH: what is read, what is refused, and every task."""

import io
import tarfile

import pytest
from PIL import Image

from harness import registry
from harness.cli.commands import main
from harness.errors import HarnessError

NAMES = ("zebra", "ant", "bee", "cow")
COLOURS = {"zebra": "white", "ant": "red", "bee": "yellow", "cow": "black"}


def encoded(image, kind="PNG"):
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def picture(label, number):
    image = Image.new("RGB", (12, 10), COLOURS[NAMES[label]])
    image.putpixel((0, 0), (number, label, 0))
    return encoded(image)


def samples(count, start=0):
    """Members of a shard: an image and its class of each sample."""
    found = {}
    for label in range(len(NAMES)):
        for number in range(start, start + count):
            found[f"s{label}{number}.png"] = picture(label, number)
            found[f"s{label}{number}.cls"] = str(label).encode()
    return found


def shard(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def tree(folder, **test):
    """A dataset of two train shards and one of test, `test` added to its members."""
    shard(folder / "train" / "0.tar", samples(3))
    shard(folder / "train" / "1.tar", samples(2, start=3))
    shard(folder / "test" / "0.tar", samples(2, start=10) | test)
    (folder / "train" / "nshards.txt").write_text("2")
    (folder / "classnames.txt").write_text("\n".join(NAMES) + "\n")
    return folder


def wds(folder):
    (plugin,) = registry.load().find("datasets", f"wds:{folder}")
    return plugin.cls(**plugin.fixed)


def refusal(folder):
    with pytest.raises(HarnessError) as caught:
        wds(folder).read(None)
    return str(caught.value)


def run(results, folder, *arguments):
    chosen = ["--datasets", f"wds:{folder}", "--shots", "2", "--results", str(results)]
    return main(["run", *chosen, "--set", "engine.max_steps=2", *arguments])


def test_another_number_of_shards_than_is_said_is_refused(tmp_path):
    (tree(tmp_path) / "train" / "nshards.txt").write_text("3\n")
    assert "train/nshards.txt says '3', and there are 2 shards (0, 1)" in refusal(tmp_path)


def test_labels_follow_classnames_and_shards_are_read_in_order(tmp_path):
    lists = wds(tree(tmp_path)).read(None)
    assert [len(lists[part]) for part in ("train", "val", "test")] == [20, 0, 8]
    assert [lists["test"][place].name for place in (0, 2, 4, 6)] == list(NAMES)
    assert {item.label: item.name for item in lists["train"]} == dict(enumerate(NAMES))
    assert lists["train"][0].path == "train/0.tar/s00.png"


def test_an_image_is_read_from_its_place_in_the_shard(tmp_path):
    dataset = wds(tree(tmp_path))
    item = dataset.read(None)["train"][-1]
    assert item.path == "train/1.tar/s34.png"
    assert dataset.open(item, None).getpixel((0, 0)) == (4, 3, 0)


def test_shards_of_one_name_that_change_places_are_another_dataset(tmp_path):
    first, second = samples(2), dict(zip(samples(2), samples(2, start=9).values(), strict=True))
    for name, train, test in (("a", first, second), ("b", second, first)):
        shard(tmp_path / name / "train" / "0.tar", train)
        shard(tmp_path / name / "test" / "0.tar", test)
        (tmp_path / name / "classnames.txt").write_text("\n".join(NAMES))
    one, other = wds(tmp_path / "a"), wds(tmp_path / "b")
    assert one.read(None) == other.read(None)
    assert (before := one.content(None)) != other.content(None)
    assert wds((tmp_path / "a").rename(tmp_path / "c")).content(None) == before


def test_without_a_test_shard_each_class_is_split_once(tmp_path):
    (tree(tmp_path) / "test" / "0.tar").unlink()
    lists = wds(tmp_path).read(None)
    assert [len(lists[part]) for part in ("train", "val", "test")] == [8, 4, 8]


def test_all_templates_are_the_prompts_and_an_option_wins(tmp_path):
    folder = tree(tmp_path)
    (folder / "zeroshot_classification_templates.txt").write_text("art of {c}.\na {c}.\n")
    (plugin,) = registry.load().find("datasets", f"wds:{folder}")
    assert plugin.cls(**plugin.fixed).template == "art of {}.\na {}."
    assert plugin.cls(**plugin.fixed, template="my {}").template == "my {}"


def test_a_method_is_fitted_and_measured_on_shards(tmp_path):
    short = ["--methods", "adapter", "--tasks", "few_shot"]
    assert run(tmp_path / "r", tree(tmp_path / "d"), *short) == 0


def test_files_that_are_no_images_are_counted(tmp_path):
    dataset = wds(tree(tmp_path, **{"s010.txt": b"a caption", "s010.json": b"{}", "README": b""}))
    assert dataset.left_out(None) == {".json": 1, ".txt": 1, "without suffix": 1}


@pytest.mark.parametrize(
    ("added", "said"),
    [
        ({"x.png": b"p", "x.cls": b"4"}, "gives x.png the class 4; classnames.txt names 4"),
        ({"x.png": b"p", "x.cls": b"ant"}, "x.cls holds no class number but b'ant'"),
        ({"x.png": b"p", "x.cls": b"-1"}, "holds no class number"),
        ({"x.png": b"p"}, "has no class (.cls) for the sample 'x'"),
        ({"x.cls": b"1"}, "has no image that can be read for the sample 'x'"),
        ({"x.png": b"p", "x.jpg": b"p", "x.cls": b"1"}, "has two images for x.jpg"),
    ],
)
def test_a_sample_that_is_not_whole_is_refused_by_name(tmp_path, added, said):
    assert said in refusal(tree(tmp_path, **added))


@pytest.mark.parametrize("keep", [2000, 512 * 8, 100])
def test_a_shard_that_was_cut_is_refused(tmp_path, keep):
    path = tree(tmp_path) / "test" / "0.tar"
    path.write_bytes(path.read_bytes()[:keep])
    assert "test/0.tar" in refusal(tmp_path)


def test_a_damaged_header_is_no_end_of_the_shard(tmp_path):
    path = tree(tmp_path) / "test" / "0.tar"
    data = bytearray(path.read_bytes())
    place = data.index(b"s110.png")
    data[place] ^= 1
    path.write_bytes(data)
    assert "is damaged after" in refusal(tmp_path)


@pytest.mark.parametrize("text", ["ant\nbee\n", "ant\nant\nbee\ncow\n", "", "\n",
                                  "zebra\n\nant\nbee\ncow\n"])  # fmt: skip
def test_class_names_that_do_not_fit_are_refused(tmp_path, text):
    (tree(tmp_path) / "classnames.txt").write_text(text)
    said = refusal(tmp_path)
    assert "classnames.txt" in said
    assert ("two classes 'ant', in lines 1 and 2" in said) == (text[:8] == "ant\nant\n")


def test_a_link_in_a_shard_is_not_followed(tmp_path):
    path = tree(tmp_path / "d") / "test" / "0.tar"
    with tarfile.open(path, "a") as tar:
        link = tarfile.TarInfo("x.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    assert len(wds(tmp_path / "d").read(None)["test"]) == 8


@pytest.mark.parametrize("name", ["../../y", "/etc/y", "a/../../y", "a\\..\\y"])
def test_a_member_whose_name_leaves_the_shard_is_refused(tmp_path, name):
    added = {f"{name}.png": picture(0, 40), f"{name}.cls": b"0"}
    assert "leaves the dataset's folder" in refusal(tree(tmp_path, **added))


def test_a_test_shard_without_samples_is_not_taken_for_no_test(tmp_path):
    shard(tree(tmp_path) / "test" / "0.tar", {})
    assert "test has no images" in refusal(tmp_path)
