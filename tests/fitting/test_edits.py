"""What edits may know and leave behind: the residual stream, means for the loss, ways through the
towers, several features of an image."""

import pytest
import torch
import torch.nn.functional as F

from harness.errors import HarnessError
from harness.fitting.model import Model
from harness.fitting.step import AdaptiveChunks, Chunks, TrainingStep, gradients
from harness.method import Edit, HeadContext, Method
from harness.towers.edit import Rows, SiteContext
from harness.towers.tower import POINTS, unedited
from tests.methods.test_contract import FIT, batch, grafted, images
from tests.methods.test_equations import CLOSE

close = torch.testing.assert_close
PARTS = [Chunks(), Chunks(3, 2), Chunks(8, 1, checkpointing=True), Chunks(1, 1, checkpointing=True)]


def test_a_head_that_knows_one_image_feature_is_refused_where_there_are_several(exact):
    model = grafted("zero_shot", exact)
    text = torch.randn(3, 1, 36).double()
    with pytest.raises(HarnessError, match=r"zero_shot gives \[4, 2, 3\].*\[images, classes\]"):
        model.output(torch.randn(4, 2, 36).double(), text, HeadContext(torch.tensor(9.0)))


def test_only_sites_beside_the_residual_stream_have_it(exact):
    seen = {}

    class Listens(Edit):
        def forward(self, x, y, at):
            if at.passing is not None:
                seen[at.site.split(".")[-1]] = at.stream
            else:
                with pytest.raises(ValueError, match=r"image\.blocks.* has no residual stream"):
                    _ = at.stream
            return y

    class Everywhere(Method):
        def edits(self, clip, classes):
            return {f"image.blocks.11.{p}": Listens() for p in POINTS} | {
                "image.features": Listens()
            }

    model = Model(exact, Everywhere(), FIT, seed=1)
    x = model.prefix(exact.image, images())
    model.rest(exact.image, x, x, Rows(torch.arange(8), 8, False, ()))
    assert {*seen} == {"ln1", "attn", "ln2", "mlp", "features"}
    block = exact.image.blocks[11]
    between = x + block.attn(block.ln1(x), None, unedited)
    for point, stream in (("ln1", x), ("attn", x), ("ln2", between), ("mlp", between)):
        close(seen[point], stream, **CLOSE)
    close(seen["features"], between + block.mlp(block.ln2(between)), **CLOSE)


class Scaled(Edit):
    """Scales what left and leaves its size as a statistic."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(1.1, dtype=torch.float64))

    def forward(self, x, y, at):
        y = self.scale * y
        size = y.square() if at.site.startswith("image") else y[:, 0].square().mean(-1)
        at.statistic("size", size)
        at.statistic(f"size in {at.site[:4]}{at.mode}", size)
        return y


class Sizes(Method):
    """Its loss is no mean over rows: a function of means over rows, tokens and sites."""

    def edits(self, clip, classes):
        sites = ("image.blocks.7", "image.blocks.10.mlp", "text.blocks.9.attn")
        return {site: Scaled() for site in sites}

    def loss(self, output, labels):
        size = {name: mean for name, mean in output.statistics.items() if name != "size"}
        assert {*size} == {"size in imag", "size in text"}
        return (output.statistics["size"] - 1) ** 2 + size["size in imag"] * size["size in text"]


@pytest.mark.parametrize("chunks", PARTS, ids=str)
def test_a_loss_of_means_is_the_same_in_parts_and_with_recomputation(exact, chunks, monkeypatch):
    monkeypatch.setattr("harness.fitting.texts.PASS", {"cpu": 0})  # in groups of lengths
    model = Model(exact, Sizes(), FIT, seed=1)
    data = batch(model)
    ids = data.texts.ids
    rows = Rows(torch.arange(8), 8, True, (1, 0)), Rows(torch.arange(3), 3, True, (1, 0), ids)
    model.rest(exact.image, data.x, data.x, rows[0])
    model.rest(exact.text, data.texts.x, ids, rows[1])
    parts = [part for each in rows for part in each.sums.items()]
    left = {site: total for (site, name), (total, _) in parts if name == "size"}
    counts = {site: count for (site, _), (_, count) in parts}
    numbers = {"image": 8 * exact.image.length * 48, "text": 3}
    assert counts == {site: numbers[site.partition(".")[0]] for site in model.edits}
    means = [left[site] / counts[site] for site in model.edits]
    total = sum(left.values()) / sum(counts.values())
    expected = (total - 1) ** 2 + (means[0] + means[1]) / 2 * means[2]
    slopes = torch.autograd.grad(expected, model.parameters())
    close(gradients(batch(model, chunks=chunks)), expected.detach(), **CLOSE)
    for parameter, slope in zip(model.parameters(), slopes, strict=True):
        close(parameter.grad, slope, **CLOSE)


def test_edits_find_the_mode_of_a_step_in_both_towers_and_none_outside(exact):
    model, seen = Model(exact, Sizes(), FIT, seed=1), []

    def loss(output, labels):
        seen.append({name for name in output.statistics if name != "size"})
        return F.cross_entropy(output.logits, labels)

    for chunks in PARTS[:2]:
        step = TrainingStep(
            batch(model, chunks=chunks),
            torch.optim.SGD(model.parameters()),
            0.0,
            room=AdaptiveChunks(chunks),
        )
        step.gradients(loss, mode=" twice")
        step.gradients(loss)
    twice, plain = {"size in imag twice", "size in text twice"}, {"size in imag", "size in text"}
    assert seen == [twice, plain, twice, plain]


def test_a_head_knows_of_which_classes_a_part_of_a_step_is(exact):
    model, seen = Model(exact, Sizes(), FIT, seed=1), []

    def loss(output, labels):
        seen.append((output.given.fitted, output.given.rows))
        return F.cross_entropy(output.logits, labels)

    step = TrainingStep(batch(model), torch.optim.SGD(model.parameters()), 0.0)
    step.gradients(loss, torch.tensor([2, 0]))
    step.gradients(loss)
    assert seen == [(False, [2, 0]), (True, slice(None))]


def test_a_statistic_of_texts_does_not_depend_on_how_far_they_are_cropped():
    at = SiteContext(
        "text.blocks.3", torch.nn.Identity(), Rows(torch.arange(2), 2, True, (), torch.ones(2, 5))
    )
    with pytest.raises(ValueError, match=r"text\.blocks\.3: .* one number of each text"):
        at.statistic("size", torch.ones(2, 5))
