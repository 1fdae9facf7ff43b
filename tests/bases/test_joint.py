"""Penalties of parameters that belong together: each delivery, each odd member, every engine."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard

import regplug
from tests.helpers.compare import close
from tests.helpers.nets import one_layer
from tests.helpers.pair import Pair


class Product(regplug.JointPenalty):
    """λ·‖W₂·W₁‖², over neighbouring layers: its gradient is 2W₂ᵀW₂W₁ and 2W₂W₁W₁ᵀ."""

    def groups(self, session: Any) -> Any:
        layers = [m for m in session.model.modules() if isinstance(m, nn.Linear)]
        for first, second in zip(layers[::2], layers[1::2], strict=True):
            yield first.weight, second.weight

    def value(self, *ws: torch.Tensor) -> torch.Tensor:
        first, second = ws
        return (second @ first).square().sum()


class Near(regplug.JointPenalty):
    """λ·‖W₁ − W₂‖², with the proximal operator that moves both towards each other."""

    def groups(self, session: Any) -> Any:
        yield session.model[0].weight, session.model[1].weight

    def value(self, *ws: torch.Tensor) -> torch.Tensor:
        return (ws[0] - ws[1]).square().sum()

    def proximal(self, step: float, *ws: torch.Tensor) -> Any:
        mean, half = (ws[0] + ws[1]) / 2, (ws[0] - ws[1]) / 2
        half = half / (1 + 4 * step * self.strength)
        return mean + half, mean - half


def by_hand(first: torch.Tensor, second: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return 2 * second.T @ second @ first, 2 * second @ first @ first.T


def net(*, bias: bool = False) -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 5, bias=bias), nn.Linear(5, 3, bias=bias)).double()


def weights(model: nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.parameters()]


@pytest.mark.parametrize("delivery", ["auto", "step", "loss"])
@pytest.mark.parametrize("maximize", [False, True])
def test_the_gradient_is_the_closed_form(delivery: str, maximize: bool) -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, maximize=maximize)
    session = regplug.attach(model, optimizer, [Product(0.25, delivery=delivery)])
    first, second = weights(model)
    data = (0.0 * model(torch.ones(2, 4).double())).sum()
    (session.loss(data) if delivery == "loss" else data).backward()
    value = 0.25 * (second @ first).square().sum()
    assert session.metrics()["product/value"] == pytest.approx(value.item(), rel=1e-14)
    optimizer.step()
    for p, w, g in zip(model.parameters(), (first, second), by_hand(first, second), strict=True):
        close(p, w - 0.1 * 0.25 * g)


def test_a_loss_of_plain_weights_can_be_differentiated_twice() -> None:
    model = net()
    session = regplug.attach(model, plugins=[Product(0.5)])
    total = session.loss(torch.zeros((), dtype=torch.float64))
    ours = torch.autograd.grad(total, model[0].weight, create_graph=True)[0].square().sum()
    first, second = model[0].weight, model[1].weight
    theirs = (0.5 * by_hand(first, second)[0]).square().sum()
    for found, expected in zip(
        torch.autograd.grad(ours, list(model.parameters())),
        torch.autograd.grad(theirs, list(model.parameters())),
        strict=True,
    ):
        close(found, expected)


@pytest.mark.parametrize(
    ("why", "delivery"),
    [
        ("no gradient", "step"),  # in the loss, whatever the loss is of has one
        *((w, d) for w in ("frozen", "another optimizer's", "excluded") for d in ("step", "loss")),
    ],
)
def test_a_member_that_is_not_ours_is_a_constant(why: str, delivery: str) -> None:
    model = net()
    model[1].weight.requires_grad_(why != "frozen")
    ours = [model[0].weight] if why == "another optimizer's" else list(model.parameters())
    optimizer = torch.optim.SGD(ours, lr=0.1)
    where: Any = ["weights", "!1.*"] if why == "excluded" else "weights"
    session = regplug.attach(model, optimizer, [Product(0.25, delivery=delivery, where=where)])
    first, second = weights(model)
    model[0].weight.grad = torch.zeros_like(first)
    if delivery == "loss":
        session.loss((0.0 * model[0].weight).sum()).backward()
    elif why != "no gradient" and model[1].weight.requires_grad:
        model[1].weight.grad = torch.zeros_like(second)
    optimizer.step()
    close(model[0].weight, first - 0.1 * 0.25 * by_hand(first, second)[0])
    assert torch.equal(model[1].weight, second)
    if delivery == "loss" and why != "no gradient":
        assert model[1].weight.grad is None


def test_a_group_without_a_gradient_is_left_alone() -> None:
    model = nn.ModuleList([net(), net()])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    regplug.attach(model, optimizer, [Product(0.25, delivery="step")])
    before = weights(model)
    for p in model[1].parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    assert all(torch.equal(p, w) for p, w in zip(model[0].parameters(), before, strict=False))
    assert not torch.equal(model[1][0].weight, before[2])


def test_a_tied_parameter_counts_in_each_place_and_each_group_once() -> None:
    class Squared(Product):
        def groups(self, session: Any) -> Any:
            for _ in range(2):  # a module that is used twice, say
                yield session.model[0].weight, session.model[1].weight

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)).double()
    model[1].weight = model[0].weight
    w = model[0].weight.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    regplug.attach(model, optimizer, [Squared(0.25, delivery="step")])
    model[0].weight.grad = torch.zeros_like(w)
    optimizer.step()
    first, second = by_hand(w, w)
    close(model[0].weight, w - 0.1 * 0.25 * (first + second))


def test_a_closures_line_search_sees_the_value() -> None:
    model = net()
    optimizer = torch.optim.LBFGS(model.parameters(), line_search_fn="strong_wolfe")
    regplug.attach(model, optimizer, [Product(0.25)])
    before = (model[1].weight @ model[0].weight).square().sum().item()

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = sum((p - 1).square().sum() for p in model.parameters())
        loss.backward()
        return loss

    optimizer.step(closure)
    first, second = weights(model)
    objective = sum((w - 1).square().sum() for w in (first, second))
    # At rest, the gradient of the whole objective is 0.
    total = [
        2 * (w - 1) + 0.25 * g for w, g in zip((first, second), by_hand(first, second), strict=True)
    ]
    assert before != objective
    assert max(t.abs().max() for t in total) < 1e-4


def test_an_authors_proximal_operator_is_applied_to_the_whole_group() -> None:
    model = nn.Sequential(one_layer(1.0, 5.0), one_layer(3.0, -5.0))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.5)
    session = regplug.attach(model, optimizer, [Near(0.5, delivery="proximal")])
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    step = 0.1 / 0.5  # the effective step
    u = [p.detach().clone().requires_grad_() for p in model.parameters()]
    start = [torch.tensor([[1.0, 5.0]]).double(), torch.tensor([[3.0, -5.0]]).double()]
    objective = sum((a - b).square().sum() / (2 * step) for a, b in zip(u, start, strict=True))
    objective = objective + 0.5 * (u[0] - u[1]).square().sum()
    for gradient in torch.autograd.grad(objective, u):
        close(gradient, torch.zeros_like(gradient))
    assert "proximal" in session.describe()
    session.detach()
    with pytest.raises(regplug.errors.SpecError, match="has no proximal operator"):
        Product(0.1, delivery="proximal")
    with pytest.raises(regplug.errors.UnsupportedError, match="step of its own"):
        regplug.attach(model, torch.optim.Adam(model.parameters()), [Near(1, delivery="proximal")])
    regplug.attach(model, optimizer, [Near(0.5, delivery="proximal")])
    model[0].weight.grad = None
    with pytest.raises(regplug.errors.RegplugError, match="take part in the step together"):
        optimizer.step()


@pytest.mark.parametrize("delivery", ["step", "loss"])
def test_halves_are_computed_in_float32(delivery: str) -> None:
    model = net().to(torch.bfloat16)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    session = regplug.attach(model, optimizer, [Product(0.25, delivery=delivery)])
    first, second = (w.float() for w in weights(model))
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    if delivery == "loss":
        session.loss(sum((0 * p).sum() for p in model.parameters())).backward()
    optimizer.step()
    for p, w, g in zip(model.parameters(), (first, second), by_hand(first, second), strict=True):
        assert torch.equal(p, (w - (0.25 * g).bfloat16().float()).bfloat16())


def test_what_is_wrong_is_said() -> None:
    class Nothing(Product):
        def groups(self, session: Any) -> Any:
            return []

    class Vector(Product):
        def value(self, *ws: torch.Tensor) -> torch.Tensor:
            return ws[0]

    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(regplug.errors.SelectionError, match="none of the groups"):
        regplug.attach(model, optimizer, [Nothing(1.0)])
    session = regplug.attach(model, optimizer, [Vector(1.0)])
    with pytest.raises(regplug.errors.PluginError, match=r"vector .*0-d tensor, got \(5, 4\)"):
        session.loss(torch.zeros(()))
    session.detach()
    mixed = [{"params": model[0].parameters()}, {"params": model[1].parameters(), "maximize": True}]
    with pytest.raises(regplug.errors.UnsupportedError, match="minimized and maximized"):
        regplug.attach(model, torch.optim.SGD(mixed, lr=0.1), [Product(1.0)])


def trained(rank: int, how: str, delivery: str) -> list[Any]:
    model: Any = net(bias=True)
    called = model
    if how == "fsdp2":
        mesh = dist.init_device_mesh("cpu", (2,))
        for layer in model:
            fully_shard(layer, mesh=mesh)
        called = fully_shard(model, mesh=mesh)
    elif how == "ddp":
        called = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    with regplug.attach(called, optimizer, [Product(0.25, delivery=delivery)]) as session:
        for step in range(4):
            x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step)).double()
            optimizer.zero_grad()
            loss = called(x if how == "alone" else x.chunk(2)[rank]).square().mean()
            (session.loss(loss) if delivery == "loss" else loss).backward()
            optimizer.step()
        told = session.metrics()["product/value"]
    whole = [p.full_tensor() if how == "fsdp2" else p for p in model.parameters()]
    return [told, *(w.detach() for w in whole)]


@pytest.mark.parametrize("delivery", ["step", "loss"])
def test_groups_of_sharded_weights_are_those_of_one_process(pair: Pair, delivery: str) -> None:
    told, *expected = trained(0, "alone", delivery)
    for how in ("ddp", "fsdp2"):
        for value, *found in pair.run(trained, how, delivery):
            assert value == pytest.approx(told, rel=1e-12)
            for ours, theirs in zip(found, expected, strict=True):
                close(ours, theirs)


def test_patterns_of_one_group_are_refused() -> None:
    with pytest.raises(regplug.errors.SpecError, match=r"product: strength .* by pattern"):
        Product({"0.*": 0.1, "*": 0.2})  # type: ignore[arg-type]
    plugin = Product(0.1)
    for given in ({"*": 0.1}, regplug.strengths.per_layer(0.1, decay=0.5)):
        with pytest.raises(regplug.errors.SpecError, match="attach the plugin once for each"):
            plugin.strength = given  # type: ignore[assignment]
    assert plugin.strength == 0.1


class Rows(regplug.JointPenalty):
    """λ·‖E·W‖², of an embedding and of what reads it."""

    def groups(self, session: Any) -> Any:
        yield session.model["words"].weight, session.model["out"].weight

    def value(self, *ws: torch.Tensor) -> torch.Tensor:
        return (ws[0] @ ws[1].T).square().sum()


@pytest.mark.parametrize("known", [True, False], ids=["by the layer", "by the gradient"])
def test_sparse_gradients_are_refused_by_name(known: bool) -> None:
    words = nn.Embedding(6, 3, sparse=known)
    model = nn.ModuleDict({"words": words, "out": nn.Linear(3, 2)})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    rows = Rows(0.1, delivery="step")
    if known:
        with pytest.raises(
            regplug.errors.UnsupportedError, match=r"rows: words\.weight has sparse"
        ):
            regplug.attach(model, optimizer, [rows])
        return
    session = regplug.attach(model, optimizer, [rows])
    read = nn.functional.embedding(torch.tensor([1, 4]), words.weight, sparse=True)
    model["out"](read).sum().backward()
    with pytest.raises(regplug.errors.UnsupportedError, match=r"rows .*a gradient is sparse"):
        optimizer.step()
    session.detach()


@pytest.mark.parametrize("delivery", ["step", "loss"])
def test_a_group_that_is_frozen_counts_for_nothing_until_it_is_trained(delivery: str) -> None:
    model = nn.ModuleList([net(), net(), nn.Embedding(2, 2)])
    model[1].requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    session = regplug.attach(model, optimizer, [Product(0.25, delivery=delivery)])
    one = 0.25 * (model[0][1].weight @ model[0][0].weight).square().sum().item()
    assert session.metrics()["product/value"] == pytest.approx(one)
    assert session.plugins[0].covers(session) == (2, 35)
    assert "covers 0.0.weight, 0.1.weight\n" in session.describe()  # and not 2.weight
    model[1].requires_grad_(True)
    assert session.metrics()["product/value"] == pytest.approx(2 * one)
    for layer in (model[0], model[1]):
        layer.requires_grad_(False)
    assert session.metrics()["product/value"] == 0
    if delivery == "loss":
        assert session.loss(torch.zeros(())) == 0
