"""Fixtures: the embedded backbone, a toy dataset, and runs of both."""

import atexit
import gc
import os
import shutil
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two threads wait for each other on a busy machine
os.environ["HARNESS_CACHE"] = tempfile.mkdtemp(prefix="harness-cache-")

import pytest
import torch
from hypothesis import settings

from harness import registry
from harness.class_texts import ClassTexts
from harness.config import Engine
from harness.runs import engine
from harness.runs.context import Context
from harness.runs.prepared import PreparedRun
from harness.runs.run import Configured, Run
from harness.towers import backbone as backbones
from harness.towers.openclip import Clip
from tests import toy_backbone
from tests.toy import NAMES

# the same inputs every time; --hypothesis-profile=default draws others
settings.register_profile("suite", derandomize=True, deadline=None)
settings.load_profile("suite")
atexit.register(shutil.rmtree, os.environ["HARNESS_CACHE"], ignore_errors=True)

ROOT = Path(__file__).parents[1]
TOY = ROOT / "tests" / "toy.py"
PLUGINS = registry.load([str(TOY)])
EVERY_METHOD = PLUGINS.plugins["methods"]
METHODS = sorted(name for name, plugin in EVERY_METHOD.items() if not plugin.by_name_only)
# variants are these with other numbers: what takes long of them is in `-m slow`
FAMILIES = [n for n in METHODS if EVERY_METHOD[n].family == n]
EACH = [pytest.param(n, marks=[] if n in FAMILIES else pytest.mark.slow) for n in METHODS]
ONE_OF_EACH = (  # kind, by what it trains, prepares and reads
    "metaprompt", "lfa", "linear_probe", "tip_adapter", "cocoop", "comp_lora", "lora", "maple",
    "dra", "dept", "zs_lp", "two_stage", "wise_ft", "promptsrc", "argue", "rada",
)  # fmt: skip
SOME = [pytest.param(n, marks=[] if n in ONE_OF_EACH else pytest.mark.slow) for n in METHODS]


def pytest_collection_finish():
    gc.collect()
    gc.freeze()


def pytest_addoption(parser):
    parser.addoption("--faults-table", help="where `-m faults` keeps its table")
    parser.addoption(
        "--pretend-card", action="store_true", help="run `-m gpu` on a card that is not there"
    )


@pytest.fixture(scope="session")
def plugins() -> registry.Registry:
    return PLUGINS


@pytest.fixture(scope="session")
def mini() -> Clip:
    """The embedded backbone in float32."""
    return backbones.load("emoji-mini")


@pytest.fixture(scope="session")
def toy() -> Clip:
    """The toy backbone in float32."""
    return toy_backbone.load()


@pytest.fixture(scope="session")
def exact() -> Clip:
    """The toy backbone in float64."""
    return toy_backbone.load().double()


@pytest.fixture
def make_run(toy: Clip):
    """make_run("dra", max_steps=4, rank=8): a run of a method on the toy dataset, on base2new
    if it can serve it, else on few_shot; of two images a class where they are to be `few`."""

    def make(
        name: str, *, seed: int = 1, backbone: Clip | None = None, few: bool = False, **fields
    ) -> PreparedRun:
        plugin = PLUGINS.plugins["methods"][name]
        steps = fields.pop("max_steps", 4)
        memory = fields.pop("memory", 0.0)
        precision, graphs = fields.pop("precision", "fp32"), fields.pop("graphs", True)
        settings = Engine(max_steps=steps, precision=precision, memory=memory, graphs=graphs)
        task = "few_shot" if plugin.cls.only_fitted_classes else "base2new"
        method = Configured(name, plugin.cls(**{**plugin.fixed, **fields}), fields)
        clip = backbone or toy
        shots, tested = (2, 2) if few else (4, 8)
        return prepared(clip, method, task, shots, seed, settings, tested)

    return make


def prepared(clip, method, task, shots, seed, settings, tested=8) -> PreparedRun:
    """A run of a method on a registered task and the toy dataset, in a context of its own."""
    protocol = Configured(task, PLUGINS.plugins["tasks"][task].cls())
    data = (("toy", PLUGINS.plugins["datasets"]["toy"].cls(tested=tested)),)
    run = Run(method, protocol, "toy", clip.name, shots, seed, settings, data)
    texts = ClassTexts("toy", {name: (name, f"a {name} disc", "round") for name in NAMES})
    return Context(clip, class_texts=[texts]).prepare(run)


def execute(run: PreparedRun, weights: Path | None = None):
    """The record, predictions and model of a run."""
    return engine.execute(run.run, run.context, weights)


@pytest.fixture(autouse=True)
def _settled():
    """What a test leaves is not looked through again by those behind it, whose runs collect garbage
    to measure their memory."""
    yield
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _unused_global_generator():
    """No test may depend on the order in which tests run."""
    torch.manual_seed(0)
