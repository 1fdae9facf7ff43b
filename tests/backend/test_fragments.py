"""What stands for a weight of which a rank has a run of elements, apart from the model."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import regplug
from regplug.backend import shards
from regplug.backend.fragments import Fragment, place, standing_for
from regplug.backend.names import named_parameters
from regplug.backend.sums import Sum, resolve
from regplug.errors import UnsupportedError
from tests.helpers.pair import Pair

SHAPE = (3, 2)
WHOLE = torch.arange(6.0).reshape(SHAPE)
# Where each of two ranks begins in the whole, and how many elements it has; none on the second.
RUNS = {"parts": [(0, 4), (4, 2)], "one has all": [(0, 6), (0, 0)]}


def fragment(rank: int, kind: str) -> tuple[torch.Tensor, Fragment]:
    """This rank's elements after two of others in a flat tensor that is trained."""
    start, count = RUNS[kind][rank]
    flat = torch.cat([torch.full((2,), -1.0), WHOLE.reshape(-1)[start : start + count]])
    flat.requires_grad_()
    return flat, Fragment.of(flat, shape=SHAPE, offset=2, start=start, count=count, group=None)


def spread(rank: int, kind: str) -> tuple[list[float], list[float], list[float], float]:
    flat, w = fragment(rank, kind)
    shards.local(w).mul_(2)
    whole = shards.full(w)
    anchor = shards.like(shards.part(whole + 1, w), w)
    total = resolve([Sum([(w, shards.local(w).sum())])])[0]
    return whole.flatten().tolist(), shards.full(anchor).flatten().tolist(), flat.tolist(), total


@pytest.mark.parametrize("kind", RUNS)
def test_parts_and_wholes(pair: Pair, kind: str) -> None:
    twice = (2 * WHOLE).flatten()
    for rank, (whole, anchor, flat, total) in enumerate(pair.run(spread, kind)):
        start, count = RUNS[kind][rank]
        assert whole == twice.tolist()
        assert anchor == (twice + 1).tolist()
        assert flat == [-1.0, -1.0, *twice[start : start + count].tolist()]
        assert total == 30.0


def test_it_says_what_a_parameter_does() -> None:
    model = nn.Linear(2, 3)
    own = model.weight
    _, made = fragment(0, "parts")
    standing = place(own, made)
    (weight, bias) = named_parameters(model)
    assert weight.parameter is standing is standing_for(own)
    assert bias.parameter is model.bias is standing_for(model.bias)
    assert isinstance(standing, nn.Parameter)
    assert (standing.shape, standing.ndim, standing.numel()) == ((3, 2), 2, 6)
    assert (standing.dtype, standing.device) == (torch.float32, torch.device("cpu"))
    assert standing.requires_grad
    assert standing.grad is None
    assert "shape=(3, 2), start=0" in repr(standing)
    assert shards.is_sharded(standing)
    assert torch.equal(standing.clone().part, made.part)
    assert standing.clone().part.data_ptr() != made.part.data_ptr()


def test_a_copy_of_the_model_is_trained_itself() -> None:
    model = nn.Linear(2, 3)
    place(model.weight, fragment(0, "parts")[1])
    twin = copy.deepcopy(model)
    assert named_parameters(twin)[0].parameter is twin.weight


@pytest.mark.parametrize(
    "wrong",
    [
        lambda w: w * 2,
        lambda w: w.sum(),
        lambda w: w.data,
        lambda w: w.T,
        lambda w: w.tolist(),
        lambda w: w.copy_(torch.zeros(3, 2)),
        lambda w: torch.zeros(3, 2).add_(w),
        lambda w: w[0],
    ],
)
def test_arithmetic_is_refused_with_the_way_out(wrong: object) -> None:
    _, w = fragment(0, "parts")
    with pytest.raises(UnsupportedError, match=r"regplug\.local\(w\)"), torch.no_grad():
        wrong(w)  # type: ignore[operator]


def test_the_loss_is_refused_and_auto_is_the_step() -> None:
    model = nn.Linear(2, 3, bias=False)
    standing = place(model.weight, fragment(0, "parts")[1])
    optimizer = torch.optim.SGD([standing], lr=0.1)
    with pytest.raises(UnsupportedError, match="use delivery='step'"):
        regplug.attach(model, optimizer, ["l1(0.1, delivery='loss')"])
    with regplug.attach(model, optimizer, ["l1(0.1)"]) as session:
        assert "step (auto)" in session.describe()
