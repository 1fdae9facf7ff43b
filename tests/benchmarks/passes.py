"""What a plugin's events cost, in passes over the weights: ``grad += α·w`` over all is 1.0."""

import importlib.util
from collections.abc import Callable, Sequence

import torch
from timing import in_turn, nothing
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


def _step_events(
    model: nn.Module, optimizer: torch.optim.Optimizer, spec: str, kernels: str
) -> Callable[[], None]:
    """Return what fires all step events of one attached plugin, without the optimizer's update."""
    session = regplug.attach(
        model, optimizer, [spec], kernels=kernels, handover=False, name=f"{spec}, {kernels}"
    )

    def fire() -> None:
        with torch.no_grad():
            session.gradients_ready()
            session.before_update()
            session.after_update()

    return fire


def _after_adam(model: nn.Module) -> torch.optim.Optimizer:
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-9)
    optimizer.step()
    return optimizer


def _in_loss(model: nn.Module, kernels: str, *specs: str) -> Callable[[], None]:
    specs = tuple(f"{spec[:-1]}, delivery='loss')" for spec in specs)
    session = regplug.attach(model, None, specs, kernels=kernels, name=", ".join(specs))
    start = torch.zeros((), requires_grad=True, device=next(model.parameters()).device)

    def run() -> None:
        session.loss(start * 1.0).backward()

    return run


def bare(weights: Sequence[torch.Tensor]) -> Callable[[], object]:
    """Return the faster of the two ways in which torch itself can add α·w to all gradients."""
    gradients = [w.grad for w in weights]
    values = [w.detach() for w in weights]

    def by_foreach() -> None:
        torch._foreach_add_(gradients, values, alpha=LAMBDA)

    def by_loop() -> None:
        for g, w in zip(gradients, values, strict=True):
            g.add_(w, alpha=LAMBDA)

    wait = waiting(values[0].device.type)
    one, other = in_turn({"foreach": by_foreach, "loop": by_loop}, rounds=5, wait=wait)
    return by_foreach if one.seconds <= other.seconds else by_loop


def waiting(device: str) -> Callable[[], object]:
    """Return what waits for a device."""
    return torch.cuda.synchronize if device == "cuda" else nothing


def kernels_of(device: str) -> list[str]:
    """Return the kernels that there are for a device."""
    compiler = "numba" if device == "cpu" else "triton"
    return ["foreach"] + [compiler] * (importlib.util.find_spec(compiler) is not None)


def events(
    tensors: int, each: int, kernels: str, device: str = "cpu"
) -> dict[str, Callable[[], object]]:
    """Return what each plugin's events are, by one kind of kernels; the base comes first."""
    torch.manual_seed(0)
    return events_of(Weights(tensors, each), kernels, device)


def events_of(
    model: nn.Module, kernels: str, device: str = "cpu"
) -> dict[str, Callable[[], object]]:
    """Return the same for the weights of a model, whose gradients are made."""
    model = model.to(device)
    for w in model.parameters():
        w.grad = torch.randn_like(w)
    weights = list(model.parameters())
    sgd = torch.optim.SGD(weights, lr=1e-9)
    adam = _after_adam(model)
    l1, l2 = f"l1({LAMBDA})", f"l2({LAMBDA})"
    both = f"elastic_net({LAMBDA}, {LAMBDA})"
    proximal = f"l1({LAMBDA}, delivery='proximal')"
    group = f"group_lasso({LAMBDA}, delivery='proximal')"

    def fire(optimizer: torch.optim.Optimizer, spec: str) -> Callable[[], None]:
        return _step_events(model, optimizer, spec, kernels)

    return {
        "bare pass, the best that torch can do": bare(weights),
        "l1, at the step": fire(sgd, l1),
        "l2, at the step, by the plugin": fire(sgd, l2),
        "elastic_net, at the step": fire(sgd, both),
        "l1, proximal, SGD": fire(sgd, proximal),
        "l1, proximal, Adam": fire(adam, proximal),
        "elastic_net, proximal, Adam": fire(adam, f"{both[:-1]}, delivery='proximal')"),
        "group_lasso, proximal, Adam": fire(adam, group),
        "max_norm": fire(sgd, "max_norm(100.0)"),
        "weight_decay": fire(sgd, "weight_decay(0.1)"),
        "l1, in the loss": _in_loss(model, kernels, l1),
        "l1 and l2, in the loss": _in_loss(model, kernels, l1, l2),
    }


def candidates(tensors: int, each: int) -> dict[str, Callable[[], object]]:
    """Return ways to write it without a plugin; the base, one bare pass, comes first."""
    torch.manual_seed(0)
    model = Weights(tensors, each)
    weights = list(model.all)
    gradients = [w.grad for w in weights]
    adam = _after_adam(model)

    @torch.no_grad()
    def foreach_sign() -> None:
        torch._foreach_add_(gradients, torch._foreach_sign(weights), alpha=LAMBDA)

    def textbook(value: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[], None]:
        def run() -> None:
            loss = torch.zeros((), requires_grad=True) * 1.0
            (loss + LAMBDA * sum(value(w) for w in weights)).backward()

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

    return {
        "bare pass, the best that torch can do": bare(weights),
        "torch._foreach_sign, then add": foreach_sign,
        "textbook loss, Σ|w|": textbook(lambda w: w.abs().sum()),
        "textbook loss, Σw²": textbook(lambda w: w.square().sum()),
        "proximal written plainly, SGD": plain_proximal_sgd,
        "proximal written plainly, Adam": plain_proximal_adam,
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
