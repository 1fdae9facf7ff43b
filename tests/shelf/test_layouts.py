"""Rows are outputs and columns inputs in the weights of every kind of layer.

The oracle takes a layer as the linear map that it is: its dense matrix, found by sending unit
pulses through it, tells which weight leads to which output.
"""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize, prune

import regplug
from regplug_builtins import GroupLasso, MaxNorm, Orthogonal, SpectralNorm, UnitNorm

F64 = torch.float64


class OfTransformers(nn.Module):
    """A linear layer as GPT-2 has it: ``(in, out)``."""

    def __init__(self, nf, nx):
        super().__init__()
        self.nf, self.nx = nf, nx
        self.weight = nn.Parameter(torch.randn(nx, nf))
        self.bias = nn.Parameter(torch.zeros(nf))

    def forward(self, x):
        return torch.addmm(self.bias, x, self.weight)


Conv1D = type("Conv1D", (OfTransformers,), {})

INPUTS = {
    "linear": (lambda: nn.Linear(4, 6), (4,)),
    "transformers": (lambda: Conv1D(6, 4), (4,)),
    "transformers, renamed": (lambda: OfTransformers(6, 4), (4,)),
    "convolution": (lambda: nn.Conv2d(4, 6, 3), (4, 3, 3)),
    "grouped": (lambda: nn.Conv2d(4, 6, 3, groups=2), (4, 3, 3)),
    "grouped 1d": (lambda: nn.Conv1d(6, 9, 2, groups=3), (6, 2)),
    "depthwise": (lambda: nn.Conv2d(4, 8, (3, 2), groups=4), (4, 3, 2)),
    "transposed 1d": (lambda: nn.ConvTranspose1d(4, 6, 3), (4, 1)),
    "transposed": (lambda: nn.ConvTranspose2d(4, 6, (3, 2)), (4, 1, 1)),
    "transposed 3d": (lambda: nn.ConvTranspose3d(2, 3, 2), (2, 1, 1, 1)),
    "transposed square": (lambda: nn.ConvTranspose2d(4, 4, 4), (4, 1, 1)),
    "transposed and grouped": (lambda: nn.ConvTranspose2d(4, 6, 3, groups=2), (4, 1, 1)),
    "transposed depthwise": (lambda: nn.ConvTranspose1d(3, 6, 2, groups=3), (3, 1)),
}


def layer_of(kind):
    make, shape = INPUTS[kind]
    torch.manual_seed(0)
    layer = make().double()
    nn.init.zeros_(layer.bias)
    return layer, shape


def ends(layer, shape):
    """Return for each weight its output and its input channel, found by asking the layer."""
    layer = copy.deepcopy(layer)
    marks = torch.arange(1, layer.weight.numel() + 1, dtype=F64).view_as(layer.weight)
    with torch.no_grad():
        layer.weight.copy_(marks)
        outputs = torch.full((marks.numel(),), -1)
        inputs = torch.full((marks.numel(),), -1)
        size = math.prod(shape)
        for place in range(size):
            pulse = torch.zeros(size, dtype=F64)
            pulse[place] = 1
            found = layer(pulse.view(1, *shape))[0]
            for channel, values in enumerate(found):
                hit = values.flatten()
                hit = hit[hit != 0].round().long() - 1
                outputs[hit] = channel
                inputs[hit] = place // math.prod(shape[1:])
    assert int(torch.stack([outputs, inputs]).min()) >= 0
    return outputs.view_as(marks), inputs.view_as(marks)


def members(layer, shape, groups):
    """Return a mask for each row, or column."""
    end = ends(layer, shape)[0 if groups == "rows" else 1]
    return [end == place for place in range(int(end.max()) + 1)]


def matrix(layer, shape, groups):
    """Return a matrix with a row for each group, its weights in the order that they are kept."""
    return torch.stack([layer.weight.detach()[mask] for mask in members(layer, shape, groups)])


def after_a_step(layer, plugin, optimizer=torch.optim.SGD):
    updates = optimizer(layer.parameters(), lr=0.1)
    with regplug.attach(layer, updates, [plugin]) as session:
        for p in layer.parameters():
            p.grad = torch.zeros_like(p) if optimizer is torch.optim.SGD else torch.ones_like(p)
        updates.step()
        figures = session.metrics()
    return layer.weight.detach(), figures


GROUPS = ("rows", "columns")


