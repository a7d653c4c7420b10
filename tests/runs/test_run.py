"""A run is a value: two processes can exchange it."""

import pickle

import pytest

from harness.runs.context import Context
from tests.conftest import METHODS


@pytest.mark.parametrize("name", METHODS)
def test_a_run_pickles_to_less_than_a_kilobyte_and_is_the_same_elsewhere(name, make_run):
    prepared = make_run(name)
    assert prepared.key  # what was made of it does not travel
    text = pickle.dumps(prepared.run)
    assert len(text) < 1000
    again = pickle.loads(text)
    assert again == prepared.run
    assert hash(again) == hash(prepared.run)
    texts = prepared.context.class_texts  # these travel with the request
    elsewhere = Context(prepared.context.clip, class_texts=texts).prepare(again)
    assert (elsewhere.key, elsewhere.fit_key) == (prepared.key, prepared.fit_key)
    assert elsewhere.identity == prepared.identity


def test_another_process_needs_not_read_the_lists_again(toy, monkeypatch):
    from harness.runs.plan import Request, plan
    from tests.conftest import PLUGINS

    request = Request(methods="adapter", tasks="base2new", datasets="toy", backbone="emoji-mini",
                      shots=[4], seeds=[1, 2])  # fmt: skip
    first = plan(request, PLUGINS)
    keys = [run.key for run in first]
    known = first[0].context.known()
    monkeypatch.setattr(type(first[0].run.data["toy"]), "read", None)
    assert [run.key for run in plan(request, PLUGINS, known)] == keys
