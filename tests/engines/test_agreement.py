"""Ranks under an engine attach the same, or all of them say what differs."""

from __future__ import annotations

import pytest

import regplug
from regplug.errors import RegplugError
from tests.engines import loops
from tests.helpers.pair import Pair

pytest.importorskip("deepspeed")
pytestmark = pytest.mark.engines


def different(rank: int, stage: int, *, inside: bool) -> str:
    """Attach to an engine, or to the module in it, and take a step."""
    model = loops.make()
    engine = loops.started(
        model=model,
        optimizer=loops.OPTIMIZERS["sgd"](model.parameters()),
        config=loops.config(stage),
    )
    given = engine.module if inside else engine
    try:
        with regplug.attach(given, engine.optimizer, [f"l1({0.1 * (1 + rank)})"]):
            engine.backward(engine(loops.batches(1)[0][rank::2]).square().mean())
            engine.step()
    except RegplugError as error:
        return str(error)
    finally:
        engine.destroy()
    return "trained"


def module_of(rank: int, stage: int) -> str:
    return different(rank, stage, inside=True)


def engine_of(rank: int, stage: int) -> str:
    return different(rank, stage, inside=False)


@pytest.mark.parametrize("stage", [0, 1, 3])
@pytest.mark.parametrize("given", [module_of, engine_of])
def test_ranks_that_differ_say_so(pair: Pair, stage: int, given: object) -> None:
    """At stage 0 the optimizer is torch's own, and the module knows of no engine."""
    for told in pair.run(given, stage):  # type: ignore[arg-type]
        assert "the ranks differ" in told
        assert "l1.strength now: 0.1 on rank 0, 0.2 on rank 1" in told
