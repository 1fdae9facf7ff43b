"""Which calls of step() are steps: what else there is fires nothing and counts nothing."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

import regplug
from regplug.errors import SelectionError, UnsupportedError
from tests.helpers.compare import same
from tests.helpers.nets import dropout_net
from tests.helpers.pair import Pair

ALL = ["l1(0.1, delivery='proximal')", "l2(0.1)", "weight_decay(0.1)", "dropout(linear(0, 1, 4))"]

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, lr=0.1),
    "tensor lr": lambda p: torch.optim.Adam(p, lr=torch.tensor(0.1)),
}


def weights(model: nn.Module) -> list[torch.Tensor]:
    return [regplug.local(p).detach().clone() for p in model.parameters()]


# --- the dummy step of distributed checkpoints ---------------------------------------------------


def checkpointing(rank: int, kind: str, sharded: bool) -> Any:
    model = dropout_net()
    if sharded:
        from torch.distributed.fsdp import fully_shard

        fully_shard(model)
    optimizer = OPTIMIZERS[kind](model.parameters())
    before = weights(model)
    with regplug.attach(model, optimizer, ALL) as session:
        saved = get_optimizer_state_dict(model, optimizer)
        untouched = same(before, weights(model)) and session.steps == 0
        rates = session.metrics()["dropout/rate"]
        other = OPTIMIZERS[kind](model.parameters())
        with regplug.attach(model, other, ["l1(0.1, delivery='proximal')"]) as second:
            set_optimizer_state_dict(model, other, saved)
            untouched = untouched and same(before, weights(model)) and second.steps == 0
        model(torch.ones(2, 3)).sum().backward()
        optimizer.step()
        return untouched, rates, session.steps, same(before, weights(model))


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_making_optimizer_state_for_a_checkpoint_is_no_step(kind: str) -> None:
    """It steps with lr 0 and zero gradients (pytorch#164929); a proximal plugin shrank weights."""
    assert checkpointing(0, kind, False) == (True, 0.0, 1, False)


def test_making_optimizer_state_of_shards_is_no_step(pair: Pair) -> None:
    assert pair.run(checkpointing, "adam", True) == [(True, 0.0, 1, False)] * 2


def warm_up(rank: int, sharded: bool) -> Any:
    """The first step has lr 0, and on one rank an empty shard of the last layer."""
    model = dropout_net()
    if sharded:
        from torch.distributed.fsdp import fully_shard

        fully_shard(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: step / 2)
    counts, before = [], weights(model)
    with regplug.attach(model, optimizer, ALL) as session:
        for _ in range(3):
            model(torch.ones(2, 3)).sum().backward()
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            counts.append((session.steps, same(before, weights(model))))
    return counts


def test_a_warm_up_from_zero_counts_from_its_first_step(pair: Pair) -> None:
    expected = [(1, True), (2, False), (3, False)]
    assert warm_up(0, False) == expected
    assert pair.run(warm_up, True) == [expected] * 2


# --- who took part -------------------------------------------------------------------------------


def test_parameters_without_a_gradient_are_left_alone_by_every_plugin() -> None:
    """AdamW decays parameters whose gradient is zero, and not those whose gradient is None."""
    model = dropout_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with regplug.attach(model, optimizer, ALL[:3]):
        model(torch.ones(2, 3)).sum().backward()
        model[0].weight.grad = None
        model[2].weight.grad = torch.zeros_like(model[2].weight)
        absent, zero = model[0].weight.detach().clone(), model[2].weight.detach().clone()
        optimizer.step()
        assert torch.equal(model[0].weight, absent)
        decayed = zero * (1 - 0.1 * 0.1) - 0.1 * 0.2 * zero
        expected = decayed.sign() * (decayed.abs() - 0.1 * 0.1).clamp(min=0)
        assert torch.allclose(model[2].weight, expected, atol=1e-7)


class Super(torch.optim.SGD):
    """An optimizer whose step calls its parent's: each call passes the hooks."""

    def step(self, closure: Any = None) -> Any:
        return super().step(closure)


def test_a_step_that_calls_its_parents_fires_once() -> None:
    model = dropout_net()
    torch.optim.SGD(model.parameters(), lr=0.1)  # from its first instance on the parent has hooks
    optimizer = Super(model.parameters(), lr=0.1)
    with regplug.attach(model, optimizer, ["weight_decay(1.0)"]) as session:
        (model(torch.ones(2, 3)) * 0).sum().backward()
        before = model[0].weight.detach().clone()
        optimizer.step()
        assert session.steps == 1
        assert torch.allclose(model[0].weight, before * 0.9)


# --- optimizers inside backward ------------------------------------------------------------------


def optimize_in_backward(model: nn.Module) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, of its import
        from torch.distributed.optim import _apply_optimizer_in_backward
    _apply_optimizer_in_backward(torch.optim.SGD, model.parameters(), {"lr": 0.1})


def test_an_optimizer_in_backward_works_where_it_is_attached_to() -> None:
    model = nn.Linear(3, 2, bias=False)
    optimize_in_backward(model)
    (inner,) = model.weight._in_backward_optimizers
    expected = model.weight.detach().clone()
    with regplug.attach(model, inner, ["l1(0.5)"]) as session:
        for _ in range(3):
            model(torch.ones(2, 3)).sum().backward()
            expected -= 0.1 * (2 + 0.5 * expected.sign())
        assert session.steps == 3
    assert torch.allclose(model.weight, expected, atol=1e-6)


def test_an_optimizer_whose_weights_others_update_in_backward_is_refused() -> None:
    model = nn.Linear(3, 2)
    optimize_in_backward(model)
    with pytest.raises(UnsupportedError, match="inside backward"):
        regplug.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), ["l1(0.5)"])


