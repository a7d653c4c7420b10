"""`report`: what it writes, what it does not replace, and which images it shows."""

import json
import os

import pytest
from PIL import Image

from harness.cli.commands import main
from harness.cli.thumbnails import Thumbnails
from tests.records import worlds
from tests.tasks.kinds import KINDS

PICTURE = "data:image/webp;base64,"


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    worlds.write(folder, {"coop": 0.5, "lora": 0.8}, images=40, datasets=("folder:mine",))
    return folder


@pytest.fixture
def write(results, tmp_path, capsys):
    """write("--json"): the exit code, standard output and standard error."""

    def command(*options):
        code = main(["report", "--results", str(results), "--out", str(tmp_path / "r.html"),
                     *options])  # fmt: skip
        return code, *capsys.readouterr()

    return command


@pytest.fixture
def home(tmp_path):
    """A data root with one of the images of the records, and one beside it."""
    folder = tmp_path / "root" / "mine" / "1"
    folder.mkdir(parents=True)
    Image.new("RGB", (96, 64), "red").save(folder / "1.png")
    Image.new("RGB", (8, 8), "red").save(tmp_path / "secret.png")
    return tmp_path / "root"


def test_the_file_is_written_and_named(write, tmp_path):
    code, out, _ = write()
    assert code == 0
    assert out.startswith(f"Wrote {tmp_path / 'r.html'} (")
    assert (tmp_path / "r.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_json_says_what_was_written(write, tmp_path):
    _, out, _ = write("--json")
    assert json.loads(out) == {
        "file": str(tmp_path / "r.html"), "bytes": (tmp_path / "r.html").stat().st_size,
        "tables": 1, "methods": 2, "runs": 6, "pictures": 0,
    }  # fmt: skip


def test_an_earlier_report_is_replaced(write, tmp_path):
    write()
    first = (tmp_path / "r.html").read_bytes()
    code, _, _ = write()
    assert code == 0
    assert (tmp_path / "r.html").read_bytes() == first


def test_a_file_that_is_no_report_is_kept(write, tmp_path):
    (tmp_path / "r.html").write_text("mine")
    code, _, err = write()
    assert code == 2
    assert "is no report of this command" in err
    assert (tmp_path / "r.html").read_text() == "mine"


def test_a_folder_and_a_link_are_not_replaced(write, tmp_path):
    (tmp_path / "r.html").mkdir()
    assert write()[0] == 2
    (tmp_path / "r.html").rmdir()
    (tmp_path / "r.html").symlink_to(tmp_path / "nowhere")
    assert write()[0] == 2
    assert not (tmp_path / "nowhere").exists()


def test_a_folder_that_is_not_there_is_named(results, tmp_path, capsys):
    out = tmp_path / "no" / "r.html"
    assert main(["report", "--results", str(results), "--out", str(out)]) == 2
    assert f"there is no folder {out.parent}" in capsys.readouterr().err


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_a_sentence(write, tmp_path):
    tmp_path.chmod(0o500)
    code, _, err = write()
    tmp_path.chmod(0o700)
    assert (code, err.count("cannot be written")) == (2, 1)


def test_a_full_disk_is_a_sentence(write, monkeypatch):
    def full(path, write):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("harness.cli.verbs.report.atomically", full)
    code, _, err = write()
    assert code == 2
    assert "cannot be written: No space left on device." in err


def test_a_task_that_is_not_there_is_named(write):
    code, _, err = write("--task", "few_shot")
    assert code == 2
    assert "no record is of it. There is: base2new." in err


def test_thumbnails_need_a_folder(write, monkeypatch):
    monkeypatch.delenv("DATA", raising=False)
    code, _, err = write("--thumbnails")
    assert code == 2
    assert "--thumbnails needs --data-root DIR" in err


def test_an_own_image_is_shown_only_if_asked(home):
    assert Thumbnails().of("folder:mine", "1/1.png") is None
    assert Thumbnails(home).of("folder:mine", "1/1.png").startswith(PICTURE)


@pytest.mark.parametrize("path", ["../../secret.png", "/etc/passwd", "1/0.png", "\0", ""])
def test_an_image_outside_the_folder_or_not_there_is_not_shown(home, path):
    assert Thumbnails(home).of("folder:mine", path) is None


def test_a_link_out_of_the_folder_is_not_followed(home):
    (home / "mine" / "link.png").symlink_to(home.parent / "secret.png")
    assert Thumbnails(home).of("folder:mine", "link.png") is None


def test_a_name_of_a_dataset_does_not_leave_the_folder(home):
    assert Thumbnails(home / "mine").of("folder:..", "../secret.png") is None
    assert Thumbnails(home / "mine").of("folder:../..", "secret.png") is None


def test_an_image_of_a_plugin_s_dataset_is_shown_from_below_the_folder_alone(home, tmp_path):
    plugin = tmp_path / "mine.py"
    plugin.write_text(
        "from dataclasses import dataclass\nfrom harness.dataset import Dataset\n"
        "from PIL import Image\n\n\n@dataclass(frozen=True, kw_only=True)\nclass Mine(Dataset):\n"
        '    """Images."""\n\n    template: str = "{}"\n\n'
        "    def read(self, root):\n        return {}\n\n"
        "    def open(self, item, root):\n        return Image.open(root / item.path)\n"
    )
    pictures = Thumbnails(home, (str(plugin),))
    assert pictures.of("mine", "mine/1/1.png").startswith(PICTURE)
    assert pictures.of("mine", "../secret.png") is None


def test_an_embedded_image_is_shown_with_its_credit():
    pictures = Thumbnails()
    assert pictures.of("emoji_food", "noto/cookie/0").startswith(PICTURE)
    assert pictures.embedded


def test_samples_are_three_images_of_each_class_of_what_may_be_shown(tmp_path, home, capsys):
    results, out = tmp_path / "results", tmp_path / "r.html"
    names = ("folder:mine", "folder:theirs")
    worlds.write(results, {"coop": 0.5}, images=40, datasets=names, seeds=(1,))
    for image in (1, 13, 25):
        Image.new("RGB", (96, 64), "red").save(home / "mine" / "1" / f"{image}.png")
    command = ["report", "--results", str(results), "--out", str(out)]
    assert main([*command, "--samples"]) == 0
    assert "class 1</span>" not in out.read_text()  # the user's images are not shown unasked
    assert main([*command, "--samples", "--thumbnails", "--data-root", str(home)]) == 0
    text = out.read_text()
    assert 'href="#images"' in text
    assert "class 1</span>" in text
    said = capsys.readouterr().err.splitlines()
    assert said[-1].startswith("no image of folder:theirs could be shown from ")
    assert not any("folder:mine" in line for line in said)
    main([*command, "--samples", "--thumbnails", "--data-root", str(home), "--json"])
    assert json.loads(capsys.readouterr().out)["pictures"] == text.count('src="data:image')
    assert main(command) == 0
    assert 'id="images"' not in out.read_text()


def test_images_of_an_archive_of_the_user_are_shown_from_below_the_folder(tmp_path):
    kind = next(each for each in KINDS if each.name == "wds")
    kind.write(tmp_path, kind.tree())
    pictures = Thumbnails(tmp_path)
    assert pictures.of("wds:shards", "test/0.tar/ant0.bmp").startswith(PICTURE)
    assert pictures.strip("wds:shards", ["test/0.tar/ant0.bmp", "test/0.tar/no.bmp"])
    inner = tmp_path / "inner"
    inner.mkdir()
    (inner / "link").symlink_to(tmp_path / "shards")
    for name in ("wds:../shards", "wds:link", f"wds:{tmp_path / 'shards'}"):
        assert Thumbnails(inner).of(name, "test/0.tar/ant0.bmp") is None
    assert Thumbnails(tmp_path / "shards" / "test").of("wds:..", "test/0.tar/ant0.bmp") is None


@pytest.mark.parametrize("path", ["noto", "no/such/0", "noto/no such emoji/0", "*/cookie/0"])
def test_an_embedded_image_that_is_not_there_is_not_shown(path):
    assert Thumbnails().of("emoji_food", path) is None
