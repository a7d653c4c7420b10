"""What of recording a step needs no card: what is drawn, and what may not be computed with."""

import pytest
import torch

from harness.fitting import step
from harness.fitting.recorded import Draws, NotRecordable, Untold, recorder
from harness.towers.edit import Rows, SiteContext
from tests.methods.test_contract import batch, grafted


def at(draws=None, key=(1, 0)):
    rows = Rows(torch.arange(3), 5, True, key, draws=draws)
    return SiteContext("image.blocks.0.mlp", torch.nn.Identity(), rows, 4)


def drawn(site):
    x = torch.ones(3, 4, 2)
    return [site.noise("order", 6), site.dropout(x, 0.5), site.normal("flat", 2, 3, like=x)]


def test_what_is_drawn_anew_in_its_place_is_what_the_step_draws():
    draws = Draws()
    kept = drawn(at(draws))
    assert all(map(torch.equal, kept, drawn(at())))
    places = [tensor.data_ptr() for tensor, _ in draws.made.values()]
    draws.renew((1, 7))
    assert all(map(torch.equal, drawn(at(draws, Untold())), drawn(at(key=(1, 7)))))
    assert [tensor.data_ptr() for tensor, _ in draws.made.values()] == places
    assert not torch.equal(kept[0], drawn(at(draws))[0])


def test_what_no_step_before_has_drawn_cannot_be_recorded():
    draws = Draws()
    draws.complete = True
    with pytest.raises(NotRecordable, match="order"):
        at(draws, Untold()).noise("order", 6)


@pytest.mark.parametrize("use", [list, bool, float, str, lambda key: key[0], lambda key: key > 1])
def test_nothing_can_be_computed_with_the_number_of_a_recorded_step(use):
    with pytest.raises((NotRecordable, TypeError)):
        use(Untold())


def test_without_a_card_nothing_is_recorded():
    assert recorder(torch.device("cpu")) is None


def test_only_the_first_gradients_of_a_step_are_the_recorders(toy):
    model = grafted("adapter", toy)
    data, asked = batch(model), []

    def noted(given):
        asked.append(given)
        return step.gradients(given)

    once = step.TrainingStep(data, model.optimiser(), 0.0, recorder=noted)
    loss, first = once.gradients(model.method.loss)
    kept = {name: None if each is None else each.clone() for name, each in first.items()}
    again, second = once.gradients(model.method.loss)
    once.gradients(lambda output, labels: output.logits.sum())
    assert len(asked) == 1
    assert torch.equal(loss, again)
    for name, each in kept.items():
        assert each is None or torch.equal(each, first[name])
        assert each is None or torch.equal(each, second[name])
