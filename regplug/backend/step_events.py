"""The step hooks of a torch optimizer turned into the events of its real steps."""

import inspect
import warnings
from collections.abc import Callable
from types import FrameType
from typing import Any, Protocol

import torch
from torch.optim import Optimizer

from regplug.backend import captured, optimizer_names, shards, stack
from regplug.backend.gradmode import without_grad
from regplug.backend.hook_order import StepHooks
from regplug.backend.sums import Sum, resolve
from regplug.errors import UnsupportedError

__all__ = [
    "StepEvents",
    "StepListener",
    "check_not_in_backward",
    "has_gradients",
    "is_real",
    "is_torchs",
    "unscale_gradients",
]


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
        listener: has a method for each event. The reference is strong; :meth:`disconnect` lets
            go of it.
    """

    def __init__(self, optimizer: Optimizer, listener: StepListener) -> None:
        self.optimizer = optimizer
        self._listener: StepListener | None = listener
        self._depth = 0
        # The call that the outermost step is within, to know one that raised from one at work.
        self._call: FrameType | None = None
        self._real = False
        self._looked, self._shown = False, True
        stack.require()
        optimizer_names.check_grad_scaler(optimizer)
        self._caller = stack.Caller().frame
        self._hooks = StepHooks(optimizer, self._enter, self._leave)

    def disconnect(self) -> None:
        """Remove the hooks. May be called twice."""
        begun = self._depth > 0 and stack.is_running(self._call)
        self._listener = self._call = None
        # Where frames don't show a step, one may be at work.
        stepping = begun or not self._shown or stack.is_stepping(self.optimizer)
        self._hooks.remove(stepping=stepping, begun=begun)

    def _enter(self, optimizer: Optimizer, args: Any, kwargs: Any) -> Any:
        # A subclass whose step calls super().step() gets here twice; only the outer call counts.
        # A step that raised left the depth behind: whether its call goes on tells the two apart.
        if self._depth and stack.is_running(self._call):
            self._depth += 1
            return None
        self._depth, self._real, self._call = 1, False, self._caller()
        listener, grad = self._listener, torch.is_grad_enabled()
        try:
            if listener is not None and torch.cuda.is_initialized():
                captured.refuse_captured_step(optimizer.param_groups)
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
        if not self._looked:
            self._look()
        self._call = None
        if self._real and self._listener is not None:
            self._real = False
            grad = torch.is_grad_enabled()
            try:
                self._listener.after_update()
            except BaseException:
                torch.set_grad_enabled(grad)
                raise

    def _look(self) -> None:
        """See, once and within a step, whether frames tell of it what they are asked for."""
        self._looked = True
        self._shown = stack.is_stepping(self.optimizer)
        if self._call is None or stack.is_running(self._call):
            return
        module, code = self._call.f_globals.get("__name__"), self._call.f_code
        warnings.warn(
            f"{module}.{code.co_name}, which called the first step hook of this "
            f"{type(self.optimizer).__name__}, was over before the step was, so that a step inside "
            "another one can't be told from one after a step that raised, and would count twice: "
            "if this optimizer's step calls itself, attach without it, attach(model, plugins=…), "
            "and write `with session.step(lr=…): optimizer.step()`",
            stacklevel=4,
        )

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
    # What tells at the first look comes first: this runs at every step.
    if optimizer.state or optimizer.param_groups[0].get("lr", 1.0) != 0:
        return True
    return not _is_dummy(optimizer)


def _is_dummy(optimizer: Optimizer) -> bool:
    if any(group.get("lr", 1.0) != 0 for group in optimizer.param_groups):
        return False
    params = [p for group in optimizer.param_groups for p in group["params"]]
    # A shard may be zero, or empty, on one rank alone. So all ranks, which are in this step too,
    # count together, also what has no gradient here: of a weight that is alike on all ranks the
    # gradient may be a summand.
    shared = [(p, _is_nonzero(p.grad)) for p in params if shards.is_dtensor(p)]
    if shared and resolve([Sum(shared, everywhere=True)])[0]:
        return False
    return not any(_is_nonzero(p.grad) for p in params if not shards.is_dtensor(p))


def _is_nonzero(gradient: torch.Tensor | None) -> bool:
    return gradient is not None and bool(shards.local(gradient).any())


def is_torchs(optimizer: Optimizer) -> bool:
    """Whether the step is one of torch's own: they leave gradients, and keep no weights.

    If torch moves them they are strangers, which are looked at more closely. If what wraps each
    step no longer says what it wraps, it is taken for no step of torch's.
    """
    module: str = inspect.unwrap(type(optimizer).step).__module__
    return module.startswith("torch.optim.") and module != Optimizer.__module__


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
    count = len(handle.hooks_dict_ref() or ())
    handle.remove()
    return count > 1


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
