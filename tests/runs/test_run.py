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
    elsewhere = Context(prepared.context.clip).prepare(again)
    assert (elsewhere.key, elsewhere.fit_key) == (prepared.key, prepared.fit_key)
    assert elsewhere.identity == prepared.identity