def test_the_hand_written_form_is_refused_at_the_first_step() -> None:
    model = nn.Linear(3, 2)
    inner = {p: torch.optim.SGD([p], lr=0.1) for p in model.parameters()}

    def update(parameter: torch.Tensor) -> None:
        inner[parameter].step()  # type: ignore[index]
        inner[parameter].zero_grad()  # type: ignore[index]

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(update)
    outer = torch.optim.SGD(model.parameters(), lr=0.1)
    with regplug.attach(model, outer, ["l1(0.5)"]):
        model(torch.ones(2, 3)).sum().backward()
        before = weights(model)
        with pytest.raises(UnsupportedError, match="inside backward"):
            outer.step()
        assert same(before, weights(model))
    with regplug.attach(model, inner[model.weight], ["l1(0.5)"]) as session:
        model(torch.ones(2, 3)).sum().backward()
        assert session.steps == 1


# --- what can't be right -------------------------------------------------------------------------


@pytest.mark.parametrize("spec", ["l1(0.1)", "weight_decay(0.1)", "dropout(0.1)"])
def test_an_optimizer_of_another_model_is_refused(spec: str) -> None:
    other = torch.optim.SGD(dropout_net().parameters(), lr=0.1)
    with pytest.raises(SelectionError, match="no parameter of this model"):
        regplug.attach(dropout_net(), other, [spec])


@pytest.fixture
def overwriting() -> Iterator[None]:
    """Have ``model.double()`` and the like replace parameters rather than change them."""
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    yield
    torch.__future__.set_overwrite_module_params_on_conversion(False)


@pytest.mark.usefixtures("overwriting")
@pytest.mark.parametrize("spec", ["l1(0.1)", "dropout(0.1)"])
def test_parameters_replaced_behind_the_optimizers_back_are_told_at_the_first_step(
    spec: str,
) -> None:
    model = dropout_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with regplug.attach(model, optimizer, [spec]):
        model.double()
        model(torch.ones(2, 3).double()).sum().backward()
        before = weights(model)
        with pytest.raises(SelectionError, match="before its parameters were replaced"):
            optimizer.step()
        assert same(before, weights(model))


