"""A folder of a backbone that is damaged is refused in one sentence, before anything is fetched."""

import gzip
import json
import os
import shutil
import socket

import open_clip
import pytest
import torch
from open_clip.model import CustomTextCLIP
from safetensors.torch import load_file, save_file

from harness.errors import HarnessError
from harness.towers import backbone, pairs

WEIGHTS, CONFIG, MERGES = (
    "open_clip_model.safetensors",
    "open_clip_config.json",
    "bpe_merges.txt.gz",
)


@pytest.fixture
def folder(tmp_path):
    """A copy of the embedded backbone."""
    for name in (WEIGHTS, CONFIG, MERGES):
        shutil.copy(backbone.EMBEDDED / "emoji-mini" / name, tmp_path / name)
    return tmp_path


@pytest.fixture
def configured(folder):
    """configured("text_cfg", layers=None): the folder with another config."""

    def change(part, **values):
        config = json.loads((folder / CONFIG).read_text())
        where = config if part in config else config["model_cfg"]
        where[part] |= values
        (folder / CONFIG).write_text(json.dumps(config))
        return folder

    return change


def refusal(folder):
    with pytest.raises(HarnessError) as caught:
        backbone.load(f"local-dir:{folder}")
    said = str(caught.value)
    assert "\n" not in said
    return said.replace(f"{folder}/", "")


def test_the_copy_is_a_backbone(folder, mini):
    assert backbone.load(f"local-dir:{folder}").fingerprint == mini.fingerprint


@pytest.mark.parametrize(
    "content",
    [b"", b"x" * 7, b"\xff" * 8 + b"x", None, b"\x02\0\0\0\0\0\0\0{}", bytes(range(256)) * 4],
    ids=["empty", "short", "huge header", "truncated", "no tensors", "other bytes"],
)
def test_damaged_weights_are_refused(content, folder):
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[: len(whole) // 2] if content is None else content)
    said = refusal(folder)
    assert f"{WEIGHTS} is damaged or no safetensors file: " in said or "cannot be loaded: " in said


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda state, name: state[name].view(-1)[:1].fill_(float("nan")), "not finite"),
        (lambda state, name: state.pop(name), "Missing key"),
        (lambda state, name: state.update(more=torch.ones(1)), "Unexpected key"),
        (lambda state, name: state.update({name: state[name].to(torch.int8)}), "as I8"),
        (lambda state, name: state.update({name: state[name].to(torch.float8_e5m2)}), "as F8_E5M2"),
    ],
    ids=["nan", "missing", "extra", "integers", "eight bits"],
)
def test_weights_that_are_not_all_of_the_model_are_refused(change, says, folder):
    state = load_file(folder / WEIGHTS)
    change(state, "visual.proj")
    save_file(state, folder / WEIGHTS)
    assert says in refusal(folder)


def test_weights_of_16_bits_are_taken_as_they_are(folder, mini):
    state = {name: tensor.half() for name, tensor in load_file(folder / WEIGHTS).items()}
    save_file(state, folder / WEIGHTS)
    clip = backbone.load(f"local-dir:{folder}")
    assert {p.dtype for p in clip.parameters()} == {torch.float32}
    assert torch.equal(clip.image.visual.proj, mini.image.visual.proj.half().float())


@pytest.mark.parametrize(
    ("part", "values", "says"),
    [
        ("vision_cfg", {"image_size": 96}, "of another size of images or length of texts"),
        ("text_cfg", {"context_length": 77}, "of another size of images or length of texts"),
        ("preprocess_cfg", {"size": 96}, "says size 96"),
        ("preprocess_cfg", {"mode": "L"}, "only RGB"),
    ],
)
def test_positions_are_never_interpolated_and_images_never_another_size(
    part, values, says, configured
):
    assert says in refusal(configured(part, **values))


def test_images_are_not_normalised_by_a_guess(folder):
    config = json.loads((folder / CONFIG).read_text())
    del config["preprocess_cfg"]["std"]
    (folder / CONFIG).write_text(json.dumps(config))
    assert "needs a preprocess_cfg with mean and std" in refusal(folder)


def test_of_several_files_of_weights_none_is_chosen_by_its_name(folder):
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).rename(folder / "b.safetensors")
    (folder / "a.safetensors").write_bytes(whole)
    assert "has several .safetensors files" in refusal(folder)


def test_a_link_to_a_file_elsewhere_is_that_file(folder, tmp_path_factory, mini):
    home = tmp_path_factory.mktemp("blobs")  # as a hub's cache has them
    for name in (WEIGHTS, CONFIG, MERGES):
        (folder / name).rename(home / name)
        (folder / name).symlink_to(home / name)
    assert backbone.load(f"local-dir:{folder}").fingerprint == mini.fingerprint
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).symlink_to("/dev/zero")
    assert "are no .safetensors file" in refusal(folder)


@pytest.mark.parametrize(("model", "mean"), [("ViT-B-16-SigLIP", 0.5), ("MobileCLIP-S1", 0.0)])
def test_a_file_of_weights_takes_the_images_of_its_models_tags(model, mean):
    tags = open_clip.list_pretrained_tags_by_model(model)
    assert pairs._pixels(model, tags)["mean"] == (mean,) * 3


