"""Penalties: what they ask of one weight, and what becomes of many."""

from __future__ import annotations

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from panels import AFTER, BEFORE, COLORS, THIRD, card, histogram, images, matrix, told
from problems import accuracy, attached, steps, trained, zeros
from torch import Tensor, nn

from regplug_builtins import L1, L2, ElasticNet

Drawn = tuple[Figure, list[str]]


def _curves(axes: Axes, penalty: L1 | L2 | ElasticNet, title: str) -> None:
    w = torch.linspace(-2, 2, 401)
    values = torch.stack([penalty.value(v) for v in w])
    axes.plot(w, values, color=BEFORE, label="value")
    axes.plot(w, penalty.gradient(w), color=THIRD, label="gradient")
    axes.plot(w, penalty.proximal(w, 1.0), color=AFTER, label="proximal map")
    axes.plot(w, w, color="black", linewidth=0.7, linestyle=":")
    axes.set_ylim(-2.1, 2.6)
    told(axes, title, "w", legend="upper left")


def _l1() -> Drawn:
    specs = ["l1(1e-3)", "l1(1e-3, delivery='proximal')"]
    figure, (curves, counts, maps) = card(3, widths=(1, 1.1, 0.9))
    _curves(curves, L1(0.5), "one weight, λ = 0.5, step 1")
    plain, _ = trained([])
    gradient, _ = trained(specs[:1])
    proximal, _ = trained(specs[1:])
    weights = [m[0].weight for m in (plain, gradient, proximal)]
    histogram(
        counts, dict(zip(("no plugin", "l1, by gradients", "l1, proximal"), weights, strict=True))
    )
    told(counts, "2,048 weights of the digits' net", "w", "how many", legend="upper right")
    counts.set_ylim(0.7, 1e6)
    images(maps, weights[2], f"9 units of it, proximal:\n{zeros(weights[2]):.0f} % exact zeros")
    return figure, specs


def _l2() -> Drawn:
    specs = ["l2(3e-3)"]
    figure, (curves, counts, maps) = card(3, widths=(1, 1.1, 0.9))
    _curves(curves, L2(0.5), "one weight, λ = 0.5, step 1")
    plain, _ = trained([])
    shrunk, _ = trained(specs)
    histogram(counts, {"no plugin": plain[0].weight, "l2": shrunk[0].weight})
    told(counts, "2,048 weights of the digits' net", "w", "how many", legend="upper right")
    counts.set_ylim(0.7, 1e5)
    images(maps, shrunk[0].weight, f"9 units of it, l2:\n{zeros(shrunk[0].weight):.0f} % zeros")
    return figure, specs


def _linear(x: Tensor, y: Tensor, spec: str) -> Tensor:
    model = nn.Linear(x.shape[1], 1, bias=False)
    nn.init.zeros_(model.weight)
    with attached(model, [spec], torch.optim.SGD(model.parameters(), lr=0.05)) as session:
        for _ in range(steps(2000)):
            session.optimizer.zero_grad()
            (0.5 * (model(x) - y).square().mean()).backward()
            session.optimizer.step()
    return model.weight.detach()[0]


def _elastic_net() -> Drawn:
    specs = ["l1(0.3, delivery='proximal')", "elastic_net(0.3, 0.15, delivery='proximal')"]
    torch.manual_seed(0)
    cause = torch.randn(100, 1)
    copies = cause + 0.1 * torch.randn(100, 3)
    x = torch.cat([copies, torch.randn(100, 5)], 1)
    y = 2 * cause + 0.3 * torch.randn(100, 1)
    figure, (curves, bars) = card(2)
    w = torch.linspace(-2, 2, 401)
    for penalty, label, color in (
        (L1(0.5), "l1(0.5)", BEFORE),
        (L2(0.25), "l2(0.25)", THIRD),
        (ElasticNet(0.5, 0.25), "elastic_net(0.5, 0.25)", AFTER),
    ):
        curves.plot(w, penalty.proximal(w, 1.0), color=color, label=label)
    curves.plot(w, w, color="black", linewidth=0.7, linestyle=":")
    told(curves, "proximal map of one weight, step 1", "w", legend="upper left")
    place = torch.arange(8)
    for i, (spec, color) in enumerate(zip(specs, (BEFORE, AFTER), strict=True)):
        label = spec.partition(", del")[0] + ")"
        bars.bar(
            (place + 0.4 * i - 0.2).tolist(),
            _linear(x, y, spec).tolist(),
            0.38,
            color=color,
            label=label,
        )
    bars.set_xticks(place, ["copy"] * 3 + ["noise"] * 5, rotation=40)
    told(bars, "weights of inputs: three say the same", "", "w")
    return figure, specs


