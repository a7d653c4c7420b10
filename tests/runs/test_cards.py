"""Every card gets processes of its own; tried with cards that are not there."""

import io
import subprocess

import pytest
import torch

from harness.cli.plan_text import _on_cards
from harness.config import Binding, Engine, build_engine
from harness.errors import HarnessError
from harness.fitting import texts
from harness.records.record import Record
from harness.records.store import Store
from harness.runs.executors import cards, local

CUDA, CPU = torch.device("cuda"), torch.device("cpu")


@pytest.fixture(params=["", "4,MIG-a,6"])
def three(request, monkeypatch):
    """The names of three cards: by number, or as the environment has them."""
    monkeypatch.setenv(cards.VISIBLE, request.param)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    return request.param.split(",") if request.param else ["0", "1", "2"]


def test_a_device_means_all_visible_cards_or_the_one_that_is_named(three):
    assert cards.cards(CUDA) == three
    assert cards.cards(torch.device("cuda:1")) == three[1:2]
    assert cards.cards(CPU) == []


def test_there_are_as_many_processes_as_cards_unless_the_user_says_otherwise(three):
    assert cards.most_processes(Engine(), CUDA) == 3
    assert cards.most_processes(Engine(jobs=0), CUDA) == 3
    assert cards.most_processes(Engine(jobs_per_gpu=2), CUDA) == 6
    assert cards.most_processes(Engine(jobs=4, jobs_per_gpu=2), CUDA) == 4
    assert cards.most_processes(Engine(), torch.device("cuda:1")) == 1
    assert cards.most_processes(Engine(), CPU) == 1


def test_processes_share_the_memory_of_their_card_alone(three):
    assert cards.on_one_device(Engine(), CUDA) == 1
    assert cards.on_one_device(Engine(jobs=4), CUDA) == 2
    assert cards.on_one_device(Engine(jobs_per_gpu=2), CUDA) == 2
    assert cards.on_one_device(Engine(jobs=4), CPU) == 4


def test_helpers_get_the_other_cards_in_turn(three, monkeypatch):
    started = []

    class Process:
        def __init__(self, _command, env, **_options):
            started.append(env[cards.VISIBLE])
            self.stdin = io.BytesIO()

        def poll(self):
            return code

        def send_signal(self, _number):
            pass

        def wait(self, _seconds):
            pass

    code = None
    monkeypatch.setattr(subprocess, "Popen", Process)
    share = local.Share(None, [], None, {}, False, 0.0, None, b"", "")
    with local.helper_processes([share] * 4, cards.cards(CUDA)):
        pass
    assert started == [three[1], three[2], three[0], three[1]]
    code = -9
    with (
        pytest.warns(UserWarning, match=r"2 of 2 helper processes ended early \(exit code -9"),
        local.helper_processes([share] * 2),
    ):
        pass


def test_a_plan_names_the_cards(three, monkeypatch):
    monkeypatch.setattr("harness.cli.plan_text.device_name", lambda _: "a card")
    assert _on_cards(CUDA, 2) == f" on cards {three[0]}, {three[1]} (a card)"
    assert _on_cards(CUDA, 1) == f" on card {three[0]} (a card)"
    assert _on_cards(CPU, 2) == ""


def test_features_of_one_card_serve_another_of_its_kind(exact, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a card")
    monkeypatch.setattr(torch, "get_autocast_dtype", lambda _: torch.bfloat16)
    keys = []
    for name in ("cuda:0", "cuda:1"):
        monkeypatch.setattr(type(exact), "device", torch.device(name))
        keys.append(texts.arithmetic_key(exact))
    assert keys[0] == keys[1]
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "another card")
    assert texts.arithmetic_key(exact) != keys[0]


def test_no_process_on_a_card_is_refused():
    with pytest.raises(HarnessError, match="jobs_per_gpu must be at least 1"):
        build_engine([Binding("engine", "jobs_per_gpu", 0, "--jobs-per-gpu")])


def test_a_card_that_answers_no_more_fails_one_run_and_not_all(make_run, tmp_path, monkeypatch):
    runs = [make_run("zero_shot", seed=seed) for seed in (1, 2, 3)]
    store = Store(tmp_path).open()
    known = {run.run: run for run in runs}

    def failed(asked, *_):
        run = known[asked]
        error = "CUDA error: an illegal memory access was encountered"
        return Record(key=run.key, status="failed", run=run.identity, error=error), {}, None

    monkeypatch.setattr(local, "execute", failed)
    monkeypatch.setattr(local, "answers", lambda device: False)
    with pytest.raises(HarnessError, match="has not answered since"):
        local.execute_all(store, runs, {})
    assert len(list(store.records())) == 1
    assert cards.answers(CPU)
    assert not cards.answers(torch.device("cuda:77"))