def test_a_file_of_a_model_whose_tags_take_several_images_is_refused(folder):
    with pytest.raises(HarnessError, match="take images in several ways"):
        backbone.load(f"ViT-L-14:{folder / WEIGHTS}")


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "\ufeff{}", "nan,"])
def test_a_config_that_is_no_json_is_refused(text, folder):
    (folder / CONFIG).write_text(text, encoding="utf-8")
    assert refusal(folder).startswith(f"{CONFIG} cannot be read as JSON: ")


@pytest.mark.parametrize(
    "text", ["[]", "3", '{"model_cfg": 3}', '{"model_cfg": {"vision_cfg": {}, "text_cfg": []}}']
)
def test_a_config_of_another_shape_is_refused(text, folder):
    (folder / CONFIG).write_text(text)
    said = refusal(folder)
    assert "needs a model_cfg with a vision_cfg and a text_cfg" in said or "one object" in said


@pytest.mark.parametrize(
    ("part", "values"),
    [
        ("vision_cfg", {"width": "128"}),
        ("vision_cfg", {"image_size": "48"}),
        ("text_cfg", {"layers": None}),
        ("text_cfg", {"layers": 3}),
        ("text_cfg", {"heads": 5}),
        ("text_cfg", {"depth": 1}),
    ],
)
def test_a_config_of_other_types_or_sizes_is_refused(part, values, configured):
    assert "cannot be loaded: " in refusal(configured(part, **values))


@pytest.mark.parametrize(
    "values", [{"mean": "abc"}, {"std": [0, 1, 1]}, {"mean": [float("nan")] * 3}]
)
def test_pixels_that_cannot_be_normalised_are_refused(values, configured):
    assert "three numbers each are expected" in refusal(configured("preprocess_cfg", **values))


@pytest.mark.parametrize(
    ("part", "values"),
    [
        ("text_cfg", {"hf_tokenizer_name": "roberta-base"}),
        ("text_cfg", {"tokenizer_kwargs": {"bpe_path": "/etc/passwd"}}),
        ("vision_cfg", {"timm_model_name": "vit_base_patch16", "timm_model_pretrained": True}),
        ("vision_cfg", {"timm_model_name": "hf-hub:owner/model"}),
        ("vision_cfg", {"timm_model_name": "local-dir:/tmp"}),
    ],
)
def test_a_config_that_asks_for_a_model_of_a_hub_is_refused_offline(
    part, values, configured, monkeypatch
):
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("asked the network"))
    assert "that is not in the folder, which is not supported" in refusal(
        configured(part, **values)
    )


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"hello", "Not a gzipped file"),
        (b"", "embeds 3,014 tokens, but its tokenizer has 514"),
        (gzip.compress(b"a b\n" * 99, mtime=0)[:20], "Compressed file ended"),
        (gzip.compress(b"\xff\xfe\n\xff a\n", mtime=0), "codec can't decode"),
        (gzip.compress(b"", mtime=0), "embeds 3,014 tokens, but its tokenizer has 514"),
        (gzip.compress(b"version\na b\nc d\n", mtime=0), "embeds 3,014 tokens, but its tokenizer"),
        (None, "embeds 3,014 tokens, but its tokenizer has 49,408"),
    ],
)
def test_merges_that_are_not_those_of_the_weights_are_refused(content, says, folder):
    if content is None:
        (folder / MERGES).unlink()
    else:
        (folder / MERGES).write_bytes(content)
    assert says in refusal(folder)


def test_a_pipe_in_place_of_a_file_is_refused_at_once(folder):
    (folder / WEIGHTS).unlink()
    os.mkfifo(folder / WEIGHTS)
    assert "are no .safetensors file" in refusal(folder)
    (folder / CONFIG).unlink()
    os.mkfifo(folder / CONFIG)
    assert "neither open_clip_config.json nor config.json" in refusal(folder)


def test_a_folder_may_hold_a_model_of_timm(folder, configured):
    config = json.loads((folder / CONFIG).read_text())
    sizes = config["model_cfg"]["embed_dim"], config["model_cfg"]["text_cfg"]
    vision = {"timm_model_name": "test_vit", "image_size": 160, "timm_pool": "token"}
    model = CustomTextCLIP(sizes[0], vision, sizes[1]).requires_grad_(False)
    save_file(model.state_dict(), folder / WEIGHTS)
    config["model_cfg"]["vision_cfg"] = vision
    config["preprocess_cfg"] |= {"resize_mode": "squash", "interpolation": "bilinear"}
    (folder / CONFIG).write_text(json.dumps(config))
    clip, x = backbone.load(f"local-dir:{folder}"), torch.rand(2, 3, 160, 160)
    assert (clip.pixels.size, clip.pixels.resizing) == ((160, 160), "squash")
    torch.testing.assert_close(clip.image(x), model.eval().encode_image(x), atol=1e-5, rtol=1e-5)
