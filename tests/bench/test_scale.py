"""Runs on many devices, simulated: cases that can be worked out by hand."""

import pytest

from harness.bench.scale import OVERHEAD, START, Job, spread


def test_one_device_takes_the_sum_and_many_take_the_longest():
    every = [Job(30.0, 10.0), Job(20.0, 10.0), Job(10.0, 10.0)]
    alone = spread(every, 1, writing=0.0)
    assert alone.ideal == 60
    assert alone.shards == START + 60
    assert spread(every, 2, 0.0).shards == START + 30
    assert spread(every, 64, 0.0).shards == START + 30
    assert spread(every, 64, 0.0).bytes == 30


def test_a_driver_that_is_slower_than_the_devices_is_the_limit():
    every = [Job(1.0, 0.0)] * 1000
    found = spread(every, 1000, writing=0.994)
    assert found.driven == pytest.approx(START + 1 + 1000 * (0.994 + OVERHEAD))
    assert found.driver > 0.95
    assert found.records == pytest.approx(1.0)


def test_a_faster_device_leaves_the_start():
    assert spread([Job(100.0, 0.0)], 1, 0.0, speed=100).shards == START + 1
