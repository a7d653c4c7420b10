"""Models and tokenizers of transformers itself: text towers, folders, the count of pairs."""

import importlib.util
import io
import json
import socket

import pytest
import torch

from harness.errors import HarnessError
from harness.fitting.model import Model
from harness.fitting.needs import lacking
from harness.towers import backbone, folder, pairs
from harness.towers.catalogue import Unloaded, listed
from harness.towers.hf import CONFIGS
from tests.conftest import execute
from tests.methods.test_contract import FIT, build
from tests.towers import kinds, theirs

pytestmark = [
    pytest.mark.hf,
    pytest.mark.skipif(
        importlib.util.find_spec("transformers") is None, reason="needs the extra [hf]"
    ),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
TEXTS = ["a photo of a cat.", "a photo of a red apple.", "sun"]
EQUAL = {torch.float32: 1e-5, torch.float64: 1e-10}
# million parameters of text towers, by open_clip's docs/model_profile.csv
PROFILE = {
    "xlm-roberta-base-ViT-B-32": 278.27, "xlm-roberta-large-ViT-H-14": 560.94,
    "roberta-ViT-B-32": 124.87, "nllb-clip-base": 414.04, "nllb-clip-large": 767.14,
}  # fmt: skip


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("asked the network"))


@pytest.fixture(scope="module", params=kinds.HF_KINDS)
def kind(request) -> str:
    return request.param


@pytest.mark.parametrize("dtype", EQUAL)
def test_a_text_tower_equals_open_clips(kind, dtype):
    model, clip = kinds.model(kind).to(dtype), kinds.load(kind).to(dtype).train()
    ids = clip.tokenize(TEXTS)
    atol = EQUAL[dtype] * max(1.0, float(model.encode_text(ids).abs().max()))
    torch.testing.assert_close(clip.text(ids), model.encode_text(ids), atol=atol, rtol=0)


def test_padding_alone_is_cut_off(kind):
    clip = kinds.load(kind).double()
    ids = clip.tokenize(TEXTS)
    needed = clip.text.needed(ids)
    assert needed.tolist() == [(row != 1).sum() for row in ids]
    cut = clip.text(ids[:, : int(needed.max())])
    torch.testing.assert_close(cut, clip.text(ids), atol=1e-10, rtol=1e-10)
    assert not clip.text.ends_early


def test_its_features_are_its_only_site(kind):
    clip = kinds.load(kind)
    assert clip.text.sites() == ["text.features"]
    assert "image.blocks.0.q" in clip.sites()


@pytest.mark.parametrize("name", ["coop", "kgcoop", "cocoop", "lora"])
def test_what_changes_texts_inside_is_refused_with_a_backbone_that_would_do(name, kind):
    with pytest.raises(HarnessError, match=r"text tower gives features alone.*ViT-B-16-quickgelu"):
        Model(kinds.load(kind), build(name), FIT, seed=1)


@pytest.mark.parametrize("change", ["vocabulary", "activation", "weight"])
def test_the_fingerprint_covers(change, kind):
    model, tokenizer = kinds.model(kind), kinds.hf_tokenizer()
    if change == "vocabulary":
        tokenizer = kinds.hf_tokenizer(swapped=True)
    elif change == "activation":
        name = "activation_function" if kind == "hf-first" else "hidden_act"
        setattr(model.text.config, name, "gelu_new")
    else:
        next(model.text.parameters())[0, 0] += 1
    assert kinds.Clip(model, tokenizer, kind).fingerprint != kinds.load(kind).fingerprint


@pytest.mark.parametrize("name", ["clip_adapter", "image_lora"])
def test_a_whole_run_is_done(name, kind, make_run):
    record, _, _ = execute(make_run(name, backbone=kinds.load(kind), max_steps=2))
    assert record.status == "done", record.error


def test_168_pairs_are_accepted_without_weights_or_network():
    found = dict(listed())
    accepted = {name: it for name, it in found.items() if isinstance(it, Unloaded)}
    assert (len(found), len(accepted)) == (196, 168)
    assert all("other GELU" in it for it in found.values() if not isinstance(it, Unloaded))
    for name, it in accepted.items():
        model = name.partition(":")[0]
        if model in PROFILE:
            count = sum(parameter.numel() for parameter in it.text.parameters())
            assert round(count / 1e6, 2) == PROFILE[model]
            assert lacking(it, build("clip_adapter"), FIT) == []
            assert "text.tokens" in lacking(it, build("coop"), FIT)


