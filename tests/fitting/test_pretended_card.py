"""What a card would refuse, found without one: each method learns, scores and is measured on a
pretended CUDA device (see `pretended_card`), where tensors of two devices do not mix."""

import contextlib

import pytest
import torch

from harness.class_texts import ClassTexts
from harness.config import Engine
from harness.fitting import model as fitting_model
from harness.fitting.step import Chunks, gradients
from harness.fitting.trainer import fit
from harness.images.cache import Cache, Disk
from harness.runs.context import Context
from harness.runs.run import Configured, Run
from harness.towers import backbone as backbones
from harness.towers.edit import Rows, SiteContext
from harness.towers.openclip import cast_once
from tests import golden, toy_backbone
from tests.conftest import EACH, FAMILIES, METHODS, PLUGINS, execute
from tests.fitting.pretended_card import NAME, OnCard, card
from tests.methods.test_contract import (
    FIT,
    PARTS,
    batch,
    fitting,
    grafted,
    images,
    logits,
    served,
    shake,
)
from tests.methods.test_golden import GOLDEN, close
from tests.toy import NAMES

CLOSED = ("metaprompt", "lfa", "linear_probe", "tip_adapter")  # unlike others, in prepare or finish
FITS = [pytest.param(n, marks=[] if n in CLOSED else pytest.mark.slow) for n in METHODS]
MEASURED = ("cocoop", "comp_lora")  # texts for each image; reads whole matrices
OF_EACH_KIND = (*CLOSED, *MEASURED, "dept-cocoop", "lora", "maple", "dra")
RECOMPUTED = [  # whether blocks compute their activations again: by default, for one of each kind
    pytest.param(n, again, marks=[] if again == (n in OF_EACH_KIND)
                 and n in (*FAMILIES, *OF_EACH_KIND) else pytest.mark.slow)
    for n in METHODS for again in (True, False) if again or n not in OF_EACH_KIND
]  # fmt: skip
COSTS = [pytest.param(n, marks=[] if n in MEASURED else pytest.mark.slow) for n in METHODS]
HALF, WHOLE = torch.bfloat16, torch.float32
LEAVES = {  # in bfloat16 autocast, by the kind of site: what enters, and what leaves
    "tokens": (WHOLE, WHOLE), "block": (WHOLE, WHOLE), "ln1": (WHOLE, WHOLE), "ln2": (WHOLE, WHOLE),
    "attn": (WHOLE, HALF), "q": (WHOLE, HALF), "k": (WHOLE, HALF), "v": (WHOLE, HALF),
    "o": (HALF, HALF), "mlp": (WHOLE, HALF), "fc1": (WHOLE, HALF), "act": (HALF, HALF),
    "fc2": (HALF, HALF), "features": (WHOLE, HALF),
}  # fmt: skip


@pytest.fixture
def cuda(monkeypatch):
    """The pretended card, while a test runs."""
    monkeypatch.setattr("harness.measure.gc.collect", lambda: 0)  # nothing of it is measured
    with card(monkeypatch):
        yield torch.device("cuda")


@pytest.fixture(scope="module")
def on_card():
    """The toy backbone on the pretended card, by its precision."""
    with pytest.MonkeyPatch.context() as patch, card(patch):
        return {d: toy_backbone.load().to("cuda", d) for d in (torch.float32, torch.float64)}


def learned(name, clip, chunks=None, **fields):
    """Logits of what a method serves, the loss of a step and its gradients, on the processor."""
    model = grafted(name, clip, **fields)
    shake(model)
    found = [logits(model, each, images(like=clip.logit_scale)) for each in served(name)]
    if model.parameters():
        found.append(gradients(batch(model, chunks=chunks)))
        found += [p.grad for p in model.parameters() if p.grad is not None]
    return [each.detach().cpu() for each in found]


@pytest.mark.parametrize(("name", "again"), RECOMPUTED)
def test_a_step_in_micro_batches_and_an_evaluation_on_a_card_are_the_processors(
    name, again, exact, on_card, monkeypatch
):
    if name == "lfa":  # where LAPACK decides nothing; see `golden`
        monkeypatch.setattr("harness.methods.lfa.aligned", lambda x, y, beta: y.T @ x)
    expected = learned(name, exact)
    with card(monkeypatch):
        parts = Chunks(4, PARTS.get(name, 2), checkpointing=again)
        found = learned(name, on_card[torch.float64], parts)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("name", FITS)
def test_a_fit_in_micro_batches_on_a_card_comes_to_the_golden_values(name, cuda):
    found = golden.measure(name, "cuda", image_chunk=3, text_chunk=PARTS.get(name, 3))
    close(found, {part: value for part, value in GOLDEN[name].items() if part != "code"}, name)


@contextlib.contextmanager
def in_bfloat16(clip):
    """As a run on a card does it."""
    with torch.autocast("cuda", HALF, cache_enabled=False), cast_once(clip, HALF):
        yield


