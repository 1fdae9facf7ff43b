"""Activity regularization: L1 and L2 of what chosen modules put out."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from regplug import Patterns, Plugin, Scheduled, SessionView, hookimpl, widened
from regplug.errors import RegplugError, SelectionError, UnsupportedError
from regplug.schedules import ScheduleLike
from regplug_builtins import _private
from regplug_builtins._copies import in_copies, not_scripted

__all__ = ["Activity"]


class Activity(Plugin):
    r"""Activity regularization: (λ₁·Σ|a| + λ₂·Σa²)/N over the outputs a of chosen modules.

    N is the batch size, the first dimension of a, so that the strength does not depend on it: the
    convention of Keras' ``ActivityRegularization`` and ``activity_regularizer``. Sparse activations
    come from λ₁.

    It acts in the loss: the loop must say ``loss = session.loss(loss)``. What the modules put out
    in training mode since the last call is added, each call of each module once. Under gradient
    accumulation and DDP each batch brings its own term, which is averaged as the loss is. To
    compile the model, attach first: torch doesn't see hooks that come later. Copies and pickles of
    the model are not watched. What is checkpointed counts once, with ``use_reentrant=False``; the
    reentrant kind, whose forward pass keeps no graph, is refused. Outputs that ranks share as a
    ``DTensor`` (sequence parallelism) count whole; of a plain one each rank counts what it has.

    Args:
        l1: λ₁, a finite number ≥ 0 or a schedule of the step count.
        l2: λ₂, likewise.
        where: which modules: ``"activations"``, the activation functions (``nn.ReLU`` and all of
            ``torch.nn.modules.activation`` but attention and softmax), or glob patterns on
            qualified names (``"encoder.*.act"``), ``"!pattern"`` to exclude, a list. Outputs that
            are tuples, lists or dicts count with each floating-point tensor in them.
        name: the key of its metrics.

    Raises:
        SpecError: a strength is negative or not finite.
        SelectionError: ``where`` matches no module.
        RegplugError: at the first step, if no loss event took the term; at the first loss event,
            if no module put anything out.
        UnsupportedError: in the forward pass, if the module is called within an autograd function
            such as reentrant checkpointing.

    References:
        Xavier Glorot, Antoine Bordes, Yoshua Bengio, "Deep Sparse Rectifier Neural Networks",
        2011, https://proceedings.mlr.press/v15/glorot11a.html.
        Keras, ``keras.layers.ActivityRegularization``,
        https://keras.io/api/layers/regularization_layers/activity_regularization/.

    >>> import regplug
    >>> model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU())
    >>> _ = nn.init.eye_(model[0].weight)
    >>> session = regplug.attach(model, plugins=[Activity(0.5)])
    >>> y = model(torch.tensor([[1.0, -1.0], [3.0, 0.0]]))
    >>> session.loss(torch.tensor(0.0)).item()                         # 0.5·(1 + 3)/2
    1.0
    """

    reads_gradients = False
    l1_strength = Scheduled()
    l2_strength = Scheduled()

    def __init__(
        self,
        l1: ScheduleLike = 0.0,
        l2: ScheduleLike = 0.0,
        *,
        where: str | Sequence[str] = "activations",
        name: str | None = None,
    ) -> None:
        self.l1_strength = l1
        self.l2_strength = l2
        self.where = Patterns(where).where
        self.name = name
        self._modules: list[str] = []
        self._undo: list[Callable[[], None]] = []
        self._outputs: list[torch.Tensor] = []
        self._was_counted = False

    @hookimpl
    def on_attach(self, session: SessionView) -> None:
        """Find the modules and watch their outputs."""
        _private.check_backward_is_known(self.name)
        named = {path: module for path, module in session.model.named_modules() if path}
        patterns = Patterns(self.where, "activations")
        chosen = {
            path: module
            for path, module in named.items()
            if patterns.takes(path, activations=_is_activation(module))
        }
        if not chosen:
            have = ", ".join(list(named)[:6]) or "none"
            raise SelectionError(
                f"{self.name}: where={self.where!r} matches no module; the model has {have}"
            )
        self._modules = list(chosen)
        self._outputs, self._was_counted = [], False
        self._undo = []
        for path, module in chosen.items():
            watch = _Watch(self, path)
            self._undo.append(module.register_forward_hook(watch).remove)
            self._undo.append(in_copies(module, _unwatched))
            self._undo.append(not_scripted(module, f"{self.name} watches {path}"))

    def saw(self, path: str, output: Any) -> None:
        """Keep what the module at ``path`` put out, in training mode, until the next loss event."""
        if not torch.is_grad_enabled():
            if not torch.compiler.is_compiling() and _private.in_autograd_function():
                raise UnsupportedError(
                    f"{self.name}: {path} runs in an autograd function's forward pass, which keeps "
                    "no graph; if it is torch.utils.checkpoint, pass use_reentrant=False "
                    "(transformers: model.gradient_checkpointing_enable("
                    '{"use_reentrant": False})), or exclude the module, as with '
                    f"where={[*self.where, '!' + path]!r}"
                )
        # Checkpointed activations are computed again in the backward pass, by when they counted.
        elif not _private.in_backward() and not _is_tracing():
            self._outputs += [a for a in _tensors(output) if a.requires_grad]

    @hookimpl
    def on_loss(self, session: SessionView) -> torch.Tensor | None:
        """Return the term of what was put out since the last loss event."""
        # torch.export runs the model on tensors that hold nothing.
        outputs = [a for a in self._outputs if not _private.is_fake(a)]
        self._outputs = []
        l1, l2 = self.l1_strength, self.l2_strength
        if not outputs:
            if not self._was_counted and torch.is_grad_enabled() and session.model.training:
                raise RegplugError(
                    f"{self.name}: none of {', '.join(self._modules[:3])} put anything out: call "
                    "the model before session.loss, and attach before a first compiled call"
                )
            return None
        self._was_counted = True
        if l1 == 0 and l2 == 0:
            return None
        sign = -1.0 if any(group.get("maximize") for group in session.groups) else 1.0
        terms = []
        for a in outputs:
            wide = widened(a)
            term = _whole(l1 * wide.abs().sum() + l2 * wide.square().sum())
            terms.append((sign / max(a.shape[0] if a.ndim else 1, 1)) * term)
        return torch.stack([term.to(terms[0]) for term in terms]).sum()

    @hookimpl
    def on_gradients(self, session: SessionView) -> None:
        """Check that the outputs reached a loss, and forget what is left of them."""
        left, self._outputs = self._outputs, []
        if left and not self._was_counted and (self.l1_strength or self.l2_strength):
            raise RegplugError(
                f"{self.name} acts in the loss, but no loss event took what the modules put out: "
                "write `loss = session.loss(loss)` before `loss.backward()`"
            )

    @hookimpl
    def on_detach(self, session: SessionView) -> None:
        """Stop watching."""
        for undo in self._undo:
            undo()
        self._undo, self._outputs = [], []

    @hookimpl
    def on_metrics(self, session: SessionView) -> Mapping[str, float]:
        """Return both strengths; the value is each rank's own, and in its loss."""
        return self.strengths()

    def waits_for_loss(self, session: SessionView) -> bool:
        """Return whether there is a strength: all of it acts in the loss."""
        return bool(self.l1_strength or self.l2_strength)

    def covers(self, session: SessionView) -> None:
        """It covers outputs, not weights."""

    def agreement(self, session: SessionView) -> Mapping[str, Any]:
        """Return the settings, and the modules that they come to in this model."""
        return {**super().agreement(session), "covers": self._modules}

    def acts(self, session: SessionView) -> str:
        """Return how many modules are watched."""
        return f"loss, outputs of {len(self._modules)} modules"

    def notes(self, session: SessionView) -> list[str]:
        """Return the modules that are watched."""
        return ["watches " + ", ".join(self._modules)]


