"""One handwritten loop, with and without regularizers, on real data.

Scikit-learn's handwritten digits (8×8 pixels) with 60 training images: few enough that the plain
network learns them all by heart. For each seed every variant sees the same images, the same
initial weights and the same batches, so what differs is the regularizer alone::

    python examples/demo.py              # the table, and a picture in out/
    python examples/demo.py --out docs   # the table and the picture of the README
    python examples/demo.py --choose     # how the strengths were chosen: without the test images
"""

import argparse
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, median, stdev

import torch
from demo_picture import draw
from demo_table import against, table, verdict
from sklearn.datasets import load_digits
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

import regplug

STEPS = 600

VARIANTS: dict[str, list[str]] = {
    "plain": [],
    "l2": ["l2(3e-3)"],
    "l1": ["l1(3e-4)"],
    "weight_decay": ["weight_decay(0.03)"],
    "dropout": [f"dropout(linear(0.5, 0, steps={STEPS}))"],
    "l1 proximal": ["l1(3e-4, delivery='proximal')"],
    "combination": [  # goes for zeros, with three times the strength
        "l1(warmup(1e-3, steps=200), delivery='proximal')",
        f"dropout(linear(0.3, 0, steps={STEPS}))",
    ],
}

# Timed for comparison: what torch's own dropout costs at a rate that stays.
TORCH_DROPOUT = "nn.Dropout(0.3)"

# What --choose compares with the above.
OTHERS: dict[str, list[str]] = {
    "l2": ["l2(1e-3)", "l2(1e-2)"],
    "l1": ["l1(1e-4)", "l1(1e-3)"],
    "weight_decay": ["weight_decay(0.01)", "weight_decay(0.1)"],
    "dropout": [
        f"dropout(linear({ends}, steps={STEPS}))" for ends in ("0.3, 0", "0.5, 0.1", "0.1, 0.5")
    ],
    "l1 proximal": ["l1(1e-4, delivery='proximal')", "l1(1e-3, delivery='proximal')"],
}


def network() -> nn.Sequential:
    hidden = 128
    return nn.Sequential(
        *(nn.Linear(64, hidden), nn.ReLU(), nn.Dropout(0.0)),
        *(nn.Linear(hidden, hidden), nn.ReLU(), nn.Dropout(0.0)),
        nn.Linear(hidden, 10),
    )


def training(
    model: nn.Module, optimizer: torch.optim.Optimizer, data: "Data", seed: int, steps: int
) -> Iterator[int]:
    """The handwritten loop. It knows nothing of regularizers; it yields after each step."""
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        batch = torch.randint(len(data.train_x), (32,), generator=generator)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(data.train_x[batch]), data.train_y[batch])
        loss.backward()
        optimizer.step()
        yield step + 1


@dataclass
class Data:
    """Standardized images of one draw: 60 to train on, and others to judge by."""

    train_x: torch.Tensor
    train_y: torch.Tensor
    other_x: torch.Tensor
    other_y: torch.Tensor


