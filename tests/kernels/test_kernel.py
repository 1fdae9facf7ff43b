"""A kernel: what an author wrote, looked up once, and all that deliveries know of a penalty."""

import ast
import copy
import dataclasses
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

import regplug
from regplug.errors import PluginError
from regplug_builtins import L1, L2SP, GroupLasso


class Fourth(regplug.Penalty):
    """Writes its value, and nothing else."""

    separable = True

    def value(self, w):
        return w.pow(4).sum()


def attached(penalty):
    model = nn.Linear(3, 2, bias=False)
    session = regplug.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), [penalty])
    return session, model.weight


def stepped(session, w):
    w.grad = torch.zeros_like(w)
    session.optimizer.step()
    return w.detach().clone()


def test_a_kernel_is_made_once_for_an_attachment():
    made = []

    class Counted(L1):
        def _make_formula_kernel(self):
            made.append(super()._make_formula_kernel())
            return made[-1]

    penalty = Counted(0.1, delivery="step")
    for attachments in (1, 2):
        session, w = attached(penalty)
        for _ in range(3):
            stepped(session, w)
            session.metrics()
        assert len(made) == attachments
        session.detach()
    with pytest.raises(dataclasses.FrozenInstanceError):
        made[0].separable = False


def test_a_formula_written_between_two_attachments_is_the_one_that_acts():
    penalty = Fourth(0.5, delivery="step")
    session, w = attached(penalty)
    stepped(session, w)
    session.detach()
    penalty.gradient = torch.ones_like
    session, w = attached(penalty)
    start = w.detach().clone()
    torch.testing.assert_close(stepped(session, w), start - 0.05)


def test_what_a_subclass_says_at_the_end_of_its_attaching_counts():
    class Late(regplug.Penalty):
        separable = True

        @regplug.hookimpl
        def on_attach(self, session):
            super().on_attach(session)
            self.separable = False

        def value(self, w):
            return w.norm()

    session, w = attached(Late(0.5, delivery="step"))
    start = w.detach().clone()
    expected = start - 0.05 * start / start.norm()
    torch.testing.assert_close(stepped(session, w), expected)


@pytest.mark.parametrize(
    "again", [copy.copy, copy.deepcopy, lambda p: pickle.loads(pickle.dumps(p))]
)
@pytest.mark.parametrize("kind", [Fourth, L1, L2SP, GroupLasso])
def test_copies_of_an_attached_penalty_act_by_their_own_formulas(kind, again):
    penalty = kind(0.5, delivery="step")
    session, w = attached(penalty)
    stepped(session, w)
    twin = again(penalty)
    session.detach()
    twin._session_name = None
    twin.strength = 2.0
    session, w = attached(twin)
    start = w.detach().clone()
    w.grad = torch.zeros_like(w)
    fresh = kind(2.0, delivery="step")
    other = nn.Linear(3, 2, bias=False)
    with torch.no_grad():
        other.weight.copy_(start)
    theirs = regplug.attach(other, torch.optim.SGD(other.parameters(), lr=0.1), [fresh])
    assert torch.equal(stepped(session, w), stepped(theirs, other.weight))
    assert session.metrics() == theirs.metrics()


def test_a_backward_pass_names_the_plugin_and_the_step():
    class Breaks(Fourth):
        def gradient(self, w):
            raise OSError("gone")

    session, w = attached(Breaks(0.5, delivery="loss"))
    loss = session.loss((0 * w).sum())
    with pytest.raises(
        PluginError, match=r"breaks .*in the backward pass of on_loss at step 0: .*gone"
    ):
        loss.backward()


class OfL1(L1):
    def value(self, w):
        return w.pow(4).sum()


class Clamped(OfL1):
    def gradient(self, w):
        return super().gradient(w).clamp(-0.1, 0.1)


class AddsOnLists(OfL1):
    def add_gradients(self, gradients, weights, factor):
        super().add_gradients(gradients, weights, 2 * factor)


@pytest.mark.parametrize("kind", [Clamped, AddsOnLists])
def test_what_super_gives_is_of_the_value_that_acts(kind):
    """Not of the ancestor's, which that value has replaced."""
    session, w = attached(kind(0.5, delivery="step"))
    start = w.detach().clone()
    expected = 4 * start**3
    expected = expected.clamp(-0.1, 0.1) if kind is Clamped else 2 * expected
    torch.testing.assert_close(stepped(session, w), start - 0.1 * 0.5 * expected)


def test_formulas_belong_together_before_there_is_a_session():
    w = torch.tensor([[-2.0, 3.0]])
    penalty = OfL1(0.5)
    torch.testing.assert_close(penalty.gradient(w), 4 * w**3)
    torch.testing.assert_close(penalty.gradients([w], 0.5)[0], 2 * w**3)
    added = torch.ones_like(w)
    penalty.add_gradients([added], [w], 0.5)
    torch.testing.assert_close(added, 1 + 2 * w**3)


def test_deliveries_and_kernels_know_of_no_penalty():
    """Not even for types."""
    root = Path(regplug.__file__).parent
    files = [*root.glob("delivery/*.py"), *root.glob("kernels/*.py")]
    assert len(files) > 6
    for file in files:
        for node in ast.walk(ast.parse(file.read_text("utf8"))):
            if isinstance(node, ast.ImportFrom):
                assert node.module not in (
                    "regplug",
                    "regplug.penalty",
                    "regplug.bases.delivered",
                    "regplug.plugin",
                ), file


class Along(regplug.Penalty):
    """λ·Σ c·w, with a companion of a shape of its own."""

    separable = True
    given = torch.ones(())

    def companions(self, w):
        return [self.given]

    def value(self, w, c):
        return (w * c).sum()

    def gradient(self, w, c):
        return c * torch.ones_like(w)


@pytest.mark.parametrize("size", [2, 100])
@pytest.mark.parametrize("kernels", ["auto", "foreach"])
def test_a_companion_is_not_paired_with_elements_by_their_order_in_memory(size, kernels):
    penalty, model = Along(0.5, delivery="step"), nn.Linear(4 * size, 2 * size, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    with regplug.attach(model, optimizer, [penalty], kernels=kernels) as session:
        for shape in [(4 * size, 2 * size), (8 * size * size,), (1, 2 * size, 4 * size)]:
            penalty.given = torch.ones(shape)
            with pytest.raises(PluginError, match=r"companions\(w\) must be shaped like w"):
                stepped(session, model.weight)
        penalty.given = torch.ones(2 * size, 4 * size)
        start = model.weight.detach().clone()
        torch.testing.assert_close(stepped(session, model.weight), start - 0.5)
