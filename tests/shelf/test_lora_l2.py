"""L2 of adapters as they act: found by their modules' attributes, equal to that of the product."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

import regplug
from regplug_builtins import LoraL2
from regplug_builtins._samples import adapted
from tests.helpers.compare import close
from tests.helpers.pair import Pair
from tests.matrix.tasks import whole


class Peft(nn.Module):
    """The attributes of PEFT's ``lora.Linear``: factors and scalings by the adapter's name."""

    def __init__(self, *adapters: str) -> None:
        super().__init__()
        self.base_layer = nn.Linear(6, 5).requires_grad_(False)
        self.lora_A = nn.ModuleDict({n: nn.Linear(6, 2, bias=False) for n in adapters})
        self.lora_B = nn.ModuleDict({n: nn.Linear(2, 5, bias=False) for n in adapters})
        self.lora_embedding_A, self.lora_embedding_B = nn.ParameterDict(), nn.ParameterDict()
        self.scaling = {n: 2.0 + i for i, n in enumerate(adapters)}


class Loralib(nn.Linear):
    def __init__(self) -> None:
        super().__init__(6, 5)
        self.weight.requires_grad_(False)
        self.lora_A = nn.Parameter(torch.randn(2, 6))
        self.lora_B = nn.Parameter(torch.randn(5, 2))
        self.scaling = 0.5


def squares(model: nn.Module, strength: float = 1.0, **options: Any) -> float:
    """Return the value that a session tells."""
    with regplug.attach(model, plugins=[LoraL2(strength, **options)]) as session:
        return session.metrics()["lora_l2/value"]


def test_each_kind_of_adapter_is_found_with_its_scaling() -> None:
    layer = Peft("one", "two").double()
    products = [layer.lora_B[n].weight @ layer.lora_A[n].weight for n in ("one", "two")]
    sizes = [p.square().sum().item() for p in products]
    assert squares(layer) == pytest.approx(sum(sizes))
    assert squares(layer, scaled=True) == pytest.approx(4 * sizes[0] + 9 * sizes[1])
    for factors in (layer.lora_A, layer.lora_B):  # as PEFT leaves an adapter that is not active
        factors["one"].requires_grad_(False)
    assert squares(layer, 0.5) == pytest.approx(0.5 * sizes[1])
    lib = Loralib().double()
    product = (lib.lora_B @ lib.lora_A).square().sum().item()
    assert squares(lib) == pytest.approx(product)
    assert squares(lib, scaled=True) == pytest.approx(product / 4)
    tune = adapted().double()
    products = [m.lora_b.weight @ m.lora_a.weight for m in (tune[0], tune[2])]
    total = sum(p.square().sum().item() for p in products)
    assert squares(tune) == pytest.approx(total)
    assert squares(tune, scaled=True) == pytest.approx(4 * total)  # (6/3)²


def test_convolutions_are_matrices_of_their_filters() -> None:
    layer = nn.Module()
    layer.lora_A = nn.ModuleDict({"a": nn.Conv2d(3, 2, 3, bias=False)})
    layer.lora_B = nn.ModuleDict({"a": nn.Conv2d(2, 4, 1, bias=False)})
    layer = nn.ModuleList([layer]).double()
    b, a = layer[0].lora_B["a"].weight, layer[0].lora_A["a"].weight
    merged = torch.einsum("or,rikl->oikl", b[:, :, 0, 0], a)
    assert squares(layer) == pytest.approx(merged.square().sum().item())


@pytest.mark.parametrize("delivery", ["step", "loss"])
def test_a_step_is_that_of_the_formed_product(delivery: str) -> None:
    ours, theirs = (adapted_alike() for _ in range(2))
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (ours, theirs)]
    session = regplug.attach(ours, optimizers[0], [LoraL2(0.3, scaled=True, delivery=delivery)])
    x = torch.randn(7, 6, dtype=torch.float64)
    loss = ours(x).square().mean()
    (session.loss(loss) if delivery == "loss" else loss).backward()
    deltas = [m.alpha / m.rank * m.lora_b.weight @ m.lora_a.weight for m in (theirs[0], theirs[2])]
    (theirs(x).square().mean() + 0.3 * sum(d.square().sum() for d in deltas)).backward()
    for optimizer in optimizers:
        optimizer.step()
    for p, w in zip(ours.parameters(), theirs.parameters(), strict=True):
        close(p, w)


def adapted_alike() -> Any:
    torch.manual_seed(4)
    return adapted().double()


def test_a_frozen_factor_is_a_constant() -> None:
    model = adapted_alike()
    for layer in (model[0], model[2]):
        layer.lora_a.requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    regplug.attach(model, optimizer, [LoraL2(0.3, delivery="step")])
    (0 * model(torch.ones(1, 6).double())).sum().backward()
    b, a = model[0].lora_b.weight.detach().clone(), model[0].lora_a.weight.detach().clone()
    optimizer.step()
    close(model[0].lora_b.weight, b - 0.1 * 0.3 * 2 * b @ a @ a.T)
    assert torch.equal(model[0].lora_a.weight, a)


def test_models_without_adapters_and_odd_ones_are_refused() -> None:
    with pytest.raises(regplug.errors.SelectionError, match="lora_A and lora_B"):
        regplug.attach(nn.Linear(2, 2), plugins=["lora_l2(0.1)"])
    odd = Loralib()
    odd.lora_A = nn.Parameter(torch.randn(4, 6))  # as loralib's MergedLinear has them
    with pytest.raises(regplug.errors.SelectionError, match=r"no product B·A: exclude them"):
        regplug.attach(nn.ModuleDict({"qkv": odd}), plugins=["lora_l2(0.1)"])


def sharded(rank: int, how: str) -> list[Any]:
    model, shard = adapted_alike(), how != "alone"
    if how == "tensor parallel":
        mesh = dist.init_device_mesh("cpu", (2,))
        for layer in (model[0], model[2]):
            parallelize_module(layer.lora_b, mesh, ColwiseParallel(output_layouts=Replicate()))
            parallelize_module(layer.lora_a, mesh, ColwiseParallel(output_layouts=Replicate()))
    elif shard:
        mesh = dist.init_device_mesh("cpu", (2,))
        for layer in (model[0], model[2], model[4]):
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trainable, lr=0.05)
    with regplug.attach(model, optimizer, ["lora_l2(0.3, scaled=True)"]) as session:
        for step in range(3):
            x = torch.randn(8, 6, generator=torch.Generator().manual_seed(step)).double()
            optimizer.zero_grad()
            model(x.chunk(2)[rank] if how == "fsdp2" else x).square().mean().backward()
            optimizer.step()
        told = session.metrics()["lora_l2/value"]
    return [told, *map(whole, trainable)]


def test_it_is_exact_on_shards(pair: Pair) -> None:
    told, *expected = sharded(0, "alone")
    for how in ("fsdp2", "tensor parallel"):
        for value, *found in pair.run(sharded, how):
            assert value == pytest.approx(told, rel=1e-12)
            for ours, theirs in zip(found, expected, strict=True):
                close(ours, theirs)


@pytest.mark.frameworks
def test_pefts_own_layers_are_found() -> None:
    from peft import LoraConfig, get_peft_model

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.line = nn.Embedding(10, 6), nn.Linear(6, 4)
            self.conv = nn.Conv1d(4, 3, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(self.line(self.words(x)).transpose(1, 2)).mean()

    config = LoraConfig(
        r=3, lora_alpha=6, target_modules=["words", "line", "conv"], init_lora_weights=False
    )
    model = get_peft_model(Model(), config).double()
    own = model.base_model.model
    deltas = [layer.get_delta_weight("default") for layer in (own.words, own.line, own.conv)]
    expected = sum(delta.square().sum().item() for delta in deltas)
    assert squares(model, scaled=True) == pytest.approx(expected)
    assert squares(model) == pytest.approx(expected / 4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0)
    with regplug.attach(model, optimizer, ["lora_l2(10.0)"]) as session:
        for _ in range(60):
            optimizer.zero_grad()
            model(torch.arange(10)[None]).backward()
            optimizer.step()
        assert session.metrics()["lora_l2/value"] < expected / 4


def test_an_adapter_that_is_switched_to_counts_from_then_on() -> None:
    layer = Peft("one", "two").double()

    def switch(name: str) -> None:  # as PEFT's set_adapter
        for factors in (layer.lora_A, layer.lora_B):
            for other in factors:
                factors[other].requires_grad_(other == name)

    def size(name: str) -> float:
        return (layer.lora_B[name].weight @ layer.lora_A[name].weight).square().sum().item()

    def take_step() -> None:
        for p in layer.parameters():
            p.grad = torch.zeros_like(p) if p.requires_grad else None
        optimizer.step()

    switch("one")
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    session = regplug.attach(layer, optimizer, [LoraL2(0.3, delivery="step")])
    assert session.metrics()["lora_l2/value"] == pytest.approx(0.3 * size("one"))
    take_step()
    switch("two")
    kept = layer.lora_B["one"].weight.detach().clone()
    b, a = (f["two"].weight.detach().clone() for f in (layer.lora_B, layer.lora_A))
    assert session.metrics()["lora_l2/value"] == pytest.approx(0.3 * size("two"))
    assert session.loss(torch.zeros(())) == 0  # it acts at the step
    take_step()
    assert torch.equal(layer.lora_B["one"].weight, kept)
    close(layer.lora_B["two"].weight, b - 0.1 * 0.3 * 2 * b @ a @ a.T)
    said = session.describe()
    assert "covers lora_A.two.weight, lora_B.two.weight" in said
    assert "1 group of parameters" in said


def test_an_adapter_of_three_factors_is_refused() -> None:
    """AdaLoRA's product is B·diag(E)·A."""
    layer = Peft("one")
    layer.lora_E = nn.ParameterDict({"one": nn.Parameter(torch.ones(2, 1))})
    with pytest.raises(regplug.errors.SelectionError, match=r"q has a factor lora_E .*AdaLoRA"):
        regplug.attach(nn.ModuleDict({"q": layer}), plugins=["lora_l2(0.1)"])
