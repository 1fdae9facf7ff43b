"""Complex, sparse, empty and mixed parameters: acted on rightly, or refused by name."""

import pytest
import torch
from torch import nn

import regplug
from regplug.errors import RegplugError, UnsupportedError
from regplug_builtins import L1, L2
from tests.selection.named import names, train_once


class Complex(nn.Module):
    def __init__(self):
        super().__init__()
        self.spectrum = nn.Parameter(torch.ones(2, 2, dtype=torch.complex64))
        self.linear = nn.Linear(2, 2)

    def forward(self, x):
        return self.linear(x) + self.spectrum.real.sum()


@pytest.mark.parametrize("where", ["all", "spectrum", lambda *_: True])
def test_complex_parameters_are_refused_by_name(where):
    with pytest.raises(UnsupportedError, match=r"spectrum is torch.complex64.*'!spectrum'"):
        regplug.attach(Complex(), plugins=[L1(0.1, where=where)])


def test_complex_parameters_do_not_disturb_the_others():
    model = Complex()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    regplug.attach(model, optimizer, ["l1(0.1)", L2(0.1, where=["all", "!spectrum"])])
    assert names("weights", model) == ["linear.weight"]
    train_once(model, optimizer)
    assert torch.equal(model.spectrum, torch.ones(2, 2, dtype=torch.complex64))


@pytest.mark.parametrize("delivery", ["auto", "step", "loss"])
def test_sparse_gradients_are_refused_at_attach(delivery):
    model = nn.ModuleDict({"words": nn.Embedding(5, 3, sparse=True), "head": nn.Linear(3, 1)})
    message = r"words.weight has sparse gradients.*sparse=False.*proximal.*'!words.weight'"
    with pytest.raises(UnsupportedError, match=message):
        regplug.attach(model, plugins=[L1(0.1, delivery=delivery)])
    regplug.attach(model, plugins=[L1(0.1, delivery=delivery, where=["weights", "!words.*"])])


def test_sparse_gradients_that_only_show_in_the_step_are_named():
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Parameter(torch.ones(5, 3))

        def forward(self, tokens):
            return nn.functional.embedding(tokens, self.table, sparse=True)

    model = Functional()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    regplug.attach(model, optimizer, ["l1(0.1)"])
    model(torch.tensor([1])).sum().backward()
    with pytest.raises(RegplugError, match=r"l1.*a gradient is sparse"):
        optimizer.step()


@pytest.mark.parametrize(
    "kind", [torch.optim.SGD, torch.optim.Adagrad], ids=lambda kind: kind.__name__
)
@pytest.mark.parametrize("rows", [5, 100_000])
def test_sparse_gradients_work_with_the_proximal_operator(kind, rows):
    model = nn.Embedding(rows, 3, sparse=True)
    optimizer = kind(model.parameters(), lr=0.1)
    before = model.weight.detach().clone()
    regplug.attach(model, optimizer, [L1(0.5, delivery="proximal")])
    with torch.sparse.check_sparse_tensor_invariants():
        model(torch.tensor([1])).sum().backward()
        optimizer.step()
    # A gradient of 1 and an effective step of 0.1, under Adagrad as well in its first step.
    moved = before[1] - 0.1
    expected = moved.sign() * (moved.abs() - 0.05).clamp(min=0)
    torch.testing.assert_close(model.weight[1].detach(), expected)
    if kind is torch.optim.Adagrad:  # rows that never had a gradient
        assert torch.equal(model.weight[2:], before[2:])


class Mixed(nn.Module):
    def __init__(self):
        super().__init__()
        dtypes = [torch.float32, torch.bfloat16, torch.float64, torch.float16]
        self.layers = nn.ModuleList([nn.Linear(2, 2, bias=False).to(dtype) for dtype in dtypes])

    def forward(self, x):
        for layer in self.layers:
            x = layer(x.to(layer.weight.dtype))
        return x


@pytest.mark.parametrize("delivery", ["step", "loss", "proximal"])
@pytest.mark.parametrize("name", ["l1", "l2", "elastic_net"])
def test_mixed_dtypes_in_one_model(delivery, name):
    model = Mixed()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    strengths = "0.5, 0.25" if name == "elastic_net" else "0.5"
    session = regplug.attach(model, optimizer, [f"{name}({strengths}, delivery='{delivery}')"])
    before = [layer.weight.detach().clone().double() for layer in model.layers]
    absolute = sum(w.abs().sum() for w in before).item()
    squares = sum(w.square().sum() for w in before).item()
    value = {"l1": absolute / 2, "l2": squares / 2, "elastic_net": absolute / 2 + squares / 4}[name]
    assert session.metrics()[f"{name}/value"] == pytest.approx(value, rel=1e-5)
    train_once(model, optimizer, session)
    for layer, w in zip(model.layers, before, strict=True):
        l1, l2 = {"l1": (0.5, 0), "l2": (0, 0.5), "elastic_net": (0.5, 0.25)}[name]
        if delivery == "proximal":
            expected = w.sign() * (w.abs() - 0.5 * l1).clamp(min=0) / (1 + 2 * 0.5 * l2)
        else:
            expected = w - 0.5 * (l1 * w.sign() + 2 * l2 * w)
        atol = 4 * torch.finfo(layer.weight.dtype).eps
        torch.testing.assert_close(layer.weight.detach().double(), expected, rtol=0, atol=atol)


def test_empty_parameters_are_no_matter():
    model = nn.Linear(2, 2)
    model.empty = nn.Parameter(torch.zeros(0, 3))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    specs = ["l1(0.1)", "l2(0.1, delivery='loss')", "elastic_net(0.1, 0.1, delivery='proximal')"]
    session = regplug.attach(model, optimizer, [*specs, "weight_decay(0.1)"])
    session.loss(model(torch.ones(1, 2)).sum() + model.empty.sum()).backward()
    optimizer.step()
    assert session.steps == 1
    assert session.metrics()["l1/zeros"] == 0
