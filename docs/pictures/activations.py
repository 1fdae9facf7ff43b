"""What acts on outputs, rates and targets instead of weights."""

from __future__ import annotations

import torch
from matplotlib.figure import Figure
from panels import BEFORE, COLORS, THIRD, card, matrix, told
from problems import accuracy, attached, digits, loss_of, network, trained, zeros
from torch import Tensor, nn

Drawn = tuple[Figure, list[str]]


def _activity() -> Drawn:
    specs = ["activity(0.01)"]
    figure, panels = card(3, widths=(1, 1, 1))
    *_, x, _ = digits()
    for panel, (label, plugins), color in zip(
        panels, {"no plugin": [], "activity": specs}.items(), (BEFORE, COLORS[0]), strict=False
    ):
        model, _ = trained(plugins)
        with torch.no_grad():
            out = model[1](model[0](x))
        title = f"{label}: {zeros(out):.0f} % zeros\n{accuracy(model):.1f} % right"
        matrix(
            panel, torch.where(out[:48] == 0, torch.nan, out[:48]).T, title, most=4.0, aspect="auto"
        )
        panel.set_xlabel("48 test images")
        panel.set_ylabel("32 hidden units")
        busy = (out > 0).float().sum(1)
        panels[2].hist(
            busy.numpy(), bins=range(34), color=color, alpha=0.6, label=label, density=True
        )
    told(panels[2], "units at work for an image", "of 32", "share of images")
    return figure, specs


def _dropout() -> Drawn:
    shapes = {
        "annealed": "dropout(linear(0.5, 0, steps=600))",
        "early": "dropout(linear(0.1, 0, steps=200))",
        "late": "dropout(piecewise({0: 0, 300: 0.3}))",
        "curriculum": "dropout(linear(0, 0.4, steps=600))",
    }
    figure, (rates, losses) = card(2)
    found = {}
    for (label, spec), color in zip(shapes.items(), COLORS, strict=True):
        model, seen = trained([spec], model=network(dropout=0.0), watch=_rate)
        rates.plot(seen, color=color, label=label)
        found[label] = loss_of(model)
    model, seen = trained([], model=network(dropout=0.0), watch=_rate)
    rates.plot(seen, color=BEFORE, label="no plugin")
    found = {"no plugin": loss_of(model), **found}
    told(rates, "the rate of nn.Dropout while training", "step")
    losses.barh(list(found), list(found.values()), color=[BEFORE, *COLORS], height=0.6)
    losses.invert_yaxis()
    told(losses, "loss on test images in the end")
    return figure, list(shapes.values())


def _rate(session: object) -> float:
    return float(session.model[2].p)  # type: ignore[attr-defined]


class StochasticDepth(nn.Module):
    """Drops the whole path of some of the samples."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        keep = 1 - self.p
        return x * torch.bernoulli(torch.full((len(x), 1), float(keep))) / keep


class Residual(nn.Module):
    """A block around which the input goes unchanged."""

    def __init__(self, width: int, p: float) -> None:
        super().__init__()
        self.path = nn.Sequential(nn.Linear(width, width), nn.ReLU())
        self.drop_path = StochasticDepth(p)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop_path(self.path(x))


def _deep() -> nn.Sequential:
    torch.manual_seed(0)
    own = (0.05, 0.05, 0.1, 0.1, 0.2, 0.2, 0.4, 0.4)
    return nn.Sequential(nn.Linear(64, 32), *(Residual(32, p) for p in own), nn.Linear(32, 10))


def _depths(model: nn.Module) -> list[float]:
    return [float(m.p) for m in model.modules() if isinstance(m, StochasticDepth)]


def _drop_path() -> Drawn:
    specs = [f"drop_path(0.3, depth='{depth}')" for depth in ("linear", "uniform", "own")]
    moving = "drop_path(linear(0, 0.3, steps=400))"
    figure, (blocks, over) = card(2)
    for i, (spec, color) in enumerate(zip(specs, COLORS, strict=False)):
        model = _deep()
        with attached(model, [spec], torch.optim.SGD(model.parameters(), lr=0.1)):
            rates = _depths(model)
        places = [block + 0.27 * (i - 1) for block in range(1, 9)]
        label = spec.partition(", ")[2][:-1]
        blocks.bar(places, rates, 0.25, color=color, label=label)
    told(blocks, "rate of each of eight blocks, drop_path(0.3)", "block", legend="upper left")
    blocks.set_ylim(0, 0.45)
    _, seen = trained([moving], model=_deep(), watch=lambda s: _depths(s.model), lr=1e-3)
    for block in range(8):
        over.plot([rates[block] for rates in seen], color=THIRD, alpha=0.25 + 0.09 * block)
    told(over, "each block while training", "step", "rate", legend=None)
    return figure, [*specs, moving]


def _label_smoothing() -> Drawn:
    specs = ["label_smoothing(0.1)", "label_smoothing(linear(0.2, 0, steps=600))"]
    figure, (smoothing, sure) = card(2)
    *_, x, _ = digits()
    labels: dict[str, list[str]] = {"no plugin": [], **{s: [s] for s in specs}}
    for (label, plugins), color in zip(labels.items(), (BEFORE, *COLORS), strict=False):
        criterion = nn.CrossEntropyLoss()
        own = [_smoothing(spec, criterion) for spec in plugins]
        model, seen = trained(
            own, criterion=criterion, watch=lambda s, c=criterion: float(c.label_smoothing)
        )
        smoothing.plot(seen, color=color)
        with torch.no_grad():
            most = model(x).softmax(1).amax(1)
        text = {"no plugin": label, specs[0]: "label_smoothing(0.1)"}.get(label, "from 0.2 to 0")
        sure.hist(
            most.numpy(),
            bins=torch.linspace(0.2, 1, 41).tolist(),
            histtype="step",
            linewidth=1.6,
            color=color,
            label=f"{text}, {accuracy(model):.1f} %",
        )
    told(smoothing, "ε of nn.CrossEntropyLoss", "step")
    sure.set_yscale("log")
    told(sure, "highest probability; test accuracy", "of 897 test images", "", legend="upper left")
    return figure, specs


def _smoothing(spec: str, criterion: nn.Module) -> object:
    from regplug import schedules
    from regplug_builtins import LabelSmoothing

    moving = schedules.linear(0.2, 0, steps=600)
    return LabelSmoothing(moving if "linear" in spec else 0.1, criterion=criterion)


PICTURES = {
    "activity": _activity,
    "dropout": _dropout,
    "drop_path": _drop_path,
    "label_smoothing": _label_smoothing,
}
