"""`data status|prepare|verify`: downloads from a server that breaks, and what is wrong on disk."""

import hashlib
import io
import tarfile
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torchvision.datasets
from filelock import FileLock
from PIL import Image

from harness.cli.commands import main
from harness.dataset import Item, SplitFileDataset
from harness.images import download, library
from harness.splits import few_shot
from tests.conftest import PLUGINS, ROOT
from tests.tasks.kinds import picture
from tests.tasks.test_layouts import draw, split_file

CLASSES = ("banded", "dotted")


def texture(number):
    """A JPEG that is unlike the others."""
    file = io.BytesIO()
    Image.effect_noise((64, 64), 40 + number).convert("RGB").save(file, "JPEG")
    return file.getvalue()


def archive():
    """DTD's archive, with two classes of five images."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        for name in CLASSES:
            for number in range(5):
                content = texture(number)
                member = tarfile.TarInfo(f"dtd/images/{name}/{name}_{number}.jpg")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
        lists = b"banded/banded_0.jpg\n"
        labels = tarfile.TarInfo("dtd/labels/train1.txt")
        labels.size = len(lists)
        tar.addfile(labels, io.BytesIO(lists))
    return file.getvalue()


@dataclass
class Server:
    """What it serves, how it fails, and what it was asked for."""

    content: bytes
    url: str = ""
    ranges: bool = True
    cuts: list[int] = field(default_factory=list)  # bytes after which each answer ends too early
    asked: list[str] = field(default_factory=list)


@pytest.fixture
def server(monkeypatch):
    served = Server(archive())

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            wanted = self.headers.get("Range")
            if wanted is None:  # torchvision looks for a redirection first
                self.send_response(200)
                self.end_headers()
                return
            served.asked.append(wanted)
            start = int(wanted.removeprefix("bytes=").rstrip("-")) if served.ranges else 0
            if start and start >= len(served.content):
                self.send_error(416)
                return
            rest = served.content[start:]
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(rest)))
            self.end_headers()
            self.wfile.write(rest[: served.cuts.pop(0)] if served.cuts else rest)

        def log_message(self, *_):
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    served.url = f"http://127.0.0.1:{http.server_port}/dtd.tar.gz"
    monkeypatch.setattr(torchvision.datasets.DTD, "_URL", served.url)
    monkeypatch.setattr(torchvision.datasets.DTD, "_MD5", hashlib.md5(served.content).hexdigest())
    yield served
    http.shutdown()
    http.server_close()


def reviews():
    """RenderedSST2's archive, with an image of each class and split."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        for part in ("train", "valid", "test"):
            for name in ("negative", "positive"):
                content = picture(len(part), len(name), 0)
                member = tarfile.TarInfo(f"rendered-sst2/{part}/{name}/1.png")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return file.getvalue()


@pytest.fixture
def sst2(server, monkeypatch):
    server.content = reviews()
    url = server.url.replace("dtd.tar.gz", "rendered-sst2.tgz")
    monkeypatch.setattr(torchvision.datasets.RenderedSST2, "_URL", url)
    monkeypatch.setattr(
        torchvision.datasets.RenderedSST2, "_MD5", hashlib.md5(server.content).hexdigest()
    )
    return server


def data(what, *names, root=None):
    return main(["data", what, *names, *(["--data-root", str(root)] if root else [])])


def prepared(root):
    return sorted(path.name for path in (root / "dtd" / "images").rglob("*.jpg"))


WHOLE = sorted(f"{name}_{number}.jpg" for name in CLASSES for number in range(5))


def test_prepare_lays_out_the_images_and_says_what_is_still_missing(server, tmp_path, capsys):
    assert data("prepare", "dtd", root=tmp_path) == 0
    assert prepared(tmp_path) == WHOLE
    assert [path.name for path in tmp_path.iterdir()] == ["dtd"]
    printed = capsys.readouterr().out
    assert "split_zhou_DescribableTextures.json" in printed
    assert "CoOp" in printed
    assert data("prepare", "dtd", root=tmp_path) == 0
    assert "already" in capsys.readouterr().out
    assert len(server.asked) == 1


def test_a_download_that_breaks_goes_on_where_it_stopped(server, tmp_path):
    server.cuts = [1000, 500]
    assert data("prepare", "dtd", root=tmp_path) == 0
    assert server.asked == ["bytes=0-", "bytes=1000-", "bytes=1500-"]
    assert prepared(tmp_path) == WHOLE


def test_a_server_that_cannot_go_on_begins_again(server, tmp_path):
    server.cuts, server.ranges = [1000], False
    assert data("prepare", "dtd", root=tmp_path) == 0
    assert len(server.asked) == 2
    assert prepared(tmp_path) == WHOLE


