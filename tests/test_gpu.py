"""On a CUDA device: the processor's numbers, bfloat16, repeated runs, memory, compiled blocks.

pytest -m gpu                  skips where there is no card
pytest -m gpu --pretend-card   as far as it goes without one (see tests/fitting/pretended_card)
"""

import pytest
import torch

from harness.fitting import recorded, step, trainer
from harness.images.pixels import normalise
from harness.methods.dyt import DyT
from harness.methods.flat_lora import FlatLoRA
from harness.methods.lora import LoRA
from tests import golden, toy_backbone
from tests.conftest import METHODS, PLUGINS, execute
from tests.fitting.pretended_card import card
from tests.fitting.test_pretended_card import learned
from tests.methods.test_contract import fitting
from tests.methods.test_golden import close

pytestmark = pytest.mark.gpu
EAGER = {  # steps of another loss, of some texts alone, or that compute with the step's number
    "argue", "argue_n", "clap", "dyt", "flat_lora", "lfa", "linear_probe", "proda", "skip_tuning",
    "zs_lp",
    "ba_lora", "dept-cocoop", "plot",  # they wait for the card in a step
}  # fmt: skip
FEW = ("coop", "cocoop", "metaprompt", "adapter", "dra", "lora")


def quiet(name):
    """The settings with which a method draws nothing on a card."""
    cls = PLUGINS.plugins["methods"][name].cls
    dropped = {"dropout": 0.0} if issubclass(cls, (LoRA, DyT)) else {}
    return dropped | ({"rho": 0.0} if issubclass(cls, FlatLoRA) else {})


@pytest.fixture
def pretended(request):
    """Whether the card is not there, and pretended."""
    if torch.cuda.is_available():
        return False
    if not request.config.getoption("--pretend-card"):
        pytest.skip("there is no CUDA device")
    return True


@pytest.fixture
def cuda(pretended, monkeypatch):
    """The device, while a test runs."""
    if not pretended:
        yield torch.device("cuda")
        return
    with card(monkeypatch):
        yield torch.device("cuda")


@pytest.fixture
def real(pretended):
    """For what only a card can show."""
    if pretended:
        pytest.skip("a pretended card cannot show this")
    return torch.device("cuda")


@pytest.fixture
def single(cuda):
    """The toy backbone on the card, float32."""
    return toy_backbone.load().to(cuda)


@pytest.mark.parametrize("name", METHODS)
def test_logits_loss_and_gradients_in_float32_are_the_processors(name, toy, single, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    if name == "lfa":  # where LAPACK decides nothing; see `golden`
        monkeypatch.setattr("harness.methods.lfa.aligned", lambda x, y, beta: y.T @ x)
    expected = learned(name, toy, **quiet(name))
    near = 1e-3 if name == "ba_lora" else 1e-4  # it is started from a decomposition
    for one, other in zip(learned(name, single, **quiet(name)), expected, strict=True):
        torch.testing.assert_close(one, other, atol=near, rtol=near)


@pytest.mark.parametrize("name", [name for name in METHODS if not quiet(name)])
def test_a_fit_in_float64_comes_to_the_processors_values(name, cuda, monkeypatch):
    def normalised(pixels, *statistics):  # in float32, where a card divides otherwise
        return normalise(pixels.cpu(), *statistics).to(pixels.device)

    monkeypatch.setattr("harness.fitting.inputs.normalise", normalised)
    close(golden.measure(name, "cuda"), golden.measure(name), name)


@pytest.mark.parametrize("name", METHODS)
def test_a_run_in_bfloat16_trains_and_scores(name, make_run, single):
    run = make_run(name, backbone=single, precision="bf16", **fitting(name))
    record, _, _ = execute(run)
    assert record.status == "done", record.error
    assert "no trained parameter moved" not in record.checks
    assert record.cost["peak_memory_bytes"] > 0


@pytest.mark.parametrize("name", METHODS)
def test_a_recorded_fit_is_the_fit(name, make_run, single, real, monkeypatch):
    """Which methods are recorded: those whose step is one pass of their own loss, and no other."""
    made = []
    monkeypatch.setattr(
        trainer, "recorder", lambda *_: made.append(recorded.Recorder()) or made[-1]
    )
    fields = dict(backbone=single, precision="bf16", max_steps=14, **fitting(name))
    _, expected, plain = execute(make_run(name, graphs=False, **fields))
    record, found, model = execute(make_run(name, **fields))
    assert record.status == "done", record.error
    assert found.keys() == expected.keys()
    assert all(torch.equal(each, expected[part]) for part, each in found.items())
    state = plain.trained.state_dict()
    assert all(torch.equal(e, state[key]) for key, e in model.trained.state_dict().items())
    if model.parameters():
        assert bool(made[-1].graph) == (name not in EAGER), made[-1].why


def test_a_step_that_changes_after_replays_were_trusted_is_a_failed_run(
    make_run, single, real, monkeypatch
):
    whole, calls = step.gradients, []

    def changing(batch, loss=None):
        calls.append(1)
        value = whole(batch, loss)
        return value + 1 if len(calls) > 6 else value  # three, recorded, two compared

    monkeypatch.setattr(step, "gradients", changing)
    record, _, _ = execute(make_run("adapter", backbone=single, max_steps=14, batch_size=4))
    assert record.status == "failed"
    assert "engine.graphs=False" in record.error


@pytest.mark.parametrize("name", FEW)
def test_equal_runs_predict_the_same(name, make_run, single):
    runs = (make_run(name, backbone=single, precision="bf16") for _ in range(2))
    one, other = (execute(run)[1] for run in runs)
    assert one.keys() == other.keys()
    assert all(torch.equal(each, other[part]) for part, each in one.items())


def test_pixels_are_moved_from_pinned_memory(make_run, single, monkeypatch):
    pinned, pin = [], torch.Tensor.pin_memory

    def noted(self):
        pinned.append(self.dtype)
        return pin(self)

    monkeypatch.setattr(torch.Tensor, "pin_memory", noted)
    record, _, _ = execute(make_run("adapter", backbone=single, precision="bf16"))
    assert record.status == "done", record.error
    assert set(pinned) == {torch.uint8}


def test_a_step_that_does_not_fit_is_done_again_in_parts(make_run, single, real, monkeypatch):
    whole, asked = step.gradients, []

    def greedy(batch, loss=None):
        asked.append(batch.chunks)
        if len(asked) == 1:
            torch.empty(2**50, dtype=torch.uint8, device=real)
        return whole(batch, loss)

    monkeypatch.setattr(step, "gradients", greedy)
    record, _, _ = execute(make_run("adapter", backbone=single))
    assert record.status == "done", record.error
    assert record.cost["micro_batches"]["made_smaller"] == 1


def test_compiled_blocks_give_what_plain_ones_give(single, real):
    images = torch.randn(4, *single.pixels.shape, device=real)
    with torch.no_grad():
        plain = single.image(images)
        single.image.compiled = True
        try:
            compiled = single.image(images)
        finally:
            single.image.compiled = False
    torch.testing.assert_close(compiled, plain, atol=1e-3, rtol=1e-3)


def test_the_device_of_the_benchmark_is_measured(real, single):
    from harness.bench import device as devices
    from harness.methods.dra import DRA

    assert devices.matrix_rate(real, torch.bfloat16, 3) > 1e12
    (row,) = devices.rows(single, {"dra": DRA()}, [4], 1)
    assert row.train.profile.kernels > 100
    assert 0 < row.train.profile.busy <= 1
