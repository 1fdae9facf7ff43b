"""Accumulation and clipping reach what is in the loss, and not what is added at the step."""

import pytest
import torch

import regplug
from tests.delivery.written_out import (
    LR,
    Net,
    data,
    objective,
    proximal,
    spec,
    value,
    weights_of,
)
from tests.helpers.compare import close


@pytest.mark.parametrize(
    ("delivery", "divide", "times"),
    [("step", False, 1), ("step", True, 1), ("loss", False, 4), ("loss", True, 1)],
)
def test_accumulation_multiplies_what_is_in_the_loss_and_not_what_is_added_at_the_step(
    delivery, divide, times
):
    model, written = Net(), Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    session = regplug.attach(model, optimizer, [spec("l1", delivery)])
    x, y = data()
    for part in range(4):
        micro = slice(2 * part, 2 * part + 2)
        loss = session.loss(objective(model, x[micro], y[micro]))
        (loss / 4 if divide else loss).backward()
    optimizer.step()
    assert session.steps == 1
    factor = 1 if divide else 4  # the mean over micro-batches, or their sum
    (factor * objective(written, x, y)).backward()
    for ours, theirs in zip(model.parameters(), written.parameters(), strict=True):
        added = times * 0.3 * theirs.detach().sign() if theirs.ndim == 2 else 0
        close(ours.detach(), theirs.detach() - LR * (theirs.grad + added))


@pytest.mark.parametrize("delivery", ["step", "loss", "proximal"])
def test_clipping_weakens_what_is_in_the_loss_and_not_what_is_added_after_it(delivery):
    """A data gradient of norm over 1000 clipped to 1: an in-loss L1 acts at a thousandth."""
    model, written = Net(), Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    session = regplug.attach(model, optimizer, [spec("l1", delivery)])

    def loud(net):
        return 10_000 * objective(net, *data())

    session.loss(loud(model)).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()

    weights = weights_of(written)
    terms = sum(value(w, 0.3, 0.0) for w in weights) if delivery == "loss" else 0
    (loud(written) + terms).backward()
    norm = torch.nn.utils.clip_grad_norm_(written.parameters(), 1.0)
    assert norm > 1000
    for ours, theirs in zip(model.parameters(), written.parameters(), strict=True):
        w, g = theirs.detach(), theirs.grad
        if w.ndim == 2 and delivery == "proximal":
            expected = proximal(w - LR * g, LR, 0.3, 0)
        elif w.ndim == 2 and delivery == "step":
            expected = w - LR * (g + 0.3 * w.sign())
        else:
            expected = w - LR * g
        close(ours.detach(), expected)
