"""What a table remembers of tensors is never what they were before."""

import importlib.util

import pytest
import torch
from torch import nn

import regplug
from regplug.kernels.tables import Table
from regplug_builtins import L2

SWAPS = [
    (torch.float16, torch.bfloat16),
    (torch.bfloat16, torch.float16),
    (torch.float64, torch.int64),
]


@pytest.mark.parametrize(("before", "after"), SWAPS, ids=str)
@pytest.mark.parametrize("column", [0, 1])
def test_another_dtype_of_the_same_width_at_the_same_address_is_noticed(before, after, column):
    columns = [[torch.ones(8).to(before) for _ in range(3)] for _ in range(2)]
    table = Table()
    assert table.read(columns)
    assert table.read(columns)
    assert not table.changed
    columns[column][1].data = columns[column][1].data.view(after)
    assert not table.read(columns)  # the dtypes of a column differ
    assert not table.read(columns)
    columns[column][1].data = columns[column][1].data.view(before)
    assert table.read(columns)


@pytest.mark.skipif(
    torch.cuda.is_available() or importlib.util.find_spec("triton") is None,
    reason="no Triton, or it is not interpreted",
)
def test_halves_that_become_the_other_ones_where_they_lie_are_worked_on_as_these():
    weights = nn.ParameterList([nn.Parameter(torch.randn(40).half()) for _ in range(3)])
    optimizer = torch.optim.SGD(weights.parameters(), lr=1.0)
    gradients = [torch.zeros(40).half() for _ in weights]
    attached = regplug.attach(
        weights,
        optimizer,
        [L2(0.25, where="all", delivery="step")],
        kernels="triton",
        handover=False,
    )
    with attached:
        for step in range(3):
            for w, g in zip(weights, gradients, strict=True):
                w.grad = g.zero_()
            if step == 1:
                weights[1].grad = None
                weights[1].data = weights[1].data.view(torch.bfloat16).copy_(torch.ones(40))
                weights[1].grad = gradients[1] = gradients[1].view(torch.bfloat16)
            before = [w.detach().clone() for w in weights]
            optimizer.step()
            for w, was in zip(weights, before, strict=True):
                torch.testing.assert_close(w.detach(), was - was * 0.5)
