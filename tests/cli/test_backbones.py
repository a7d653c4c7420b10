"""`list backbones --all` and `show BACKBONE` are tables to read, and JSON."""

import json

import pytest

from harness.cli import backbones
from harness.cli.commands import main
from harness.towers.catalogue import listed
from tests.towers import theirs

FEW = ("ViT-B-32", "RN50-quickgelu")


@pytest.fixture
def few(monkeypatch):
    """Of the pairs, those of a few models."""

    def some():
        for model in FEW:
            yield from listed(model)

    monkeypatch.setattr(backbones, "listed", lambda only="": listed(only) if only else some())


@pytest.fixture(autouse=True)
def few_methods(monkeypatch):
    every, names = backbones._methods([]), ("clip_adapter", "coop", "dyt", "lora", "mmrl")
    monkeypatch.setattr(backbones, "_methods", lambda plugin: {name: every[name] for name in names})


def said(capsys, *words: str) -> str:
    assert main([*words]) == 0
    return capsys.readouterr().out


def test_all_pairs_are_a_table_that_ends_with_how_many_are_accepted(few, capsys):
    lines = said(capsys, "list", "backbones", "--all").splitlines()
    rows = {line.split()[0]: line.split()[1:] for line in lines if ":" in line}
    assert rows["RN50-quickgelu:openai"] == ["features", "12x512", "causal", "224", "shortest",
                                             "102M", "2"]  # fmt: skip
    assert rows["ViT-B-32:laion2b_e16"][:3] == ["12x768", "all", "12x512"]
    assert rows["ViT-B-32:openai"] == ["ViT-B-32-quickgelu:openai"]
    assert "pairs are accepted, and 5 are refused" in " ".join(lines[-4:])


def test_show_says_which_methods_run_and_why_the_others_do_not(capsys):
    card = json.loads(said(capsys, "show", "ViT-B-16-SigLIP:webli", "--json"))[0]
    assert card["images"] == "224 x 224, both sides to size, bicubic"
    assert "lora" in card["methods"]
    why = {name: reason for reason, names in card["not carried"].items() for name in names}
    assert "one start token" in why["coop"]
    assert "the first token of an image as its class token" in why["dyt"]
    assert "class token alone" in why["mmrl"]


def test_a_folder_is_shown_as_it_would_be_loaded(tmp_path, capsys):
    theirs.write(tmp_path, "clip")
    text = said(capsys, "show", f"local-dir:{tmp_path}")
    assert "2x48, all sites" in text
    assert "48 x 48, short side to size, bilinear" in text


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("ViT-B-32:lion2b_e16", "Did you mean 'ViT-B-32:laion2b_e16'?"),
        ("nonsense:nothing", "list backbones --all"),
        ("local-dir:", "neither open_clip_config.json nor config.json"),
        ("local-dir:/nonexistent", "neither open_clip_config.json nor config.json"),
        ("hf-hub:../../etc", "no repository of a hub"),
        ("nonsense", "unknown name"),
    ],
)
def test_what_is_no_backbone_is_refused_with_what_to_do(name, says, capsys):
    assert main(["show", name]) != 0
    assert says in capsys.readouterr().err


def test_a_model_without_weights_is_all_of_its_pairs(capsys):
    text = said(capsys, "show", "RN50")
    assert text.count("is refused: the weights") == 3
    assert "Use RN50-quickgelu:openai." in " ".join(text.split())


@pytest.mark.parametrize(
    ("name", "needs"),
    [
        ("ViT-B-16-SigLIP:webli", "the extra [hf], for its tokenizer"),
        ("ViT-B-32-quickgelu:openai", ""),
    ],
)  # fmt: skip
def test_a_card_says_which_extra_a_backbone_needs(name, needs, capsys):
    assert main(["show", name]) == 0
    shown = capsys.readouterr().out
    assert needs in shown if needs else "the extra" not in shown
