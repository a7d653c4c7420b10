"""Shards share a plan: everything once, whole fits, of about the same length."""

import random

import pytest

from harness.cli.commands import main
from harness.errors import HarnessError
from harness.records.store import Store
from harness.runs.executors import shard
from tests.cli.test_commands import command


def test_every_fit_is_in_one_shard_and_the_slowest_is_hardly_slower_than_the_mean():
    lengths = random.Random(0)
    weights = {n: lengths.choice([0.3, 4, 15, 60, 240]) * lengths.uniform(0.8, 1.2)
               for n in range(1368)}  # fmt: skip
    for count in (1, 3, 8, 64):
        found = shard.shares(weights, count)
        assert found.keys() == weights.keys()
        loads = [sum(w for key, w in weights.items() if found[key] == n)
                 for n in range(1, count + 1)]  # fmt: skip
        assert max(loads) <= 1.05 * sum(loads) / count
        assert shard.shares(dict(reversed(weights.items())), count) == found


@pytest.mark.parametrize("text", ["0/3", "4/3", "3", "1/0", "a/b", "-1/3", "1/3/2", ""])
def test_a_shard_that_is_none_is_refused(text):
    with pytest.raises(HarnessError, match="must be K/N, such as 3/8"):
        shard.parse(text)


def test_shards_make_what_one_command_makes_and_are_joined(tmp_path, capsys):
    asked = ("--methods", "adapter,zero_shot", "--tasks", "base2new,few_shot", "--seeds", "1-2")
    made, fits = [], []
    for number in ("1/2", "2/2"):
        folder = tmp_path / number[0]
        assert main([*command(folder, *asked)[3:], "--shard", number]) == 0
        assert f"Shard {number} is finished" in capsys.readouterr().out
        records = Store(folder).records()
        made.append({record.key for record in records})
        fits.append({record.fit for record in records} - {None})
    assert not made[0] & made[1]
    assert not fits[0] & fits[1]
    assert main(command(tmp_path / "whole", *asked)[3:]) == 0
    capsys.readouterr()
    whole = {record.key: record.scores for record in Store(tmp_path / "whole").records()}
    assert made[0] | made[1] == whole.keys()
    both = [record for n in "12" for record in Store(tmp_path / n).records()]
    assert {record.key: record.scores for record in both} == whole
    assert main(["leaderboard", "--results", str(tmp_path / "1"), str(tmp_path / "2")]) == 0
    assert "incomplete" not in capsys.readouterr().out


def test_more_shards_than_fits_are_refused(tmp_path, capsys):
    arguments = command(tmp_path, "--methods", "adapter", "--shard", "1/3")[3:]
    assert main(arguments) == 2
    assert "the plan has 1 fits" in capsys.readouterr().err
