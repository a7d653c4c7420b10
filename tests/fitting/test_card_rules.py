"""The pretended card refuses and casts what PyTorch's own fake CUDA tensors do."""

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.fitting.pretended_card import MixedDevices, OnCard, card


def mixed():
    """Operations on a card's tensors and the processor's, by name."""
    there, here = torch.ones(3, 4, device="cuda"), torch.ones(3, 4)
    one, other = torch.ones((), device="cuda"), torch.ones(())
    at, on = torch.zeros(3, dtype=torch.long, device="cuda"), torch.zeros(3, dtype=torch.long)
    rows, columns = at[:, None], on[:, None]
    return {
        "sum": lambda: there + here,
        "sum with a number": lambda: there + other,
        "sum with a card's number": lambda: here + one,
        "in place": lambda: there.clone().add_(here),
        "in place, a number": lambda: there.clone().mul_(other),
        "on the processor, in place": lambda: here.clone().add_(there),
        "product": lambda: there @ here.T,
        "linear": lambda: F.linear(there, there, here[0, :3]),
        "joined": lambda: torch.cat([there, here]),
        "indexed": lambda: there[on],
        "indexed by the card's": lambda: here[at],
        "written": lambda: there.clone().index_put_((on,), there),
        "written from the processor": lambda: there.clone().index_put_((at,), here),
        "rows": lambda: F.embedding(at, there),
        "rows of the processor": lambda: F.embedding(at, here),
        "gathered": lambda: there.gather(1, rows),
        "gathered by the processor's": lambda: there.gather(1, columns),
        "chosen": lambda: torch.where(there > 0, there, other),
        "chosen between": lambda: torch.where(there > 0, there, here),
        "chosen by the processor": lambda: torch.where(here > 0, there, there),
        "loss": lambda: F.cross_entropy(there, at),
        "loss of other labels": lambda: F.cross_entropy(there, on),
        "norm": lambda: F.layer_norm(there, (4,), here[0], here[0]),
        "copied": lambda: there.copy_(here),
        "copied back": lambda: here.copy_(there),
        "moved": lambda: here.to(there) + there,
        "moved back": lambda: there.cpu() + here,
    }


def results(errors):
    """Where each result lies, or that it is refused."""
    found = {}
    for name, operation in mixed().items():
        try:
            found[name] = operation().device.type
        except errors:
            found[name] = "refused"
    return found


def test_tensors_of_two_devices_mix_where_pytorch_says_so(monkeypatch):
    with FakeTensorMode():
        expected = results(RuntimeError) | {"indexed by the card's": "refused"}  # CUDA is stricter
    with card(monkeypatch):
        found = results(MixedDevices)
    assert found == expected
    assert sorted(set(found.values())) == ["cpu", "cuda", "refused"]


def cast():
    """The dtypes that operations come to, by name and by what enters."""
    found = {}
    whole = torch.ones(2, 4, 8, device="cuda")
    weights, labels = torch.ones(8, 8, device="cuda"), torch.zeros(2, 4, device="cuda").long()
    pixels, kernels = torch.ones(1, 3, 8, 8, device="cuda"), torch.ones(4, 3, 4, 4, device="cuda")
    for dtype in (torch.bfloat16, torch.float32):
        x, p = whole.to(dtype), pixels.to(dtype)
        head = x[:, None]
        results = {
            "linear": F.linear(x, weights), "product": x @ weights, "reverse": weights @ x.mT,
            "bmm": torch.bmm(x, x.mT), "einsum": torch.einsum("bld,de->ble", x, weights),
            "addmm": torch.addmm(weights[0], x[0], weights), "vector": weights @ x[0, 0],
            "conv2d": F.conv2d(p, kernels), "attention":
            F.scaled_dot_product_attention(*[head] * 3),
            "norm": F.layer_norm(x, (8,), weights[0]), "unit": F.normalize(x), "length": x.norm(),
            "exp": x.exp(), "log": x.log(), "power": x**2, "square": x.square(), "sum": x.sum(-1),
            "softmax": x.softmax(-1), "logarithms": x.log_softmax(-1), "cosine":
            F.cosine_similarity(x, whole), "kl": F.kl_div(x, whole, reduction="sum"),
            "entropy": F.cross_entropy(x.mT, labels), "squares": F.mse_loss(x, whole),
            "gelu": F.gelu(x), "sigmoid": x.sigmoid(), "relu": x.relu(), "mean": x.mean(-1),
            "joined": torch.cat([x, whole]), "stacked": torch.stack([x, whole]), "add": x + whole,
            "times": 2 * x, "cumsum": x.cumsum(-1), "cdist": torch.cdist(x, x), "abs": x.abs(),
            "logsumexp": x.logsumexp(-1), "where": torch.where(x > 0, x, whole), "std": x.std(),
        }  # fmt: skip
        found |= {(name, dtype): each.dtype for name, each in results.items()}
    return found


def test_autocast_casts_what_pytorchs_casts(monkeypatch):
    with monkeypatch.context() as patch, FakeTensorMode():
        patch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
        patch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
        with torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
            expected = cast()
    with card(monkeypatch), torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
        assert cast() == expected


def test_a_generator_draws_on_its_own_device_alone(monkeypatch):
    with card(monkeypatch):
        there, here = (torch.Generator(each).manual_seed(1) for each in ("cuda", "cpu"))
        drawn = torch.rand(2, generator=there, device="cuda")
        assert drawn.is_cuda
        assert torch.equal(drawn.cpu(), torch.rand(2, generator=here))
        for generator, device in ((there, "cpu"), (here, "cuda")):
            with pytest.raises(MixedDevices, match="draws on"):
                torch.rand(2, generator=generator, device=device)
        with pytest.raises(MixedDevices, match="draws on"):
            drawn.uniform_(generator=here)


def test_values_are_read_as_from_a_card(monkeypatch):
    with card(monkeypatch):
        there = torch.arange(3, device="cuda")
        assert (int(there.sum()), there.tolist(), bool(there[1])) == (3, [0, 1, 2], True)
        assert there[[2, 0]].tolist() == [2, 0]
        assert not isinstance(there.cpu(), OnCard)
        assert there.cpu().numpy().tolist() == [0, 1, 2]
        with pytest.raises(TypeError, match="numpy"):
            there.numpy()
        with pytest.raises(RuntimeError, match="pin"):
            there.pin_memory()
