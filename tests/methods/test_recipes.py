"""Published settings that depend on the task, and methods that cannot serve one."""

import subprocess
import sys

import pytest
import safetensors.torch

from harness import config
from harness.config import Binding
from tests.conftest import METHODS, PLUGINS, execute
from tests.methods.test_contract import grafted, images, logits, served, shake


def built(name, task, dataset, shots, *bindings):
    plugin = PLUGINS.plugins["methods"][name]
    return config.build(plugin, bindings, plugin.cls.recipe(task, dataset, shots))


@pytest.mark.parametrize(
    ("name", "task", "dataset", "shots", "expected"),
    [
        ("coop", "base2new", "dtd", 16, {"epochs": 200, "random_vectors": 0}),
        ("coop", "base2new", "imagenet", 16, {"epochs": 50}),
        ("coop", "few_shot", "dtd", 1, {"epochs": 50, "random_vectors": 16}),
        ("coop", "few_shot", "dtd", 4, {"epochs": 100}),
        ("coop", "few_shot", "imagenet", 16, {"epochs": 50}),
        ("dra", "base2new", "dtd", 16, {"epochs": 5, "batch_size": 16}),
        (
            "dra",
            "cross_dataset",
            "imagenet",
            16,
            {"epochs": 1, "first_block": 7},
        ),
        ("dra", "base2new", "imagenet", 16, {"epochs": 5, "batch_size": 128}),
        ("mma", "domain_generalization", "imagenet", 16, {"epochs": 1, "first_block": 9}),
        ("maple", "cross_dataset", "imagenet", 16, {"epochs": 2, "lr": 0.0026, "depth": 3}),
        ("mma", "base2new", "dtd", 16, {"epochs": 5, "first_block": 5, "batch_size": 16}),
        ("tcp", "base2new", "sun397", 16, {"epochs": 25}),
        ("tcp", "base2new", "imagenet", 16, {"epochs": 25}),
        ("tcp", "base2new", "dtd", 16, {"epochs": 50}),
        ("vpt", "domain_generalization", "imagenet", 16, {"epochs": 5}),
        ("prograd", "few_shot", "eurosat", 8, {"weight": 0.8, "epochs": 200}),
        ("prograd", "few_shot", "eurosat", 4, {"weight": 1.0, "epochs": 100}),
        ("prograd", "base2new", "eurosat", 16, {"weight": 1.0, "epochs": 100}),
        ("prograd", "cross_dataset", "imagenet", 16, {"weight": 1.0, "epochs": 50}),
        ("lora", "few_shot", "dtd", 4, {"iterations": 2000}),
        ("lfa", "base2new", "oxford_pets", 16, {"epochs": 10, "beta": 0.9}),
        ("lfa", "few_shot", "stanford_cars", 16, {"epochs": 2000, "beta": None}),
        ("mmrl", "base2new", "dtd", 16, {"weight": 6.0, "batch_size": 4, "epochs": 10}),
        ("mmrl", "base2new", "imagenet", 16, {"weight": 0.5, "batch_size": 32, "epochs": 5}),
        ("mmrl", "few_shot", "eurosat", 4, {"weight": 0.01, "width": 2048, "epochs": 50}),
        ("mmrl", "few_shot", "imagenet", 4, {"epochs": 5, "batch_size": 32}),
        ("mmrl", "cross_dataset", "imagenet", 16, {"weight": 0.2, "epochs": 1, "warmup_epochs": 0}),
        ("mmrl_pp", "base2new", "food101", 16, {"beta": 0.1, "weight": 1.0, "lr": 0.001}),
        ("mmrl_pp", "few_shot", "eurosat", 1, {"beta": 0.2, "lr": 0.002, "epochs": 100}),
        ("mmrl_pp", "domain_generalization", "imagenet", 16, {"beta": 0.9, "weight": 0.1}),
        ("plot", "few_shot", "dtd", 16, {"epochs": 50, "batch_size": 128}),
        ("plot", "few_shot", "fgvc_aircraft", 16, {"batch_size": 32}),
        ("tip_adapter", "few_shot", "oxford_flowers", 2, {"shots": 2, "alpha": 10.0}),
        ("tip_adapter_f", "few_shot", "eurosat", 16, {"epochs": 100, "trained": True}),
        ("tip_x", "few_shot", "eurosat", 4, {"shots": 4, "most_alpha": 50.0, "most_gamma": 30.0}),
        ("ape", "few_shot", "eurosat", 4, {"shots": 4, "channels": 700, "most_beta": 30.0}),
        ("ape", "few_shot", "imagenet", 16, {"steps_gamma": 5, "most_gamma": 0.5, "overlap": 0.7}),
        ("ape_t", "few_shot", "oxford_pets", 16, {"lr": 1e-4, "eps": 2e-3, "epochs": 30}),
        ("ape", "few_shot", "ucf101", 16, {"channels": 700, "alpha": 2.0, "eps": 2e-3}),
        ("ape", "few_shot", "food101", 2, {"eps": 1e-2}),
        ("ape", "few_shot", "sun397", 4, {"most_beta": 10.0, "eps": 1e-3}),
        ("coprompt", "base2new", "dtd", 16, {"context": "a photo", "epochs": 8, "weight": 8.0}),
        ("coprompt", "base2new", "food101", 16, {"epochs": 5, "weight": 0.5, "depth": 9}),
        ("coprompt", "cross_dataset", "imagenet", 16, {"context": "a photo of a", "depth": 12}),
        ("atprompt", "base2new", "dtd", 16, {"tokens": 4, "epochs": 100}),
        ("atprompt", "base2new", "imagenet", 16, {"tokens": 2, "epochs": 10}),
        ("atprompt", "cross_dataset", "imagenet", 16, {"tokens": 4, "epochs": 10}),
        ("dept", "base2new", "dtd", 16, {"random_vectors": 16, "epochs": 10, "lr": 0.0035}),
        ("kgcoop", "base2new", "imagenet", 16, {"epochs": 100, "weight": 8.0, "batch_size": 128}),
        ("cocoop", "base2new", "imagenet", 16, {"epochs": 10, "batch_size": 1}),
        ("adaptformer", "cross_dataset", "imagenet", 16, {"first_block": 7}),
        ("tcp", "few_shot", "sun397", 4, {"epochs": 25}),
        ("gda", "domain_generalization", "imagenet", 16, {"covariance": "pooled"}),
        ("gda", "base2new", "dtd", 16, {"covariance": "by_class"}),
        ("taskres", "few_shot", "imagenet", 16, {"lr": 2e-4}),
        ("promptsrc", "cross_dataset", "imagenet", 16, {"depth": 3}),
        ("graph_adapter", "few_shot", "dtd", 1, {"lr": 1e-3, "epochs": 100, "text_share": 0.7}),
        ("flat_lora", "few_shot", "dtd", 4, {"iterations": 2000, "rho": 0.05}),
        ("lora_pro", "few_shot", "dtd", 2, {"iterations": 1000, "lr": 2e-4}),
        ("eva", "few_shot", "dtd", 16, {"iterations": 8000, "rho": 2.0}),
        ("skip_tuning", "base2new", "dtd", 16, {"lr": 2e-5, "epochs": 20, "one_class": True}),
        ("skip_tuning", "base2new", "sun397", 16, {"epochs": 5, "image_lr": 5e-6}),
        ("skip_tuning", "cross_dataset", "imagenet", 16, {"epochs": 5, "lr": 1e-5}),
        ("skip_tuning", "domain_generalization", "imagenet", 16, {"image_lr": 1e-6}),
        ("skip_tuning", "few_shot", "food101", 2, {"epochs": 10, "one_class": False}),
    ],
)
def test_a_recipe_is_the_published_one(name, task, dataset, shots, expected):
    method, changed = built(name, task, dataset, shots)
    assert {field: getattr(method, field) for field in expected} == expected
    assert changed == {}


