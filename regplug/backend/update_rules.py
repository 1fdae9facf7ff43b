"""All that is known here of torch's optimizers.

Which steps are real, where a closure is evaluated, whose gradients are scaled, which learning rate
and sign a parameter has, and what an optimizer multiplies a constant gradient by.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.optim import Optimizer

from regplug.backend import wrapped
from regplug.backend.blocks import PLAIN, scratch
from regplug.backend.groups import Group, learning_rate
from regplug.errors import UnsupportedError

__all__ = ["UpdateRule", "update_rule"]


# --- effective steps ---------------------------------------------------------------------------


@dataclass(frozen=True)
class UpdateRule:
    """How an optimizer turns a gradient that stays the same into an update.

    ``step(group, state, gradient)`` returns what the gradient is multiplied by in the long run: a
    float, or a tensor shaped like the state's for an optimizer that scales each element by itself.
    There it is 0 for elements that never had a gradient, which leaves them alone. It is evaluated
    after the update. ``state`` may hold blocks of the tensors named in ``tensors``, of several
    parameters together if they agree in ``numbers``, which is all else of the state that ``step``
    reads; ``gradient`` is there only if ``uses_gradient`` asks for it. The result may lie in
    :func:`regplug.backend.blocks.scratch`, so that it must be used before the next is asked for.
    """

    step: Callable[[Group, Mapping[str, Any], torch.Tensor], Any]
    tensors: Callable[[Group], tuple[str, ...]] = lambda group: ()
    numbers: tuple[str, ...] = ()
    check: Callable[[Group], str | None] = lambda group: None
    uses_gradient: bool = False

    @property
    def elementwise(self) -> bool:
        """Whether each element has a step of its own."""
        return self.step is not _sgd and self.step is not _plain


def _zero_without_gradient(step: torch.Tensor, second_moment: torch.Tensor) -> torch.Tensor:
    """Return ``step``, changed to 0 where the second moment is: that element had no gradient."""
    # By arithmetic, because masks cost ten times as much; 0·∞ is where ε is 0 too.
    return step.mul_(second_moment.sign()).nan_to_num_(nan=0.0)


def _preconditioned(lr: Any, second_moment: torch.Tensor, eps: float) -> torch.Tensor:
    """Return lr/(√v + ε), and 0 where the second moment v is.

    As r/(1/lr + r·ε/lr) with r = 1/√v, which is the same in fewer operations, a memory pass each.
    Where v is 0 that is ∞/∞.
    """
    v = second_moment
    # A symbol, of which one kernel is made; or a number that is on a device, not to be waited for.
    if type(v) not in PLAIN or isinstance(lr, torch.Tensor):
        return torch.where(v > 0, lr / (v.sqrt() + eps), 0.0)
    inverse = torch.rsqrt(v, out=scratch(v, "optimizer's step"))  # faster than torch's sqrt
    if lr == 0:
        return inverse.zero_()
    if v.is_cpu:
        one = torch.tensor(1 / lr, dtype=torch.float64, device="cpu")
        divisor = torch.add(one, inverse, alpha=eps / lr, out=scratch(v, "in a formula"))
    else:  # which may not have float64
        divisor = inverse.mul(eps / lr).add_(1 / lr)
    return inverse.div_(divisor).nan_to_num_(nan=0.0)


def _number(value: Any) -> Any:
    """Return a tensor's number where reading it waits for nothing."""
    return value.item() if type(value) in PLAIN and value.is_cpu else value


def _rate(group: Group) -> Any:
    lr = group["lr"]
    # Arithmetic with a tensor is in its own precision, which is less than that of some weights.
    return lr if type(lr) is float else _number(learning_rate(group))


def _plain(group: Group, state: Mapping[str, Any], gradient: torch.Tensor) -> Any:
    return _rate(group)


def _sgd(group: Group, state: Mapping[str, Any], gradient: torch.Tensor) -> Any:
    momentum = group["momentum"]
    if not momentum:
        return _rate(group)
    return _rate(group) * (1 - group["dampening"]) / (1 - momentum)


def _adam(group: Group, state: Mapping[str, Any], gradient: torch.Tensor) -> Any:
    second = state["max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq"]
    correction = 1 - _number(group["betas"][1]) ** _number(state["step"])
    # lr/(√(v/c) + ε) with √c multiplied out
    root = correction**0.5
    return _preconditioned(_rate(group) * root, second, group["eps"] * root)


def _nadam(group: Group, state: Mapping[str, Any], gradient: torch.Tensor) -> Any:
    beta1, beta2 = group["betas"]
    step, product = _number(state["step"]), _number(state["mu_product"])
    mu, mu_next = (
        beta1 * (1 - 0.5 * 0.96 ** (t * group["momentum_decay"])) for t in (step, step + 1)
    )
    # The two shares of a constant gradient: its own, and that of its average (1 − β₁ᵗ)·g.
    share = (1 - mu) / (1 - product) + mu_next * (1 - beta1**step) / (1 - product * mu_next)
    second = state["exp_avg_sq"]
    root = (1 - beta2**step) ** 0.5
    return _preconditioned(_rate(group) * share * root, second, group["eps"] * root)


