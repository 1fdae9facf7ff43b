"""Decoupled weight decay: does the best strength move with the learning rate?

Loshchilov and Hutter (2019) train a residual network with Adam for a grid of learning rates and
strengths. With L2 in the loss the good settings lie along a diagonal: whoever changes one has to
change the other. With decay taken out of the gradient they are more nearly separable, and better.
Their decay takes λ of each weight at a step, times the schedule's factor, and not the learning
rate, as torch's AdamW and ``weight_decay`` do: there it is lr·λ. Both are tried here::

    python examples/papers/decoupling.py [--quick] [--out FOLDER]

It is a network of one hidden layer on 300 of scikit-learn's digits, of which three in ten have a
label drawn by lot, so that it has to be kept from learning them by heart; Adam, a cosine schedule.
"""

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from paper import interval, reproduce, table
from sklearn.datasets import load_digits
from stacked import Linear, accuracies, losses
from torch import nn
from tqdm import tqdm

import regplug

IMAGES, WIDTH, BATCH = 300, 128, 50
STEPS = 600
RATES = [3e-3 * 2**k for k in range(5)]

# Of each way: the plugin at a strength and a learning rate, and the least strength tried.
WAYS = {
    "L2 in the loss: l2(λ, delivery='loss')": (lambda s, lr: f"l2({s}, delivery='loss')", 1e-3),
    "decay of λ: weight_decay(λ/lr)": (lambda s, lr: f"weight_decay({s / lr})", 2e-3),
    "decay of lr·λ: weight_decay(λ)": (lambda s, lr: f"weight_decay({s})", 0.25),
}
DOUBLINGS = 7


def strengths(way: str) -> list[float]:
    return [WAYS[way][1] * 2**k for k in range(DOUBLINGS)]


def network(seeds: Sequence[int]) -> nn.Sequential:
    return nn.Sequential(
        Linear([10 * seed for seed in seeds], 64, WIDTH),
        nn.ReLU(),
        Linear([10 * seed + 1 for seed in seeds], WIDTH, 10),
    )


def images(seeds: Sequence[int]) -> tuple[torch.Tensor, ...]:
    """Return each seed's images and labels, some of them wrong, and all others with theirs."""
    digits = load_digits()
    x = torch.tensor(digits.data / 16, dtype=torch.float32)
    y = torch.tensor(digits.target)
    parts = []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(x), generator=generator)
        known, others = order[:IMAGES], order[IMAGES:]
        wrong = torch.rand(IMAGES, generator=generator) < 0.3
        drawn = torch.randint(10, (IMAGES,), generator=generator)
        parts.append((x[known], torch.where(wrong, drawn, y[known]), x[others], y[others]))
    return tuple(torch.stack(part) for part in zip(*parts, strict=True))


def train(lr: float, specs: list[str], seeds: Sequence[int], steps: int) -> torch.Tensor:
    """Return the error on the other images in percent, shape (seeds,)."""
    x, y, other_x, other_y = images(seeds)
    batches = torch.Generator().manual_seed(seeds[0])
    model = network(seeds)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    with regplug.attach(model, optimizer, specs) as session:
        for _ in range(steps):
            batch = torch.randint(IMAGES, (BATCH,), generator=batches)
            optimizer.zero_grad()
            # The sum over networks of each one's own loss: they do not meet.
            loss = session.loss(losses(model(x[:, batch]), y[:, batch]).sum())
            loss.backward()
            optimizer.step()
            scheduler.step()
    with torch.no_grad():
        return 100 - accuracies(model(other_x), other_y)


def slopes(errors: torch.Tensor, grid: Sequence[float]) -> torch.Tensor:
    """Return for each seed by what power of the learning rate its best strength grows.

    0 is a strength that suits all learning rates, −1 one of which only the product with the
    learning rate counts.

    Args:
        errors: shape (learning rates, strengths, seeds).
        grid: the strengths.
    """
    best = np.log(grid)[errors.argmin(1).numpy()]
    return torch.tensor(np.polyfit(np.log(RATES), best, 1)[0])


def forgone(errors: torch.Tensor) -> tuple[int, float]:
    """Return which one strength does best for all learning rates, and the points it gives up.

    That is the mean difference to each learning rate's own best, of errors averaged over seeds.
    """
    mean = errors.mean(2)
    lost = (mean - mean.min(1, keepdim=True).values).mean(0)
    return int(lost.argmin()), float(lost.min())


def draw_picture(errors: dict[str, torch.Tensor], plain: torch.Tensor) -> Figure:
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    panels = figure.subplots(1, len(errors), sharey=True)
    low = min(float(e.mean(2).min()) for e in errors.values())
    high = float(plain.mean(1).max())
    for axes, (way, error) in zip(panels, errors.items(), strict=True):
        mean = torch.cat([plain.mean(1, keepdim=True), error.mean(2)], dim=1)
        shown = axes.imshow(mean.numpy(), cmap="viridis_r", vmin=low, vmax=high, aspect="auto")
        for row, values in enumerate(mean):
            for column, value in enumerate(values.tolist()):
                color = "black" if value < (low + high) / 2 else "white"
                axes.text(column, row, f"{value:.0f}", ha="center", va="center", color=color)
            axes.plot(int(values.argmin()), row, "s", ms=17, mfc="none", mec="#D55E00", mew=2)
        axes.set_xticks(range(DOUBLINGS + 1), ["0", *(f"{s:.2g}" for s in strengths(way))])
        axes.tick_params(axis="x", labelrotation=45)
        axes.set(title=way, xlabel="λ")
    panels[0].set_yticks(range(len(RATES)), [f"{lr:.2g}" for lr in RATES])
    panels[0].set_ylabel("learning rate")
    figure.colorbar(shown, ax=panels, label="error on other images, %")
    return figure


def study(quick: bool) -> tuple[str, Figure]:
    # Not the seeds 0 to 4 that the grids were chosen with.
    seeds, steps = (range(100, 102), 2) if quick else (range(100, 105), STEPS)
    with tqdm(total=len(RATES) * (1 + len(WAYS) * DOUBLINGS), leave=False) as bar:

        def error(lr: float, specs: list[str]) -> torch.Tensor:
            bar.update()
            return train(lr, specs, seeds, steps)

        plain = torch.stack([error(lr, []) for lr in RATES])
        errors = {
            way: torch.stack(
                [torch.stack([error(lr, [plugin(s, lr)]) for s in strengths(way)]) for lr in RATES]
            )
            for way, (plugin, _) in WAYS.items()
        }
    rows = [["none", f"{plain.mean(1).min():.1f}", "", "", ""]]
    for way, found in errors.items():
        center, half = interval(slopes(found, strengths(way)))
        index, lost = forgone(found)
        least = found.mean(2).min(1).values
        rows.append(
            [
                f"{way.replace(': ', ': `')}`",
                f"{least.min():.1f}",
                f"{center:+.2f} ± {half:.2f}",
                f"{strengths(way)[index]:.2g}",
                f"{lost:.1f}",
            ]
        )
    head = [
        "way",
        "best error, %",
        "power of lr that the best λ follows",
        "best λ for all lr",
        "points that gives up",
    ]
    return table(head, rows), draw_picture(errors, plain)


if __name__ == "__main__":
    reproduce("decoupling", __doc__, study)
