"""Pruned and parametrized weights: originals are acted on, and what is in use is what is shown."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import regplug
from regplug.report.recorder import Recorder
from regplug_builtins import L1, L2SP, GroupLasso, MaxNorm, NonNegative

F64 = torch.float64


class Lower(nn.Module):
    """A stranger's parametrization."""

    def forward(self, w):
        return w.tril()


def pruned():
    layer = nn.Linear(4, 6).double()
    prune.l1_unstructured(layer, "weight", amount=0.5)
    return layer


def pruned_twice():
    layer = pruned()
    prune.random_unstructured(layer, "weight", amount=0.5)
    return layer


def parametrized():
    layer = nn.Linear(5, 5).double()
    parametrize.register_parametrization(layer, "weight", Lower())
    return layer


def weight_normed():
    return parametrizations.weight_norm(nn.Linear(4, 6).double())


def weight_normed_of_old():
    with pytest.warns(FutureWarning):
        return nn.utils.weight_norm(nn.Linear(4, 6).double())


def spectrally_normed_of_old():
    return nn.utils.spectral_norm(nn.Linear(4, 6).double())


def spectrally_normed():
    return parametrizations.spectral_norm(nn.Linear(4, 6).double())


def weight_of(layer):
    """The weight that a forward pass in evaluation mode computes with."""
    layer.eval()
    with torch.no_grad():
        found = (layer(torch.eye(layer.in_features, dtype=F64)) - layer.bias).T
    layer.train()
    return found


KINDS = [
    pruned,
    pruned_twice,
    parametrized,
    weight_normed,
    weight_normed_of_old,
    spectrally_normed,
    spectrally_normed_of_old,
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("penalty", [L1, GroupLasso])
def test_metrics_are_of_the_weight_in_use(kind, penalty):
    model = nn.ModuleList([kind(), nn.Linear(2, 2).double()])
    with torch.no_grad():
        model[1].weight[0] = 0
    session = regplug.attach(model, plugins=[penalty(0.5), "non_negative"])
    weights = [weight_of(model[0]), model[1].weight.detach()]
    before = copy.deepcopy(model.state_dict())
    found = session.metrics()
    share = sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)
    assert found[f"{session.plugins[0].name}/zeros"] == pytest.approx(share, abs=1e-15)
    assert found["non_negative/zeros"] == pytest.approx(share, abs=1e-15)
    expected = 0.5 * sum(penalty(1.0).value(w).item() for w in weights)
    assert found[f"{session.plugins[0].name}/value"] == pytest.approx(expected, rel=1e-12)
    # A look changes nothing: no power iteration, no mode.
    assert all(torch.equal(model.state_dict()[name], w) for name, w in before.items())
    assert all(part.training for part in model.modules())


def test_a_half_pruned_layer_has_half_its_weights_at_zero():
    layer = pruned()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    session = regplug.attach(layer, optimizer, ["l1(1e-3)", "max_norm(3)"])
    for _ in range(2):
        assert session.metrics()["l1/zeros"] == session.metrics()["max_norm/zeros"] == 0.5
        layer(torch.randn(3, 4, dtype=F64)).sum().backward()
        optimizer.step()


@pytest.mark.parametrize("kind", KINDS)
def test_originals_are_what_is_acted_on(kind):
    layer = kind()
    originals = [p for p in layer.parameters() if p.ndim == 2]
    starts = [p.detach().clone() for p in originals]
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    regplug.attach(layer, optimizer, [L1(0.01, delivery="step")])
    for p in layer.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for p, start in zip(originals, starts, strict=True):
        torch.testing.assert_close(p.detach(), start - 0.001 * start.sign())


@pytest.mark.parametrize("plugin", [L1(0.1), MaxNorm(3), NonNegative(), "weight_decay(0.1)"])
def test_describe_says_that_originals_are_meant(plugin):
    model = nn.Sequential(pruned(), nn.Linear(6, 6).double())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with regplug.attach(model, optimizer, [plugin]) as session:
        told = session.describe()
    assert "acts on the originals of pruned weights (0.weight_orig)" in told
    assert "metrics are of the weights in use" in told


@pytest.mark.parametrize(
    ("kind", "how"),
    [
        (parametrized, "parametrized weights (weight)"),
        (weight_normed, "parametrized weights (weight)"),
        (weight_normed_of_old, "normalized weights (weight_g, weight_v)"),
        (spectrally_normed_of_old, "normalized weights (weight_orig)"),
    ],
)
def test_describe_says_how_a_weight_is_made(kind, how):
    assert f"originals of {how}" in regplug.attach(kind(), plugins=["l1(0.1)"]).describe()


def test_nothing_is_said_of_weights_that_are_used_themselves():
    assert "original" not in regplug.attach(nn.Linear(2, 2), plugins=["l1(0.1)"]).describe()


def test_anchored_penalties_are_valued_where_their_anchors_are():
    layer = pruned()
    session = regplug.attach(layer, plugins=[L2SP(0.5)])
    with torch.no_grad():
        layer.weight_orig += 3.0
    assert session.metrics()["l2_sp/value"] == pytest.approx(0.5 * 9 * 24)
    assert session.metrics()["l2_sp/zeros"] == 0.5


def test_a_frozen_original_stays_out_of_metrics():
    model = nn.ModuleList([pruned(), nn.Linear(2, 2)])
    model[0].weight_orig.requires_grad_(False)
    assert regplug.attach(model, plugins=["l1(0.1)"]).metrics()["l1/zeros"] == 0


def test_a_recorder_writes_down_what_is_in_use():
    layer = pruned()
    recorder = Recorder(regplug.attach(layer, plugins=["l1(0.1)"]))
    (row,) = recorder.layers
    assert (row.layer, row.weights, row.zeros) == ("weight", 24, 12)
    assert row.norm == pytest.approx(weight_of(layer).norm().item())
    assert sum(recorder.before.counts) == 24


@pytest.mark.parametrize(
    "make", [torch.jit.script, lambda m: torch.jit.trace(m, torch.ones(1, 2, 4))]
)
def test_a_scripted_model_is_looked_at_all_the_same(make):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated
        model = make(nn.ConvTranspose1d(2, 3, 2))
    session = regplug.attach(model, plugins=["group_lasso(0.1)"])
    w = model.weight.detach()
    expected = 0.1 * 2 * sum(float(w[:, j].norm()) for j in range(3))
    assert session.metrics()["group_lasso/value"] == pytest.approx(expected)
    assert "covers weight" in session.describe()
