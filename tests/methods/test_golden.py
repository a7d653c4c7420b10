"""Short fits come to the committed golden values, on every processor."""

import json

import pytest

from harness.method import method_code
from harness.runs.run import ENGINE
from tests import golden
from tests.conftest import METHODS, PLUGINS

FILE = json.loads(golden.FILE.read_text(encoding="utf-8"))
GOLDEN = FILE["methods"]
AGAIN = "if that is meant, make them again: python -m tests.golden"


def test_every_method_has_golden_values():
    assert sorted(GOLDEN) == METHODS, AGAIN


def test_golden_values_were_made_with_this_engine():
    assert FILE["engine"] == ENGINE, AGAIN


@pytest.mark.parametrize("name", METHODS)
def test_golden_values_were_made_with_this_code(name):
    assert GOLDEN[name]["code"] == method_code(PLUGINS.plugins["methods"][name].cls), AGAIN


def close(found, expected, where):
    if isinstance(expected, dict):
        assert sorted(found) == sorted(expected), where
        for name, value in expected.items():
            close(found[name], value, f"{where}.{name}")
    elif expected and isinstance(expected[0], list):
        for number, (one, other) in enumerate(zip(found, expected, strict=True)):
            close(one, other, f"{where}.{number}")
    else:
        assert found == pytest.approx(expected, rel=1e-8, abs=1e-8), f"{where}: {AGAIN}"


@pytest.mark.parametrize("name", METHODS)
def test_a_short_fit_comes_to_the_golden_values(name):
    expected = {part: value for part, value in GOLDEN[name].items() if part != "code"}
    close(golden.measure(name), expected, name)
