"""A folder in the layout of transformers is the model of open_clip that has its weights."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from harness.errors import HarnessError
from harness.towers import backbone, transformers_folder
from tests.towers import kinds, theirs

TEXTS = ["a photo of a cat.", "a red apple", "sun"]
KINDS = ["clip", "siglip"]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The folders, each with the model that it holds."""
    folders = {kind: tmp_path_factory.mktemp(kind) for kind in KINDS}
    return {kind: (folder, theirs.write(folder, kind)) for kind, folder in folders.items()}


@pytest.fixture
def words(monkeypatch):
    """SigLIP's tokenizer needs transformers: another one in its place."""
    monkeypatch.setattr(transformers_folder, "folder_tokenizer", lambda *_, **__: kinds.tokenizer())


@pytest.fixture
def copied(written, tmp_path, words):
    """copied("clip", "config.json", text_config={...}): a folder with another file, and why it is
    refused."""

    def refusal(kind: str, file: str = "", **changed) -> str:
        for path in written[kind][0].iterdir():
            (tmp_path / path.name).write_bytes(path.read_bytes())
        if file:
            said = json.loads((tmp_path / file).read_text())
            for name, value in changed.items():
                inner = said.get(name)
                said[name] = inner | value if isinstance(inner, dict) else value
            (tmp_path / file).write_text(json.dumps(said))
        return refused(tmp_path)

    return refusal


def refused(folder) -> str:
    with pytest.raises(HarnessError) as caught:
        backbone.load(f"local-dir:{folder}")
    said = str(caught.value)
    assert "\n" not in said
    return said


