"""One attached loop: :func:`attach` and the :class:`Session` that it returns."""

import math
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from numbers import Real
from types import TracebackType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.optim import Optimizer

from regplug import sessions
from regplug.backend import shards, step_events, update_rules, wrapped, wrappers
from regplug.backend.blocks import keep_freed_memory
from regplug.backend.eager import eagerly
from regplug.backend.gradmode import without_grad
from regplug.backend.groups import Group, learning_rate
from regplug.backend.precision import as_outside
from regplug.backend.sums import Sum, resolve
from regplug.delivery.in_loss import Objective
from regplug.delivery.terms import Term
from regplug.discovery.catalog import load_all
from regplug.errors import RegplugError, SpecError, StateError, UnsupportedError
from regplug.plugin import Plugin, session_of, set_session, set_step
from regplug.selection.coverage import Coverage, cover, shared
from regplug.selection.where import Selection, named_parameters
from regplug.session import accelerate, composition, own_weights
from regplug.session.agreement import Ranks
from regplug.session.calls import Calls, is_number, is_scalar, seen
from regplug.session.figures import NamedFigures
from regplug.session.functional import InUse, refuse_transforms
from regplug.session.silence import Silence
from regplug.session.states import States
from regplug.table import table

__all__ = ["Session", "attach"]


def attach(
    model: nn.Module,
    optimizer: Optimizer | None = None,
    plugins: Iterable[str | Plugin] | str | Plugin = (),
    *,
    accelerator: Any = None,
    name: str | None = None,
) -> "Session":
    r"""Attach regularizer plugins to a training loop, which stays as it is.

    From here on each real ``optimizer.step()`` fires the step events by itself. For penalties in
    the textbook form, inside the loss, add ``loss = session.loss(loss)`` before ``backward()``.

    Args:
        model: the module that is trained: bare, compiled, wrapped in DDP, sharded by FSDP2 or
            prepared by Accelerate.
        optimizer: the torch optimizer, or a wrapper of it (Accelerate's, SAM, Lookahead), whose
            inner one is attached to then; None for a loop that updates its weights by hand, which
            then says ``with session.step(lr=…):``.
        plugins: specs such as ``"l1(1e-5)"``, ``"l1=1e-5"`` or
            ``"dropout(linear(0.5, 0.1, steps=1000))"``, and instances of :class:`regplug.Plugin`.
            They act in this order. ``regplug plugins`` lists what is installed.
        accelerator: an ``accelerate.Accelerator``, whose checkpoints then hold the session's
            state. Not needed for the rest.
        name: tells several sessions of one program apart in checkpoints and metrics. Of one that
            does the same under the same name on the same optimizer, attach warns, as where a
            notebook's cell is run again; :func:`regplug.sessions.on` finds the old one.

    Returns:
        The session: a handle that reports (``metrics()``, ``describe()``), saves (``state_dict()``)
        and restores everything (``detach()``, or leaving its ``with`` block).

    Raises:
        SpecError: a spec or an argument is wrong, or two plugins have one name (a ValueError).
        PluginNotFoundError: no installed distribution offers such a plugin (a LookupError).
        PluginError: a plugin does not load, or its hooks break the contract.
        SelectionError: a selection matches nothing that this optimizer updates (a ValueError).
        UnsupportedError: regplug knows that it can't be right with this model or optimizer.

    >>> import torch, regplug
    >>> model = torch.nn.Linear(4, 2)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> with regplug.attach(model, optimizer, ["l2(0.5)"]) as session:
    ...     model(torch.zeros(1, 4)).sum().backward()
    ...     optimizer.step()          # w ← w − 0.1·(0 + 2·0.5·w)
    ...     session.steps
    1
    """
    if not isinstance(model, nn.Module):
        raise SpecError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if name is not None and not (isinstance(name, str) and name):
        raise SpecError(f"name must be a non-empty string, got {name!r}")
    prepared = accelerator is not None or accelerate.is_wrapper(optimizer)
    ranks = Ranks(model, prepared=prepared, name=name or "regplug")
    with ranks.telling():
        return Session(
            model,
            optimizer,
            load_all(plugins),
            ranks,
            accelerator=accelerator,
            name=name,
        )