def _group_lasso() -> Drawn:
    specs = ["group_lasso(2e-3, delivery='proximal')", "l1(1e-3, delivery='proximal')"]
    figure, panels = card(3, widths=(1, 1, 1.1))
    norms = {}
    for spec, panel in zip(specs, panels, strict=False):
        model, _ = trained([spec])
        w = model[0].weight.detach()
        name = spec.partition("(")[0]
        norms[name] = w.norm(dim=1).sort(descending=True).values
        shown = torch.where(w == 0, torch.nan, w)
        matrix(panel, shown, f"{name}: {zeros(w):.0f} % zeros", most=0.5, aspect="auto")
        panel.set_xlabel("64 inputs")
        panel.set_ylabel("32 units")
    for (name, norm), color in zip(norms.items(), (AFTER, BEFORE), strict=True):
        panels[2].plot(norm, color=color, marker=".", linewidth=1, label=name)
    told(panels[2], "norms of the rows, sorted", "unit", "‖w_g‖")
    return figure, specs


def _cosines(w: Tensor) -> Tensor:
    rows = w.detach() / w.detach().norm(dim=1, keepdim=True)
    return (rows @ rows.T).abs().fill_diagonal_(torch.nan)


def _orthogonal() -> Drawn:
    specs = ["orthogonal(1.0)"]
    figure, panels = card(3, widths=(1, 1, 1.1))
    counted = {}
    for label, plugins, panel in (("no plugin", [], panels[0]), ("orthogonal", specs, panels[1])):
        model, _ = trained(plugins)
        cosines = _cosines(model[0].weight)
        counted[label] = cosines[~cosines.isnan()]
        matrix(panel, cosines, f"{label}: mean |cos| {counted[label].mean():.3f}", most=0.6)
        panel.set_xlabel("32 units")
        panel.set_ylabel("32 units")
    histogram(panels[2], counted, limit=0.7)
    panels[2].set_xlim(0, 0.7)
    told(panels[2], "|cos| of all pairs of rows", "|⟨wᵢ, wⱼ⟩| / (‖wᵢ‖·‖wⱼ‖)", "how many")
    return figure, specs


def _spectral_norm() -> Drawn:
    specs = ["spectral_norm(0.01)", "l2(0.002)"]
    figure, panels = card(2)
    for (label, plugins), color in zip(
        {"no plugin": [], **{s: [s] for s in specs}}.items(), (BEFORE, *COLORS), strict=False
    ):
        model, _ = trained(plugins)
        for panel, place in zip(panels, (0, 2), strict=True):
            values = torch.linalg.svdvals(model[place].weight.detach())
            text = f"{label}, {accuracy(model):.1f} %" if place == 0 else label
            panel.plot(range(1, len(values) + 1), values, color=color, marker=".", label=text)
    told(panels[0], "first layer (32 × 64), test accuracy", "which", "singular value")
    told(panels[1], "second layer (10 × 32)", "which", "", legend=None)
    for panel in panels:
        panel.set_ylim(bottom=0)
    return figure, specs


class _Adapted(nn.Module):
    def __init__(self, base: nn.Linear, rank: int = 8) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.lora_A = nn.Linear(base.in_features, rank, bias=False)
        self.lora_B = nn.Linear(rank, base.out_features, bias=False)
        nn.init.zeros_(self.lora_B.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.lora_B(self.lora_A(x))


def _lora_l2() -> Drawn:
    specs = ["lora_l2(0.001)", "l2(0.001, where='*.lora_*')"]
    figure, (spectrum, sizes) = card(2, widths=(1.3, 1))
    pretrained, _ = trained([], count=200)
    state = pretrained[0].state_dict()
    bars: dict[str, list[float]] = {}
    for (label, plugins), color in zip(
        {"no plugin": [], **{s: [s] for s in specs}}.items(), (BEFORE, *COLORS), strict=False
    ):
        base = nn.Linear(64, 32)
        base.load_state_dict(state)
        torch.manual_seed(0)
        model = nn.Sequential(_Adapted(base), nn.ReLU(), pretrained[2].requires_grad_(False))
        trained(plugins, model=model, count=400)
        b, a = model[0].lora_B.weight.detach(), model[0].lora_A.weight.detach()
        values = torch.linalg.svdvals(b @ a)[:8]
        spectrum.plot(range(1, 9), values, color=color, marker=".", label=label)
        bars[label] = [m.square().sum().sqrt().item() for m in (a, b, b @ a)]
    told(spectrum, "singular values of the change ΔW = B·A", "which", "", legend="upper right")
    for i, (values, color) in enumerate(zip(bars.values(), (BEFORE, *COLORS), strict=False)):
        sizes.bar([j + 0.28 * (i - 1) for j in range(3)], values, 0.26, color=color)
    sizes.set_xticks(range(3), ["‖A‖", "‖B‖", "‖B·A‖"])
    told(sizes, "norms")
    return figure, specs


PICTURES = {
    "l1": _l1,
    "l2": _l2,
    "elastic_net": _elastic_net,
    "group_lasso": _group_lasso,
    "orthogonal": _orthogonal,
    "spectral_norm": _spectral_norm,
    "lora_l2": _lora_l2,
}
