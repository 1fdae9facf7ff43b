"""Engines that spread weights or their updates in other ways: right, or refused for what is so."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

import regplug
from tests.helpers.meshes import data_and_model
from tests.helpers.pair import Pair


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), nn.LayerNorm(6), nn.Linear(6, 3)).double()


def flattened(rank: int) -> tuple[dict[str, tuple[int, ...]], str]:
    """Return what each rank has of the weights under FSDP1, and what attaching says."""
    from torch.distributed.fsdp import FullyShardedDataParallel

    model = FullyShardedDataParallel(net(), use_orig_params=True, device_id=torch.device("cpu"))
    shapes = {
        name.removeprefix("_fsdp_wrapped_module."): tuple(parameter.shape)
        for name, parameter in model.named_parameters()
    }
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(regplug.errors.UnsupportedError) as refusal:
        regplug.attach(model, optimizer, ["l1(0.1)"])
    return shapes, str(refusal.value)


def test_fsdp1_has_neither_shapes_nor_whole_values_with_original_parameters_either(
    pair: Pair,
) -> None:
    """Which is why it is refused."""
    (first, told), (second, same) = pair.run(flattened)
    assert told == same
    assert "use_orig_params=True" in told
    assert "fully_shard" in told
    whole = dict(net().named_parameters())
    for name, parameter in whole.items():
        pieces = [shapes[name] for shapes in (first, second)]
        assert all(len(piece) == 1 for piece in pieces)
        assert sum(piece[0] for piece in pieces) == parameter.numel()
    cut = [n for n, p in whole.items() if p.ndim == 1 and 0 < first[n][0] < p.numel()]
    rows = [n for n, p in whole.items() if p.ndim > 1 and first[n][0] % p.shape[1]]
    assert cut or rows, (first, second)


def taken_apart(rank: int, parallel: bool) -> str:
    """Have DDP on a dimension of a mesh, around tensor parallelism on the other or around none."""
    model = net()
    mesh = data_and_model(1, 2)
    if parallel:
        parallelize_module(model, mesh["tp"], {"0": ColwiseParallel(output_layouts=Replicate())})
    replicas = nn.parallel.DistributedDataParallel(model, device_mesh=mesh["dp"])
    optimizer = torch.optim.SGD(replicas.parameters(), lr=0.1)
    try:
        regplug.attach(replicas, optimizer, ["l1(0.1)"]).detach()
    except regplug.errors.UnsupportedError as error:
        return str(error)
    return "attached"


def test_ddp_that_takes_tensor_parallel_weights_apart_is_refused(pair: Pair) -> None:
    """Values differed between ranks, and penalties that are not separable were wrong."""
    for told in pair.run(taken_apart, True):
        assert "pieces of the weights as plain parameters" in told
        assert "fully_shard" in told
    assert pair.run(taken_apart, False) == ["attached"] * 2


# --- an optimizer that is shared ---------------------------------------------------------------


def shared_among_ranks(parameters: Any, kind: Any, **options: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of torch's own, on the way
        from torch.distributed.optim import ZeroRedundancyOptimizer
    return ZeroRedundancyOptimizer(parameters, kind, **options)


def shared_optimizer(rank: int, spec: str, optimizer: str, options: Any, shared: bool) -> Any:
    model: nn.Module = net()
    kind = getattr(torch.optim, optimizer)
    if shared:
        model = nn.parallel.DistributedDataParallel(model)
        updates: Any = shared_among_ranks(model.parameters(), kind, **options)
    else:
        updates = kind(model.parameters(), **options)
    generator = torch.Generator().manual_seed(1)
    with regplug.attach(model, updates, [spec]) as session:
        for _ in range(3):
            x = torch.randn(8, 5, generator=generator, dtype=torch.float64)
            updates.zero_grad()
            session.loss(model(x[rank::2] if shared else x).square().mean()).backward()
            updates.step()
        figures = session.metrics()
    decay = [group.get("weight_decay") for group in updates.param_groups]
    return [p.tolist() for p in model.parameters()], figures, decay


@pytest.mark.parametrize(
    ("spec", "optimizer", "options"),
    [
        ("l1(0.3, delivery='step')", "Adam", {"lr": 0.05}),
        ("l1(0.3, delivery='proximal')", "SGD", {"lr": 0.1, "momentum": 0.5}),
        ("group_lasso(0.3, where=['*.weight', '!1.*'], delivery='proximal')", "SGD", {"lr": 0.1}),
        ("weight_decay(0.3)", "AdamW", {"lr": 0.05, "weight_decay": 0.0}),
        ("weight_decay(0.3, existing='replace')", "AdamW", {"lr": 0.05, "weight_decay": 0.2}),
        ("weight_decay(0.3, cautious=True)", "Adam", {"lr": 0.05}),
        ("max_norm(0.4)", "RMSprop", {"lr": 0.05}),
    ],
)
def test_an_optimizer_whose_state_is_shared_gives_the_weights_of_one_process(
    pair: Pair, spec: str, optimizer: str, options: Any
) -> None:
    wanted = shared_optimizer(0, spec, optimizer, options, False)
    first, second = pair.run(shared_optimizer, spec, optimizer, options, True)
    assert first == second
    for ours, theirs in zip(first[0], wanted[0], strict=True):
        torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs), rtol=0, atol=1e-6)
    assert first[1] == pytest.approx(wanted[1], abs=1e-11)
    assert first[2] == wanted[2]


def attach_proximal(rank: int, optimizer: str) -> str:
    model = nn.parallel.DistributedDataParallel(net())
    kind = getattr(torch.optim, optimizer)
    updates = shared_among_ranks(model.parameters(), kind, lr=0.1)
    with pytest.raises(regplug.errors.UnsupportedError) as refusal:
        regplug.attach(model, updates, ["l1(0.1, delivery='proximal')"])
    return str(refusal.value)


def test_steps_of_each_element_are_not_known_where_another_rank_takes_them(pair: Pair) -> None:
    for told in pair.run(attach_proximal, "Adam"):
        assert "Adam's state of its own share" in told
        assert "use FSDP2, or delivery='step'" in told