@pytest.mark.parametrize("kind", KINDS)
def test_both_towers_give_the_features_of_the_model(kind, written, words):
    folder, model = written[kind]
    clip = backbone.load(f"local-dir:{folder}")
    ids, x = clip.tokenize(TEXTS), torch.randn(2, *clip.pixels.shape)
    torch.testing.assert_close(clip.image(x), model.encode_image(x), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(clip.text(ids), model.encode_text(ids), atol=1e-5, rtol=1e-5)
    assert clip.logit_scale == model.logit_scale


def test_pixels_are_those_of_the_processor(written, words):
    made = {kind: backbone.load(f"local-dir:{written[kind][0]}").pixels for kind in KINDS}
    clip, siglip = made["clip"], made["siglip"]
    assert (clip.size, clip.resizing, clip.interpolation) == ((48, 48), "shortest", "bilinear")
    assert (clip.mean, clip.std) == ((0.5, 0.4, 0.3), (0.3, 0.25, 0.2))
    assert (siglip.size, siglip.resizing) == ((32, 32), "squash")
    assert (siglip.mean, siglip.interpolation) == ((0.5, 0.5, 0.5), "bicubic")


def test_the_vocabulary_may_be_a_tokenizer_json(written, tmp_path, words):
    folder, _ = written["clip"]
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    usual = backbone.load(f"local-dir:{tmp_path}")
    merges = (tmp_path / "merges.txt").read_text().splitlines()[1:]
    inner = {"vocab": json.loads((tmp_path / "vocab.json").read_text())}
    (tmp_path / "merges.txt").unlink()
    for each in (merges, [line.split() for line in merges]):
        whole = {"model": inner | {"merges": each}}
        (tmp_path / "tokenizer.json").write_text(json.dumps(whole))
        assert backbone.load(f"local-dir:{tmp_path}").fingerprint == usual.fingerprint


@pytest.mark.parametrize("width", [176, 208, 1152])
def test_the_width_of_an_mlp_is_exact(width):
    for inner in range(width, 5 * width, 16):
        sizes = {"hidden_size": width, "intermediate_size": inner}
        assert int(width * transformers_folder._ratio(sizes)) == inner


@pytest.mark.parametrize(
    ("kind", "changed", "says"),
    [
        ("clip", {"model_type": "siglip"}, "says model_type 'siglip', and model.safetensors holds"),
        ("clip", {"model_type": "clap"}, "supported are clip and siglip"),
        ("clip", {"vision_config": {"num_hidden_layers": 3}}, "'vision': 3, 'text': 2} blocks"),
        ("clip", {"vision_config": {"hidden_size": 96}}, "cannot be loaded"),
        ("clip", {"vision_config": {"image_size": 64}}, "cannot be loaded"),
        ("siglip", {"vision_config": {"image_size": 48}}, "cannot be loaded"),
        ("clip", {"vision_config": {"patch_size": [16, 16]}}, "expected is something like 32"),
        ("clip", {"vision_config": {"hidden_act": "quick_gelu"}}, "has one activation"),
        ("clip", {"text_config": {"hidden_act": "relu"}}, "supported are quick_gelu and gelu"),
        ("clip", {"text_config": {"num_attention_heads": 0}}, "num_attention_heads is 0"),
        ("clip", {"text_config": {"layer_norm_eps": None}}, "layer_norm_eps is None"),
        ("clip", {"text_config_dict": {}}, "blocks, and model.safetensors has"),
        ("clip", {"projection_dim": "36"}, "cannot be loaded"),
        ("siglip", {"vision_config": {"vision_use_head": False}}, "vision_use_head is False"),
    ],
)
def test_a_config_that_is_not_the_weights_is_refused(kind, changed, says, copied):
    assert says in copied(kind, "config.json", **changed)


@pytest.mark.parametrize(
    ("kind", "changed"),
    [
        ("clip", {"size": {"shortest_edge": 64}}),
        ("clip", {"crop_size": {"height": 40}}),
        ("clip", {"do_center_crop": False}),
        ("clip", {"do_normalize": False}),
        ("clip", {"rescale_factor": 1.0}),
        ("clip", {"resample": 0}),
        ("siglip", {"size": {"height": 64}}),
    ],
)
def test_a_processor_that_does_something_else_is_refused(kind, changed, copied):
    assert "as the model takes it" in copied(kind, "preprocessor_config.json", **changed)


def test_statistics_that_cannot_be_are_refused(copied):
    said = copied("clip", "preprocessor_config.json", image_std=[0, 1, 1])
    assert "three numbers each are expected" in said


@pytest.mark.parametrize(
    ("missing", "says"),
    [
        ("preprocessor_config.json", "must say how images are resized"),
        ("vocab.json", "neither tokenizer.json nor vocab.json and merges.txt"),
        ("model.safetensors", "no .safetensors file named model.safetensors"),
    ],
)
def test_a_folder_that_lacks_a_file_is_refused(missing, says, written, tmp_path):
    for path in written["clip"][0].iterdir():
        if path.name != missing:
            (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    assert says in refused(tmp_path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda state: state.pop("logit_scale"), "Missing key"),
        (lambda state: state.update(extra=torch.ones(1)), "'extra', which no clip"),
        (lambda state: state.pop("text_model.encoder.layers.0.self_attn.k_proj.bias"), "alone"),
        (lambda state: state["visual_projection.weight"].fill_(float("nan")), "not finite"),
        (lambda state: state.update(logit_scale=torch.ones((), dtype=torch.int8)), "int8"),
    ],
    ids=["missing", "extra", "a third", "nan", "integers"],
)
def test_weights_that_are_not_all_of_the_model_are_refused(change, says, written, tmp_path):
    for path in written["clip"][0].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    state = load_file(tmp_path / "model.safetensors")
    change(state)
    save_file(state, tmp_path / "model.safetensors")
    assert says in refused(tmp_path)


def test_another_vocabulary_than_the_weights_is_refused(written, tmp_path):
    for path in written["clip"][0].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    lines = (tmp_path / "merges.txt").read_text().splitlines()
    lines[5], lines[6] = lines[6], lines[5]
    (tmp_path / "merges.txt").write_text("\n".join(lines))
    assert "in the order of its merges" in refused(tmp_path)