@pytest.mark.parametrize("spec", ["l1(0.1)", "dropout(0.1)"])
def test_a_session_that_cannot_be_bound_again_says_so_and_leaves_the_weights(spec: str) -> None:
    model, other = dropout_net(), dropout_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with regplug.attach(model, optimizer, [spec]):
        optimizer.param_groups[0]["params"] = list(other.parameters())
        other(torch.ones(2, 3)).sum().backward()
        before = weights(other)
        with pytest.raises(SelectionError, match="attach again"):
            optimizer.step()
        assert same(before, weights(other))


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 3, sparse=True)
        self.out = nn.Linear(3, 1)
        self.phase = nn.Parameter(torch.ones(2, 2, dtype=torch.complex64))

    def forward(self, index: torch.Tensor) -> torch.Tensor:
        return self.out(self.table(index)) + self.phase.abs().sum()


@pytest.mark.parametrize(
    ("spec", "ways"),
    [
        ("l1(0.1)", ["table.weight", "sparse=False", "delivery='proximal'", "!table.weight"]),
        ("l1(0.1, where='all')", ["phase", "complex", "!phase"]),
        ("l2(0.1, where='phase')", ["phase", "complex"]),
    ],
)
def test_sparse_and_complex_weights_are_refused_at_attach(spec: str, ways: list[str]) -> None:
    model = Mixed()
    with pytest.raises(UnsupportedError) as raised:
        regplug.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), [spec])
    assert all(way in str(raised.value) for way in ways)


def test_a_gradient_that_turns_out_sparse_is_refused_and_the_weights_stay() -> None:
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with regplug.attach(model, optimizer, ["weight_decay(0.1)", "l1(0.1)"]):
        model.weight.grad = torch.eye(2, 3).to_sparse()
        before = weights(model)
        with pytest.raises(UnsupportedError, match="sparse"):
            optimizer.step()
        assert same(before, weights(model))


def test_what_can_take_sparse_gradients_does() -> None:
    model = Mixed()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    plugins = ["weight_decay(0.5)", "l1(0.1, delivery='proximal')"]
    with regplug.attach(model, optimizer, plugins):
        before = model.table.weight.detach().clone()
        (model(torch.tensor([1])) * 0).sum().backward()
        optimizer.step()
        decayed = before * (1 - 0.1 * 0.5)
        expected = decayed.sign() * (decayed.abs() - 0.1 * 0.1).clamp(min=0)
        assert torch.allclose(model.table.weight, expected, atol=1e-7)


# --- wrappers that are refused -------------------------------------------------------------------


def test_fsdp1_is_refused_at_attach(pair: Pair) -> None:
    """It flattens parameters: rules on dimensions flip, and values are local."""
    for words in pair.run(fsdp1):
        assert "FSDP1" in words
        assert "fully_shard" in words


def fsdp1(rank: int) -> str:
    from torch.distributed.fsdp import FullyShardedDataParallel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = FullyShardedDataParallel(
            dropout_net(), device_id=torch.device("cpu"), use_orig_params=True
        )
    try:
        regplug.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), ["l1(0.1)"])
    except UnsupportedError as error:
        return str(error)
    return "attached"


def from_deepspeed(name: str, base: type) -> type:
    """A class as DeepSpeed's: known by the module that it comes from."""
    return type(name, (base,), {"__module__": "deepspeed.runtime.engine"})


def test_deepspeed_is_refused_at_attach() -> None:
    """ZeRO keeps gradients out of .grad."""
    engine = from_deepspeed("DeepSpeedEngine", nn.Module)()
    engine.module = dropout_net()
    with pytest.raises(UnsupportedError, match=r"DeepSpeed.*DDP or FSDP2"):
        regplug.attach(engine, plugins=["l1(0.1)"])
    model = dropout_net()
    zero = from_deepspeed("DeepSpeedZeroOptimizer", object)()
    zero.optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(UnsupportedError, match="DeepSpeed"):
        regplug.attach(model, zero, ["l1(0.1)"])


def test_accelerates_wrapper_of_deepspeed_is_refused_at_attach() -> None:
    from accelerate.utils.deepspeed import DeepSpeedOptimizerWrapper

    model = dropout_net()
    wrapper = DeepSpeedOptimizerWrapper.__new__(DeepSpeedOptimizerWrapper)
    wrapper.optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(UnsupportedError, match="DeepSpeed"):
        regplug.attach(model, wrapper, ["l1(0.1)"])
