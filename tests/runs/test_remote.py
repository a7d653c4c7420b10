"""What a machine that shares no folder with the command is sent, does and refuses."""

import pickle
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from harness import registry
from harness.cli.commands import main
from harness.config import Binding
from harness.errors import HarnessError
from harness.runs import provenance
from harness.runs.executors import ray
from harness.runs.executors.remote import (
    Order,
    Refused,
    SentPlugin,
    difference,
    planned,
    run_fit,
)
from harness.runs.plan import Request, plan
from tests.conftest import TOY

STEPS = Binding("engine", "max_steps", 2, "--set")
REQUEST = Request(
    methods="adapter", tasks="base2new,few_shot", datasets="toy", backbone="emoji-mini",
    shots=[4], seeds=[1], bindings=[STEPS], device="cpu",
)  # fmt: skip


@pytest.fixture
def order(monkeypatch):
    """An order for the toy dataset; the process is as it was afterwards."""
    monkeypatch.setitem(sys.modules, "harness_plugin_toy", sys.modules["harness_plugin_toy"])
    monkeypatch.chdir(Path.cwd())
    planned.cache_clear()
    threads = torch.get_num_threads()
    sent = [SentPlugin.of(str(TOY))]
    yield Order(REQUEST, sent, threads, Path.cwd(), "python -m harness run --methods adapter")
    provenance.state(None)
    planned.cache_clear()


def wanted(request=REQUEST):
    return {run.key: run.identity for run in plan(request, registry.load([str(TOY)]))}


def test_a_worker_states_the_command_and_returns_the_weights_of_its_fits(order):
    asked = wanted()
    ended = [each for key in asked for each in run_fit(pickle.dumps(order), {key: asked[key]})]
    assert [each.record.key for each in ended] == [*asked]
    assert all(each.record.status == "done" and each.weights for each in ended)
    assert all(
        e.record.provenance["command"] == "python -m harness run --methods adapter" for e in ended
    )


def test_runs_that_share_a_fit_train_it_once_and_none_whose_weights_are_sent(order):
    scored = [[Binding("engine", "split", name, "--sweep")] for name in ("test", "val")]
    val = replace(REQUEST, tasks="few_shot", sweeps=scored)
    asked = wanted(val)
    content = pickle.dumps(replace(order, request=val))
    first, second = run_fit(content, asked)
    assert first.weights
    assert "fit_shared" not in first.record.cost
    assert second.weights is None
    assert second.record.cost["fit_shared"]
    key = second.record.key
    (again,) = run_fit(content, {key: asked[key]}, first.weights)
    assert again.record.cost["fit_shared"]
    assert again.record.scores == second.record.scores


def test_a_plugin_file_that_is_not_the_one_that_was_sent_is_refused_by_name(order):
    other = replace(order.plugins[0], text=order.plugins[0].text + b"# changed")
    answer = run_fit(pickle.dumps(replace(order, plugins=[other])), wanted())
    assert isinstance(answer, Refused)
    assert "--plugin toy.py is not the file that the command sent" in answer.reason


def test_files_of_one_name_keep_their_name_in_folders_of_their_own(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.py").write_text(f"# {folder}")
    sent = [SentPlugin.of(str(tmp_path / folder / "x.py")) for folder in ("a", "b")]
    there = tmp_path / "there"
    there.mkdir()
    paths = [Path(each.unpacked(there / str(n))) for n, each in enumerate(sent)]
    assert [path.read_text() for path in paths] == ["# a", "# b"]
    assert {path.name for path in paths} == {"x.py"}


@pytest.mark.parametrize(
    ("part", "value", "said"),
    [
        (("code",), "other", "code of the method (code is "),
        (("fingerprints", "weights"), "other", "weights of the backbone (fingerprints.weights is "),
        (("fingerprints", "evaluated", "base"), "other", "data (fingerprints.evaluated.base is "),
        (("settings", "precision"), "bf16", "settings (settings.precision is 'fp32' there"),
        (("engine",), 10**6, "version of the harness (engine is "),
    ],
)
def test_what_differs_is_said_by_name(part, value, said):
    runs = {run.key: run for run in plan(REQUEST, registry.load([str(TOY)]))}
    identity = pickle.loads(pickle.dumps(next(iter(runs.values())).identity))
    inner = identity
    for name in part[:-1]:
        inner = inner[name]
    inner[part[-1]] = value
    text = difference(identity, runs)
    assert text.startswith(f"adapter base2new toy seed 1 differs there in the {said}")
    assert text.count("for the command)") == 1
    assert ("--precision" in text) == (part[-1] == "precision")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--cpus-per-run", "1"], "--cpus-per-run needs --executor ray"),
        (["--executor", "ray"], "pip install 'vlm-peft-harness[ray]'"),
    ],
)
def test_options_of_ray_without_ray_are_refused(options, said, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(ray.importlib.util, "find_spec", lambda name: None)
    run = ["run", "--methods", "adapter", "--tasks", "base2new", "--results", str(tmp_path / "r")]
    assert main([*run, *options]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ({"cpus": 0}, "--cpus-per-run must be at least 1"),
        ({"gpus": 1.5}, "from 0 to 1, with up to four decimals, or a whole number"),
        ({"gpus": -1.0}, "--gpus-per-run must be"),
        ({"gpus": 1 / 3}, "--gpus-per-run must be"),
        ({"gpus": float("nan")}, "--gpus-per-run must be"),
    ],
)
def test_what_ray_cannot_place_is_refused(numbers, said, monkeypatch):
    monkeypatch.setattr(ray.importlib.util, "find_spec", lambda name: True)
    with pytest.raises(HarnessError, match=said):
        ray.Placement(**numbers).checked()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"bindings": [Binding("engine", "jobs", 2, "--jobs")]}, "--jobs belongs to"),
        ({"device": "cuda:1"}, "Give --device cuda"),
        ({"methods": [object()]}, "do not travel"),
    ],
)
def test_a_request_that_a_cluster_cannot_meet_is_refused(change, said):
    with pytest.raises(HarnessError, match=said):
        ray.check(replace(REQUEST, **change), [])


def test_measurements_are_not_made_on_a_cluster():
    measured = plan(replace(REQUEST, tasks="efficiency"), registry.load([str(TOY)]))
    with pytest.raises(HarnessError, match="without --executor ray"):
        ray.check(REQUEST, measured)


@pytest.mark.parametrize(
    ("gpus", "node", "places"),
    [
        (0.0, {"CPU": 4}, 2),
        (0.25, {"CPU": 64, "GPU": 2}, 8),
        (0.1, {"CPU": 64, "GPU": 1}, 10),
        (0.3, {"CPU": 64, "GPU": 2}, 6),
        (2.0, {"CPU": 64, "GPU": 5}, 2),
        (1.0, {"CPU": 2, "GPU": 5}, 1),
    ],
)
def test_a_node_has_places_for_whole_runs(gpus, node, places):
    class Nodes:
        @staticmethod
        def nodes():
            dead = {"Alive": False, "Resources": {"CPU": 99, "GPU": 99}}
            return [{"Alive": True, "Resources": node}, dead]

    assert ray.Cluster(Nodes, 2, gpus, None).places() == places
