"""Early and late dropout: against underfitting in the first steps, against overfitting after them.

Liu et al. (2023) find that dropout, known as a means against overfitting, lowers the training loss
of models that underfit if it acts in the first part of the training only (early dropout), and that
models that overfit generalize better if it begins after that part (late dropout).

Here it is scikit-learn's digits and two networks: a narrow one on 1,200 images, which can't fit
them, and a wide one on 150, which learns them by heart. All variants of a seed see the same images
and start from the same weights; a schedule of ``dropout`` is all that differs::

    python examples/papers/early_dropout.py [--quick] [--out FOLDER]
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from matplotlib.figure import Figure
from paper import COLORS, interval, reproduce, table
from sklearn.datasets import load_digits
from stacked import Linear, accuracies, losses
from torch import nn
from tqdm import tqdm

import regplug

STEPS = 800
EARLY = STEPS // 5  # where early dropout ends and late dropout begins


@dataclass(frozen=True)
class Regime:
    """A width and a number of images that go together, and how often dropout drops."""

    name: str
    width: int
    images: int
    lr: float
    rate: float

    @property
    def variants(self) -> dict[str, str]:
        """The plugin of each variant."""
        return {
            "none": "dropout(0)",
            "standard": f"dropout({self.rate})",
            "early": f"dropout(linear({self.rate}, 0, steps={EARLY}))",
            "late": f"dropout(piecewise({{0: 0, {EARLY}: {self.rate}}}))",
        }


REGIMES = (
    Regime("underfitting", width=12, images=1200, lr=0.01, rate=0.1),
    Regime("overfitting", width=64, images=150, lr=0.003, rate=0.4),
)


def network(seeds: Sequence[int], width: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for part, inputs in enumerate((64, width, width)):
        layers.append(Linear([10 * seed + part for seed in seeds], inputs, width))
        layers += [nn.ReLU(), nn.Dropout(0.0)]
    return nn.Sequential(*layers, Linear([10 * seed + 9 for seed in seeds], width, 10))


def images(seeds: Sequence[int], count: int) -> tuple[torch.Tensor, ...]:
    """Return each seed's images and labels for training, and those of the others."""
    digits = load_digits()
    x = torch.tensor(digits.data / 16, dtype=torch.float32)
    y = torch.tensor(digits.target)
    order = torch.stack(
        [torch.randperm(len(x), generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    )
    known, others = order[:, :count], order[:, count:]
    return x[known], y[known], x[others], y[others]


def train(regime: Regime, spec: str, seeds: Sequence[int], steps: int) -> torch.Tensor:
    """Return loss on training images and error on the others in percent, shape (2, seeds)."""
    torch.manual_seed(seeds[0])  # what dropout drops
    batches = torch.Generator().manual_seed(seeds[0])
    x, y, other_x, other_y = images(seeds, regime.images)
    model = network(seeds, regime.width)
    optimizer = torch.optim.Adam(model.parameters(), lr=regime.lr)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    with regplug.attach(model, optimizer, [spec]):
        for _ in range(steps):
            batch = torch.randint(regime.images, (64,), generator=batches)
            optimizer.zero_grad()
            losses(model(x[:, batch]), y[:, batch]).sum().backward()
            optimizer.step()
            scheduler.step()
    model.eval()
    with torch.no_grad():
        return torch.stack([losses(model(x), y), 100 - accuracies(model(other_x), other_y)])


Found = dict[str, dict[str, torch.Tensor]]


def draw_picture(found: Found) -> Figure:
    figure = Figure(figsize=(10.5, 3.4), layout="constrained")
    panels = figure.subplots(1, 4)
    for k, (regime, runs) in enumerate(found.items()):
        for i, what in enumerate(("loss on training images", "error on other images, points")):
            axes = panels[2 * k + i]
            axes.axvline(0, color=COLORS[0], lw=1.2)
            for row, (name, color) in enumerate(zip(list(runs)[1:], COLORS[2:], strict=False)):
                center, half = interval(runs[name][i] - runs["none"][i])
                axes.errorbar(center, row, xerr=half, fmt="o", capsize=3, color=color)
            axes.set_yticks(range(len(runs) - 1), list(runs)[1:])
            axes.set_ylim(len(runs) - 1.5, -0.5)
            axes.set(title=regime, xlabel=what)
    figure.suptitle("Difference to no dropout, seed by seed, with 95 % intervals", fontsize=10.5)
    return figure


def study(quick: bool) -> tuple[str, Figure]:
    # Not the seeds 0 to 19 that widths and rates were chosen with.
    seeds, steps = (range(100, 102), 5) if quick else (range(100, 130), STEPS)
    found: Found = {}
    rows = []
    for regime in REGIMES:
        bar = tqdm(regime.variants.items(), desc=regime.name, leave=False)
        runs = {name: train(regime, spec, seeds, steps) for name, spec in bar}
        found[regime.name] = runs
        for name, spec in regime.variants.items():
            loss, error = runs[name]
            cells = [f"{regime.name}, {name}: `{spec}`", f"{loss.mean():.4f}"]
            for i, (value, digits) in enumerate(((loss, 4), (error, 2))):
                if i:
                    cells.append(f"{value.mean():.2f}")
                center, half = interval(value - runs["none"][i])
                cells.append(f"{center:+.{digits}f} ± {half:.{digits}f}" if name != "none" else "")
            rows.append(cells)
    head = ["variant", "training loss", "to none", "error on others, %", "to none, points"]
    return table(head, rows), draw_picture(found)


if __name__ == "__main__":
    reproduce("early_dropout", __doc__, study)