def kind(site):
    """What kind of site it is: a whole block, or the point's name."""
    last = site.rpartition(".")[2]
    return "block" if last.isdigit() else last


@pytest.mark.parametrize("name", EACH)
def test_in_bfloat16_edits_keep_the_precision_of_a_site_and_the_rest_is_float32(
    name, on_card, monkeypatch
):
    passed, whole = {}, fitting_model._inserted

    def noted(edit, entered, left, at):
        result = whole(edit, entered, left, at)
        passed[at.site, at.training] = entered.dtype, left.dtype, result.dtype
        return result

    monkeypatch.setattr(fitting_model, "_inserted", noted)
    with card(monkeypatch):
        clip = on_card[torch.float32]
        model = grafted(name, clip)
        given = {p.dtype for p in model.parameters()}
        with in_bfloat16(clip):
            scored = logits(model, FIT, images(like=clip.logit_scale))
            losses = [gradients(batch(model))] if model.parameters() else []
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    assert {each.dtype for each in (scored, *losses, *grads)} == {WHOLE}
    assert given <= {WHOLE}
    assert all(each.beneath.isfinite().all() for each in (scored, *losses, *grads))
    for (site, training), (entered, left, result) in passed.items():
        assert (entered, left) == LEAVES[kind(site)], (site, training)
        assert result == left, (site, training)


def test_every_site_of_both_towers_has_its_precision_in_bfloat16(on_card, cuda):
    clip, seen = on_card[torch.float32], {}

    def noted(site, op, x, y, *_):
        seen.setdefault(kind(site), set()).add((x.dtype, y.dtype))
        return y

    inputs = {clip.image: images(2, clip.logit_scale), clip.text: clip.tokenize(["a disc"])}
    with in_bfloat16(clip):
        for tower, given in inputs.items():
            tower(given, noted)
    assert seen == {name: {dtypes} for name, dtypes in LEAVES.items()}


def test_a_run_in_bfloat16_is_recorded_with_what_the_card_says(
    make_run, on_card, cuda, monkeypatch
):
    before, during = torch.backends.cudnn.allow_tf32, []

    def noted(*args, **kwargs):
        during.append(torch.backends.cudnn.allow_tf32)
        return fit(*args, **kwargs)

    monkeypatch.setattr("harness.runs.engine.fit", noted)
    run = make_run("adapter", backbone=on_card[torch.float32], precision="bf16", max_steps=1)
    record, predictions, _ = execute(run)
    assert record.status == "done", record.error
    assert record.cost["peak_memory_bytes"] == torch.cuda.max_memory_allocated()
    assert NAME in str(record.provenance)
    assert during == [False]  # TF32 would round what a convolution is given
    assert torch.backends.cudnn.allow_tf32 == before
    assert not any(isinstance(each, OnCard) for each in predictions.values())


def test_noise_is_the_processors_and_waits_for_no_card(cuda, monkeypatch):
    def noise(numbers):
        return SiteContext("text.tokens", None, Rows(numbers, 4, True, (1, 0))).noise("x", 3)

    some = torch.tensor([2, 0])
    expected = noise(some)
    monkeypatch.setattr(OnCard, "cpu", None, raising=False)  # what it would wait in
    found = noise(some.to("cuda"))
    assert found.is_cuda
    assert found.tolist() == expected.tolist()


@pytest.mark.parametrize("name", COSTS)
def test_what_a_method_costs_is_measured_on_a_card(name, on_card, cuda, tmp_path):
    plugins, plugin = PLUGINS.plugins, PLUGINS.plugins["methods"][name]
    few = {"shots": 2, "batch_size": 4, "augmentations": 2}
    fields = {k: v for k, v in few.items() if hasattr(plugin.cls, k)}
    method = Configured(name, plugin.cls(**{**plugin.fixed, **fitting(name), **fields}))
    task = Configured("efficiency", plugins["tasks"]["efficiency"].cls(repeats=1, images=2))
    data = (("toy", plugins["datasets"]["toy"].cls()),)
    texts = [ClassTexts("toy", {each: (each, "disc", "round") for each in NAMES})]
    context = Context(on_card[torch.float32], None, Cache(disk=Disk(tmp_path)), texts)
    settings = Engine(precision="bf16", max_steps=1)
    record, _, _ = execute(context.prepare(Run(method, task, "toy", "toy", 2, 1, settings, data)))
    assert record.status == "done", record.error
    assert record.cost["cuda"]
    assert record.run["measured_on"][0] == NAME
    assert record.cost["inference"]["bytes"] == 2**30


@pytest.mark.slow
def test_a_vit_of_open_clip_takes_a_step_on_a_card(monkeypatch):
    clip = backbones.load("ViT-B-32:random")
    monkeypatch.setattr("tests.methods.test_contract.SIZE", clip.pixels.size[0])
    expected = learned("dra", clip)
    with card(monkeypatch):
        found = learned("dra", clip.to("cuda"))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
