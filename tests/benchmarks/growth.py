"""How the cost of a step grows: with the number of plugins, of tensors, and of weights."""

from collections.abc import Sequence

import torch
from passes import Weights
from timing import in_turn

import regplug


def _events(model: Weights, plugins: Sequence[object]) -> object:
    session = regplug.attach(model, torch.optim.SGD(model.parameters(), lr=1e-9), plugins)

    def fire() -> None:
        with torch.no_grad():
            session.gradients_ready()
            session.before_update()
            session.after_update()

    return fire


def slopes(rounds: int) -> dict[str, float]:
    """Return microseconds per plugin and per tensor, and nanoseconds per weight, of ``l1``."""
    tiny = Weights(2, 500)
    few, many = _timed(
        rounds,
        _events(tiny, [f"l1(1e-4, name='a{i}')" for i in range(1)]),
        _events(tiny, [f"l1(1e-4, name='a{i}')" for i in range(9)]),
    )
    short, long = _timed(
        rounds, _events(Weights(10, 100), ["l1(1e-4)"]), _events(Weights(1010, 100), ["l1(1e-4)"])
    )
    small, large = _timed(
        rounds,
        _events(Weights(10, 100_000), ["l1(1e-4)"]),
        _events(Weights(10, 1_100_000), ["l1(1e-4)"]),
    )
    return {
        "µs per plugin": (many - few) / 8 * 1e6,
        "µs per tensor": (long - short) / 1000 * 1e6,
        "ns per weight": (large - small) / 10_000_000 * 1e9,
    }


def _timed(rounds: int, *candidates: object) -> list[float]:
    named = {str(index): candidate for index, candidate in enumerate(candidates)}
    return [result.seconds for result in in_turn(named, rounds=rounds, seconds=0.02)]
