"""A command in a process of its own."""

import pytest

from harness.bench.process import called
from harness.errors import HarnessError


def test_what_it_printed_comes_back_with_more_variables():
    ended = called("-c", "import os; print(os.environ['GIVEN'])", GIVEN="this")
    assert ended.output == "this\n"
    assert ended.seconds > 0 < ended.processor_seconds
    assert ended.bytes > 2**20


def test_a_process_that_fails_is_named_with_what_it_said_last():
    with pytest.raises(HarnessError, match=r"`python -c raise ValueError\(1\)` failed: ValueError"):
        called("-c", "raise ValueError(1)")