def _radam(group: Group, state: Mapping[str, Any], gradient: torch.Tensor) -> Any:
    beta2, step, second = group["betas"][1], _number(state["step"]), state["exp_avg_sq"]
    correction = 1 - beta2**step
    limit = 2 / (1 - beta2) - 1
    rho = limit - 2 * step * beta2**step / correction
    lr, eps = _rate(group), group["eps"]
    if type(second) not in PLAIN:  # a symbol: both ways are computed, and one is chosen
        early = torch.where(second > 0, lr, 0.0)
        return torch.where(rho <= 5, early, _late(lr, rho, limit, correction, second, eps))
    if rho <= 5:
        return _zero_without_gradient(torch.ones_like(second).mul_(lr), second)
    return _late(lr, rho, limit, correction, second, eps)


def _late(
    lr: Any, rho: Any, limit: Any, correction: Any, second_moment: torch.Tensor, eps: float
) -> torch.Tensor:
    """Return RAdam's step once the variance of its second moment is known well enough."""
    rectified = ((rho - 4) * (rho - 2) * limit / ((limit - 4) * (limit - 2) * rho)) ** 0.5
    return _preconditioned(lr * rectified * correction**0.5, second_moment, eps)


def _rmsprop(group: Group, state: Mapping[str, Any], gradient: torch.Tensor) -> Any:
    lr, second = _rate(group) / (1 - group["momentum"]), state["square_avg"]
    if not group["centered"]:
        return _preconditioned(lr, second, group["eps"])
    mean = state["grad_avg"]  # of a gradient that stays the same, so the variance may well be 0
    denominator = second.addcmul(mean, mean, value=-1).sqrt_().add_(group["eps"])
    return _zero_without_gradient(denominator.reciprocal_().mul_(lr), second)


def _adagrad(group: Group, state: Mapping[str, Any], gradient: torch.Tensor) -> Any:
    lr = _rate(group) / (1 + (_number(state["step"]) - 1) * group["lr_decay"])
    second = state["sum"]
    return _preconditioned(lr, second, group["eps"])


def _adadelta(group: Group, state: Mapping[str, Any], gradient: torch.Tensor) -> Any:
    rho, eps, second = group["rho"], group["eps"], state["square_avg"]
    variance = second + eps
    # The step made its accumulator a into ρ·a + (1 − ρ)·(a + ε)·r with r = g²/(v + ε): solve for a.
    ratio = gradient.square().div_(variance).mul_(1 - rho)
    accumulated = (state["acc_delta"] - ratio * eps).div_(ratio.add_(rho)).clamp_(min=0)
    return _zero_without_gradient(
        accumulated.add_(eps).div_(variance).sqrt_().mul_(_rate(group)), second
    )


def _adadelta_check(group: Group) -> str | None:
    if group["weight_decay"]:
        return "its own weight_decay hides the gradient that it used; use a penalty instead"
    return None


def _sgd_check(group: Group) -> str | None:
    return "its momentum must be below 1" if group["momentum"] >= 1 else None


_KNOWN: dict[type[Optimizer], UpdateRule] = {
    torch.optim.SGD: UpdateRule(_sgd, check=_sgd_check),
    torch.optim.Adam: UpdateRule(
        _adam,
        lambda group: ("max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq",),
        numbers=("step",),
    ),
    torch.optim.NAdam: UpdateRule(
        _nadam, lambda group: ("exp_avg_sq",), numbers=("step", "mu_product")
    ),
    torch.optim.RAdam: UpdateRule(_radam, lambda group: ("exp_avg_sq",), numbers=("step",)),
    torch.optim.RMSprop: UpdateRule(
        _rmsprop,
        lambda group: ("square_avg", "grad_avg") if group["centered"] else ("square_avg",),
        check=_sgd_check,
    ),
    torch.optim.Adagrad: UpdateRule(_adagrad, lambda group: ("sum",), numbers=("step",)),
    torch.optim.Adadelta: UpdateRule(
        _adadelta,
        lambda group: ("square_avg", "acc_delta"),
        check=_adadelta_check,
        uses_gradient=True,
    ),
}
_KNOWN[torch.optim.AdamW] = _KNOWN[torch.optim.Adam]


def update_rule(optimizer: Optimizer | None) -> UpdateRule:
    """Return how ``optimizer`` turns gradients into updates; None stands for a plain ``−lr·g``.

    An optimizer is known by its ``step``: a subclass that inherits it is known too, one that
    brings its own is not.

    Raises:
        UnsupportedError: it is not known, or a setting of it can't be accounted for; by name.
    """
    if optimizer is None:
        return UpdateRule(_plain)
    if (share := wrapped.share_of(optimizer)) is not None:
        rule = update_rule(share)
        if rule.elementwise:
            raise UnsupportedError(
                f"under {type(optimizer).__name__} each rank has {type(share).__name__}'s state of "
                "its own share of the weights alone, from which a proximal operator would take "
                "its steps: use FSDP2, or delivery='step'"
            )
        return rule
    step = inspect.unwrap(type(optimizer).step)
    for known, rule in _KNOWN.items():
        if step is inspect.unwrap(known.step):
            for group in optimizer.param_groups:
                if (why := rule.check(group)) is not None:
                    raise UnsupportedError(
                        "proximal delivery can't account for this "
                        f"{type(optimizer).__name__}: {why}"
                    )
            return rule
    names = ", ".join(sorted(cls.__name__ for cls in _KNOWN))
    raise UnsupportedError(
        f"proximal delivery must know what {type(optimizer).__name__} multiplies a gradient by, "
        f"and does not: it knows {names}; a penalty may have delivery='step' here"
    )
