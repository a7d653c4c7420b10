"""The contract of methods on every kind of tower that open_clip can load.

All methods on all kinds take a minute; by default each kind is tried with one.
"""

import importlib.util

import pytest
import torch

from harness.errors import HarnessError
from harness.fitting.model import Model
from harness.fitting.needs import lacking
from harness.towers.catalogue import Unloaded
from tests.conftest import METHODS, PLUGINS, execute
from tests.methods import test_contract as contract
from tests.towers import kinds

HF = [pytest.param(kind, marks=pytest.mark.hf) for kind in kinds.HF_KINDS]
HF = HF if importlib.util.find_spec("transformers") else []
KINDS = [
    "attention-pool", "average-pool", "layer-scale", "eva02", "eva", "pe", "convnext", "batch-norm",
    "postnorm", "resnet", "bidirectional-last", "eos", "first", "class", "siglip",
]  # fmt: skip
ONE = dict(zip(KINDS, [
    "adapter", "vpt", "lora", "mma", "adaptformer", "dra", "coop", "tip_adapter_f", "lfa",
    "full", "maple", "cocoop", "clip_svd", "dyt", "promptsrc",
], strict=True))  # fmt: skip
# what they insert is their parts' (dept and maple, dept and promptsrc), and asks for nine blocks
DEEP = {"dept-maple", "dept-promptsrc"}
# how many of these each kind refuses; none where there is none
REFUSED = {
    "attention-pool": 4, "average-pool": 4, "siglip": 4,  # what reads or spares a class token
    "class": 2,  # what adds tokens to texts
    "layer-scale": 3,  # whose image feature is not made of it alone
    "eva": 14, "eva02": 20, "pe": 20,  # nothing in an attention; no tokens where these rotate
    "convnext": 30, "batch-norm": 30, "postnorm": 30, "resnet": 30,  # nothing in the image tower
    "hf-mean": 36, "hf-first": 36,  # nothing in the text tower
}  # fmt: skip


def fields(name: str) -> dict[str, object]:
    """What fits a method to two narrow blocks."""
    known = PLUGINS.plugins["methods"][name].cls.__dataclass_fields__
    last = name in ("tcp", "mmrl", "mmrl_pp")  # they insert before the first block that they name
    found = {"depth": 2, "first_block": 2 if last else 1, "heads": 4}
    return {field: found[field] for field in found if field in known}


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
def tiny(monkeypatch):
    monkeypatch.setattr(contract, "fitting", fields)


def check(name, clip, tmp_path, monkeypatch):
    """Forward, gradient, frozen prefix and cropped texts, save and load."""
    monkeypatch.setattr(contract, "SIZE", clip.pixels.size[0])
    model, x = contract.grafted(name, clip), contract.images(2)
    served = contract.served(name)
    for classes in served:
        logits = contract.logits(model, classes, x)
        assert logits.shape == (2, len(classes.names))
        assert logits.isfinite().all()
    if model.parameters():
        optimiser, reached = torch.optim.SGD(model.parameters(), lr=0.01), set()
        for step in range(2):
            reached |= contract.own_step(model, optimiser, step, 2)
        untrained = model.method.untrained() or ("?",)
        assert reached == {
            name for name, _ in model.trained.named_parameters() if not name.endswith(untrained)
        }
        assert all(p.grad is None and not p.requires_grad for p in clip.parameters())
        contract.shake(model)
    usual = [contract.logits(model, classes, x) for classes in served]
    with monkeypatch.context() as patch:
        patch.setattr(Model, "cut", lambda self, tower: -1)
        patch.setattr(type(clip.text), "needed", contract.whole)
        whole = contract.logits(model, served[0], x)
    torch.testing.assert_close(whole, usual[0], atol=1e-10, rtol=1e-10)
    if model.parameters():
        fresh = contract.grafted(name, clip)
        model.save(tmp_path / "weights.safetensors")
        fresh.load(tmp_path / "weights.safetensors")
        for classes, logits in zip(served, usual, strict=True):
            assert torch.equal(contract.logits(fresh, classes, x), logits)


def unloaded(kind: str) -> Unloaded:
    """What the catalogue would say of a kind: towers without weights."""
    clip = kinds.load(kind).to("meta")
    return Unloaded(kind, clip.image, clip.text, clip.embedding, clip.pixels, 0)


@pytest.mark.parametrize(("kind", "name"), ONE.items())
def test_each_kind_keeps_the_contract_with_a_method(kind, name, clips, tiny, tmp_path, monkeypatch):
    check(name, clips(kind), tmp_path, monkeypatch)
    contract.test_micro_batches_and_recomputation_give_the_whole_batchs_gradient(
        name, clips(kind), monkeypatch
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*KINDS, *HF])
def test_every_method_keeps_the_contract_or_is_refused_as_the_catalogue_says(
    kind, clips, tiny, tmp_path, monkeypatch
):
    clip, claimed, refused = clips(kind), unloaded(kind), 0
    for name in sorted(n for n in {*METHODS} - DEEP if not n.startswith("dra-")):
        method = contract.build(name, **fields(name))
        missing = lacking(clip, method, contract.FIT)
        assert lacking(claimed, method, contract.FIT) == missing
        if not missing:
            check(name, clip, tmp_path, monkeypatch)
            continue
        refused += 1
        with pytest.raises(HarnessError, match="ViT-B-16-quickgelu:openai"):
            contract.grafted(name, clip)
    assert refused == REFUSED.get(kind, 0)


def test_texts_without_a_start_token_are_refused_to_context_prompts(mini):
    class NoStart:
        """Another library's tokenizer: words, an end of id 1, then padding of id 1."""

        context_length = 24

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
