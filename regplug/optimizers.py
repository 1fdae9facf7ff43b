"""All that is known here of torch's optimizers.

Which steps are real, where a closure is evaluated, whose gradients are scaled, which learning rate
and sign a parameter has, and what an optimizer multiplies a constant gradient by.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import FrameType
from typing import Any, Protocol

import torch
from torch.optim import Optimizer

from regplug import distributed
from regplug.backend import optimizer_names, stack
from regplug.blocks import scratch
from regplug.errors import RegplugError, UnsupportedError
from regplug.gradmode import without_grad
from regplug.hook_order import StepHooks

__all__ = ["Group", "StepEvents", "StepListener", "UpdateRule", "update_rule"]

Group = dict[str, Any]


class StepListener(Protocol):
    """What :class:`StepEvents` calls."""

    def gradients_ready(self) -> None:
        """Gradients are final: once per step, or after each evaluation of a closure."""

    def closure_begins(self) -> None:
        """The optimizer steps with a closure, which has not been evaluated yet."""

    def no_gradients(self) -> None:
        """The optimizer steps, and none of its parameters has a gradient."""

    def closure_value(self) -> float:
        """Return the value of what was added to the gradients after a closure's evaluation."""

    def before_update(self) -> None:
        """The optimizer is about to update the weights: once per step."""

    def after_update(self) -> None:
        """The optimizer has updated the weights."""


