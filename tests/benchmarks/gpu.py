"""What regplug costs on a GPU: passes, launches and the host's time of events; whole steps.

    python tests/benchmarks/gpu.py [--device cpu] [--quick]

A part of ``make bench`` where there is a GPU. A pass is ``torch._foreach_add_`` over all tensors,
in turn with what is compared with it. ``--device cpu --quick`` tries the code where there is none.
"""

import argparse
import gc
import statistics
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import gpt2
import passes
import torch
from timing import Ratio, in_turn
from torch import nn

if TYPE_CHECKING:
    from run import Report

_CALLS = 20
_COPIES = 6
"""Of the weights' size: themselves, gradients, two of Adam's, and what operations need."""


def _gpt2_weights() -> nn.Module:
    """Return tensors of GPT-2's sizes, all of two dimensions: plugins cover each of them."""
    with torch.device("meta"):
        sizes = [tuple(w.shape) for w in gpt2.Gpt2(gpt2.Size()).parameters()]
    return nn.ParameterList(
        torch.randn(shape if len(shape) > 1 else (*shape, 1)) for shape in sizes
    )


_STEPS = 1_250_000_000
"""Weights of the models whose steps are taken in turn, and room for the activations of one."""

SIZES: dict[str, tuple[int, Callable[[], nn.Module]]] = {
    "4 tensors of 1k": (4_000, lambda: passes.Weights(4, 1_000)),
    "25M in 160": (25_000_000, lambda: passes.Weights(160, 156_250)),
    "GPT-2, 124M in 148": (124_439_808, _gpt2_weights),
    "1M in 1,000": (1_000_000, lambda: passes.Weights(1_000, 1_000)),
    "1.5B in 580": (1_500_000_000, lambda: passes.Weights(580, 2_586_000)),
}


def host_time(run: Callable[[], object], wait: Callable[[], object]) -> float:
    """Return the seconds until a call returns, with nothing before it on the device."""
    taken = []
    for _ in range(_CALLS):
        wait()
        start = time.perf_counter()
        run()
        taken.append(time.perf_counter() - start)
    wait()
    return statistics.median(taken)


def launches(run: Callable[[], object], device: str) -> int | None:
    """Return how many kernels a call launches, None where there is no GPU."""
    if device != "cuda":
        return None
    from tests.helpers import profiled

    return profiled.launches(run)


def _fits(weights: int, device: str) -> bool:
    return device != "cuda" or torch.cuda.mem_get_info()[0] > 4 * _COPIES * weights


def _events(
    report: "Report", sizes: Mapping[str, Callable[[], nn.Module]], device: str, rounds: int
) -> None:
    """Add what events cost: a table of passes, and one of launches and host time."""
    wait = passes.waiting(device)
    columns: dict[str, list[Ratio]] = {}
    aside: dict[str, dict[str, tuple[int | None, float]]] = {}
    for name, make in sizes.items():
        for kernels in passes.kernels_of(device):
            torch.manual_seed(0)
            found = passes.events_of(make(), kernels, device)
            column = f"{name}, {kernels}"
            columns[column] = in_turn(found, rounds=rounds, seconds=0.01, wait=wait)
            aside[column] = {
                row: (launches(run, device), host_time(run, wait)) for row, run in found.items()
            }
            del found  # the next ones want its memory
            gc.collect()
            if device == "cuda":
                torch.cuda.empty_cache()
    report.table("One event on the GPU, in passes over the weights", "passes", columns)
    report.say("\n### The same: launches; milliseconds until the call returns; and in all\n")
    report.say("| launches; ms; ms | " + " | ".join(columns) + " |")
    report.say("| --- |" + " ---: |" * len(columns))
    for i, row in enumerate(next(iter(aside.values()))):
        shown = [
            f"{'–' if aside[column][row][0] is None else aside[column][row][0]}; "
            f"{aside[column][row][1] * 1e3:.2f}; {columns[column][i].seconds * 1e3:.2f}"
            for column in columns
        ]
        report.say(f"| {row} | " + " | ".join(shown) + " |")
    report.figures["launches and host seconds on the GPU"] = aside


def measure(report: "Report", *, quick: bool = False, device: str = "cuda") -> None:
    """Add what events and whole steps cost on a GPU.

    Args:
        report: that is added to.
        quick: small sizes alone.
        device: ``"cuda"``; ``"cpu"`` tries this code without one.
    """
    rounds = 5 if quick else 9
    named = _card() if device == "cuda" else "no GPU: the CPU, to try the code"
    report.say(f"\n## On a GPU\n\n{named}.")
    small = ("4 tensors of 1k", "1M in 1,000")
    sizes = {
        name: make
        for name, (weights, make) in SIZES.items()
        if (not quick or name in small) and _fits(weights, device)
    }
    _events(report, sizes, device, rounds)
    size = gpt2.TINY if quick else gpt2.Size()
    if not quick and not _fits(_STEPS, device):
        report.say("\nThe GPU's memory is too small for whole steps of GPT-2's size in turn.")
        return
    found = in_turn(gpt2.candidates(size, device), rounds=rounds * 3, wait=passes.waiting(device))
    column = f"{size.layers} layers of {size.width}, {size.batch} × {size.length}"
    report.table(
        "Whole steps of GPT-2's build, bf16 autocast, fused AdamW",
        "time relative to the bare loop",
        {column: found},
    )


def _card() -> str:
    from importlib import metadata

    try:
        triton = metadata.version("triton")
    except metadata.PackageNotFoundError:
        triton = "none"
    return (
        f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}, torch {torch.__version__}, "
        f"Triton {triton}, float32"
    )


def main() -> None:
    """Print the tables alone."""
    from run import Report

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", choices=("cpu", "cuda"))
    parser.add_argument("--quick", action="store_true", help="small sizes")
    arguments = parser.parse_args()
    measure(Report(), quick=arguments.quick, device=arguments.device)


if __name__ == "__main__":
    main()
