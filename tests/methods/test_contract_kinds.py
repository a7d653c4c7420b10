"""The contract of some methods on every kind of tower that open_clip can load."""

import pytest
import torch

from harness.errors import HarnessError
from harness.fitting.model import Model
from tests.conftest import execute
from tests.methods import test_contract as contract
from tests.towers import kinds

FIELDS = {
    "adapter": {"first_block": 1}, "vpt": {"depth": 2}, "maple": {"depth": 2},
    "tip_adapter_f": {}, "coop": {}, "lora": {}, "clip_adapter": {}, "lfa": {}, "zero_shot": {},
    "full": {}, "dra": {"first_block": 1}, "mma": {"first_block": 1},
}  # fmt: skip
FEATURES = {"tip_adapter_f", "coop", "clip_adapter", "lfa", "zero_shot", "full"}
ROTATED = FEATURES | {"adapter", "mma", "dra"}
CARRIED = {
    "attention-pool": set(FIELDS), "average-pool": set(FIELDS), "eva02": ROTATED, "pe": ROTATED,
    "convnext": FEATURES, "resnet": FEATURES,
    "bidirectional-last": set(FIELDS), "eos": set(FIELDS), "class": set(FIELDS),
}  # fmt: skip
PAIRS = [(kind, name) for kind, names in CARRIED.items() for name in sorted(names)]
REFUSED = [(kind, name) for kind, names in CARRIED.items() for name in sorted({*FIELDS} - names)]


@pytest.fixture(scope="module")
def clips():
    """The backbones in float64, made when they are asked for."""
    made = {}

    def of(kind):
        if kind not in made:
            made[kind] = kinds.load(kind).double()
        return made[kind]

    return of


@pytest.fixture
def clip(clips, request, monkeypatch):
    kind, name = request.param
    made = clips(kind)
    monkeypatch.setattr(contract, "SIZE", made.pixels.size[0])
    monkeypatch.setattr(contract, "fitting", lambda each: FIELDS[each])
    return made, name


def pairs(*chosen):
    return pytest.mark.parametrize("clip", chosen, indirect=True, ids="-".join)


@pairs(*PAIRS)
def test_forward_and_gradient_are_the_contracts(clip):
    backbone, name = clip
    contract.test_logits_are_finite_and_of_the_right_shape(name, backbone)
    contract.test_a_gradient_reaches_every_parameter_but_the_declared_ones_and_no_other(
        name, backbone
    )


@pairs(*PAIRS)
def test_a_frozen_prefix_and_cropped_texts_change_nothing(clip, monkeypatch):
    backbone, name = clip
    with monkeypatch.context() as patch:
        contract.test_the_frozen_prefix_changes_nothing(name, backbone, patch)
    with monkeypatch.context() as patch:
        contract.test_cropped_texts_give_the_logits_of_full_ones(name, backbone, patch)


@pairs(*PAIRS)
def test_micro_batches_and_recomputation_change_nothing(clip, monkeypatch):
    backbone, name = clip
    with monkeypatch.context() as patch:
        contract.test_micro_batches_and_recomputation_give_the_whole_batchs_gradient(
            name, backbone, patch
        )


@pairs(*PAIRS)
def test_saved_weights_restore_the_logits(clip, tmp_path):
    backbone, name = clip
    contract.test_saved_weights_restore_the_logits_on_other_classes(name, backbone, tmp_path)


@pairs(*REFUSED)
def test_a_method_that_would_be_carried_by_half_is_refused_with_a_backbone_that_would_do(clip):
    backbone, name = clip
    with pytest.raises(HarnessError, match=r"ViT-B-16-quickgelu:openai"):
        contract.grafted(name, backbone)


def test_texts_without_a_start_token_are_refused_to_context_prompts(mini):
    class NoStart:
        """Another library's tokenizer: words, an end of id 1, then padding of id 1."""

        def __call__(self, texts, length):
            rows = [[len(word) + 2 for word in text.split()] for text in texts]
            return torch.tensor([(row + [1] * length)[:length] for row in rows])

    made = kinds.Clip(kinds.model("bidirectional-last"), NoStart(), "no-start")
    assert "text.tokens" not in made.sites()
    with pytest.raises(HarnessError, match="do not begin with one start token"):
        Model(made, contract.build("coop"), contract.FIT, seed=1)
    Model(made, contract.build("lora"), contract.FIT, seed=1)


@pytest.mark.parametrize(
    ("kind", "name", "fields"),
    [
        ("resnet", "clip_adapter", {}), ("attention-pool", "lora", {}), ("class", "coop", {}),
        ("batch-norm", "lfa", {}),
    ],
)  # fmt: skip
def test_a_whole_run_is_done_on_other_towers(kind, name, fields, make_run):
    record, _, model = execute(make_run(name, backbone=kinds.load(kind), max_steps=2, **fields))
    assert record.status == "done", record.error
    assert not model.clip.image.training or kind == "class"