def test_a_download_that_never_ends_is_kept_for_the_next_call(server, tmp_path, capsys):
    server.cuts = [100] * download.TRIES
    assert data("prepare", "dtd", root=tmp_path) == 2
    assert "goes on where it stopped" in capsys.readouterr().err
    assert not (tmp_path / "dtd").exists()
    assert data("prepare", "dtd", root=tmp_path) == 0
    assert server.asked[-1] == f"bytes={100 * download.TRIES}-"
    assert prepared(tmp_path) == WHOLE


def test_a_part_that_is_whole_is_not_asked_for_again(server, tmp_path):
    part = tmp_path / ".dtd.preparing" / "dtd" / "dtd.tar.gz.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(server.content)
    assert data("prepare", "dtd", root=tmp_path) == 0
    assert server.asked == [f"bytes={len(server.content)}-"]
    assert prepared(tmp_path) == WHOLE


def test_a_wrong_checksum_leaves_nothing_that_looks_whole(server, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patched:
        patched.setattr(torchvision.datasets.DTD, "_MD5", "0" * 32)
        assert data("prepare", "dtd", root=tmp_path) == 2
    assert (
        "could not be downloaded: File not found or corrupted. What is there"
        in capsys.readouterr().err
    )
    assert not (tmp_path / "dtd").exists()
    assert data("prepare", "dtd", root=tmp_path) == 0
    assert prepared(tmp_path) == WHOLE


@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_an_extraction_that_stops_is_done_again_without_a_download(
    stop, server, tmp_path, monkeypatch, capsys
):
    def half(tar, path, **options):
        for member in tar.getmembers()[:3]:
            tar.extract(member, path, **options)
        raise stop

    with monkeypatch.context() as patched:
        patched.setattr(tarfile.TarFile, "extractall", half)
        assert data("prepare", "dtd", root=tmp_path) == (130 if stop is KeyboardInterrupt else 2)
    assert ("No space left" in capsys.readouterr().err) == (stop is not KeyboardInterrupt)
    assert not (tmp_path / "dtd").exists()
    assert data("prepare", "dtd", root=tmp_path) == 0
    assert prepared(tmp_path) == WHOLE
    assert len(server.asked) == 1


def test_a_python_that_cannot_extract_with_care_is_named(server, tmp_path, monkeypatch, capsys):
    monkeypatch.delattr(tarfile, "data_filter")
    assert data("prepare", "dtd", root=tmp_path) == 2
    assert "archives are extracted with care from Python 3.11.4 on" in capsys.readouterr().err
    assert not server.asked


@pytest.mark.parametrize("link", [False, True])
def test_an_archive_that_writes_elsewhere_is_refused(link, server, tmp_path, monkeypatch, capsys):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        member = tarfile.TarInfo("dtd/images" if link else "../../elsewhere")
        member.type, member.linkname = (tarfile.SYMTYPE, str(tmp_path)) if link else (b"0", "")
        tar.addfile(member)
    server.content = file.getvalue()
    md5 = hashlib.md5(server.content).hexdigest()
    monkeypatch.setattr(torchvision.datasets.DTD, "_MD5", md5)
    root = tmp_path / "root"
    assert data("prepare", "dtd", root=root) == 2
    said = capsys.readouterr().err
    assert ("is a link to an absolute path" if link else "outside the destination") in said
    assert not (tmp_path / "elsewhere").exists()
    assert not (root / "dtd").exists()


@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_a_set_of_torchvision_is_not_there_before_it_is_whole(stop, sst2, tmp_path, monkeypatch):
    def half(tar, path, **options):
        for member in tar.getmembers()[:3]:
            tar.extract(member, path, **options)
        raise stop

    sst2.cuts = [200]
    with monkeypatch.context() as patched:
        patched.setattr(tarfile.TarFile, "extractall", half)
        assert data("prepare", "torchvision:RenderedSST2", root=tmp_path) != 0
    home = tmp_path / "torchvision" / "RenderedSST2"
    assert not home.exists()
    assert data("prepare", "torchvision:RenderedSST2", root=tmp_path) == 0
    assert sst2.asked == ["bytes=0-", "bytes=200-"]
    assert len([*home.rglob("1.png")]) == 6
    assert [path.name for path in home.iterdir()] == ["rendered-sst2"]
    assert [path.name for path in home.parent.iterdir()] == ["RenderedSST2"]


def test_a_file_that_was_unpacked_in_part_is_unpacked_again(tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in ("labels.gz", "labels", "images.gz.part"):
        (raw / name).touch()
    download._forget_extracted(tmp_path)
    assert sorted(path.name for path in raw.iterdir()) == ["images.gz.part", "labels.gz"]


def test_a_host_that_is_not_reached_is_one_sentence_and_leaves_nothing(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(torchvision.datasets.RenderedSST2, "_URL", "http://127.0.0.1:9/x.tgz")
    assert data("prepare", "torchvision:RenderedSST2", root=tmp_path) == 2
    assert capsys.readouterr().err.strip() == (
        "error: torchvision:RenderedSST2 could not be downloaded: Connection refused. The same "
        "command goes on where it stopped."
    )
    assert not [*tmp_path.rglob(".*")]


def test_two_processes_do_not_prepare_the_same_dataset(server, tmp_path, capsys):
    staging = tmp_path / ".dtd.preparing"
    staging.mkdir()
    with FileLock(staging / ".lock"):
        assert data("prepare", "dtd", root=tmp_path) == 2
    assert "another process is preparing dtd" in capsys.readouterr().err
    assert server.asked == []


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("imagenet", "https://image-net.org"),
        ("emoji_food", "emoji_food needs no download"),
        ("dtdd", "unknown dataset 'dtdd'"),
    ],
)
def test_what_cannot_be_downloaded_says_where_it_is(name, says, tmp_path, capsys):
    assert data("prepare", name, root=tmp_path) == 2
    assert says in capsys.readouterr().err


def test_prepare_needs_a_root(server, monkeypatch, capsys):
    monkeypatch.delenv("DATA", raising=False)
    assert data("prepare", "dtd") == 2
    assert "--data-root" in capsys.readouterr().err
    assert server.asked == []


def test_status_says_what_is_found_what_is_missing_and_where_to_get_it(tmp_path, capsys):
    split_file(tmp_path, "dtd")
    (tmp_path / "eurosat").mkdir()
    assert data("status", root=tmp_path) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "dtd: 5 of 6 images are missing" in printed
    assert f"food101: expected in {tmp_path}/food-101." in printed
    assert "data prepare food101" in printed
    assert "eurosat: " in printed
    assert "image-net.org" in printed
    assert "emoji_food" in printed


def test_a_split_with_coops_counts_that_is_not_coops_is_told_from_it(monkeypatch):
    def lists(first):
        counts = {"train": 60, "val": 24, "test": 36}  # a class, as DTD has them
        return {
            part: [Item(f"{label}/{first + n}.jpg", label, f"class{label}")
                   for label in range(47) for n in range(count)]
            for part, count in counts.items()
        }  # fmt: skip

    dataset = PLUGINS.plugins["datasets"]["dtd"].cls()
    (said,) = library.unlike_published("dtd", dataset, lists(0), 47)
    assert "another split with the same counts" in said
    train, _ = few_shot(lists(0)["train"], lists(0)["val"], 1, 1)
    stems = tuple(item.path.removesuffix(".jpg") for item in train[:3])
    monkeypatch.setitem(library.DRAWN, "dtd", stems)
    assert library.unlike_published("dtd", dataset, lists(0), 47) == []
    assert library.unlike_published("dtd", dataset, lists(1), 47) == [said]
    assert {name for name, plugin in PLUGINS.plugins["datasets"].items()
            if issubclass(plugin.cls, SplitFileDataset)} == {*library.DRAWN}  # fmt: skip


def test_verify_counts_opens_and_finds_the_same_pixels_in_train_and_test(tmp_path, capsys):
    split_file(tmp_path, "dtd")
    home = tmp_path / "dtd" / "images"
    for number, part in enumerate(("a", "b", "a/other", "b/other", "other")):
        path = home / part / "polka-dotted" / "polka-dotted_0071.jpg"
        draw(path, size=(8, 8 + number), mode="RGB")
    draw(home / "a" / "polka-dotted" / "polka-dotted_0071.jpg", mode="L")
    assert data("verify", "dtd", root=tmp_path) == 1
    printed = capsys.readouterr().out
    assert "unlike the published dtd: 2 train images instead of 2,820, " in printed
    assert "2 classes instead of 47." in printed
    assert (
        "a/polka-dotted/polka-dotted_0071.jpg of train shows the same pixels as "
        "polka-dotted/polka-dotted_0071.jpg of test."
    ) in printed
    bad = home / "polka-dotted" / "polka-dotted_0071.jpg"
    bad.write_bytes(bad.read_bytes()[:50])
    assert data("verify", "dtd", root=tmp_path) == 1
    assert f"{bad} cannot be read" in capsys.readouterr().out


def test_verify_of_a_whole_dataset_finds_nothing_wrong(capsys):
    assert main(["data", "verify", "toy", "--plugin", str(ROOT / "tests" / "toy.py")]) == 0
    assert "nothing is wrong" in capsys.readouterr().out
