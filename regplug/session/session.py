"""One attached loop: the :class:`Session` that :func:`regplug.attach` returns."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from regplug import sessions
from regplug.backend import captured, step_events, wrapped, wrappers
from regplug.backend.blocks import keep_freed_memory
from regplug.backend.eager import eagerly
from regplug.backend.precision import as_outside, autocast_is_on, without_autocast
from regplug.errors import RegplugError, SpecError, StateError
from regplug.plugin import Plugin
from regplug.session import accelerate, attachments, composition, engines
from regplug.session.agreement import Ranks
from regplug.session.asked import Asked
from regplug.session.binding import Binding
from regplug.session.calls import Calls
from regplug.session.events import Events
from regplug.session.loss_event import LossEvent
from regplug.session.shown import Shown
from regplug.session.silence import Silence
from regplug.session.states import States

__all__ = ["Session"]


class Session(Asked, Shown):
    """One model, one optimizer, and the plugins attached to them. Made by :func:`attach`.

    It is a context manager too, which detaches at the end of the block.

    >>> import regplug
    >>> model = nn.Linear(3, 1)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> with regplug.attach(model, optimizer, ["l1(0.01)"]) as session:
    ...     model(torch.ones(1, 3)).sum().backward()
    ...     optimizer.step()
    >>> session.steps, sorted(session.metrics())
    (1, ['l1/strength', 'l1/value', 'l1/zeros'])

    Attributes:
        model: the user's own module, unwrapped.
        optimizer: the torch optimizer, unwrapped, or None.
        stateful: what has its state by parameter: the optimizer, or the steps of an engine's.
        plugins: the plugin instances, in the order in which they act.
        steps: completed real steps.
        name: the name given, ``"regplug"`` by default.
        kernels: which kernels may execute formulas.
        handover: whether decay may be left to the optimizer.
        gradients_through_loss: whether a backward pass came through :meth:`loss` yet.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | None,
        plugins: list[Plugin],
        ranks: Ranks,
        *,
        accelerator: Any = None,
        name: str | None = None,
        kernels: str = "auto",
        handover: bool = True,
    ) -> None:
        given, zero = optimizer, None
        self._engine = engine = engines.find(model, optimizer)
        if engine is not None:
            model, optimizer, zero = engine.module, engine.optimizer, engine.steps
        self.model = wrappers.unwrap_model(model)
        self.optimizer = None if optimizer is None else wrapped.unwrap(optimizer)
        self.stateful = self.optimizer if zero is None else zero
        self.plugins = tuple(plugins)
        self.name = "regplug" if name is None else name
        self._named = name is not None
        self.kernels, self.handover = kernels, handover
        self._detached = False
        self._ranks = ranks
        self._disconnect: Callable[[], None] | None = None
        self._events: step_events.StepEvents | engines.EngineEvents | None = None
        self._silence = Silence()
        self._binding = Binding(self.model, self.optimizer, self._silence, zero)
        captured.refuse_captured_step(self._binding.groups)
        parts = self._binding.parts
        attachments.check(
            self.plugins, [] if optimizer is None else wrapped.wrappers(optimizer) + parts
        )
        updating = parts or ([] if self.optimizer is None else [self.optimizer])
        copies = attachments.suspected(updating, self.plugins, None if zero is None else zero.state)
        self._calls = Calls(composition.in_order(self.plugins), ranks.tell)
        self._states = States(self.plugins, self._calls, ranks.tell)
        self._attachments = attachments.Attachments(self._calls, self._states)
        self._loss = LossEvent(
            self.model, self._calls, self._silence, finds_unused=wrappers.finds_unused(model)
        )
        self._steps = Events(
            self,
            self.plugins,
            self.optimizer,
            calls=self._calls,
            binding=self._binding,
            silence=self._silence,
            ranks=ranks,
            copies=copies,
        )
        keep_freed_memory()
        try:
            self._begin(given, accelerator)
            ranks.compare(self)
            if not self._detached:
                sessions.warn_of_doubles(self)
                sessions.enter(self)
        except BaseException:
            with suppress(RegplugError):  # the first error is the one to see
                self._leave(keep=False)
            raise

    def _begin(self, optimizer: Optimizer | None, accelerator: Any) -> None:
        self._binding.bind(self)
        for plugin in self.plugins:
            self._attachments.add(plugin, self)
            if self._detached:  # by the plugin itself
                return
        self._binding.attached = bool(self.plugins)
        composition.check(self)
        self._calls.settle(self)
        engine = self._engine
        if engine is not None and engine.steps is not None:
            self._events = engines.EngineEvents(engine.steps, self._steps)
        elif self.optimizer is not None:
            self._events = step_events.StepEvents(self.optimizer, self._steps)
            self._steps.doubt(optimizer if engine is None else self.optimizer, self.optimizer)
        if accelerator is not None or accelerate.is_wrapper(optimizer):
            self._disconnect = accelerate.connect(self, accelerator, optimizer)
        elif engine is not None:
            self._disconnect = engines.connect(self, engine.engine)

    # --- what the loop calls ---------------------------------------------------------------

    @eagerly
    def loss(self, loss: torch.Tensor) -> torch.Tensor:
        """Return the loss with the penalties of this session in it: the textbook form.

        Call it right before ``backward()``. Penalties of other deliveries add nothing here.

        Args:
            loss: a 0-d tensor.

        Returns:
            A 0-d tensor of the same dtype; ``loss`` itself if there is nothing to add.

        Raises:
            SpecError: ``loss`` is no 0-d tensor.
            PluginError: a plugin raised.

        >>> import torch, regplug
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> _ = torch.nn.init.constant_(model.weight, -3.0)
        >>> session = regplug.attach(model, plugins=["l1(0.5)"])
        >>> session.loss(torch.tensor(1.0)).item()
        4.0
        """
        if not isinstance(loss, torch.Tensor) or loss.ndim != 0:
            got = f"shape {tuple(loss.shape)}" if isinstance(loss, torch.Tensor) else repr(loss)
            raise SpecError(f"loss must be a 0-d tensor, got {got}: reduce it first")
        if self._detached:
            return loss
        self._binding.bind(self)
        with without_autocast() if autocast_is_on() else nullcontext():
            return self._loss.penalized(self, loss)

    @contextmanager
    def step(self, lr: float | None = None) -> Iterator[None]:
        """Fire the step events around an update that is written by hand.

        Args:
            lr: the learning rate of the update ``w ← w − lr·gradient``, for the plugins that
                scale with it (decay, proximal); they say so if it is missing.

        Raises:
            UnsupportedError: an optimizer is attached, whose own steps fire the events.

        >>> import torch, regplug
        >>> model = torch.nn.Linear(2, 1)
        >>> session = regplug.attach(model, plugins=["l2(0.1)"])
        >>> model(torch.ones(1, 2)).sum().backward()
        >>> with session.step(), torch.no_grad():
        ...     for p in model.parameters():
        ...         _ = p.sub_(0.1 * p.grad)
        >>> session.steps
        1
        """
        parameters = self._binding.by_hand(lr)
        captured.refuse_captured_step(self._binding.groups)
        real = not self._detached and any(p.grad is not None for p in parameters)
        if real:
            self._steps.gradients_ready()
            self._steps.before_update()
        yield
        if real and not self._detached:
            self._steps.after_update()

    def metrics(self) -> dict[str, float]:
        """Return what the plugins report now, under ``<plugin name>/<what>``.

        Penalties give ``value`` (strength included), ``strength`` and ``zeros``, the share of the
        covered weights that are exactly 0; dropout gives ``rate``. Nothing is computed before it
        is asked for. It is the same on all ranks, and one collective per process group if
        parameters are sharded: call it on every rank, with only the logging under ``if
        is_main_process``. The name that a session was given comes before each key; a figure may be
        asked for without it.

        Returns:
            Plain floats, as they are now.

        Raises:
            PluginError: a plugin raised.
        """
        from regplug.session.figures import NamedFigures  # not before somebody asks

        figures = self.figures()
        return NamedFigures(self.name, figures) if self._named else figures

    @as_outside
    def figures(self) -> dict[str, float]:
        """Return what :meth:`metrics` does, without the name of the session."""
        from regplug.session.figures import measured

        self._binding.bind(self)
        if self._binding.of_meshes:  # the model is to have what is trained: some ask its modules
            self._binding.gather_names()
        if not self._detached:
            self._silence.ask(self)
        return measured(self, *self._states.answering())

    def state_dict(self, *, sharded: bool = False) -> dict[str, Any]:
        """Return what a resumed run needs: the step count, and each plugin's state by its name.

        Plain types and tensors alone, so ``torch.load(weights_only=True)`` reads it. What plugins
        keep as ``DTensor`` is whole, by a collective, or with ``sharded`` as they keep it.

        Args:
            sharded: whether ``DTensor``s stay what they are, as ``torch.distributed.checkpoint``
                wants them.

        Returns:
            A new dict, for :meth:`load_state_dict` of a session with the same plugins.
        """
        return self._states.saved(self, self.steps, sharded=sharded)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state. If that fails, nothing has changed.

        Args:
            state: what :meth:`state_dict` returned, in this run or another.

        Raises:
            StateError: it is no such state, or of other plugins than these, or the session is
                detached.
            PluginError: a plugin could not read its own.
        """
        if self._detached:
            raise StateError(f"{self.name} is detached: attach again, then load the state")
        self._states.load(self, state, self._steps.advance_to)

    def detach(self) -> None:
        """Take everything off the loop again: hooks, dropout rates, weight_decay, modules.

        May be called twice, and again after Ctrl-C. Every plugin is asked to restore, also when one
        before it fails. What reports goes on to tell how things were.

        Raises:
            PluginError: a plugin failed to restore; the others have been asked all the same.
        """
        words: dict[str, str] = {}
        with suppress(Exception):  # what fails here is no reason to stay attached
            words = {} if self._detached else self._silence.last_words(self)
        self._leave()
        self._silence.tell(words)

    def _leave(self, *, keep: bool = True) -> None:
        # Each part is let go of once it is done, so that a second call ends what was interrupted.
        self._detached = True
        self._binding.attached = False
        self._calls.silence()
        self._steps.end()
        if self._events is not None:
            self._events.disconnect()
            self._events = None
        self._steps.settle_doubt()
        if self._disconnect is not None:
            self._disconnect()
            self._disconnect = None
        failures = self._attachments.release(self, keep=keep)
        sessions.leave(self)
        if failures:
            raise failures[0]

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if kind is None:
            self.detach()
        else:
            self._leave()
        if (explained := self._ranks.explained(error)) is not None:
            raise explained from error
