"""The towers equal open_clip's own, and unsupported models are refused with a sentence."""

import copy
import functools
import json
import shutil

import open_clip
import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from harness.errors import HarnessError
from harness.fitting import inputs
from harness.randomness import seed_of
from harness.towers import backbone, openclip, tower
from harness.towers.pixels import Pixels

TINY = {
    "embed_dim": 24, "quick_gelu": False,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 48, "patch_size": 16, "head_width": 16},
    "text_cfg": {"width": 40, "heads": 2, "layers": 2},
}  # fmt: skip
MODELS = {"tiny": TINY, "tiny-quickgelu": TINY | {"quick_gelu": True}}
NAMES = ["emoji-mini", *MODELS]


@pytest.fixture(scope="module", autouse=True)
def models():
    """Small models that open_clip knows by name."""
    open_clip.factory._MODEL_CONFIGS.update(copy.deepcopy(MODELS))
    yield
    for name in MODELS:
        del open_clip.factory._MODEL_CONFIGS[name]


def reference(name: str) -> torch.nn.Module:
    """The same weights in open_clip's own model, frozen, on its training path."""
    if name == "emoji-mini":
        folder = f"local-dir:{backbone.EMBEDDED / name}"
        model = open_clip.create_model(folder, force_custom_text=True)
    else:
        with torch.random.fork_rng():
            torch.manual_seed(seed_of("random backbone", name))
            model = open_clip.create_model(name, force_custom_text=True, pretrained_text=False)
    return model.train().requires_grad_(False)


@pytest.fixture(scope="module", params=NAMES)
def pair(request, models) -> tuple[torch.nn.Module, openclip.Clip]:
    ours = backbone.load(
        request.param if request.param == "emoji-mini" else f"{request.param}:random"
    )
    return reference(request.param), ours


TEXTS = ["a photo of a cat.", "a photo of a red apple.", "sun"]


def test_image_tower_equals_open_clip(pair):
    theirs, ours = pair
    images = torch.randn(3, *ours.pixels.shape)
    torch.testing.assert_close(ours.image(images), theirs.encode_image(images), atol=1e-5, rtol=0)


def test_text_tower_equals_open_clip(pair):
    theirs, ours = pair
    ids = ours.tokenize(TEXTS)
    torch.testing.assert_close(ours.text(ids), theirs.encode_text(ids), atol=1e-5, rtol=0)


def test_both_towers_equal_open_clip_in_float64():
    exact = backbone.load("emoji-mini").double()
    theirs, ids = reference("emoji-mini").double(), exact.tokenize(TEXTS)
    images = torch.randn(3, *exact.pixels.shape, dtype=torch.float64)
    equal = functools.partial(torch.testing.assert_close, atol=1e-10, rtol=0)
    equal(exact.image(images), theirs.encode_image(images))
    equal(exact.text(ids), theirs.encode_text(ids))


def test_cropped_text_gives_the_features_of_the_full_length(pair):
    _, ours = pair
    ids = ours.tokenize(TEXTS)
    cropped = ids[:, : ours.text.needed(ids).max()]
    assert cropped.shape[1] < ids.shape[1]
    torch.testing.assert_close(ours.text(cropped), ours.text(ids), atol=1e-5, rtol=1e-5)


def test_cropped_text_is_exact_in_float64(exact):
    ids = exact.tokenize(TEXTS)
    cropped = exact.text(ids[:, : exact.text.needed(ids).max()])
    torch.testing.assert_close(cropped, exact.text(ids), atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("point", tower.POINTS)
def test_every_point_shows_what_entered_and_left_its_module(exact, point):
    """An edit that computes the module again from what entered it changes nothing."""
    images = torch.randn(2, *exact.pixels.shape, dtype=torch.float64)
    seen = []

    def edit(site, op, x, y, *_):
        if not site.endswith(f"blocks.3.{point}"):
            return y
        seen.append(site)
        if point == "attn":
            return op(x, None, tower.unedited)
        if point == "mlp":
            return op(x)
        return op(x)

    torch.testing.assert_close(
        exact.image(images, edit), exact.image(images), atol=1e-10, rtol=1e-10
    )
    assert seen == [f"image.blocks.3.{point}"]


def test_every_listed_site_runs_once(mini):
    seen = []

    def edit(site, op, x, y, *_):
        seen.append(site)
        return y

    mini.image(torch.zeros(1, *mini.pixels.shape), edit)
    mini.text(mini.tokenize(["sun"]), edit)
    assert sorted(seen) == sorted(mini.sites())


def test_the_fingerprint_covers_weights_activation_pixels_and_vocabulary(mini):
    def prints(change):
        model, tokenizer = reference("emoji-mini"), copy.deepcopy(mini.tokenizer)
        change(model, tokenizer)
        return openclip.fingerprint(model, tokenizer)

    def weight(model, tokenizer):
        model.visual.proj[0, 0] += 1e-3

    def activation(model, tokenizer):
        for block in model.visual.transformer.resblocks:
            block.mlp.gelu = open_clip.transformer.QuickGELU()

    def pixels(model, tokenizer):
        model.visual.preprocess_cfg = {**model.visual.preprocess_cfg, "mean": (0.5, 0.5, 0.5)}

    def vocabulary(model, tokenizer):
        tokenizer.bpe_ranks.popitem()

    assert prints(lambda model, tokenizer: None) == mini.fingerprint
    changed = {prints(change) for change in (weight, activation, pixels, vocabulary)}
    assert len(changed | {mini.fingerprint}) == 5


def test_text_that_does_not_fit_is_an_error_that_quotes_it(mini):
    with pytest.raises(HarnessError, match="xyzzy"):
        mini.tokenize(["xyzzy " * 40])


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("roberta-ViT-B-32:laion2b_s12b_b32k", "No model of open_clip has theirs"),
        ("ViT-B-16:openai", "ViT-B-16-quickgelu:openai"),
        ("ViT-B-16", "openai"),
        ("ViT-B-16:nothing", "neither a tag"),
        ("ViT-Z", "emoji-mini"),
        ("local-dir:/nonexistent", "open_clip_config.json"),
    ],
)
def test_an_unusable_backbone_is_refused_with_what_to_do(name, says):
    with pytest.raises(HarnessError, match=says):
        backbone.load(name)