def test_a_users_setting_wins_over_the_recipe_and_is_shown():
    binding = Binding("coop", "epochs", 7, "--set")
    method, changed = built("coop", "few_shot", "dtd", 16, binding)
    assert method.epochs == 7
    assert changed == {"epochs": 7}


@pytest.mark.parametrize("name", METHODS)
def test_every_recipe_sets_fields_that_exist(name):
    for task in PLUGINS.plugins["tasks"]:
        built(name, task, "imagenet", 1)


@pytest.mark.parametrize("name", ["tip_adapter", "tip_adapter_f", "linear_probe"])
def test_a_method_for_fitted_classes_runs_where_all_are_fitted(make_run, name):
    record, _, model = execute(make_run(name))
    assert record.status == "done", record.error
    assert record.run["task"] == "few_shot"
    assert record.run["fingerprints"]["val"]
    assert set(model.trained.state_dict())


def test_weights_give_the_same_logits_in_a_new_process(exact, tmp_path):
    expected = {}
    for name in METHODS:
        model = grafted(name, exact)
        if not model.trained.state_dict():
            continue
        shake(model)
        model.save(tmp_path / f"{name}.safetensors")
        classes = served(name)[-1]
        expected[name] = logits(model, classes, images(2)).contiguous()
    safetensors.torch.save_file(expected, tmp_path / "expected")
    code = f"""
import torch
from pathlib import Path
from safetensors.torch import load_file
from harness.fitting.model import Model
from tests import toy_backbone
from tests.methods.test_contract import FIT, build, fitting, images, logits, served
clip = toy_backbone.load().double()
for name, expected in load_file({str(tmp_path / "expected")!r}).items():
    model = Model(clip, build(name, **fitting(name)), FIT, seed=7)
    model.trained.double()
    model.load(Path({str(tmp_path)!r}) / f"{{name}}.safetensors")
    assert torch.equal(logits(model, served(name)[-1], images(2)), expected), name
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert sorted({*expected, "zero_shot", "cupl", "dclip"}) == METHODS  # these save nothing
