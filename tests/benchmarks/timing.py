"""Times taken in turn, so that what disturbs the machine disturbs all candidates alike."""

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Ratio:
    """How long one candidate takes, relative to the base of the same round."""

    name: str
    median: float
    low: float
    high: float
    seconds: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f}–{self.high:.2f})"


def nothing() -> None:
    """Wait for nothing: a call on the CPU is done when it returns."""


def in_turn(
    candidates: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    seconds: float = 0.0,
    wait: Callable[[], object] = nothing,
) -> list[Ratio]:
    """Time each candidate once a round and compare it with the first one of that round.

    Args:
        candidates: what to time, by name; the first is the base, 1.0.
        rounds: how many rounds are measured, after one to warm up.
        seconds: repeat a candidate within its turn for about this long, for short ones.
        wait: waits until all that was called is done, where that is later than a call returns.

    Returns:
        For each candidate the median of its ratios, their quartiles, and its median seconds.
    """
    repeats = {}
    for name, candidate in candidates.items():
        candidate()
        wait()
        start = time.perf_counter()
        candidate()
        wait()
        repeats[name] = max(1, round(seconds / max(time.perf_counter() - start, 1e-7)))
    times: dict[str, list[float]] = {name: [] for name in candidates}
    gc.collect()
    gc.disable()
    try:
        for _ in range(rounds):
            for name, candidate in candidates.items():
                start = time.perf_counter()
                for _ in range(repeats[name]):
                    candidate()
                wait()
                times[name].append((time.perf_counter() - start) / repeats[name])
    finally:
        gc.enable()
    base = next(iter(times.values()))
    result = []
    for name, own in times.items():
        ratios = [t / b for t, b in zip(own, base, strict=True)]
        low, _, high = statistics.quantiles(ratios, n=4) if rounds > 1 else [ratios[0]] * 3
        result.append(Ratio(name, statistics.median(ratios), low, high, statistics.median(own)))
    return result
