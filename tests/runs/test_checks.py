"""A fit is marked as below zero-shot only where a paired exact test says so."""

import torch

from harness.fitting.evaluate import Scores
from harness.runs import engine


def checks(make_run, monkeypatch, gained: int, lost: int) -> list[str]:
    """The checks of a fit that gains and loses some of a hundred images against zero-shot."""
    run = make_run("adapter")
    labels = torch.zeros(100, dtype=torch.long)
    fitted, frozen = labels.clone(), labels.clone()
    frozen[:gained] = 1
    fitted[gained : gained + lost] = 1
    scores = {name: Scores(fitted, labels) for name in run.evaluated}
    monkeypatch.setattr(engine, "zero_shot", lambda _: Scores(frozen, labels))
    return engine._checks(run, run.model(), [2.0, 1.0], scores)


def test_one_image_less_is_no_mark(make_run, monkeypatch):
    assert checks(make_run, monkeypatch, 0, 1) == []
    assert checks(make_run, monkeypatch, 10, 12) == []
    assert checks(make_run, monkeypatch, 12, 2) == []


def test_a_gap_that_chance_does_not_give_is_a_mark_in_words(make_run, monkeypatch):
    (check,) = checks(make_run, monkeypatch, 1, 12)
    assert check.startswith("below zero-shot on its own classes: 0.8800 < 0.9900")
    assert "loses 12 images that zero-shot names rightly and gains 1" in check
    assert "McNemar's exact test, p = 0.003" in check
