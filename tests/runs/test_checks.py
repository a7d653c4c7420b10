"""A fit is marked as below zero-shot only where a paired exact test says so."""

import torch

from harness.fitting.evaluate import Scores
from harness.runs import engine
from harness.splits import Split


def checks(make_run, monkeypatch, gained: int, lost: int, views: int = 1) -> list[str]:
    """The checks of a fit that gains and loses some of a hundred units against zero-shot, each of
    `views` images."""
    run = make_run("adapter")
    monkeypatch.setattr(Split, "units", lambda *_: [i // views for i in range(100 * views)])
    labels = torch.zeros(100 * views, dtype=torch.long)
    fitted, frozen = labels.clone(), labels.clone()
    frozen[: gained * views] = 1
    fitted[gained * views : (gained + lost) * views] = 1

    def scores(predictions: torch.Tensor) -> Scores:
        return Scores.of(torch.nn.functional.one_hot(predictions, 2).float(), labels)

    monkeypatch.setattr(engine, "zero_shot", lambda _: scores(frozen))
    evaluated = {name: scores(fitted) for name in run.evaluated}
    return engine._checks(run, run.model(), [2.0, 1.0], evaluated)


def test_one_image_less_is_no_mark(make_run, monkeypatch):
    assert checks(make_run, monkeypatch, 0, 1) == []
    assert checks(make_run, monkeypatch, 10, 12) == []
    assert checks(make_run, monkeypatch, 12, 2) == []


def test_a_gap_that_chance_does_not_give_is_a_mark_in_words(make_run, monkeypatch):
    (check,) = checks(make_run, monkeypatch, 1, 12)
    assert check.startswith("below zero-shot on its own classes: 0.8800 < 0.9900")
    assert "worse on 12 images and better on 1 of 100" in check
    assert "exact sign test, p = 0.003" in check


def test_ten_views_of_a_drawing_count_once(make_run, monkeypatch):
    assert checks(make_run, monkeypatch, 0, 5, views=10) == []
    (check,) = checks(make_run, monkeypatch, 0, 6, views=10)
    assert "worse on 6 units and better on 0 of 100" in check
