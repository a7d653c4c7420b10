"""Layers of another library as edits: what they see, what is saved, and what is refused."""

import pytest
import torch
from torch import nn

from harness.errors import HarnessError
from harness.fitting.footprint import without_numbers
from harness.towers.edit import Rows, SiteContext
from harness.towers.wrapped import Proxy, Wrapped, shown, tree, wrappable, wrapped_layers

SITE = "image.blocks.3.q"


class Scaled(nn.Module):
    """A layer as another library writes it: the output of what it wraps, times a vector."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base_layer = base
        self.scale = nn.ParameterDict({"one": nn.Parameter(torch.ones(base.out_features))})
        self.scale["fixed"] = nn.Parameter(torch.ones(1), requires_grad=False)

    def forward(self, x):
        result = self.base_layer(x)
        result *= self.scale["one"] * self.scale["fixed"]  # in place, as some do
        return result


class Dropping(Scaled):
    def __init__(self, base: nn.Module) -> None:
        super().__init__(base)
        self.drop = nn.ModuleDict({"one": nn.Dropout(0.5)})

    def forward(self, x):
        return super().forward(x) + self.drop["one"](x)[..., :1]


class Drawing(Scaled):
    def forward(self, x):
        y = super().forward(x)
        return y + torch.rand_like(y) if self.training else y


class Neighbours(Scaled):
    def forward(self, x):
        return super().forward(x) * (1 + x.mean())


class Tokens(Scaled):
    def forward(self, x):
        return super().forward(x) + x.mean(1, keepdim=True)[..., :1]


def proxy(clip) -> Proxy:
    made = Proxy(clip.image.blocks[3].attn.q)
    assert made.built()
    return made


def context(clip, training=True, step=0) -> SiteContext:
    rows = Rows(torch.arange(2), 2, training, (1, step))
    return SiteContext(SITE, clip.image.blocks[3].attn.q, rows, 5)


def entering(clip, rows: int = 2) -> torch.Tensor:
    draws = torch.Generator().manual_seed(1)
    return torch.randn((rows, 5, clip.image.width), generator=draws).to(clip.logit_scale)


def test_a_proxy_is_a_linear_module_with_the_frozen_weights_and_no_parameters(exact):
    op, made, x = exact.image.blocks[3].attn.q, proxy(exact), entering(exact)
    assert isinstance(made, nn.Linear)
    assert made.state_dict() == {}
    assert dict(made.named_parameters()) == {}
    assert (made.in_features, made.out_features) == (exact.image.width, exact.image.width)
    assert made.weight.data_ptr() == op.weight.data_ptr()
    assert torch.equal(made(x), op(x))
    assert next(made.parameters()).dtype == torch.float64


def test_what_left_the_frozen_module_is_taken_only_for_what_entered_it(exact):
    made, x = proxy(exact), entering(exact)
    y = torch.zeros_like(x)
    made.passed = x, y
    assert torch.equal(made(x), y)
    assert made(x) is not y
    assert torch.equal(made(x + 0), exact.image.blocks[3].attn.q(x))


@pytest.mark.parametrize("way", ["assigned", "in place"])
@pytest.mark.parametrize("point", ["q", "o"])
def test_what_is_written_while_layers_are_built_never_reaches_the_tower(toy, point, way):
    op = getattr(toy.image.blocks[3].attn, point)
    made, before = Proxy(op), op.weight.clone()
    if way == "assigned":
        made.weight.data = made.weight + 1
    else:
        made.weight.data.add_(1)
    assert not made.built()
    assert torch.equal(op.weight, before)
    assert torch.equal(made.weight, before)


def test_a_layer_trains_and_saves_what_is_its_own(exact):
    edit = Wrapped(Scaled(proxy(exact)).double())
    assert [name for name, _ in edit.named_parameters()] == ["layer.scale.one"]
    assert set(edit.state_dict()) == {"layer.scale.one", "layer.scale.fixed"}
    x = entering(exact)
    y = exact.image.blocks[3].attn.q(x)
    kept = y.clone()
    torch.testing.assert_close(edit(x, y, context(exact)), kept, atol=1e-12, rtol=0)
    with torch.no_grad():
        edit.layer.scale["one"].fill_(2)
    torch.testing.assert_close(edit(x, y, context(exact)), 2 * kept, atol=1e-12, rtol=0)
    assert torch.equal(y, kept)  # though the layer works in place


def test_dropout_in_a_layer_is_a_function_of_the_step(exact):
    edit, x = Wrapped(Dropping(proxy(exact)).double()), entering(exact)
    y = exact.image.blocks[3].attn.q(x)

    def passed(seed, training=True, step=0):
        torch.manual_seed(seed)
        return edit(x, y, context(exact, training, step))

    assert torch.equal(passed(1), passed(2))
    assert not torch.equal(passed(1), passed(1, step=1))
    torch.testing.assert_close(passed(1, training=False), y + x[..., :1], atol=1e-12, rtol=0)
    dropped = passed(1) - y
    assert set((dropped / x[..., :1]).mean(-1).round(decimals=6).unique().tolist()) == {0.0, 2.0}


@pytest.mark.parametrize("kind", [Scaled, Dropping])
def test_a_layer_that_is_right_in_micro_batches_passes_the_check(exact, kind):
    Wrapped(kind(proxy(exact)).double()).check(SITE, exact.image.blocks[3].attn.q)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (Drawing, "draws from a global"),
        (Neighbours, "depend on other"),
        (Tokens, "depend on other"),
    ],
)
def test_a_layer_that_would_be_wrong_in_micro_batches_is_refused(exact, kind, said):
    edit = Wrapped(kind(proxy(exact)).double())
    with pytest.raises(HarnessError, match=f"{kind.__name__} .*{said}"):
        edit.check(SITE, exact.image.blocks[3].attn.q)


def test_a_dropout_of_everything_is_refused(exact):
    layer = Dropping(proxy(exact))
    layer.drop["one"].p = 1.0
    with pytest.raises(HarnessError, match=r"drop\.one must be at least 0 and below 1"):
        Wrapped(layer)


def test_a_tree_names_every_matrix_and_norm_by_its_site(toy):
    ops = {**wrappable(toy.image), **wrappable(toy.text)}
    assert set(ops) <= set(toy.sites())
    assert len(ops) == 2 * 12 * 8
    root = tree({site: shown(op) for site, op in ops.items()})
    for site, op in ops.items():
        seen = root.get_submodule(site)
        assert torch.equal(seen.weight, op.weight)
        assert isinstance(seen, Proxy if ".ln" not in site else nn.LayerNorm)


def test_towers_without_numbers_take_layers_too(exact):
    """What is compared in numbers is left to a run."""

    def build(root):
        holder = root.get_submodule("image.blocks.3")
        holder.q = Scaled(holder.q)

    edits = wrapped_layers([without_numbers(exact).image], build, Scaled)
    assert list(edits) == [SITE]