@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("kind", INPUTS)
def test_norms_are_those_of_outputs_or_inputs(kind, groups):
    layer, shape = layer_of(kind)
    start = layer.weight.detach().clone()
    masks = members(layer, shape, groups)
    expected, unit, value = start.clone(), start.clone(), 0.0
    limit = sorted(float(start[mask].norm()) for mask in masks)[len(masks) // 2] * 0.99
    for mask in masks:
        norm = float(start[mask].norm())
        expected[mask] *= min(1.0, limit / norm)
        unit[mask] /= norm
        value += math.sqrt(int(mask.sum())) * norm
    found, _ = after_a_step(layer, MaxNorm(limit, groups=groups))
    torch.testing.assert_close(found, expected)
    layer, _ = layer_of(kind)
    found, _ = after_a_step(layer, UnitNorm(groups=groups))
    torch.testing.assert_close(found, unit)
    layer, _ = layer_of(kind)
    session = regplug.attach(layer, plugins=[GroupLasso(0.5, groups=groups, delivery="loss")])
    assert session.metrics()["group_lasso/value"] == pytest.approx(0.5 * value)
    assert session.loss(torch.zeros((), dtype=F64)).item() == pytest.approx(0.5 * value)


@pytest.mark.parametrize("delivery", ["step", "loss", "proximal"])
@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("kind", INPUTS)
def test_the_group_lasso_pulls_whole_units(kind, groups, delivery):
    layer, shape = layer_of(kind)
    start = layer.weight.detach().clone()
    masks = members(layer, shape, groups)
    root = math.sqrt(int(masks[0].sum()))
    strength = 10 * sorted(float(start[mask].norm()) / root for mask in masks)[len(masks) // 2]
    expected = start.clone()
    for mask in masks:
        norm = float(start[mask].norm())
        shrunk = 1 - 0.1 * strength * root / norm
        expected[mask] *= max(shrunk, 0) if delivery == "proximal" else shrunk
    updates = torch.optim.SGD(layer.parameters(), lr=0.1)
    plugin = GroupLasso(strength, groups=groups, delivery=delivery)
    with regplug.attach(layer, updates, [plugin, "l2(0.0)"]) as session:
        session.loss(sum((0 * p).sum() for p in layer.parameters())).backward()
        updates.step()
    torch.testing.assert_close(layer.weight.detach(), expected)
    if delivery == "proximal" and len(masks) > 2:
        assert any(not layer.weight[mask].any() for mask in masks)
        assert any(layer.weight[mask].any() for mask in masks)


@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("kind", INPUTS)
def test_steps_for_each_element_go_with_their_weights(kind, groups):
    """Under RMSprop: each group is what the same group alone, as a linear layer, becomes."""
    layer, shape = layer_of(kind)
    masks = members(layer, shape, groups)
    slope = torch.randn(layer.weight.shape, dtype=F64)
    start = layer.weight.detach().clone()
    settings = {"lr": 0.05, "alpha": 0.5}

    def trained(model, weight, gradient, plugin):
        updates = torch.optim.RMSprop([weight], **settings)
        with regplug.attach(model, updates, [plugin]):
            for _ in range(3):
                weight.grad = gradient.clone()
                updates.step()
        return weight.detach()

    plugin = GroupLasso(0.02, groups=groups, delivery="proximal")
    found = trained(layer, layer.weight, slope, plugin)
    for mask in masks:
        alone = nn.Linear(int(mask.sum()), 1, bias=False).double()
        with torch.no_grad():
            alone.weight.copy_(start[mask])
        single = GroupLasso(0.02, delivery="proximal")
        expected = trained(alone, alone.weight, slope[mask][None], single)
        torch.testing.assert_close(found[mask], expected[0])


@pytest.mark.parametrize("delivery", ["step", "loss"])
@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("kind", INPUTS)
def test_orthogonality_is_that_of_outputs_or_inputs(kind, groups, delivery):
    layer, shape = layer_of(kind)
    masks = members(layer, shape, groups)
    # Within a group weights are met in the order in which they are kept, so they correspond.
    leaf = layer.weight.detach().clone().requires_grad_()
    rows = torch.stack([leaf[mask] for mask in masks])
    units = rows / rows.norm(dim=1, keepdim=True)
    pairs = [abs(units[i] @ units[j]) for i in range(len(rows)) for j in range(i)]
    value = sum(pairs) / len(pairs)
    (gradient,) = torch.autograd.grad(value, leaf)
    updates = torch.optim.SGD(layer.parameters(), lr=0.1)
    plugin = Orthogonal(0.5, groups=groups, delivery=delivery)
    with regplug.attach(layer, updates, [plugin]) as session:
        assert session.metrics()["orthogonal/value"] == pytest.approx(0.5 * value.item())
        session.loss(sum((0 * p).sum() for p in layer.parameters())).backward()
        updates.step()
    torch.testing.assert_close(layer.weight.detach(), leaf.detach() - 0.05 * gradient)


@pytest.mark.parametrize("delivery", ["step", "loss"])
@pytest.mark.parametrize("kind", INPUTS)
def test_the_spectral_norm_is_that_of_the_matrix_of_outputs(kind, delivery):
    layer, shape = layer_of(kind)
    masks = members(layer, shape, "rows")
    leaf = layer.weight.detach().clone().requires_grad_()
    value = torch.linalg.svdvals(torch.stack([leaf[mask] for mask in masks]))[0].square()
    (gradient,) = torch.autograd.grad(value, leaf)
    updates = torch.optim.SGD(layer.parameters(), lr=0.1)
    with regplug.attach(layer, updates, [SpectralNorm(0.5, delivery=delivery)]) as session:
        assert session.metrics()["spectral_norm/value"] == pytest.approx(0.5 * value.item())
        session.loss(sum((0 * p).sum() for p in layer.parameters())).backward()
        updates.step()
    torch.testing.assert_close(layer.weight.detach(), leaf.detach() - 0.05 * gradient)


def test_several_penalties_of_one_weight_each_have_their_own_groups():
    layer, shape = layer_of("transposed and grouped")
    start = layer.weight.detach().clone()
    gradient = torch.zeros_like(start)
    for groups in GROUPS:
        for mask in members(layer, shape, groups):
            gradient[mask] += math.sqrt(int(mask.sum())) * start[mask] / start[mask].norm()
    for delivery in ("loss", "step"):
        layer, _ = layer_of("transposed and grouped")
        plugins = [GroupLasso(1.0, groups=g, delivery=delivery, name=g) for g in GROUPS]
        updates = torch.optim.SGD(layer.parameters(), lr=0.1)
        with regplug.attach(layer, updates, plugins) as session:
            session.loss(sum((0 * p).sum() for p in layer.parameters())).backward()
            updates.step()
        torch.testing.assert_close(layer.weight.detach(), start - 0.1 * gradient)


def test_a_gradient_that_is_differentiated_in_turn_has_the_layout_of_its_weight():
    layer, shape = layer_of("transposed and grouped")
    session = regplug.attach(layer, plugins=[GroupLasso(1.0, delivery="loss")])
    loss = session.loss(torch.zeros((), dtype=F64))
    (first,) = torch.autograd.grad(loss, layer.weight, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), layer.weight)
    leaf = layer.weight.detach().clone().requires_grad_()
    masks = members(layer, shape, "rows")
    value = sum(leaf[mask].norm() * math.sqrt(int(mask.sum())) for mask in masks)
    (ours,) = torch.autograd.grad(value, leaf, create_graph=True)
    torch.testing.assert_close(first.detach(), ours.detach())
    (expected,) = torch.autograd.grad(ours.square().sum(), leaf)
    torch.testing.assert_close(second, expected)


class Same(nn.Module):
    def forward(self, w):
        return w.clone()


@pytest.mark.parametrize("how", ["parametrized", "pruned", "lazy", "subclass"])
def test_whatever_has_become_of_a_layer_its_rows_are_outputs(how):
    class Upsampling(nn.ConvTranspose2d):
        pass

    kind = Upsampling if how == "subclass" else nn.ConvTranspose2d
    layer = nn.LazyConvTranspose2d(6, 3) if how == "lazy" else kind(4, 6, 3)
    if how == "parametrized":
        parametrize.register_parametrization(layer, "weight", Same())
    elif how == "pruned":
        prune.identity(layer, "weight")
    layer(torch.zeros(1, 4, 2, 2))
    updates = torch.optim.SGD(layer.parameters(), lr=0.1)
    with regplug.attach(layer, updates, ["unit_norm", "group_lasso(1.0)"]) as session:
        layer(torch.zeros(1, 4, 2, 2)).sum().backward()
        updates.step()
        layer(torch.zeros(1, 4, 2, 2))
        assert session.metrics()["group_lasso/value"] == pytest.approx(6 * math.sqrt(36), rel=1e-5)
    norms = torch.stack([layer.weight.detach()[:, j].norm() for j in range(6)])
    torch.testing.assert_close(norms, torch.ones(6))


class FirstDimension(regplug.Penalty):
    """A stranger's penalty, which is given weights as they are kept."""

    def value(self, w):
        return w.flatten(1).norm(dim=1).sum()


class OfOutputs(FirstDimension):
    orientation = "rows"


def test_a_strangers_penalty_is_given_what_it_asks_for():
    layer, _ = layer_of("transposed")
    session = regplug.attach(layer, plugins=[FirstDimension(1.0), OfOutputs(1.0)])
    w = layer.weight.detach()
    figures = session.metrics()
    assert figures["first_dimension/value"] == pytest.approx(sum(float(row.norm()) for row in w))
    assert figures["of_outputs/value"] == pytest.approx(
        sum(float(w[:, j].norm()) for j in range(6))
    )


@pytest.mark.parametrize(
    ("layer", "count"),
    [
        (nn.Embedding(7, 3), 7),
        (nn.Bilinear(2, 3, 5), 5),
        (nn.MultiheadAttention(4, 2), 12 + 4),
        (nn.GRU(3, 2), 6 + 6),
    ],
)
def test_other_layers_have_a_row_for_each_first_place(layer, count):
    updates = torch.optim.SGD(layer.parameters(), lr=0.1)
    with regplug.attach(layer, updates, ["unit_norm"]):
        for p in layer.parameters():
            p.grad = torch.zeros_like(p)
        updates.step()
    weights = [p for p in layer.parameters() if p.ndim > 1]
    assert sum(float(p.detach().square().sum()) for p in weights) == pytest.approx(count, rel=1e-5)
