"""What a plugin's events cost, in passes over the weights: ``grad += α·w`` over all is 1.0."""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn.functional import softshrink

import regplug

LAMBDA = 1e-4


class Weights(nn.Module):
    """So many tensors of so many weights each, with gradients."""

    def __init__(self, tensors: int, each: int) -> None:
        super().__init__()
        width = max(1, int(each**0.5))
        self.all = nn.ParameterList(torch.randn(each // width, width) for _ in range(tensors))
        for w in self.all:
            w.grad = torch.randn_like(w)


def _step_events(model: Weights, optimizer: torch.optim.Optimizer, spec: str) -> Callable[[], None]:
    """Return what fires all step events of one attached plugin, without the optimizer's update."""
    session = regplug.attach(model, optimizer, [spec])

    def fire() -> None:
        with torch.no_grad():
            session.gradients_ready()
            session.before_update()
            session.after_update()

    return fire


def _after_adam(model: Weights) -> torch.optim.Optimizer:
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-9)
    optimizer.step()
    return optimizer


def candidates(tensors: int, each: int) -> dict[str, Callable[[], object]]:
    """Return what is compared; the base, one bare pass, comes first."""
    torch.manual_seed(0)
    model = Weights(tensors, each)
    weights = list(model.all)
    gradients = [w.grad for w in weights]
    sgd = torch.optim.SGD(weights, lr=1e-9)
    adam = _after_adam(model)

    @torch.no_grad()
    def bare() -> None:
        for g, w in zip(gradients, weights, strict=True):
            g.add_(w, alpha=LAMBDA)

    @torch.no_grad()
    def foreach_sign() -> None:
        torch._foreach_add_(gradients, torch._foreach_sign(weights), alpha=LAMBDA)

    def textbook(value: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[], None]:
        def run() -> None:
            loss = torch.zeros((), requires_grad=True) * 1.0
            (loss + LAMBDA * sum(value(w) for w in weights)).backward()

        return run

    def in_loss(*specs: str) -> Callable[[], None]:
        session = regplug.attach(model, None, [f"{spec[:-1]}, delivery='loss')" for spec in specs])

        def run() -> None:
            session.loss(torch.zeros((), requires_grad=True) * 1.0).backward()

        return run

    @torch.no_grad()
    def plain_proximal_adam() -> None:
        for w in weights:
            state = adam.state[w]
            step = 1e-9 / (
                (state["exp_avg_sq"] / (1 - 0.999 ** state["step"].item())).sqrt() + 1e-8
            )
            w.copy_(w.sign() * (w.abs() - LAMBDA * step).clamp(min=0))

    @torch.no_grad()
    def plain_proximal_sgd() -> None:
        for w in weights:
            w.copy_(softshrink(w, LAMBDA * 1e-9))

    l1, l2 = f"l1({LAMBDA})", f"l2({LAMBDA})"
    return {
        "bare pass, grad += α·w": bare,
        "torch._foreach_sign, then add": foreach_sign,
        "textbook loss, Σ|w|": textbook(lambda w: w.abs().sum()),
        "textbook loss, Σw²": textbook(lambda w: w.square().sum()),
        "l1, in the loss": in_loss(l1),
        "l2, in the loss": in_loss(l2),
        "l1, at the step": _step_events(model, sgd, l1),
        "l2, at the step": _step_events(model, sgd, l2),
        "elastic_net, at the step": _step_events(model, sgd, f"elastic_net({LAMBDA}, {LAMBDA})"),
        "l1, proximal, SGD": _step_events(model, sgd, f"l1({LAMBDA}, delivery='proximal')"),
        "proximal written plainly, SGD": plain_proximal_sgd,
        "l1, proximal, Adam": _step_events(model, adam, f"l1({LAMBDA}, delivery='proximal')"),
        "proximal written plainly, Adam": plain_proximal_adam,
        "weight_decay": _step_events(model, sgd, "weight_decay(0.1)"),
        "weight_decay, handed to AdamW": _step_events(
            model, torch.optim.AdamW(weights, lr=1e-9, weight_decay=0.0), "weight_decay(0.1)"
        ),
    }


def steps(
    kind: type[torch.optim.Optimizer], spec: str, tensors: int, each: int
) -> dict[str, Callable[[], object]]:
    """Return whole steps of an optimizer, without decay, with its own, and with a plugin's."""
    torch.manual_seed(0)
    model = Weights(tensors, each)
    found: dict[str, Callable[[], object]] = {}
    for name, fused in (("", False), ("fused, ", True)):
        made = [
            kind(model.parameters(), lr=1e-9, weight_decay=decay, fused=fused)
            for decay in (0.0, 0.1, 0.0)
        ]
        regplug.attach(model, made[2], [spec])
        found[f"{name}no decay"] = made[0].step
        found[f"{name}its own weight_decay"] = made[1].step
        found[f"{name}{spec.partition('(')[0]}"] = made[2].step
    return found