class Session:
    """One model, one optimizer, and the plugins attached to them. Made by :func:`attach`.

    Attributes:
        model: the user's own module, unwrapped.
        optimizer: the torch optimizer, unwrapped, or None.
        plugins: the plugin instances, in the order in which they act.
        steps: completed real steps.
        name: the name given, ``"regplug"`` by default.
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
    ) -> None:
        self.model = wrappers.unwrap_model(model)
        self.optimizer = None if optimizer is None else wrapped.unwrap(optimizer)
        self._parts = [] if self.optimizer is None else wrapped.parts(self.optimizer)
        self.plugins = tuple(plugins)
        self.name = "regplug" if name is None else name
        self._named = name is not None
        self.steps = 0
        self.gradients_through_loss = False
        self._silence = Silence()
        self._in_use = InUse()
        self._attached: list[Plugin] = []
        self._detached = False
        self._ranks = ranks
        self._finds_unused = wrappers.finds_unused(model)
        self._disconnect: Callable[[], None] | None = None
        self._events: step_events.StepEvents | None = None
        self._doubt: wrapped.Doubt | None = None
        self._by_hand: Group = {"params": list(self.model.parameters()), "lr": None}
        self._bound: list[list[torch.Tensor]] = []
        # By weak keys: a plugin may make a selection anew each time it asks.
        self._coverages: WeakKeyDictionary[Selection, Coverage] = WeakKeyDictionary()
        self._watchers: tuple[Callable[[Session], object], ...] = ()
        self._once_updated: list[Callable[[], object]] = []
        self._rule: update_rules.UpdateRule | None = None
        self._objective = Objective()
        # What takes part in the step that is under way, where its gradients may be cleared in it.
        self._taking: dict[int, torch.Tensor | None] | None = None
        self._remembers = self.optimizer is None or not step_events.is_torchs(self.optimizer)
        # Whether the coverages were looked at since the last step in which nobody needed them.
        self._bound_now = True
        self._check_plugins([] if optimizer is None else wrapped.wrappers(optimizer) + self._parts)
        self._copies = self._suspected()  # None after the first step
        self._calls = Calls(composition.in_order(self.plugins), ranks.tell)
        self._states = States(self.plugins, self._calls, ranks.tell)
        self._unscale = any(
            not getattr(plugin, "scaled_gradients", False)
            for plugin in self._calls.listeners("on_gradients")
        )
        keep_freed_memory()
        try:
            self._bind()
            for plugin in self.plugins:
                self._attached.append(plugin)
                set_session(plugin, self.name)
                set_step(plugin, 0)
                self._calls.one(plugin, "on_attach", self)
                if self._detached:  # by the plugin itself
                    break
            else:
                composition.check(self)
                self._calls.settle(self)
                if self.optimizer is not None:
                    self._events = step_events.StepEvents(self.optimizer, self)
                    self._doubt = wrapped.Doubt(optimizer, self.optimizer)
                if accelerator is not None or accelerate.is_wrapper(optimizer):
                    self._disconnect = accelerate.connect(self, accelerator, optimizer)
            ranks.compare(self)
            if not self._detached:
                sessions.tell_doubles(self)
                sessions.enter(self)
        except BaseException:
            with suppress(RegplugError):  # the first error is the one to see
                self._leave(keep=False)
            raise

    def _check_plugins(self, steppers: list[object]) -> None:
        seen: dict[str, Plugin] = {}
        for plugin in self.plugins:
            if plugin.name in seen:
                raise SpecError(
                    f"two plugins are named {plugin.name!r}: give one of them another, as in "
                    f"{plugin.name}(…, name='{plugin.name}_2')"
                )
            if (other := session_of(plugin)) is not None:
                raise SpecError(
                    f"{plugin.name} is attached to another session already "
                    f"({other!r}): make a second instance, or give its spec"
                )
            own_weights.refuse(plugin, steppers)
            seen[plugin.name] = plugin

    def _suspected(self) -> own_weights.Copies | None:
        updating = self._parts or ([] if self.optimizer is None else [self.optimizer])
        movers = [plugin for plugin in self.plugins if own_weights.moves_weights(plugin)]
        known = all(map(step_events.is_torchs, updating))
        return None if known or not movers else own_weights.Copies(updating, movers)

    # --- what the loop calls ---------------------------------------------------------------

    @eagerly
    @as_outside
    def loss(self, loss: torch.Tensor) -> torch.Tensor:
        """Return the loss with the penalties of this session in it: the textbook form.

        Penalties that are delivered at the step or by their proximal operator add nothing here.
        Call it right before ``backward()``.

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
        self._bind()
        total, terms, plain = loss, [], []
        for term in self._calls.all("on_loss", self, loss=loss):
            if isinstance(term, Term):
                terms.append(term)
                continue
            if not is_scalar(term):
                self._calls.refuse_returned(_is_term, "on_loss", self, loss=loss)
            plain.append(term)
            total = total + term.to(loss)
        if self._detached:  # by a plugin, just now
            return loss
        if terms or plain:
            refuse_transforms()
            self._in_use.look(self.model, loss, terms, plain)
        if terms:
            if self._finds_unused:
                self._check_used(loss, terms)
            try:
                total = self._objective.penalized(total, terms)
            except Exception as error:
                self._calls.blame(error, "on_loss", self)
        if total.requires_grad:
            self._silence.in_loss(self)
            if not self.gradients_through_loss or self._silence.waiting is not None:
                self._watch_backward(total)
        return total

    def _check_used(self, loss: torch.Tensor, terms: Iterable[Term]) -> None:
        """Refuse what DDP would end with, "mark a variable ready only once"."""
        if unused := _weights(terms) - wrappers.leaves(loss):
            known = {id(n.parameter): n.name for n in named_parameters(self.model)}
            names = ", ".join(sorted(known.get(id(w), "?") for w in unused))
            error = UnsupportedError(
                f"DistributedDataParallel(find_unused_parameters=True) takes no gradient from a "
                f"penalty in the loss for parameters that took no part in forward, here {names}: "
                "use delivery='step', which leaves them alone, or exclude them with where="
            )
            self._calls.blame(error, "on_loss", self)

    def _watch_backward(self, total: torch.Tensor) -> None:
        """See the next backward pass through ``total``, which may be the caller's own tensor."""

        def saw(gradient: torch.Tensor) -> None:
            handle.remove()  # what comes later is no concern of this loss event
            self.gradients_through_loss = True
            if self._silence.waiting is not None:
                self._silence.waiting += 1

        handle = total.register_hook(saw)

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
        if self.optimizer is not None:
            raise UnsupportedError(
                "this session has an optimizer, whose step() fires the events by itself; "
                "session.step() is for loops without one: attach(model, plugins=…)"
            )
        if lr is not None and not _is_rate(lr):
            raise SpecError(f"lr must be a finite number that is not negative, got {lr!r}")
        self._by_hand = {"params": list(self.model.parameters()), "lr": lr}
        real = not self._detached and any(p.grad is not None for p in self._by_hand["params"])
        if real:
            self.gradients_ready()
            self.before_update()
        yield
        if real and not self._detached:
            self.after_update()

    def metrics(self) -> dict[str, float]:
        """Return what the plugins report now, under ``<plugin name>/<what>``.

        Penalties give ``value`` (strength included), ``strength`` and ``zeros``, the share of the
        covered weights that are exactly 0; dropout gives ``rate``. Nothing is computed before it
        is asked for. The result is the same on all ranks, and takes one collective per process
        group if parameters are sharded: call it on every rank, and put only the logging of it
        under ``if is_main_process``. A session that was given a name puts it before each key,
        ``<name>/<plugin name>/<what>``, so that several may be logged together; a single figure
        may be asked for without it.

        Raises:
            PluginError: a plugin raised.
        """
        figures = self.figures()
        return NamedFigures(self.name, figures) if self._named else figures

    @as_outside
    def figures(self) -> dict[str, float]:
        """Return what :meth:`metrics` does, without the name of the session."""
        self._bind()
        if not self._detached:
            self._silence.ask(self)
        found: dict[str, Any] = {}
        plugins, calls = self._states.answering()
        for plugin in plugins:
            told = without_grad(calls.mapping, plugin, "on_metrics", self)
            for key, value in told.items():
                if not isinstance(value, Sum) and not is_number(value):
                    wrong = f"{key!r} must be a float, a 0-d tensor or a Sum, got {seen(value)}"
                    calls.blame(TypeError(wrong), "on_metrics", self, plugin)
                found[f"{plugin.name}/{key}"] = value
        sums = {key: value for key, value in found.items() if isinstance(value, Sum)}
        found.update(zip(sums, resolve(list(sums.values())), strict=True))
        return {key: float(value) for key, value in found.items()}

    def after_each_step(self, callback: Callable[["Session"], object]) -> Callable[[], None]:
        """Call ``callback(session)`` after each real step, once it is counted, with grad off.

        For whoever watches a loop, as :class:`regplug.report.Recorder` does; what acts on the
        weights is a plugin.

        Returns:
            A function that undoes it. Detaching the session does so too.
        """
        self._watchers += (callback,)

        def undo() -> None:
            self._watchers = tuple(kept for kept in self._watchers if kept is not callback)

        return undo

    def once_updated(self, callback: Callable[[], object]) -> None:
        """Call ``callback()`` once, right after the update of the step that is under way.

        Before ``after_step`` fires, so that what a plugin lent to the optimizer for its update is
        taken back before anyone else looks, or fails. Where the update itself fails it is not
        called: whoever lends takes back in ``before_step`` and ``on_detach`` too.
        """
        self._once_updated.append(callback)

    def describe(self) -> str:
        """Return a table of the plugins: where each acts, what it covers, how strong it is now."""
        self._bind()
        rows: list[list[str]] = []
        notes: list[str] = []
        told: dict[str, list[str]] = {}
        for plugin in self._states.answering()[0]:
            covered = plugin.covers(self)
            rows.append(
                [
                    plugin.name,
                    plugin.source,
                    plugin.acts(self),
                    *(("–", "–") if covered is None else (f"{n:,}" for n in covered)),
                    ", ".join(
                        f"{value:g}" if key in ("strength", "rate") else f"{key} {value:g}"
                        for key, value in plugin.strengths().items()
                    ),
                ]
            )
            for note in plugin.notes(self):
                told.setdefault(note, []).append(plugin.name)
        where = type(self.model).__name__
        notes += [f"{', '.join(names)}: {note}" for note, names in told.items()]
        by = type(self.optimizer).__name__ if self.optimizer is not None else "no optimizer"
        if not self._detached:
            notes += self._silence.notes(self)
        state = ", detached" if self._detached else ""
        title = f"{self.name}: {where} with {by}, {self.steps} steps{state}"
        heads = ["plugin", "from", "acts", "tensors", "weights", "strength now"]
        return "\n".join([title, table(heads, rows), *notes])

    def __repr__(self) -> str:
        names = ", ".join(plugin.name for plugin in self.plugins)
        return f"<regplug.Session {self.name!r}: {names or 'no plugins'}; {self.steps} steps>"

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs: the step count, and each plugin's state by its name.

        Plain types and tensors alone, so ``torch.load(weights_only=True)`` reads it.
        """
        plugins, calls = self._states.answering()
        states = {p.name: dict(calls.mapping(p, "on_state", self)) for p in plugins}
        return {"steps": self.steps, "plugins": states}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state. If that fails, nothing has changed.

        Raises:
            StateError: it is no such state, or of other plugins than these, or the session is
                detached.
            PluginError: a plugin could not read its own.
        """
        if self._detached:
            raise StateError(f"{self.name} is detached: attach again, then load the state")
        self._states.load(self, state, self._advance_to)

    def detach(self) -> None:
        """Take everything off the loop again: hooks, dropout rates, weight_decay, modules.

        May be called twice, and again after Ctrl-C has interrupted it. Every plugin is asked to
        restore, also when one before it fails. ``state_dict()``, ``metrics()`` and ``describe()``
        go on to tell how things were.

        Raises:
            PluginError: a plugin failed to restore; the others have been asked all the same.
        """
        words: dict[str, str] = {}
        if not self._detached:
            with suppress(Exception):  # what fails here is no reason to stay attached
                words = self._silence.last_words(self)
        self._leave()
        self._silence.tell(words)

    def _leave(self, *, keep: bool = True) -> None:
        # Each part is let go of once it is done, so that a second call ends what was interrupted.
        self._detached = True
        self._calls.silence()
        self._watchers = ()
        if self._events is not None:
            self._events.disconnect()
            self._events = None
        self._settle_doubt()
        if self._disconnect is not None:
            self._disconnect()
            self._disconnect = None
        failures = []
        while self._attached:
            plugin = self._attached[-1]
            try:
                self._attached.pop()
                if keep:
                    self._states.keep(plugin)
                self._calls.one(plugin, "on_detach", self)
                set_session(plugin, None)
            except RegplugError as error:
                set_session(plugin, None)
                failures.append(error)
            except BaseException:
                if not any(other is plugin for other in self._attached):
                    self._attached.append(plugin)
                raise
        sessions.leave(self)
        if failures:
            raise failures[0]

    def __enter__(self) -> "Session":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.detach()
        else:
            self._leave()
        # What other ranks see of a rank that failed is a lost connection.
        if isinstance(error, RuntimeError) and (words := self._ranks.heard()) is not None:
            raise RegplugError(f"session {self.name!r}: {words}") from error

    # --- what plugins ask ------------------------------------------------------------------

    @property
    def groups(self) -> list[Group]:
        """The parameter groups: those of whatever updates, or one for a loop without optimizer."""
        if self._parts:
            return [group for part in self._parts for group in part.param_groups]
        return [self._by_hand] if self.optimizer is None else self.optimizer.param_groups

    @property
    def gradient_scale(self) -> float:
        """What gradients are still multiplied by in on_gradients: 1, but for fused optimizers."""
        return step_events.gradient_scale(self.optimizer)

    def coverage(self, selection: Selection) -> Coverage:
        """Return what ``selection`` covers of this optimizer's parameters.

        It is kept until the optimizer's parameters change, so the object tells whether they did.

        Raises:
            SelectionError: it covers nothing; the message shows what there is.
        """
        if not self._bound_now:
            self._bind()
        found = self._coverages.get(selection)
        if found is None or (found.lazy and found.outdated):
            self._gather_names()
            found = cover(selection, self.model, self.groups)
            self._coverages[selection] = found
        return found

    def updates(
        self, selection: Selection
    ) -> Iterator[tuple[int, list[torch.Tensor], list[torch.Tensor]]]:
        """Yield (group index, weights, gradients) of what takes part in this step, for each group.

        Frozen parameters, and those whose ``.grad`` is None before the update, take no part; the
        update itself may clear it. Under FSDP2 the tensors are ``DTensor``:
        :func:`regplug.local` gives this rank's part.
        """
        taking = self._taking
        for index, parameters in self.coverage(selection).by_group.items():
            weights: list[torch.Tensor] = []
            gradients: list[torch.Tensor] = []
            for w in parameters:
                g = w.grad
                if g is None and taking is not None:
                    g = taking.get(id(w))
                if g is not None and w.requires_grad:
                    weights.append(w)
                    gradients.append(g)
            if weights:
                yield index, weights, gradients

    def learning_rate(self, group_index: int) -> Any:
        """Return the learning rate of a group, as the optimizer itself keeps it.

        Raises:
            RegplugError: it is not known: ``with session.step():`` was not told.
        """
        return learning_rate(self.groups[group_index])

    def update_rule(self) -> update_rules.UpdateRule:
        """Return what the optimizer multiplies a gradient by, for proximal steps.

        Raises:
            UnsupportedError: the optimizer is not known; by name.
        """
        if self._rule is None:
            self._rule = update_rules.update_rule(self.optimizer)
        return self._rule

    # --- events ----------------------------------------------------------------------------

    def gradients_ready(self) -> None:
        """Fire on_gradients. Called by the hooks."""
        if self._calls.at_steps or self._watchers:
            self._bind()
        else:
            self._bound_now = False
        self._silence.gradients_ready()
        if not self._ranks.compared:
            self._ranks.compare_late(self)
        if self._unscale and self.optimizer is not None:
            step_events.unscale_gradients(self.optimizer)
        self._fire("on_gradients")
        if self._remembers and self._calls.heard("after_step"):
            self._taking = {id(w): w.grad for weights in self._bound for w in weights}

    def no_gradients(self) -> None:
        """Nothing will happen in this step; say so if nothing ever can. Called by the hooks."""
        self._check_shared()
        if self.optimizer is not None and not self.steps:
            step_events.check_not_in_backward(self.optimizer, hooked=True)

    @as_outside
    def closure_value(self) -> float:
        """Return the value of the penalties added to a closure's gradients. Called by the hooks."""
        terms = self._calls.all("on_closure", self)
        if not all(map(is_number, terms)):
            self._calls.refuse_returned(is_number, "on_closure", self)
        return float(sum(float(term) for term in terms))

    def closure_begins(self) -> None:
        """A step with a closure begins. Called by the hooks."""
        if self._copies is not None:
            self._copies.closure_begins(self._owned())

    def before_update(self) -> None:
        """Fire before_step. Called by the hooks."""
        if self._copies is not None:
            self._copies.before_decay()
        self._fire("before_step")
        if self._copies is not None:
            self._copies.before_update(self._owned())

    def after_update(self) -> None:
        """Fire after_step, then count the step. Called by the hooks."""
        while self._once_updated:
            self._once_updated.pop()()
        if self._copies is not None:
            self._copies.after_update()
            self._copies = None
        self._fire("after_step")
        self._taking = None
        self._advance_to(self.steps + 1)
        if self._silence.waiting is not None:
            self._settle_doubt()
            self._calls.settle(self)
        self._silence.stepped(self)
        for callback in self._watchers:
            if not self._detached:  # by the one before, say
                without_grad(callback, self)

    @as_outside
    def _fire(self, event: str) -> None:
        if not self._calls.heard(event):
            return
        # torch.no_grad() without its own five microseconds, which are a tenth of a small step.
        grad = torch.is_grad_enabled()
        try:
            torch.set_grad_enabled(False)
            self._calls.all(event, self)
            torch.set_grad_enabled(grad)
        except BaseException:  # an interruption may strike at the first try to set it back
            torch.set_grad_enabled(grad)
            raise

    def _advance_to(self, steps: int) -> None:
        try:
            self.steps = steps
            for plugin in self.plugins:
                set_step(plugin, steps)
        except BaseException:  # interrupted, which must not leave plugins at different steps
            self.steps = steps
            for plugin in self.plugins:
                set_step(plugin, steps)
            raise

    def _settle_doubt(self) -> None:
        if self._doubt is not None:
            self._doubt.settle()
            self._doubt = None

    def _owned(self) -> list[torch.Tensor]:
        return [p for group in self.groups for p in group["params"]]

    def _bind(self) -> None:
        """Forget the coverages if the optimizer's parameters are others than before."""
        self._bound_now = True
        groups, bound = self.groups, self._bound
        if len(groups) == len(bound):
            for group, known in zip(groups, bound, strict=True):
                own = group["params"]
                if len(own) != len(known) or not all(map(operator.is_, own, known)):
                    break
            else:
                return
        self._bound = [list(group["params"]) for group in groups]
        self._coverages.clear()
        self._silence.watch(groups)
        self._check_shared()
        if self.plugins and len(self._attached) == len(self.plugins):
            composition.check(self, again=True)

    def _check_shared(self) -> None:
        if self.optimizer is not None:
            self._gather_names()
            shared(self.model, self.groups)
            step_events.check_not_in_backward(self.optimizer)

    def _gather_names(self) -> None:
        """Have the model name the sharded parameters, where FSDP2 has gathered them for a while."""
        named = {id(p) for p in self.model.parameters()}
        owned = (p for group in self.groups for p in group["params"])
        if any(shards.is_dtensor(p) and id(p) not in named for p in owned):
            wrappers.reshard(self.model)


def _weights(terms: Iterable[Term]) -> set[torch.Tensor]:
    return {entry.parameter for term in terms for entry in term.coverage.trainable}


def _is_rate(lr: object) -> bool:
    one = lr.numel() == 1 if isinstance(lr, torch.Tensor) else isinstance(lr, Real)
    return one and 0 <= lr < math.inf  # type: ignore[operator]


def _is_term(value: object) -> bool:
    return isinstance(value, Term) or is_scalar(value)