def split(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return indices of training images, of held-out ones and of the test set, always the same."""
    order = torch.randperm(1797, generator=torch.Generator().manual_seed(0))
    test, pool = order[:900], order[900:]
    pool = pool[torch.randperm(len(pool), generator=torch.Generator().manual_seed(seed))]
    return pool[:60], pool[60:], test


def draw_data(seed: int, *, choosing: bool) -> Data:
    """Return images to train on, and to judge by: held-out ones if ``choosing``, or the test's."""
    digits = load_digits()
    train, held_out, test = split(seed)
    other = held_out if choosing else test
    scaler = StandardScaler().fit(digits.data[train])
    x = torch.tensor(scaler.transform(digits.data), dtype=torch.float32)
    y = torch.tensor(digits.target)
    return Data(x[train], y[train], x[other], y[other])


def start(
    specs: list[str], seed: int
) -> tuple[nn.Sequential, torch.optim.Optimizer, regplug.Session | None]:
    """Return a new network and its optimizer, with the plugins attached: this is the one line."""
    torch.manual_seed(seed)
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    session = regplug.attach(model, optimizer, specs) if specs else None
    return model, optimizer, session


@dataclass
class Run:
    """What one training showed. Accuracies are in percent."""

    model: nn.Sequential
    steps: list[int] = field(default_factory=list)
    train: list[float] = field(default_factory=list)
    test: list[float] = field(default_factory=list)
    scheduled: dict[str, list[float]] = field(default_factory=dict)

    @property
    def weights(self) -> list[torch.Tensor]:
        """The weight matrices, first layer first."""
        return [p.detach() for p in self.model.parameters() if p.ndim == 2]

    @property
    def zeros(self) -> float:
        """How many of all weights are exactly 0, in percent."""
        return 100 * float(torch.cat([w.flatten() == 0 for w in self.weights]).float().mean())


def accuracy(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    model.eval()
    with torch.no_grad():
        right = (model(x).argmax(1) == y).float().mean()
    model.train()
    return 100 * float(right)


def run(specs: list[str], seed: int, steps: int, *, choosing: bool = False) -> Run:
    """Train once, looking at accuracy, strengths and rates on the way."""
    data = draw_data(seed, choosing=choosing)
    model, optimizer, session = start(specs, seed)
    seen = Run(model)

    def look(step: int) -> None:
        seen.steps.append(step)
        seen.train.append(accuracy(model, data.train_x, data.train_y))
        seen.test.append(accuracy(model, data.other_x, data.other_y))
        for key, value in (session.metrics() if session else {}).items():
            if key.endswith(("/strength", "/rate")):
                seen.scheduled.setdefault(key, []).append(value)

    look(0)
    for step in training(model, optimizer, data, seed, steps):
        if step % 20 == 0 or step == steps:
            look(step)
    if session:
        session.detach()
    return seen


def costs(rounds: int) -> dict[str, float]:
    """Return each variant's median seconds per step, all of them taking turns step by step."""
    data = draw_data(0, choosing=False)
    started = {name: start(specs, 0) for name, specs in VARIANTS.items()}
    started[TORCH_DROPOUT] = start([], 0)
    for module in started[TORCH_DROPOUT][0]:
        if isinstance(module, nn.Dropout):
            module.p = 0.3
    loops = {name: training(*s[:2], data, 0, rounds) for name, s in started.items()}
    seconds: dict[str, list[float]] = {name: [] for name in loops}
    shuffle = random.Random(0)
    for _ in tqdm(range(rounds), desc="timing", unit="round", leave=False):
        for name in shuffle.sample(list(loops), len(loops)):
            before = time.perf_counter()
            next(loops[name])
            seconds[name].append(time.perf_counter() - before)
    return {name: median(times[rounds // 10 :]) for name, times in seconds.items()}


def choose(seeds: int, steps: int) -> None:
    """Compare strengths on images that are neither trained on nor in the test set."""
    tried = [VARIANTS[name] for name in VARIANTS]
    tried += [[spec] for specs in OTHERS.values() for spec in specs]
    found: dict[str, list[float]] = {}
    with tqdm(total=seeds * len(tried), unit="run", leave=False) as bar:
        for specs in tried:
            for seed in range(1000, 1000 + seeds):
                accuracy = run(specs, seed, steps, choosing=True).test[-1]
                found.setdefault(" ".join(specs) or "plain", []).append(accuracy)
                bar.update()
    print("accuracy on images held out, %, and its difference to plain with its standard error")
    for specs, accuracies in sorted(found.items()):
        difference = [a - b for a, b in zip(accuracies, found["plain"], strict=True)]
        error = stdev(difference) / seeds**0.5
        print(f"{mean(accuracies):6.2f}  {mean(difference):+6.2f} ± {error:.2f}  {specs}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that it runs")
    parser.add_argument("--choose", action="store_true", help="compare strengths instead")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder to write into")
    options = parser.parse_args()
    torch.set_num_threads(1)  # fastest for so small a network, and repeatable
    seeds, steps, rounds = (2, 40, 20) if options.quick else (12, STEPS, 600)
    if options.choose:
        choose(seeds, steps)
        return

    results: dict[str, list[Run]] = {name: [] for name in VARIANTS}
    with tqdm(total=seeds * len(VARIANTS), unit="run", leave=False) as bar:
        for seed in range(seeds):
            for name, plugins in VARIANTS.items():
                bar.set_description(f"{name}, seed {seed}")
                results[name].append(run(plugins, seed, steps))
                bar.update()
    seconds = costs(rounds)

    options.out.mkdir(parents=True, exist_ok=True)
    specs = "\n".join(
        f"- {n}: {', '.join(f'`{v}`' for v in vs)}" for n, vs in VARIANTS.items() if vs
    )
    text = f"{table(results, seconds)}\n\n{verdict(results, seconds, TORCH_DROPOUT)}\n\n{specs}\n"
    (options.out / "demo.md").write_text(text, encoding="utf-8")
    differences = {
        name: against(runs, results["plain"]) for name, runs in results.items() if name != "plain"
    }
    draw(results, differences, specs, options.out / "demo.png")
    print(f"{text}\nwrote {options.out / 'demo.md'} and {options.out / 'demo.png'}")


if __name__ == "__main__":
    main()
