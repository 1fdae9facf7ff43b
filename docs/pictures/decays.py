"""Decay and noise: what each step does, measured as it is done."""

from __future__ import annotations

import math

import torch
from matplotlib.figure import Figure
from panels import BEFORE, COLORS, card, told
from problems import accuracy, attached, steps, trained
from torch import nn

Drawn = tuple[Figure, list[str]]

SCALES = ("lr", "schedule", "none", "lr_squared")


def _lost(scale: str, rates: list[float]) -> list[float]:
    """Return what share of a weight each step takes, with no gradient and these learning rates."""
    model = nn.Linear(1, 1, bias=False)
    strength = {"lr": 0.1, "lr_squared": 0.1}.get(scale, 0.1 * max(rates))
    spec = f"weight_decay({strength}, scale='{scale}', reference_lr={max(rates)})"
    if scale in ("lr", "none"):
        spec = f"weight_decay({strength}, scale='{scale}')"
    shares = []
    with attached(model, [spec], torch.optim.SGD(model.parameters(), lr=max(rates))) as session:
        for rate in rates:
            model.weight.data.fill_(1.0)
            session.optimizer.param_groups[0]["lr"] = rate
            model.weight.grad = torch.zeros(1, 1)
            session.optimizer.step()
            shares.append(1 - model.weight.item())
    return shares


def _weight_decay() -> Drawn:
    specs = ["weight_decay(0.1)", "weight_decay(1.0)"]
    figure, (norms, shares) = card(2)
    labels: dict[str, list[str]] = {"no plugin": [], **{s: [s] for s in specs}}
    for (label, plugins), color in zip(labels.items(), (BEFORE, *COLORS), strict=False):
        model, seen = trained(plugins, watch=lambda s: s.model[0].weight.detach().norm().item())
        norms.plot(seen, color=color, label=f"{label}, {accuracy(model):.1f} %")
    norms.set_ylim(bottom=0)
    told(norms, "‖w‖ of the first layer; test accuracy", "step", legend="lower right")
    count, most = steps(200), 0.01
    warm = max(count // 10, 1)
    rates = [
        most * (t + 1) / warm if t < warm else most * 0.5 * (1 + math.cos(math.pi * t / count))
        for t in range(count)
    ]
    for scale, color in zip(SCALES, (BEFORE, *COLORS), strict=False):
        shares.plot(
            [1000 * share for share in _lost(scale, rates)], color=color, label=f"scale='{scale}'"
        )
    told(
        shares,
        "share that a step takes, ‰,\nunder warm-up and cosine",
        "step",
        legend="upper right",
    )
    shares.set_ylim(0, 1.65)
    shares.lines[1].set_linestyle("--")  # as "lr" where lr₀ is the largest
    return figure, specs


def _valley(specs: list[str]) -> list[tuple[float, float]]:
    """Descend x² − y² + y⁴/4 from its ridge y = 0, on which the gradient never leaves it."""
    point = nn.Linear(2, 1, bias=False)
    point.weight.data.copy_(torch.tensor([[1.5, 0.0]]))
    way = [(1.5, 0.0)]
    with attached(point, specs, torch.optim.SGD(point.parameters(), lr=0.05)) as session:
        for _ in range(steps(120)):
            session.optimizer.zero_grad()
            x, y = point.weight[0]
            (x**2 - y**2 + y**4 / 4).backward()
            session.optimizer.step()
            way.append(tuple(point.weight[0].tolist()))
    return way


def _gradient_noise() -> Drawn:
    specs = ["gradient_noise(0.01)", "gradient_noise(0.3)", "gradient_noise(1.0)"]
    figure, (fading, plane) = card(2)
    for spec, color in zip(specs, COLORS, strict=False):
        _, seen = trained([spec], watch=lambda s: s.metrics()["gradient_noise/deviation"])
        fading.plot(seen, color=color, label=spec)
    fading.set_yscale("log")
    told(fading, "σ of the noise", "step")
    x, y = torch.meshgrid(
        torch.linspace(-0.7, 1.8, 60), torch.linspace(-2.2, 2.2, 60), indexing="xy"
    )
    plane.contour(x, y, x**2 - y**2 + y**4 / 4, levels=16, colors="#c9ced6", linewidths=0.8)
    plane.plot(
        *zip(*_valley([]), strict=True), color=BEFORE, marker=".", markersize=3, label="no plugin"
    )
    plane.plot(
        *zip(*_valley(specs[:1]), strict=True),
        color=COLORS[0],
        marker=".",
        markersize=3,
        linewidth=1,
        label=specs[0],
    )
    plane.plot([0, 0], [-math.sqrt(2), math.sqrt(2)], "k+", markersize=8)
    plane.plot([0], [0], "kx", markersize=6)
    told(plane, "down a ridge to a saddle (×), or off it", legend="upper right")
    return figure, specs


PICTURES = {"weight_decay": _weight_decay, "gradient_noise": _gradient_noise}
