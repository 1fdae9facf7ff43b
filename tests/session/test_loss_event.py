"""What the loss event takes and returns, and when strengths begin to move."""

import pytest
import torch
from torch import nn

import regplug
from regplug import hookimpl
from regplug.errors import (
    SpecError,
)
from regplug.schedules import linear
from tests.session.small_loop import network, train


def test_loss_is_a_scalar_of_the_same_dtype():
    model = nn.Linear(2, 2).double()
    session = regplug.attach(model, plugins=["l2(0.5)"])
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        total = session.loss(torch.zeros((), dtype=dtype))
        assert total.dtype == dtype
        assert total.shape == ()
        expected = 0.5 * model.weight.square().sum()
        torch.testing.assert_close(total, expected.to(dtype))


@pytest.mark.parametrize("loss", [1.0, None, torch.zeros(3), torch.zeros(1, 1)])
def test_loss_that_is_no_scalar_is_refused(loss):
    session = regplug.attach(network(), plugins=["l2(0.5)"])
    with pytest.raises(SpecError, match="loss must be a 0-d tensor, got"):
        session.loss(loss)


def test_steps_count_for_schedules_from_the_first_step_on():
    seen = []

    class Seen(regplug.Plugin):
        strength = regplug.Scheduled()

        def __init__(self):
            self.strength = linear(0.0, 1.0, steps=4)

        @hookimpl
        def on_gradients(self, session):
            seen.append((session.steps, self.strength))

    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    regplug.attach(model, optimizer, [Seen()])
    train(model, optimizer, 6)
    assert seen == [(0, 0.0), (1, 0.25), (2, 0.5), (3, 0.75), (4, 1.0), (5, 1.0)]