def test_a_text_model_whose_config_is_not_here_is_refused():
    with pytest.raises(HarnessError, match=r"'google/mt5-base'.*supported are nllb-200"):
        pairs.model("mt5-base-ViT-B-32", "random")
    assert len([path for path in CONFIGS.iterdir() if path.is_dir()]) == 5


def test_the_tokenizer_of_a_pair_is_read_from_its_files(tmp_path, monkeypatch):
    kinds.hf_tokenizer().save_pretrained(tmp_path)
    monkeypatch.setattr(folder, "words_of_hub", lambda name, fetch: tmp_path)
    made = pairs.tokenizer("nllb-clip-base")
    assert torch.equal(made(TEXTS), kinds.hf_tokenizer()(TEXTS, 77))


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_a_folder_gives_the_features_that_transformers_gives(kind, tmp_path):
    import transformers

    cls, config = {
        "clip": (transformers.CLIPModel, theirs.CLIP),
        "siglip": (transformers.SiglipModel, theirs.SIGLIP),
    }[kind]
    words = {"eos_token_id": 3013, "bos_token_id": 3012, "hidden_act": "gelu"}
    sizes = config["text_config"] | words | {"hidden_size": 48, "intermediate_size": 100}
    vision = config["vision_config"] | {"intermediate_size": 100}
    own = config | {"text_config": sizes, "vision_config": vision}
    model = cls(transformers.AutoConfig.for_model(**own)).requires_grad_(False).eval()
    for parameter in model.parameters():
        parameter += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(tmp_path)
    taken = theirs.SHORTEST if kind == "clip" else theirs.SQUASH
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(taken))
    if kind == "clip":
        theirs.vocabulary(tmp_path)
    else:
        kinds.hf_tokenizer().save_pretrained(tmp_path)
    clip = backbone.load(f"local-dir:{tmp_path}")
    ids, x = clip.tokenize(TEXTS), torch.randn(2, *clip.pixels.shape)
    image = model.get_image_features(pixel_values=x).pooler_output
    text = model.get_text_features(input_ids=ids).pooler_output
    torch.testing.assert_close(clip.image(x), image, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(clip.text(ids), text, atol=1e-5, rtol=1e-5)
    words = transformers.AutoTokenizer.from_pretrained(tmp_path)("a red apple").input_ids
    assert clip.tokenize(["a red apple"])[0, : len(words)].tolist() == words


def test_siglips_sentencepiece_vocabulary_is_read_with_its_scores(tmp_path):
    trainer = pytest.importorskip("sentencepiece").SentencePieceTrainer
    pytest.importorskip("google.protobuf")
    import transformers

    prints = []
    for texts in (TEXTS, TEXTS[1:]):
        home = tmp_path / str(len(texts))
        home.mkdir()
        theirs.write(home, "siglip")
        written = io.BytesIO()
        trainer.train(
            sentence_iterator=iter(texts * 20), model_writer=written, vocab_size=40, pad_id=-1,
            bos_id=-1, eos_id=1, unk_id=2, hard_vocab_limit=False, minloglevel=2,
            control_symbols=["<pad>"],
        )  # fmt: skip
        (home / "spiece.model").write_bytes(written.getvalue())
        tokenizer = transformers.SiglipTokenizer(str(home / "spiece.model"))
        tokenizer.save_pretrained(home)
        clip = backbone.load(f"local-dir:{home}")
        ids = clip.tokenize(["A photo, of a red apple!"])
        assert ids[0].tolist() == tokenizer("a photo of a red apple", max_length=24,
                                            padding="max_length").input_ids  # fmt: skip
        prints.append(clip.fingerprint)
    assert prints[0] != prints[1]


def test_code_that_a_tokenizer_brings_is_never_run(tmp_path):
    theirs.write(tmp_path, "siglip")
    kinds.hf_tokenizer().save_pretrained(tmp_path)
    said = json.loads((tmp_path / "tokenizer_config.json").read_text())
    said |= {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", None]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(said))
    (tmp_path / "own.py").write_text("raise SystemExit('code of a folder was run')\n")
    backbone.load(f"local-dir:{tmp_path}")  # with tokenizer.json, which is none
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(HarnessError, match="cannot be loaded"):
        backbone.load(f"local-dir:{tmp_path}")
