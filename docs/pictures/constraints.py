"""Constraints: where weights may be after each step."""

from __future__ import annotations

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from panels import AFTER, BEFORE, COLORS, THIRD, card, images, told
from problems import accuracy, attached, batches, digits, steps, trained, zeros
from torch import Tensor, nn

from regplug_builtins import L1Ball, UnitNorm

Drawn = tuple[Figure, list[str]]


def _row_norms(panel: Axes, plugins: dict[str, list[str]]) -> None:
    for (label, specs), color in zip(plugins.items(), (BEFORE, *COLORS), strict=False):
        model, _ = trained(specs)
        norms = model[0].weight.detach().norm(dim=1).sort(descending=True).values
        text = f"{label}, {accuracy(model):.1f} %"
        panel.plot(norms, color=color, marker=".", linewidth=1, label=text)
    panel.set_ylim(0, 1.45 * panel.get_ylim()[1])


def _arrows(panel: Axes, before: Tensor, after: Tensor) -> None:
    panel.scatter(*before.T, s=14, color=BEFORE, label="before")
    panel.scatter(*after.T, s=14, color=AFTER, label="after")
    for a, b in zip(before, after, strict=True):
        if not torch.equal(a, b):
            panel.annotate("", b, a, arrowprops={"arrowstyle": "-", "color": BEFORE, "lw": 0.7})
    panel.set_aspect("equal")


def _points() -> Tensor:
    return 1.1 * torch.randn(24, 2, generator=torch.Generator().manual_seed(3))


def _max_norm() -> Drawn:
    specs = ["max_norm(1.5)", "max_norm(1.0)"]
    figure, (norms, watched) = card(2)
    _row_norms(norms, {"no plugin": [], **{s: [s] for s in specs}})
    told(
        norms,
        "rows of the digits' net, test accuracy",
        "unit, sorted",
        "‖w_g‖",
        legend="upper right",
    )
    for (label, plugins), color in zip(
        {"no plugin": [], **{s: [s] for s in specs}}.items(), (BEFORE, *COLORS), strict=False
    ):
        _, seen = trained(plugins, watch=lambda s: s.model[0].weight.detach().norm(dim=1).max())
        watched.plot([float(n) for n in seen], color=color, label=label)
    told(watched, "the longest row while training", "step", "", legend=None)
    return figure, specs


def _unit_norm() -> Drawn:
    specs = ["unit_norm(where='0.weight')"]
    figure, (plane, norms) = card(2, widths=(1, 1.3))
    points = _points()
    _arrows(plane, points, UnitNorm().constrained(points))
    told(plane, "rows of two weights,\nbefore (grey) and after", legend=None)
    _row_norms(norms, {"no plugin": [], "unit_norm": specs})
    told(
        norms,
        "rows of the digits' net, test accuracy",
        "unit, sorted",
        "‖w_g‖",
        legend="upper right",
    )
    return figure, specs


def _coder(specs: list[str]) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 16, bias=False), nn.ReLU(), nn.Linear(16, 64, bias=False))
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.weight.abs_()
    x, y, *_ = digits(900)
    x = (x + 1) / 2  # ink is 0 and more, as the parts that it is put together of
    with attached(model, specs, torch.optim.Adam(model.parameters(), lr=5e-3)) as session:
        for inputs, _ in batches(x, y, steps(3000)):
            session.optimizer.zero_grad()
            (model(inputs) - inputs).square().mean().backward()
            session.optimizer.step()
    return model


def _non_negative() -> Drawn:
    specs = ["non_negative()"]
    figure, panels = card(2)
    for panel, (label, plugins) in zip(
        panels, {"no plugin": [], "non_negative": specs}.items(), strict=True
    ):
        w = _coder(plugins)[2].weight.detach().T
        order = w.norm(dim=1).argsort(descending=True)
        below = 100 * (w < 0).float().mean().item()
        title = f"{label}: {below:.0f} % below 0, {zeros(w):.0f} % exact zeros"
        images(panel, w[order], title, rows=3, columns=5)
    return figure, specs


def _l1_ball() -> Drawn:
    specs = ["l1_ball(100, where='0.weight')", "l1_ball(50, where='0.weight')"]
    figure, (plane, sums, maps) = card(3, widths=(1, 1.2, 0.9))
    points = _points()
    _arrows(plane, points, torch.stack([L1Ball(1.0).constrained(p) for p in points]))
    told(plane, "each point a weight of two,\nlimit 1", legend=None)
    for (label, plugins), color in zip(
        {"no plugin": [], **{s.partition(",")[0] + ")": [s] for s in specs}}.items(),
        (BEFORE, *COLORS),
        strict=False,
    ):
        model, seen = trained(plugins, watch=lambda s: s.model[0].weight.detach().abs().sum())
        sums.plot([float(n) for n in seen], color=color, label=f"{label}, {accuracy(model):.1f} %")
    sums.set_ylim(bottom=0)
    told(sums, "Σ|w|, first layer; test accuracy", "step")
    share = zeros(model[0].weight)
    images(maps, model[0].weight, f"9 units, limit 50:\n{share:.0f} % exact zeros")
    return figure, specs


def _hard_threshold() -> Drawn:
    specs = ["hard_threshold(linear(1, 0.1, steps=400))"]
    figure, (shares, maps) = card(2, widths=(1.2, 1))
    model, seen = trained(
        specs,
        watch=lambda s: (s.metrics()["hard_threshold/keep"], s.metrics()["hard_threshold/zeros"]),
    )
    shares.plot([100 * keep for keep, _ in seen], color=BEFORE, label="keep, of a hundred")
    shares.plot(
        [100 * zero for _, zero in seen], color=AFTER, linestyle="--", label="exact zeros, %"
    )
    told(shares, f"while training; in the end {accuracy(model):.1f} % right", "step")
    images(maps, model[0].weight, "12 units in the end", rows=3, columns=4)
    return figure, specs


def _target_sparsity() -> Drawn:
    specs = ["target_sparsity(0.9, by=400)"]
    figure, (shares, strength, layers) = card(3, widths=(1, 1, 0.9))
    model, seen = trained(specs, watch=lambda s: s.metrics())
    key = "target_sparsity"
    shares.plot([100 * s[f"{key}/sparsity"] for s in seen], color=BEFORE, label="asked for")
    shares.plot(
        [100 * s[f"{key}/zeros"] for s in seen], color=AFTER, linestyle="--", label="there are"
    )
    told(shares, "exact zeros, %", "step")
    strength.plot([s[f"{key}/strength"] for s in seen], color=THIRD)
    told(strength, "the λ that it takes", "step")
    layers.bar(range(2), [zeros(model[i].weight) for i in (0, 2)], color=AFTER, width=0.6)
    layers.set_xticks(range(2), ["first layer", "second"])
    told(layers, f"zeros by layer, %;\n{accuracy(model):.1f} % of digits right")
    return figure, specs


PICTURES = {
    "max_norm": _max_norm,
    "unit_norm": _unit_norm,
    "non_negative": _non_negative,
    "l1_ball": _l1_ball,
    "hard_threshold": _hard_threshold,
    "target_sparsity": _target_sparsity,
}
