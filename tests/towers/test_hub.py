"""What a hub holds is fetched once, with a bar, and resumed; without network there is one sentence.

The hub is a server of this process.
"""

import functools
import hashlib
import http.server
import json
import threading
import time

import huggingface_hub
import pytest

from harness.errors import HarnessError
from harness.towers import backbone, hub, pairs
from tests.towers import theirs

COMMIT = "a" * 40


class Hub(http.server.BaseHTTPRequestHandler):
    """Serves the files of a folder as one repository, and breaks off the first download of
    `broken`."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self._answer(body=False)

    def do_GET(self):
        self._answer(body=True)

    def _answer(self, body):
        server, name = self.server, self.path.rpartition("/")[2]
        if self.path.startswith("/api/models/"):
            files = [{"rfilename": path.name} for path in server.folder.iterdir()]
            held = {"id": "some/model", "sha": COMMIT, "siblings": files}
            content = json.dumps(held).encode() if self.path.endswith("some/model") else None
        else:
            path = server.folder / name
            content = path.read_bytes() if path.is_file() else None
        if content is None:
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.send_header("X-Error-Code", "RepoNotFound")
            self.end_headers()
            return
        asked = self.headers.get("Range")
        start = int(asked.removeprefix("bytes=").split("-")[0]) if asked else 0
        if body:
            server.asked.append((name, start))
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        if start:
            span = f"bytes {start}-{len(content) - 1}/{len(content)}"
            self.send_header("Content-Range", span)
        self.end_headers()
        if body and name == server.broken:
            server.broken = None
            self.wfile.write(content[: len(content) // 2])
            self.wfile.flush()
            self.close_connection = True
            self.connection.close()
        elif body:
            self.wfile.write(content[start:])


@pytest.fixture
def served(tmp_path, monkeypatch):
    """The server: what it serves lies in its `folder`."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.folder, server.broken, server.asked = tmp_path / "hub", None, []
    server.folder.mkdir()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    cache, where = tmp_path / "cache", f"http://127.0.0.1:{server.server_port}"
    for name, given in {
        "hf_hub_download": {"endpoint": where, "cache_dir": cache},
        "HfApi": {"endpoint": where},
        "try_to_load_from_cache": {"cache_dir": cache},
    }.items():
        usual = getattr(huggingface_hub, name)
        monkeypatch.setattr(huggingface_hub, name, functools.partial(usual, **given))
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_repository_in_the_layout_of_transformers_is_fetched_once(served, capfd):
    theirs.write(served.folder, "clip")
    (served.folder / "pytorch_model.bin").write_bytes(b"pickled")
    clip = backbone.load("hf-hub:some/model")
    assert "fetching model.safetensors of some/model\n" in capfd.readouterr().err
    names = [name for name, _ in served.asked]
    assert "pytorch_model.bin" not in names
    served.asked.clear()
    again = backbone.load("hf-hub:some/model", weights=False)
    assert again.fingerprint == clip.fingerprint
    assert served.asked == []


def test_a_download_that_broke_off_is_resumed(served, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 2**16)  # 10 MiB else
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    content = bytes(range(256)) * 4096
    (served.folder / "model.safetensors").write_bytes(content)
    served.broken = "model.safetensors"
    (path,) = hub.fetched("some/model", ["model.safetensors"])
    assert path.read_bytes() == content
    starts = [start for name, start in served.asked if name == "model.safetensors"]
    assert starts[0] == 0
    assert starts[1] >= 2**16
    assert len(starts) == 2


def test_a_repository_that_is_not_there_is_named(served):
    with pytest.raises(HarnessError, match=r"no repository 'some/other' that is open to you"):
        backbone.load("hf-hub:some/other")


def test_a_repository_without_safetensors_is_refused(served):
    (served.folder / "config.json").write_text("{}")
    (served.folder / "pytorch_model.bin").write_bytes(b"pickled")
    with pytest.raises(HarnessError, match="Other formats are not loaded"):
        backbone.load("hf-hub:some/model")
    assert [name for name, _ in served.asked] == ["model"]


@pytest.mark.parametrize("name", ["hf-hub:../../etc", "hf-hub:a/b/c", "hf-hub:", "hf-hub:/etc"])
def test_a_name_that_leads_elsewhere_is_no_repository(name):
    with pytest.raises(HarnessError, match="no repository of a hub"):
        backbone.load(name)


@pytest.mark.parametrize("name", ["ViT-B-32:laion2b_e16", "hf-hub:some/model"])
def test_without_network_one_sentence_says_what_to_do(name, served, monkeypatch):
    def unreached(*_, **__):
        raise OSError("Name or service not known\nin several lines")

    monkeypatch.setattr(huggingface_hub, "HfApi", unreached)
    with pytest.raises(HarnessError) as caught:
        backbone.load(name)
    said = str(caught.value)
    assert "cannot be fetched (Name or service not known in several lines)" in said
    assert "local-dir:FOLDER" in said
    assert "\n" not in said


def test_a_dry_run_asks_for_nothing(served, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: pytest.fail("asked the hub"))
    monkeypatch.setattr(pairs, "check_installed", lambda what: None)
    with pytest.raises(HarnessError, match="--dry-run downloads nothing"):
        backbone.load("hf-hub:some/model", weights=False)
    with pytest.raises(hub.NotHereError):
        pairs.model("ViT-B-16-SigLIP", "webli", fetch=False)
    words = pairs.tokenizer("ViT-B-16-SigLIP", fetch=False)
    assert words(["a cat"], words.context_length).tolist() == [[0] * 64]
