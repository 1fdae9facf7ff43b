"""Checkpoints of an engine, and of Accelerate with one, hold the sessions' states."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

import regplug
from regplug.errors import StateError
from tests.engines import loops
from tests.helpers.pair import Pair

pytest.importorskip("deepspeed")
pytestmark = pytest.mark.engines

SPECS = ["l2_sp(0.3)", "l2(linear(0, 0.2, steps=4))"]


def engine_of(stage: int, specs: list[str] = SPECS) -> tuple[Any, regplug.Session]:
    model = loops.make()
    engine = loops.started(
        model=model,
        optimizer=loops.OPTIMIZERS["adam"](loops.groups_of(model)),
        config=loops.config(stage),
    )
    return engine, regplug.attach(engine, engine.optimizer, specs)


def train(rank: int, engine: Any, batches: list[torch.Tensor]) -> None:
    for x in batches:
        engine.backward(engine(x[rank::2]).square().mean())
        engine.step()


def resumed_by_engine(rank: int, stage: int, folder: str) -> dict[str, Any]:
    """Two steps, saved; two more after loading into an engine of other weights."""
    batches = loops.batches(4)
    engine, session = engine_of(stage)
    train(rank, engine, batches[:2])
    engine.save_checkpoint(folder)
    session.detach()
    engine.destroy()

    engine, session = engine_of(stage)
    train(rank, engine, batches[2:])  # away from where it was saved
    engine.load_checkpoint(folder)
    assert session.steps == 2
    train(rank, engine, batches[2:])
    found = {
        "weights": loops.master(engine.module),
        "metrics": [session.metrics()],
        "steps": session.steps,
    }
    own = "save_checkpoint" in vars(engine), "load_checkpoint" in vars(engine)
    session.detach()
    assert own == (True, True)
    assert not {"save_checkpoint", "load_checkpoint"} & set(vars(engine))
    engine.destroy()
    return found


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_run_goes_on_from_an_engines_checkpoint(pair: Pair, stage: int, tmp_path: Path) -> None:
    wanted = loops.by_torch(SPECS, "adam")
    wanted["metrics"] = wanted["metrics"][-1:]
    loops.assert_same(pair.run(resumed_by_engine, stage, str(tmp_path)), wanted)
    ranks = ["rank0", "rank1"] if stage else [""]
    names = sorted(path.name for path in tmp_path.glob("global_step2/regplug/*"))
    assert names == ["regplug" + f".{rank}" * bool(rank) + ".pt" for rank in ranks]


def told_of_engines(rank: int, folder: str) -> tuple[list[str], str]:
    """A checkpoint without a session, and one of other plugins."""
    engine, session = engine_of(2)
    session.detach()
    engine.save_checkpoint(folder, "bare")
    session = regplug.attach(engine, engine.optimizer, SPECS)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        engine.load_checkpoint(folder, "bare")
    engine.save_checkpoint(folder, "own")
    session.detach()
    session = regplug.attach(engine, engine.optimizer, ["l1(0.1)"])
    with pytest.raises(StateError) as error:
        engine.load_checkpoint(folder, "own")
    session.detach()
    engine.destroy()
    return [str(w.message) for w in caught if "regplug" in str(w.message)], str(error.value)


def test_a_checkpoint_of_others_is_told_of(pair: Pair, tmp_path: Path) -> None:
    for told, error in pair.run(told_of_engines, str(tmp_path)):
        assert len(told) == 1
        assert "was saved without regplug" in told[0]
        assert "this session has ['l1']" in error


def accelerated(rank: int, stage: int, folder: str) -> dict[str, Any]:
    """The usual loop of Accelerate: accumulation, a state saved half-way and loaded again."""
    environment = dict(os.environ)
    os.environ.pop("ACCELERATE_USE_CPU", None)
    os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
    from accelerate import Accelerator
    from accelerate.utils import DeepSpeedPlugin

    loops.without_operators()
    try:
        settings = loops.config(
            stage, gradient_accumulation_steps=loops.MICRO, train_batch_size=2 * loops.ROWS
        )
        accelerator = Accelerator(
            deepspeed_plugin=DeepSpeedPlugin(hf_ds_config=settings),
            gradient_accumulation_steps=loops.MICRO,
        )
        model = loops.make()
        optimizer = loops.OPTIMIZERS["adam"](loops.groups_of(model))
        model, optimizer = accelerator.prepare(model, optimizer)
        session = regplug.attach(model, optimizer, SPECS)
        batches = loops.batches(4 * loops.MICRO)
        half = 2 * loops.MICRO

        def trained(batches: list[torch.Tensor]) -> None:
            for x in batches:
                with accelerator.accumulate(model):
                    accelerator.backward(model(x[rank::2]).square().mean())
                    optimizer.step()
                    optimizer.zero_grad()

        trained(batches[:half])
        accelerator.save_state(folder)
        trained(batches[half:])
        if stage < 3:  # of which DeepSpeed wants a model that is made anew
            accelerator.load_state(folder)
            assert session.steps == 2
            trained(batches[half:])
        found = {
            "weights": loops.master(session.model),
            "metrics": [session.metrics()],
            "steps": session.steps,
            "kind": str(accelerator.distributed_type),
        }
        session.detach()
        model.destroy()
        return found
    finally:
        os.environ.clear()
        os.environ.update(environment)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_the_loop_of_accelerate(pair: Pair, stage: int, tmp_path: Path) -> None:
    wanted = loops.by_torch(SPECS, "adam", micro=loops.MICRO)
    wanted["metrics"] = wanted["metrics"][-1:]
    found = pair.run(accelerated, stage, str(tmp_path))
    assert {ours["kind"] for ours in found} == {"DistributedType.DEEPSPEED"}
    loops.assert_same(found, wanted)
    saved = sorted(path.name for path in (tmp_path / "regplug").iterdir())
    assert saved == (["regplug.rank0.pt", "regplug.rank1.pt"] if stage else ["regplug.pt"])
