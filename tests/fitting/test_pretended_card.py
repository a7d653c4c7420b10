"""What a card would refuse, found without one: each method fits, scores and is measured on a
pretended CUDA device (see `pretended_card`), where tensors of two devices do not mix."""

import pytest
import torch

from tests import golden
from tests.conftest import FAMILIES, METHODS
from tests.fitting.pretended_card import card
from tests.methods.test_golden import GOLDEN, close

EACH = [
    pytest.param(name, marks=[] if name in FAMILIES else pytest.mark.slow) for name in METHODS
]


@pytest.fixture
def cuda(monkeypatch):
    """The pretended card, while a test runs."""
    monkeypatch.setattr("harness.measure.gc.collect", lambda: 0)  # nothing of it is measured
    with card(monkeypatch):
        yield torch.device("cuda")


@pytest.mark.parametrize("name", EACH)
def test_a_fit_in_micro_batches_on_a_card_comes_to_the_processors_values(name, cuda):
    rows = {"proda": 64, "metaprompt": 20, "cocoop": 10}.get(name, 3)  # about half of a step's
    found = golden.measure(name, "cuda", image_chunk=3, text_chunk=rows, checkpointing=True)
    expected = {part: value for part, value in GOLDEN[name].items() if part != "code"}
    close(found, expected, name)
