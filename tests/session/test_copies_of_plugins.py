"""A copy of a penalty that was attached has a formula of its own."""

import copy
import pickle

import pytest
import torch
from torch import nn

import regplug
from regplug import Penalty, hookimpl

F64 = torch.float64


class Power(Penalty):
    """λ·Σ|w|ᵏ, with an ``on_attach`` that leaves its ancestors' out."""

    separable = True

    def __init__(self, power, strength=1.0, **options):
        super().__init__(strength, where="all", **options)
        self.power = power

    @hookimpl
    def on_attach(self, session):
        self.seen = True

    def value(self, w):
        return w.abs().pow(self.power).sum()


class Stated(Power):
    """Says itself what is copied."""

    def __getstate__(self):
        return dict(vars(self))


class Slotted(Power):
    """Keeps some of its state out of its ``__dict__``."""

    __slots__ = ("beside",)

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.beside = "slot"


def rig(plugin):
    model = nn.Linear(3, 2, bias=False, dtype=F64)
    nn.init.constant_(model.weight, 2.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return model, optimizer, regplug.attach(model, optimizer, [plugin])


def stepped(model, optimizer, session):
    """Return what a step makes of the weights, which no loss of the loop's moves."""
    optimizer.zero_grad()
    session.loss(0.0 * model(torch.ones(1, 3, dtype=F64)).sum()).backward()
    optimizer.step()
    return model.weight.detach().clone()


def full(number):
    return torch.full((2, 3), number, dtype=F64)


COPIES = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    **{
        f"pickle {protocol}": lambda plugin, p=protocol: pickle.loads(pickle.dumps(plugin, p))
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1)
    },
}


@pytest.mark.parametrize("delivery", ["loss", "step"])
@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("kind", [Power, Stated, Slotted])
def test_a_copy_acts_by_its_own_formula(kind, copied, delivery):
    if kind is Slotted and copied in (COPIES["pickle 0"], COPIES["pickle 1"]):
        pytest.skip("Python's first protocols know no slots")
    plugin = kind(2, delivery=delivery)
    model, optimizer, session = rig(plugin)
    torch.testing.assert_close(stepped(model, optimizer, session), full(2 - 0.1 * 4))
    session.detach()
    other = copied(plugin)
    other.power = 3  # |w|³, whose derivative at 2 is 12
    torch.testing.assert_close(stepped(*rig(other)), full(2 - 0.1 * 12))
    assert (other.seen, other.strength) == (True, 1.0)
    assert kind is not Slotted or other.beside == "slot"


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("spec", ["l1(0.5)", "group_lasso(0.5)", "elastic_net(0.5, 0.5)"])
def test_a_copy_that_is_made_while_the_plugin_is_attached_has_no_part_in_it(spec, copied):
    model, optimizer, session = rig(spec)
    first = stepped(model, optimizer, session)
    assert first.max() < 2.0
    (plugin,) = session.plugins
    other = copied(plugin)
    assert "_formula_kernel" in vars(plugin)
    assert "_formula_kernel" not in vars(other)
    assert other.strengths() == plugin.strengths()
    second = stepped(model, optimizer, session)
    assert not torch.equal(first, second)