class _Watch:
    """The hook on one module. Where a class copies its hooks by itself, it does nothing there."""

    def __init__(self, plugin: Activity, path: str) -> None:
        self.plugin, self.path = plugin, path

    def __call__(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if module.training:
            self.plugin.saw(self.path, output)

    def __deepcopy__(self, memo: Any) -> Callable[..., None]:
        return _ignore

    def __reduce__(self) -> Any:
        return _ignoring, ()


def _ignore(module: nn.Module, inputs: Any, output: Any) -> None:
    """Stand in a copy for a hook of the original."""


def _ignoring() -> Callable[..., None]:
    return _ignore


def _unwatched(attributes: dict[str, Any]) -> None:
    for name, hooks in list(attributes.items()):
        if isinstance(hooks, dict) and any(isinstance(hook, _Watch) for hook in hooks.values()):
            attributes[name] = type(hooks)(
                (key, hook) for key, hook in hooks.items() if not isinstance(hook, _Watch)
            )


def _is_activation(module: nn.Module) -> bool:
    # All are in one file, wherever torch has it.
    return type(module).__module__ == nn.ReLU.__module__ and not isinstance(
        module, nn.MultiheadAttention | nn.Softmax | nn.LogSoftmax | nn.Softmax2d | nn.Softmin
    )


def _is_tracing() -> bool:
    tracing: bool = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    return tracing


def _whole(term: torch.Tensor) -> torch.Tensor:
    """Return a sum over all ranks that share an output, where it is a ``DTensor`` of theirs."""
    whole: Callable[[], torch.Tensor] | None = getattr(term, "full_tensor", None)
    return term if whole is None else whole()


def _tensors(output: Any) -> Iterator[torch.Tensor]:
    if isinstance(output, torch.Tensor):
        if output.is_floating_point():
            yield output
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from _tensors(value)
    elif isinstance(output, list | tuple):
        for value in output:
            yield from _tensors(value)
