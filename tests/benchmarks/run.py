"""``make bench``: what regplug costs, as ratios within one run, in Markdown and JSON.

    python tests/benchmarks/run.py [--quick] [--out FOLDER]

Every ratio is the median over rounds in which the candidates were timed in turn, with its
quartiles behind it. One thread. Absolute times are of this machine and not to be compared.
"""

import argparse
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

# Read by torch and Keras when they are imported, here and in the processes started from here.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["KERAS_BACKEND"] = "torch"

import gpu
import growth
import loops
import passes
import torch
from timing import Ratio, in_turn

HERE = Path(__file__).parent


def alone(*arguments: object, ranks: int = 0) -> dict[str, Any]:
    """Run ``alone.py`` in a process of its own, or in several under torchrun."""
    launcher = [sys.executable]
    if ranks:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    return _json(*launcher, str(HERE / "alone.py"), *map(str, arguments))


def _json(*command: str) -> dict[str, Any]:
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=600)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


class Report:
    """The figures as they come in, told on the way and written at the end."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.figures: dict[str, Any] = {}

    def say(self, line: str = "") -> None:
        """Add a line of Markdown, and show it at once."""
        self.lines.append(line)
        print(line, flush=True)

    def table(self, title: str, unit: str, columns: dict[str, Sequence[Ratio]]) -> None:
        """Add a table of ratios: a row per candidate, a column per case."""
        self.say(f"\n## {title}\n")
        self.say(f"| {unit} | " + " | ".join(columns) + " |")
        self.say("| --- |" + " ---: |" * len(columns))
        for row in zip(*columns.values(), strict=True):
            name = row[0].name.replace("|", "\\|")
            self.say(f"| {name} | " + " | ".join(map(str, row)) + " |")
        self.figures[title] = {
            case: {r.name: [r.median, r.low, r.high, r.seconds] for r in ratios}
            for case, ratios in columns.items()
        }


def measure(quick: bool) -> Report:
    """Run all benchmarks."""
    report = Report()
    rounds = 5 if quick else 9
    short = {"rounds": rounds * 3, "seconds": 0.01 if quick else 0.03}
    report.say(
        f"{date.today()}, {_processor()}, one thread, Python {platform.python_version()}, "
        f"torch {torch.__version__}. Medians (quartiles)."
    )

    sizes = {"24M in 100": (100, 240_000), "100M in 100": (100, 1_000_000)}
    if quick:
        sizes = {"2.4M in 10": (10, 240_000)}
    sizes["1M in 1,000"] = (1000, 1000)
    columns = {
        f"{name} tensors, {kernels}": in_turn(
            passes.events(*size, kernels), rounds=rounds, seconds=_turn(*size)
        )
        for name, size in sizes.items()
        for kernels in passes.kernels_of("cpu")
    }
    report.table("One event, in passes over the weights, by kernels", "passes", columns)
    columns = {
        f"{name} tensors": in_turn(passes.candidates(*size), rounds=rounds, seconds=_turn(*size))
        for name, size in sizes.items()
    }
    report.table("The same without a plugin", "passes", columns)
    _jitted(report, sizes, rounds)

    size = (10, 240_000) if quick else (100, 240_000)
    for kind, spec in ((torch.optim.SGD, "l2(0.05)"), (torch.optim.AdamW, "weight_decay(0.1)")):
        found = in_turn(passes.steps(kind, spec, *size), rounds=rounds)
        columns = {f"{size[0] * size[1]:,} weights": found}
        report.table(f"Steps of {kind.__name__} alone", "time relative to no decay", columns)

    makers = {"10→50→10 network": loops.textbook_network, "Transformer, 1M": loops.transformer}
    for title, candidates in (
        ("Whole steps of a loop", loops.candidates),
        ("Under Adam", loops.adam_candidates),
        ("Under Accelerate", loops.accelerate_candidates),
    ):
        columns = {name: in_turn(candidates(make), **short) for name, make in makers.items()}
        report.table(title, "time relative to the bare loop", columns)
    keras = _json(sys.executable, str(HERE / "keras_loop.py"), str(rounds))
    report.figures["keras"] = keras
    report.say(
        f"\nKeras on the torch backend, 10→50→10 network, `L1L2` against none: "
        f"{keras['ratio']:.2f} ({keras['low']:.2f}–{keras['high']:.2f})."
    )

    report.say("\n## How cost grows, and what else it takes\n")
    report.say("| what | figure |")
    report.say("| --- | ---: |")
    slopes = growth.slopes(rounds)
    for name, slope in slopes.items():
        report.say(f"| `l1` at the step, {name} | {slope:.2f} |")
    ranks = [alone("fsdp2", rounds, ranks=n) for n in (1, 2)]
    for found in ranks:
        report.say(
            f"| FSDP2, 24M weights, {found['ranks']} rank(s): passes over its own shard; ms; "
            f"collectives | {found['passes']:.2f}; {found['ms']:.1f}; {found['collectives']} |"
        )
    weights = 10_000_000 if quick else 100_000_000
    memory = alone("memory", weights)
    for spec, mebibytes in memory.items():
        report.say(f"| extra memory, {weights:,} weights, `{spec}` | {mebibytes:.1f} MiB |")
    found = [alone("import") for _ in range(rounds)]
    imports = {key: statistics.median(one[key] for one in found) for key in ("ms", "attach")}
    report.say(f"| `import regplug` after `import torch` | {imports['ms']:.0f} ms |")
    report.say(f"| the same with `regplug.attach` at hand | {imports['attach']:.0f} ms |")
    report.figures["growth"] = {
        "slopes": slopes,
        "fsdp2": ranks,
        "memory, MiB": memory,
        "import, ms": imports,
    }
    if torch.cuda.is_available():
        gpu.measure(report, quick=quick)
    return report


def _turn(tensors: int, each: int) -> float:
    """Return for how many seconds a candidate is repeated in its turn, if it is a short one.

    Once alone, a candidate of half a millisecond would be timed by what the one before it left in
    the caches.
    """
    return 0.02 if tensors * each < 10_000_000 else 0.0


def _jitted(report: Report, sizes: dict[str, tuple[int, int]], rounds: int) -> None:
    """Add what jax makes of the same formulas in optax, where both are installed."""
    if importlib.util.find_spec("optax") is None:
        return
    columns = {}
    for name, size in sizes.items():
        found = _json(sys.executable, str(HERE / "jitted.py"), *map(str, (*size, rounds)))
        columns[f"{name} tensors"] = [Ratio(**one) for one in found["ratios"]]
    report.table("optax under jit, in passes of jax's own", "passes", columns)


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def main() -> None:
    """Measure, and write ``benchmarks.md`` and ``benchmarks.json``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small sizes, a minute or so")
    parser.add_argument("--out", type=Path, default=Path("build/benchmarks"), help="folder")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    report = measure(arguments.quick)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "benchmarks.md").write_text("\n".join(report.lines) + "\n")
    (arguments.out / "benchmarks.json").write_text(json.dumps(report.figures, indent=1) + "\n")
    print(f"\nwritten to {arguments.out}/benchmarks.md and benchmarks.json")


if __name__ == "__main__":
    main()