def test_a_folder_without_safetensors_is_refused(tmp_path):
    (tmp_path / "open_clip_config.json").write_text("{}")
    (tmp_path / "open_clip_pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(HarnessError, match=r"\.safetensors"):
        backbone.load(f"local-dir:{tmp_path}")


def test_a_pickle_that_open_clip_would_prefer_is_refused(tmp_path):
    from safetensors.torch import save_file

    (tmp_path / "open_clip_config.json").write_text("{}")
    (tmp_path / "open_clip_pytorch_model.bin").write_bytes(b"pickled")
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(HarnessError, match=r"\.safetensors"):
        backbone.load(f"local-dir:{tmp_path}")


def test_weights_that_want_another_resizing_are_refused():
    model = reference("emoji-mini")
    model.visual.preprocess_cfg = {**model.visual.preprocess_cfg, "resize_mode": "shuffled"}
    with pytest.raises(HarnessError, match="shortest, longest, squash"):
        Pixels.of(model.visual, "some-model")


def test_under_bfloat16_autocast_the_residual_stream_stays_float32(mini):
    seen = set()

    def edit(site, op, x, y, *_):
        if site.count(".") == 2:
            seen.add(y.dtype)
        return y

    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        mini.image(torch.zeros(1, *mini.pixels.shape), edit)
        mini.text(mini.tokenize(["sun"]), edit)
    assert seen == {torch.float32}


def test_matrices_that_are_cast_once_give_the_same_bits_and_come_back(mini):
    pixels = torch.randn(3, 3, 48, 48, generator=torch.Generator().manual_seed(1))
    ids = mini.tokenize(["a photo of a cat.", "a dog"])
    before = {name: value.clone() for name, value in mini.state_dict().items()}

    def features():
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            return mini.image(pixels), mini.text(ids)

    usual = features()
    with openclip.cast_once(mini, torch.bfloat16):
        assert mini.image.blocks[0].attn.weight.dtype == torch.bfloat16
        assert mini.image.blocks[0].ln1.weight.dtype == torch.float32
        once = features()
    assert all(a.equal(b) for a, b in zip(usual, once, strict=True))
    assert all(value.equal(before[name]) for name, value in mini.state_dict().items())


@pytest.mark.filterwarnings("ignore:Guards may run slower on Python 3.13.0")
def test_blocks_without_edits_can_be_compiled_and_are_one_program(mini, monkeypatch):
    def program():
        return torch.compile(tower._plain, backend=counter)

    counter = CompileCounterWithBackend("aot_eager")  # no C++ compiler is needed
    monkeypatch.setattr(tower, "_compiled", functools.cache(program))
    seen, pixels = [], torch.rand(2, *mini.pixels.shape)

    def edit(site, op, x, y, *_):
        seen.append(site)
        return y

    plain = mini.image(pixels)
    key = inputs.arithmetic_key(mini)
    with openclip.compiled(mini):
        assert inputs.arithmetic_key(mini) != key  # no feature is kept for the other way
        torch.testing.assert_close(mini.image(pixels), plain, atol=1e-5, rtol=1e-5)
        assert counter.frame_count == 1
        mini.image.block(3, torch.rand(1, 5, mini.image.width), edit)
    block = [s for s in mini.sites() if f"{s}.".startswith("image.blocks.3.")]
    assert sorted(seen) == sorted(block)
    assert inputs.arithmetic_key(mini) == key


@pytest.mark.parametrize(
    "changed",
    [
        {"vision_cfg": {"norm_kwargs": {"eps": 0.5}}},
        {"vision_cfg": {"pool_type": "avg"}},
        {"text_cfg": {"norm_kwargs": {"eps": 0.5}}},
        {"text_cfg": {"act_kwargs": {"approximate": "tanh"}}},
        {"text_cfg": {"tokenizer_kwargs": {"clean": "canonicalize"}}},
    ],
)
def test_every_setting_of_a_backbone_is_part_of_its_fingerprint(changed, tmp_path, mini):
    folder = tmp_path / "other"
    shutil.copytree(backbone.EMBEDDED / "emoji-mini", folder)
    path = folder / "open_clip_config.json"
    config = json.loads(path.read_text())
    for part, settings in changed.items():
        config["model_cfg"][part] |= settings
    path.write_text(json.dumps(config))
    assert backbone.load(f"local-dir:{folder}").fingerprint != mini.fingerprint


def test_where_a_backbone_lies_is_no_part_of_its_fingerprint(tmp_path, mini):
    shutil.copytree(backbone.EMBEDDED / "emoji-mini", tmp_path / "copy")
    assert backbone.load(f"local-dir:{tmp_path / 'copy'}").fingerprint == mini.fingerprint
