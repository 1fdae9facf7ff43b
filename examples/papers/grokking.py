"""Grokking and weight decay: a network that has learnt by heart generalizes much later.

Power et al. (2022) train a small network on half of the table of a binary operation. It knows the
training pairs after few steps, and all others after many; of what they tried, weight decay speeds
this up most. Nanda et al. (2023) and Liu et al. (2022) add that without a pressure on the norm of
the weights it may not happen at all, and that decay sets its time.

Here it is addition modulo 31, a network of one hidden layer, all training pairs at once in each
step, Adam and ``weight_decay``, whose strength is all that differs::

    python examples/papers/grokking.py [--quick] [--out FOLDER]
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import torch
from matplotlib.figure import Figure
from paper import COLORS, reproduce, table
from stacked import accuracies, draw, losses
from torch import nn
from tqdm import tqdm

import regplug

MODULUS = 31
HIDDEN = 128
TRAINED_ON = 0.6  # of all pairs
STRENGTHS = (0, 0.2, 0.5, 1, 3)
LEARNT, GENERALIZED = 99, 95  # percent


class Adder(nn.Module):
    """For each seed a network of one hidden layer on two numbers, one-hot: (seeds, rows, 2)."""

    def __init__(self, seeds: Sequence[int]) -> None:
        super().__init__()

        def start(part: int, inputs: int, rows: int, columns: int) -> nn.Parameter:
            draws = [draw(10 * seed + part, rows, columns) for seed in seeds]
            return nn.Parameter(torch.stack(draws) * inputs**-0.5)

        self.left = start(0, 2 * MODULUS, MODULUS, HIDDEN)
        self.right = start(1, 2 * MODULUS, MODULUS, HIDDEN)
        self.out = start(2, HIDDEN, HIDDEN, MODULUS)

    def forward(self, pairs: torch.Tensor) -> torch.Tensor:
        # A one-hot vector times a matrix is one of its rows.
        index = pairs[..., None].expand(-1, -1, -1, HIDDEN)
        hidden = self.left.gather(1, index[:, :, 0]) + self.right.gather(1, index[:, :, 1])
        return hidden.relu() @ self.out


@dataclass
class Run:
    """What the networks of all seeds did under one strength; accuracies are (looks, seeds)."""

    steps: list[int]
    train: torch.Tensor
    test: torch.Tensor
    norm: float

    def first(self, accuracy: torch.Tensor, percent: float) -> list[float]:
        """Return for each seed the step at which it was first seen there, or infinity."""
        reached = accuracy >= percent
        found = [self.steps[i] for i in reached.int().argmax(0)]
        return [n if r else math.inf for n, r in zip(found, reached.any(0), strict=True)]


def pairs(seeds: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return each seed's pairs for training and for testing: together all there are."""
    numbers = torch.arange(MODULUS)
    every = torch.cartesian_prod(numbers, numbers)
    drawn = [
        every[torch.randperm(len(every), generator=torch.Generator().manual_seed(seed))]
        for seed in seeds
    ]
    cut = int(TRAINED_ON * len(every))
    return torch.stack(drawn)[:, :cut], torch.stack(drawn)[:, cut:]


def train(strength: float, seeds: Sequence[int], steps: int) -> Run:
    """Train until all seeds generalize, at most ``steps``, and look every 25."""
    known, others = pairs(seeds)
    target = known.sum(2) % MODULUS
    model = Adder(seeds)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, betas=(0.9, 0.98))
    seen: list[tuple[int, torch.Tensor, torch.Tensor]] = []
    with regplug.attach(model, optimizer, [f"weight_decay({strength})"]):
        for step in range(steps + 1):
            if step % 25 == 0:
                with torch.no_grad():
                    known_right = accuracies(model(known), target)
                    right = accuracies(model(others), others.sum(2) % MODULUS)
                seen.append((step, known_right, right))
                if bool((right >= GENERALIZED).all()):
                    break
            optimizer.zero_grad()
            losses(model(known), target).sum().backward()
            optimizer.step()
    weights = torch.cat([p.detach().flatten(1) for p in model.parameters()], dim=1)
    looks, train, test = zip(*seen, strict=True)
    norm = float(weights.norm(dim=1).mean())
    return Run(list(looks), torch.stack(train), torch.stack(test), norm)


def reached(firsts: list[float]) -> str:
    """Return the median of some steps and their range, or that there are none."""
    some = [int(n) for n in firsts if n < math.inf]
    return f"{median(some):,.0f} ({min(some):,}–{max(some):,})" if some else "never"


def draw_picture(runs: dict[float, Run], steps: int) -> Figure:
    figure = Figure(figsize=(10.5, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1.6, 1])
    for (strength, run), color in zip(runs.items(), COLORS, strict=False):
        at = [max(step, 10) for step in run.steps]
        left.plot(at, run.test.mean(1), color=color, label=f"λ = {strength:g}")
        left.plot(at, run.train.mean(1), color=color, ls=":", lw=1)
        firsts = [n for n in run.first(run.test, GENERALIZED) if n < math.inf]
        right.plot([strength] * len(firsts), firsts, "o", color=color, alpha=0.7)
    left.set(xscale="log", xlabel="step", ylabel="%, mean over seeds")
    left.set_title("Accuracy on training pairs (dotted) and on the others")
    left.legend(loc="upper left", bbox_to_anchor=(0, 0.93))
    right.axhline(steps, color="#888888", ls="--", lw=1)
    right.text(0.02, steps, " the budget", va="bottom", transform=right.get_yaxis_transform())
    right.set(xscale="log", yscale="log", xlabel="strength λ", ylabel="step")
    right.set(xlim=(STRENGTHS[1] / 1.5, STRENGTHS[-1] * 1.5), ylim=(steps / 20, 2 * steps))
    right.set_xticks(STRENGTHS[1:], [f"{strength:g}" for strength in STRENGTHS[1:]])
    right.minorticks_off()
    right.set_title(f"First step with {GENERALIZED} % of the others")
    return figure


def study(quick: bool) -> tuple[str, Figure]:
    seeds, steps = (range(2), 50) if quick else (range(5), 6_000)
    bar = tqdm(STRENGTHS, leave=False)
    runs = {strength: train(strength, seeds, steps) for strength in bar}
    rows = []
    for strength, run in runs.items():
        firsts = run.first(run.test, GENERALIZED)
        count = sum(n < math.inf for n in firsts)
        rows.append(
            [
                f"`weight_decay({strength:g})`",
                reached(run.first(run.train, LEARNT)),
                reached(firsts),
                f"{count} of {len(seeds)}",
                f"{run.test[-1].mean():.0f} %",
                f"{run.norm:.0f}",
            ]
        )
    head = [
        "plugin",
        f"{LEARNT} % of training pairs",
        f"{GENERALIZED} % of the others",
        "seeds that generalize",
        "of the others at the end",
        "norm at the end",
    ]
    return table(head, rows), draw_picture(runs, steps)


if __name__ == "__main__":
    reproduce("grokking", __doc__, study)
