"""Fixtures: the embedded backbone, a toy dataset, and a bench over both."""

import atexit
import os
import shutil
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two threads wait for each other on a busy machine
os.environ["HARNESS_CACHE"] = tempfile.mkdtemp(prefix="harness-cache-")

import pytest
import torch

from harness import backbone as backbones
from harness import clip, registry
from harness.config import Engine
from harness.plan import Bench, Named, Run

atexit.register(shutil.rmtree, os.environ["HARNESS_CACHE"], ignore_errors=True)

TOY = Path(__file__).parent / "toy.py"
PLUGINS = registry.load([str(TOY)])
METHODS = sorted(PLUGINS.plugins["methods"])


@pytest.fixture(scope="session")
def plugins() -> registry.Registry:
    return PLUGINS


@pytest.fixture(scope="session")
def mini() -> clip.Clip:
    """The embedded backbone in float32."""
    return backbones.load("emoji-mini")


@pytest.fixture(scope="session")
def exact() -> clip.Clip:
    """The embedded backbone in float64."""
    return backbones.load("emoji-mini").double()


@pytest.fixture
def make_run(mini: clip.Clip):
    """make_run("dra", max_steps=4, rank=8): a run of a method on the toy dataset, on base2new
    if it can serve it, else on few_shot."""

    def make(name: str, *, seed: int = 1, backbone: clip.Clip | None = None, **fields) -> Run:
        plugin = PLUGINS.plugins["methods"][name]
        steps = fields.pop("max_steps", 4)
        memory = fields.pop("memory", 0.0)
        precision = fields.pop("precision", "fp32")
        engine = Engine(max_steps=steps, precision=precision, memory=memory)
        toy = PLUGINS.plugins["datasets"]["toy"].cls()
        bench = Bench(backbone or mini, {"toy": toy}, None, engine)
        method = Named(name, plugin.cls(**{**plugin.fixed, **fields}), fields)
        task = "few_shot" if plugin.cls.only_fitted_classes else "base2new"
        protocol = Named(task, PLUGINS.plugins["tasks"][task].cls(), {})
        return Run(method, protocol, "toy", 4, seed, bench)

    return make


@pytest.fixture(autouse=True)
def _unused_global_generator():
    """No test may depend on the order in which tests run."""
    torch.manual_seed(0)
