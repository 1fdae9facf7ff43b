"""What a program trains is found before it trains it, or at its first step."""

import gc

import pytest
import torch
from torch import nn

from regplug.finding import search
from regplug.finding.finder import Finder
from regplug.finding.naming import class_names, title


@pytest.fixture(autouse=True)
def alone():
    gc.freeze()  # optimizers of other tests


class Told:
    """Notes what a finder tells, and knows each optimizer from then on."""

    def __init__(self):
        self.found, self.stepped = [], []
        self.finder = Finder(self.on_found, self.stepped.append)

    def on_found(self, optimizers):
        self.found += optimizers
        for optimizer in optimizers:
            self.finder.known.add(optimizer)


def test_an_optimizer_is_found_before_a_forward_of_what_it_trains():
    told = Told()
    with told.finder:
        model = nn.Linear(2, 1)
        model(torch.ones(1, 2))
        assert told.found == []
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model(torch.ones(1, 2))
        assert told.found == [optimizer]
        assert search.model_of(optimizer, told.finder.called_now()) is model
        optimizer.step()
    assert told.stepped == [optimizer]
    optimizer.step()
    assert told.stepped == [optimizer]


def test_one_of_bare_tensors_is_told_of_at_its_step():
    told = Told()
    w = torch.ones(2, requires_grad=True)
    with told.finder:
        optimizer = torch.optim.SGD([w], lr=0.1)
        w.sum().backward()
        optimizer.step()
    assert told.found == []
    assert told.stepped == [optimizer]
    assert title(search.model_of(optimizer), optimizer) == "param_0 with SGD"


def test_a_second_model_is_found_too():
    told = Told()
    with told.finder:
        for _ in range(2):
            model = nn.Sequential(nn.Linear(2, 1))
            optimizer = torch.optim.Adam(model.parameters())
            model(torch.ones(1, 2)).sum().backward()
            optimizer.step()
    assert len(told.found) == 2
    assert class_names(model) == ["Sequential"]
