"""What regplug can't be right with under DeepSpeed is refused at attach, by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import regplug
from regplug.errors import UnsupportedError
from tests.engines import loops
from tests.helpers.pair import Pair

pytest.importorskip("deepspeed")
pytestmark = pytest.mark.engines


def engine_of(
    stage: int, optimizer: Any = None, zero: dict[str, Any] | None = None, **more: Any
) -> Any:
    model = loops.make()
    settings = loops.config(stage, **more)
    settings["zero_optimization"].update(zero or {})
    make = loops.OPTIMIZERS["adamw"] if optimizer is None else optimizer
    return loops.started(model=model, optimizer=make(model.parameters()), config=settings)


def told(engine: Any, optimizer: Any, specs: list[Any], *, model: nn.Module | None = None) -> str:
    before = dict(vars(engine.optimizer))
    try:
        regplug.attach(engine if model is None else model, optimizer, specs).detach()
    except UnsupportedError as error:
        return str(error)
    finally:
        assert vars(engine.optimizer).keys() <= before.keys() | {"regplug_steps"}
    return "attached"


class Onebit(torch.optim.SGD):
    """Called as DeepSpeed's that compress, which want a network of their own."""


Onebit.__name__ = "OnebitAdam"


def refused(rank: int) -> dict[str, str]:
    found = {}
    for stage in (1, 2, 3):
        engine = engine_of(stage)
        found[f"in the loss {stage}"] = told(engine, engine.optimizer, ["l1(0.1, delivery='loss')"])
        found[f"no optimizer {stage}"] = told(engine, None, ["l1(0.1)"])
        other = torch.optim.SGD(loops.make().parameters(), lr=0.1)
        found[f"another {stage}"] = told(engine, other, ["l1(0.1)"])
        engine.destroy()
        engine = engine_of(
            stage,
            zero={"offload_optimizer": {"device": "cpu"}},
            zero_force_ds_cpu_optimizer=False,
        )
        found[f"offload {stage}"] = told(engine, engine.optimizer, ["l1(0.1)"])
        engine.destroy()
        engine = engine_of(stage, lambda params: Onebit(params, lr=0.1))
        found[f"onebit {stage}"] = told(engine, engine.optimizer, ["l1(0.1)"])
        engine.destroy()
    return found


def test_refusals_name_what_is_wrong_and_the_way_out(pair: Pair) -> None:
    for found in pair.run(refused):
        for stage in (1, 2, 3):
            assert "use delivery='step'" in found[f"in the loss {stage}"]
            assert "attach(engine, engine.optimizer, …)" in found[f"no optimizer {stage}"]
            assert "attach(engine, engine.optimizer, …)" in found[f"another {stage}"]
            assert "offloads the optimizer" in found[f"offload {stage}"]
            assert "OnebitAdam sends compressed momenta" in found[f"onebit {stage}"]


# What says where the weights are, in each kind of ZeRO optimizer.
NAMES = {
    1: ("single_partition_of_fp32_groups", "bit16_groups", "parallel_partitioned_bit16_groups"),
    3: ("fp32_partitioned_groups_flat", "grad_position", "sub_group_to_group_id", "fp16_groups"),
}


def renamed(rank: int, stage: int) -> list[str]:
    engine = engine_of(stage)
    zero, found = engine.optimizer, []
    for name in NAMES[stage]:
        kept = vars(zero).pop(name)
        found.append(told(engine, zero, ["l1(0.1)"]))
        setattr(zero, name, kept)
    if stage == 1:
        for parameter in engine.module.parameters():
            parameter.renamed = parameter.__dict__.pop("_hp_mapping")
        found.append(told(engine, zero, ["l1(0.1)"]))
        for parameter in engine.module.parameters():
            parameter._hp_mapping = parameter.renamed
    found.append(told(engine, zero, ["l1(0.1)"]))
    engine.destroy()
    return found


@pytest.mark.parametrize("stage", NAMES)
def test_a_version_that_keeps_weights_elsewhere_is_refused(pair: Pair, stage: int) -> None:
    for found in pair.run(renamed, stage):
        names = [*NAMES[stage], *(["_hp_mapping"] if stage == 1 else [])]
        for name, words in zip(names, found, strict=False):
            assert f".{name}, by which regplug knows where ZeRO keeps the weights" in words
        assert found[-1] == "attached"


class Anchored(torch.optim.Optimizer):
    """Computes each weight from one that it keeps itself, as dual averaging does."""

    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state["anchor"] = p.clone()
                state["anchor"] -= group["lr"] * p.grad
                p.copy_(state["anchor"])


def anchored(rank: int, stage: int, spec: str) -> str:
    engine = engine_of(stage, Anchored)
    try:
        with regplug.attach(engine, engine.optimizer, [spec]):
            engine.backward(engine(loops.batches(1)[0][rank::2]).square().mean())
            engine.step()
    except UnsupportedError as error:
        return str(error)
    return "trained"


@pytest.mark.parametrize("stage", [1, 3])
def test_an_optimizer_with_weights_of_its_own_is_noticed(pair: Pair, stage: int) -> None:
    for found in pair.run(anchored, stage, "max_norm(0.1)"):
        assert "Anchored keeps weights of its own, state['anchor']" in found
    assert pair.run(anchored, stage, "l1(0.1)") == ["trained"] * 2


def worked_on(rank: int) -> tuple[str, str]:
    """A plugin that forgets that it has a part only."""

    class Careless(regplug.Selective):
        @regplug.hookimpl
        def on_gradients(self, session: Any) -> None:
            for _, weights, gradients in session.updates(self._selection):
                gradients[0].add_(weights[0])

    engine = engine_of(2)
    try:
        with regplug.attach(engine, engine.optimizer, [Careless()]):
            engine.backward(engine(loops.batches(1)[0][rank::2]).square().mean())
            engine.step()
    except UnsupportedError as error:
        return str(error), type(error).__name__
    return "", ""


def test_arithmetic_on_a_part_is_refused(pair: Pair) -> None:
    for words, _ in pair.run(worked_on):
        assert "careless" in words
        assert "regplug.local(w)" in words


def pipelined(rank: int) -> str:
    from deepspeed.pipe import PipelineModule

    loops.without_operators()
    import deepspeed.comm

    deepspeed.comm.init_distributed("gloo")
    net = PipelineModule(list(loops.make()), num_stages=2, loss_fn=nn.MSELoss())
    own = torch.optim.SGD(net.parameters(), lr=0.1)
    engine = loops.started(model=net, optimizer=own, config=loops.config(1))
    found = told(engine, engine.optimizer, ["l1(0.1)"])
    engine.destroy()
    return found


def test_a_pipeline_of_stages_is_refused(pair: Pair) -> None:
    told_of = pair.run(pipelined)
    pair.stop()  # DeepSpeed keeps the grid of stages for the whole process
    for found in told_of:
        assert "DeepSpeed's PipelineEngine has a part of the model on each rank" in found
