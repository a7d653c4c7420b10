"""A backbone carries a method whole or not at all."""

from dataclasses import dataclass

import pytest

from harness.errors import HarnessError
from harness.fitting.model import Model
from harness.fitting.needs import check_needs, lacking, needed
from harness.method import Edit, Method
from tests.methods.test_contract import FIT, build
from tests.towers import kinds


@dataclass(frozen=True, kw_only=True)
class TextAlone(Method):
    """Edits the blocks of texts, as the user chose."""

    name = "text_alone"

    def edits(self, clip, classes):
        return {f"text.blocks.{i}.q": Edit() for i in range(len(clip.text.blocks))}


@dataclass(frozen=True, kw_only=True)
class SaysSo(TextAlone):
    """Reads the attention of images without an edit there."""

    name = "says_so"
    needs = ("image.blocks.*.attn",)


@pytest.fixture(scope="module")
def resnet():
    return kinds.load("resnet")


def test_what_a_method_needs_is_what_it_edits_where_all_sites_are(resnet):
    assert needed(build("lora"), FIT, resnet) == {
        f"{tower}.blocks.*.{part}" for tower in ("image", "text") for part in "qkv"
    }
    assert lacking(resnet, build("lora"), FIT) == [f"image.blocks.*.{part}" for part in "kqv"]


def test_a_method_that_edits_texts_alone_everywhere_is_carried(resnet):
    check_needs(resnet, TextAlone(), FIT)


def test_what_a_method_states_is_needed_beside_what_it_edits(resnet):
    with pytest.raises(HarnessError, match=r"says_so needs image\.blocks\.\*\.attn, which resnet"):
        check_needs(resnet, SaysSo(), FIT)


def test_parameters_of_one_tower_are_not_trained_where_a_clip_trains_those_of_both(resnet):
    with pytest.raises(HarnessError, match="parameters of its kind in the image tower"):
        Model(resnet, build("ln_tuning"), FIT, seed=1)


def test_a_method_of_class_tokens_is_refused_where_none_is(mini):
    assert lacking(mini, build("plot"), FIT) == []
    pooled = kinds.load("attention-pool")
    assert lacking(pooled, build("plot"), FIT) == ["image class token"]


def test_a_method_that_spares_the_first_token_is_refused_where_it_is_a_patch(mini):
    assert lacking(mini, build("dyt"), FIT) == []
    assert lacking(kinds.load("layer-scale"), build("dyt"), FIT) == []
    assert lacking(kinds.load("attention-pool"), build("dyt"), FIT) == [
        "a class token before all image tokens"
    ]


def test_a_method_that_adds_tokens_between_text_blocks_is_refused_where_texts_end_with_one(mini):
    assert lacking(mini, build("mmrl"), FIT) == []
    assert lacking(kinds.load("class"), build("mmrl", first_block=2), FIT) == [
        "tokens added between text blocks"
    ]


def test_parameters_of_every_norm_are_found_under_the_names_of_clips():
    names = kinds.load("attention-pool").parameters_by_name()
    norms = [name for name in names if "norm" in name]
    assert norms
    assert all(name.split(".")[-2].startswith("ln") for name in norms)


def test_initial_values_do_not_depend_on_what_was_asked_before(resnet):
    first, again = (Model(resnet, build("clip_adapter"), FIT, seed=1) for _ in range(2))
    assert all(map(lambda a, b: a.equal(b), first.parameters(), again.parameters()))