class StepEvents:
    """Turns the two step hooks of a torch optimizer into the events of its real steps.

    Args:
        optimizer: a torch optimizer, already unwrapped.
        listener: who is told. The reference is strong; :meth:`disconnect` lets go of it.
    """

    def __init__(self, optimizer: Optimizer, listener: StepListener) -> None:
        self.optimizer = optimizer
        self._listener: StepListener | None = listener
        self._depth = 0
        # The call that the outermost step is within, to know one that raised from one at work.
        self._call: FrameType | None = None
        self._real = False
        stack.require()
        optimizer_names.check_grad_scaler(optimizer)
        self._hooks = StepHooks(optimizer, self._enter, self._leave)

    def disconnect(self) -> None:
        """Remove the hooks. May be called twice."""
        begun = self._depth > 0 and stack.is_running(self._call)
        self._listener = self._call = None
        stepping = any(o is self.optimizer for o in stack.stepping())
        self._hooks.remove(stepping=stepping, begun=begun)

    def _enter(self, optimizer: Optimizer, args: Any, kwargs: Any) -> Any:
        # A subclass whose step calls super().step() gets here twice; only the outer call counts.
        # A step that raised left the depth behind: whether its call goes on tells the two apart.
        if self._depth and stack.is_running(self._call):
            self._depth += 1
            return None
        self._depth, self._real, self._call = 1, False, stack.caller()
        listener, grad = self._listener, torch.is_grad_enabled()
        try:
            closure = args[1] if len(args) > 1 else kwargs.get("closure")
            if callable(closure):
                if listener is not None:
                    listener.closure_begins()
                wrapped = self._wrap(closure)
                if len(args) > 1:
                    return (args[0], wrapped, *args[2:]), kwargs
                return args, {**kwargs, "closure": wrapped}
            if listener is not None and is_real(optimizer):
                self._real = True
                listener.gradients_ready()
                listener.before_update()
            elif listener is not None and not has_gradients(optimizer):
                listener.no_gradients()
        except BaseException:
            self._depth, self._call = 0, None
            torch.set_grad_enabled(grad)  # whatever was interrupted
            raise
        return None

    def _leave(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._depth -= 1
        if self._depth:
            return
        self._call = None
        if self._real and self._listener is not None:
            self._real = False
            grad = torch.is_grad_enabled()
            try:
                self._listener.after_update()
            except BaseException:
                torch.set_grad_enabled(grad)
                raise

    def _wrap(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        def penalized() -> Any:
            # LBFGS calls this with grad on, others may not: the caller's mode reaches the closure.
            loss = closure()
            listener = self._listener
            if listener is None or not has_gradients(self.optimizer):
                return loss
            return without_grad(evaluated, listener, loss)

        def evaluated(listener: StepListener, loss: Any) -> Any:
            listener.gradients_ready()
            # Of the weights that the gradients were taken at, so before any is decayed.
            value = listener.closure_value()
            if not self._real:
                self._real = True
                listener.before_update()
            return loss if loss is None or not value else loss + value

        return penalized


def has_gradients(optimizer: Optimizer) -> bool:
    """Whether any parameter takes part in the next step."""
    for group in optimizer.param_groups:  # a generator would cost more than the usual first look
        for p in group["params"]:
            if p.grad is not None:
                return True
    return False


def is_real(optimizer: Optimizer) -> bool:
    """Whether the step that begins now will update weights.

    It will not if a ``GradScaler`` found an overflow (a fused optimizer skips inside its kernel,
    after the hooks), if no parameter has a gradient, or if it is the dummy step by which
    ``torch.distributed.checkpoint`` makes optimizer state: lr 0, zero gradients, no state yet. A
    warm-up's first step has lr 0 too, but real gradients.
    """
    found_inf = getattr(optimizer, "found_inf", None)
    if found_inf is not None and found_inf.item():
        return False
    if not has_gradients(optimizer):
        return False
    return bool(optimizer.state) or not _is_dummy(optimizer)


def _is_dummy(optimizer: Optimizer) -> bool:
    if any(group.get("lr", 1.0) != 0 for group in optimizer.param_groups):
        return False
    own = [p for group in optimizer.param_groups for p in group["params"]]
    # A shard may be zero, or empty, on one rank alone. So all ranks, which are in this step too,
    # count together, also what has no gradient here.
    shared = [(p, _is_nonzero(p.grad)) for p in own if distributed.is_dtensor(p)]
    if shared and distributed.resolve([distributed.Sum(shared)])[0]:
        return False
    return not any(_is_nonzero(p.grad) for p in own if not distributed.is_dtensor(p))


def _is_nonzero(gradient: torch.Tensor | None) -> bool:
    return gradient is not None and bool(distributed.local(gradient).any())


def is_torchs(optimizer: Optimizer) -> bool:
    """Whether the step is one of torch's own: they leave gradients, and keep no weights."""
    module: str = inspect.unwrap(type(optimizer).step).__module__
    return module.startswith("torch.optim.")


def check_not_in_backward(optimizer: Optimizer, *, hooked: bool = False) -> None:
    """Refuse an optimizer whose parameters others update, and clear, inside the backward pass.

    Args:
        optimizer: the optimizer that is attached.
        hooked: whether a hook on the accumulated gradient is proof enough: where the optimizer
            was stepped and found no gradient at all.

    Raises:
        UnsupportedError: torch's ``_apply_optimizer_in_backward``, or a hook to that effect.
    """
    for parameter in (p for group in optimizer.param_groups for p in group["params"]):
        if optimizer_names.updated_in_backward(parameter, optimizer) or (
            hooked and _has_hook(parameter)
        ):
            raise UnsupportedError(
                f"the weights of this {type(optimizer).__name__} are updated inside backward by "
                "other optimizers, so that its own step finds no gradient: attach to each of those "
                "(attach(model, optimizer_of_one_parameter, …, name='…')), or step after backward"
            )


def _has_hook(parameter: torch.Tensor) -> bool:
    """Whether a hook is called once the gradient of ``parameter`` is accumulated."""
    if not (parameter.requires_grad and parameter.is_leaf):
        return False
    handle = parameter.register_post_accumulate_grad_hook(lambda gradient: None)
    beside = len(handle.hooks_dict_ref() or ())
    handle.remove()
    return beside > 1


def gradient_scale(optimizer: Optimizer | None) -> float:
    """Return what the gradients are still multiplied by: above 1 only fused under a GradScaler."""
    scale = getattr(optimizer, "grad_scale", None)
    return 1.0 if scale is None else float(scale)


def unscale_gradients(optimizer: Optimizer) -> None:
    """Divide the gradients by what a GradScaler has left in them for a fused optimizer's kernel."""
    scale = getattr(optimizer, "grad_scale", None)
    if scale is not None:
        with torch.no_grad():
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        parameter.grad.div_(scale)
        optimizer.grad_scale = None  # type: ignore[attr-defined]


def sign(group: Mapping[str, Any]) -> float:
    """Return −1.0 for a group that maximizes its objective, so that penalties still shrink."""
    return -1.0 if group.get("maximize") else 1.0


def learning_rate(group: Mapping[str, Any]) -> Any:
    """Return the group's learning rate as the optimizer itself uses it, a float or a 0-d tensor.

    Raises:
        RegplugError: there is none: a hand-written update that did not say, or an optimizer that
            finds its own.
    """
    lr = group.get("lr")
    if lr is None:
        raise RegplugError(
            "the learning rate is not known, and this plugin scales with it: write `with "
            "session.step(lr=…):` for an update by hand; an optimizer whose groups have no lr has "
            "settings of its own for this, or use a penalty with delivery='step'"
        )
    # torch takes any tensor of one element; in a formula it would change the shape of things.
    return lr.reshape(()) if isinstance(lr, torch.Tensor) and lr.ndim else lr


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
    :func:`regplug.blocks.scratch`, so that it must be used before the next is asked for.
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


def _seen(step: torch.Tensor, second_moment: torch.Tensor) -> torch.Tensor:
    """Return ``step``, changed to 0 where the second moment is: that element had no gradient."""
    # By arithmetic, because masks cost ten times as much; 0·∞ is where ε is 0 too.
    return step.mul_(second_moment.sign()).nan_to_num_(nan=0.0)


def _preconditioned(lr: Any, second_moment: torch.Tensor, eps: float) -> torch.Tensor:
    """Return lr/(√v + ε), and 0 where the second moment v is.

    As r/(1/lr + r·ε/lr) with r = 1/√v, which is the same in fewer operations, a memory pass each.
    Where v is 0 that is ∞/∞.
    """
    lr, v = _number(lr), second_moment
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
    return value.item() if isinstance(value, torch.Tensor) else value


def _plain(group: Group, state: Mapping[str, Any], gradient: torch.Tensor) -> Any:
    return learning_rate(group)


def _sgd(group: Group, state: Mapping[str, Any], gradient: torch.Tensor) -> Any:
    momentum = group["momentum"]
    if not momentum:
        return learning_rate(group)
    return learning_rate(group) * (1 - group["dampening"]) / (1 - momentum)


def _adam(group: Group, state: Mapping[str, Any], gradient: torch.Tensor) -> Any:
    second = state["max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq"]
    correction = 1 - _number(group["betas"][1]) ** _number(state["step"])
    # lr/(√(v/c) + ε) with √c multiplied out
    root = correction**0.5
    return _preconditioned(learning_rate(group) * root, second, group["eps"] * root)


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
    return _preconditioned(learning_rate(group) * share * root, second, group["eps"] * root)


def _radam(group: Group, state: Mapping[str, Any], gradient: torch.Tensor) -> Any:
    beta2, step, second = group["betas"][1], _number(state["step"]), state["exp_avg_sq"]
    correction = 1 - beta2**step
    limit = 2 / (1 - beta2) - 1
    rho = limit - 2 * step * beta2**step / correction
    if rho <= 5:
        return _seen(torch.ones_like(second).mul_(learning_rate(group)), second)
    rectified = ((rho - 4) * (rho - 2) * limit / ((limit - 4) * (limit - 2) * rho)) ** 0.5
    return _preconditioned(learning_rate(group) * rectified * correction**0.5, second, group["eps"])


def _rmsprop(group: Group, state: Mapping[str, Any], gradient: torch.Tensor) -> Any:
    lr, second = learning_rate(group) / (1 - group["momentum"]), state["square_avg"]
    if not group["centered"]:
        return _preconditioned(lr, second, group["eps"])
    mean = state["grad_avg"]  # of a gradient that stays the same, so the variance may well be 0
    denominator = second.addcmul(mean, mean, value=-1).sqrt_().add_(group["eps"])
    return _seen(denominator.reciprocal_().mul_(lr), second)


def _adagrad(group: Group, state: Mapping[str, Any], gradient: torch.Tensor) -> Any:
    lr = learning_rate(group) / (1 + (_number(state["step"]) - 1) * group["lr_decay"])
    second = state["sum"]
    return _preconditioned(lr, second, group["eps"])


def _adadelta(group: Group, state: Mapping[str, Any], gradient: torch.Tensor) -> Any:
    rho, eps, second = group["rho"], group["eps"], state["square_avg"]
    variance = second + eps
    # The step made its accumulator a into ρ·a + (1 − ρ)·(a + ε)·r with r = g²/(v + ε): solve for a.
    ratio = gradient.square().div_(variance).mul_(1 - rho)
    accumulated = (state["acc_delta"] - ratio * eps).div_(ratio.add_(rho)).clamp_(min=0)
    return _seen(accumulated.add_(eps).div_(variance).sqrt_().mul_(learning_rate(group)), second)


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
        f"and does not: it knows {names}; use delivery='step' here"
    )
