"""Fine-tuning: how far weights go from where they started."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from matplotlib.figure import Figure
from panels import BEFORE, COLORS, card, told
from problems import accuracy, attached, batches, digits, steps, trained
from torch import Tensor, nn
from torch.nn import functional as F

Drawn = tuple[Figure, list[str]]


def _tuned(specs: list[str], watch: Callable[[nn.Module, Tensor], Any]) -> tuple[Any, ...]:
    """Train on digits as they are, then go on with 40 that are turned by 25 degrees."""
    model, _ = trained([], count=400)
    start = model[0].weight.detach().clone()
    x, y, *_ = digits(40)
    x = _turned(x)
    seen = []
    with attached(model, specs, torch.optim.Adam(model.parameters(), lr=3e-3)) as session:
        for inputs, targets in batches(x, y, steps(400), size=20):
            session.optimizer.zero_grad()
            F.cross_entropy(model(inputs), targets).backward()
            session.optimizer.step()
            seen.append(watch(model, start))
    return model, start, seen


def _turned(x: Tensor) -> Tensor:
    angle = math.radians(25)
    turn = torch.tensor(
        [[math.cos(angle), -math.sin(angle), 0.0], [math.sin(angle), math.cos(angle), 0.0]]
    )
    images = x.unflatten(1, (1, 8, 8)) + 1  # what comes from outside is black, which is −1
    grid = F.affine_grid(turn.expand(len(x), 2, 3), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False).flatten(1) - 1


@torch.no_grad()
def _right(model: nn.Module) -> str:
    *_, x, y = digits()
    share = [100 * (model(z).argmax(1) == y).float().mean().item() for z in (_turned(x), x)]
    return "{:.0f} % turned, {:.0f} % upright".format(*share)


def _distance(model: nn.Module, start: Tensor) -> float:
    return (model[0].weight.detach() - start).norm().item()


def _l2_sp() -> Drawn:
    specs = ["l2_sp(0.01)", "l2(0.01)"]
    figure, panels = card(3)
    labels: dict[str, list[str]] = {"no plugin": [], **{s: [s] for s in specs}}
    for panel, (label, plugins), color in zip(
        panels, labels.items(), (BEFORE, *COLORS), strict=False
    ):
        model, start, seen = _tuned(plugins, _distance)
        panel.plot([-0.6, 0.6], [-0.6, 0.6], color="black", linewidth=0.7, linestyle=":")
        panel.scatter(start[::2], model[0].weight.detach()[::2], s=3, color=color, linewidth=0)
        panel.set_xlim(-0.6, 0.6)
        panel.set_ylim(-0.6, 0.6)
        text = f"{label}\n‖w − w₀‖ = {seen[-1]:.1f}\n{_right(model)}"
        told(panel, text, "w₀", "w" if panel is panels[0] else "")
    return figure, specs


def _decay_to_start() -> Drawn:
    specs = ["decay_to_start(1)", "weight_decay(1)"]
    figure, panels = card(2)
    labels: dict[str, list[str]] = {"no plugin": [], **{s: [s] for s in specs}}
    for (label, plugins), color in zip(labels.items(), (BEFORE, *COLORS), strict=False):
        model, _, seen = _tuned(
            plugins, lambda m, w: (_distance(m, w), m[0].weight.detach().norm().item())
        )
        text = f"{label}, {_right(model)}"
        panels[0].plot([far for far, _ in seen], color=color, label=text)
        panels[1].plot([norm for _, norm in seen], color=color)
    told(panels[0], "way from the start, ‖w − w₀‖", "step")
    told(panels[1], "size, ‖w‖", "step")
    for panel in panels:
        panel.set_ylim(0, 1.6 * panel.get_ylim()[1])
    return figure, specs


def _cpr() -> Drawn:
    specs = ["cpr()", "cpr(init='warm_start', kappa=100)"]
    figure, panels = card(3, widths=(1.3, 1, 1))

    def watch(session: Any) -> tuple[list[float], dict[str, float]]:
        squares = [session.model[i].weight.detach().square().mean().item() for i in (0, 2)]
        return squares, session.metrics()

    labels: dict[str, list[str]] = {"no plugin": [], **{spec: [spec] for spec in specs}}
    for (label, plugins), color in zip(labels.items(), (BEFORE, *COLORS), strict=False):
        model, seen = trained(plugins, watch=watch)
        for panel, layer in zip(panels, (0, 1), strict=False):
            text = f"{label.replace('init=', '')}, {accuracy(model):.1f} %"
            panel.plot([squares[layer] for squares, _ in seen], color=color, label=text)
        if plugins:
            panels[2].plot([metrics["cpr/largest"] for _, metrics in seen], color=color)
    top = panels[0].get_ylim()[1]
    panels[0].set_ylim(0, 1.5 * top)
    told(panels[0], "mean(w²), first layer; test accuracy", "step", legend="upper left")
    panels[1].set_ylim(bottom=0)
    told(panels[1], "mean(w²), second layer", "step", legend=None)
    told(panels[2], "the larger λ", "step")
    return figure, specs


PICTURES = {"l2_sp": _l2_sp, "decay_to_start": _decay_to_start, "cpr": _cpr}
