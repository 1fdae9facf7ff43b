"""Rates that have no effect are told: recurrent layers that stand alone, factors of nothing."""

import warnings

import pytest
import torch
from torch import nn

import regplug

KINDS = [nn.RNN, nn.LSTM, nn.GRU]
SPECS = ["dropout(0.5)", "dropout(linear(0.4, 0.5, steps=4))"]


def has_effect(layer: nn.Module) -> bool:
    """Whether two passes in training mode differ."""
    x = torch.ones(6, 3, 4)
    torch.manual_seed(0)
    return not torch.equal(layer(x)[0], layer(x)[0])


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("settings", [{}, {"bidirectional": True}, {"batch_first": True}])
def test_a_recurrent_layer_that_stands_alone_is_told(kind, settings, spec):
    model = nn.Sequential(kind(4, 4, **settings))
    with pytest.warns(UserWarning, match=r"dropout has no effect: 0\.dropout .*num_layers=2") as w:
        session = regplug.attach(model, plugins=[spec])
    assert len(w) == 1
    assert not has_effect(model[0])
    described = session.describe()
    assert "1 dropout rate, without effect" in described
    assert "dropout: without effect: 0.dropout (torch drops between the layers" in described
    session.detach()
    assert model[0].dropout == 0.0


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_stack_of_layers_has_an_effect_and_nothing_is_told(kind, spec):
    model = nn.Sequential(kind(4, 4, num_layers=2))
    session = regplug.attach(model, plugins=[spec])
    assert has_effect(model[0])
    assert "1 dropout rate, after_step" in session.describe()
    assert "without effect" not in session.describe()


def test_beside_rates_that_have_an_effect_it_is_in_the_description_alone():
    model = nn.ModuleDict(
        {"encoder": nn.LSTM(4, 4), "decoder": nn.GRU(4, 4), "drop": nn.Dropout(0.1)}
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        session = regplug.attach(model, plugins=["dropout(0.5)"])
    described = session.describe()
    assert "3 dropout rates, 2 of them without effect, after_step" in described
    assert "without effect: encoder.dropout, decoder.dropout (torch drops" in described


def test_a_layer_with_a_forward_of_its_own_is_taken_at_its_word():
    class Dropping(nn.LSTM):
        def forward(self, x):
            return (nn.functional.dropout(super().forward(x)[0], self.dropout, self.training),)

    model = nn.Sequential(Dropping(4, 4))
    session = regplug.attach(model, plugins=["dropout(0.5)"])
    assert has_effect(model[0])
    assert "without effect" not in session.describe()


def test_a_factor_of_rates_that_are_all_nothing_is_told():
    model = nn.Sequential(nn.Dropout(0.0), nn.LSTM(4, 4, 2))
    message = r"no effect: 0\.p, 1\.dropout \(relative=True multiplies its own rate, which is 0"
    with pytest.warns(UserWarning, match=message):
        session = regplug.attach(model, plugins=["dropout(0.5, relative=True)"])
    assert "2 dropout rates, without effect" in session.describe()


def test_a_factor_of_some_rates_that_are_nothing_is_in_the_description():
    model = nn.Sequential(nn.Dropout(0.0), nn.Dropout(0.5))
    session = regplug.attach(model, plugins=["dropout(0.5, relative=True)"])
    assert "2 dropout rates, 1 of them without effect" in session.describe()
    assert "without effect: 0.p (relative=True" in session.describe()
