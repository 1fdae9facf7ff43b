"""The loss event of one session: the loss with the penalties of its plugins in it."""

from collections.abc import Iterable

import torch
from torch import nn

from regplug.backend import captured, shards, wrappers
from regplug.delivery.in_loss import Objective
from regplug.delivery.terms import Term
from regplug.errors import UnsupportedError
from regplug.selection.where import named_parameters
from regplug.session.calls import Calls, is_scalar
from regplug.session.functional import InUse, refuse_transforms
from regplug.session.silence import Silence
from regplug.view import SessionView

__all__ = ["LossEvent"]


class LossEvent:
    """Fires on_loss, and sees the backward pass.

    Args:
        model: the user's own module, unwrapped.
        calls: calls the plugins.
        silence: counts each of them.
        finds_unused: whether the model is a DDP that looks for parameters without part in forward.

    Attributes:
        gradients_through_it: whether a backward pass came through yet.
    """

    def __init__(
        self, model: nn.Module, calls: Calls, silence: Silence, *, finds_unused: bool
    ) -> None:
        self.gradients_through_it = False
        self._model, self._calls, self._silence = model, calls, silence
        self._finds_unused = finds_unused
        self._objective = Objective()
        self._in_use = InUse()

    def penalized(self, session: SessionView, loss: torch.Tensor) -> torch.Tensor:
        """Return ``loss`` with what the plugins add to it."""
        calls = self._calls
        total, terms, plain = loss, [], []
        for term in calls.all("on_loss", session, loss=loss):
            if isinstance(term, Term):
                terms.append(term)
                continue
            if not is_scalar(term):
                calls.refuse_returned(_is_term, "on_loss", session, loss=loss)
            plain.append(term)
        if calls.silent:  # a plugin has detached the session, just now
            return loss
        if terms or plain:
            if loss.is_cuda:
                captured.refuse_capture(
                    "the strengths of this step in its loss",
                    "call session.loss(loss) outside of it, or say delivery='step' and step "
                    "outside of the graph, after its replay",
                )
            refuse_transforms()
            self._in_use.look(self._model, loss, terms, plain)
            total = loss if type(loss) is torch.Tensor else shards.whole_loss(loss)
            for term in plain:
                total = total + shards.beside(term, total)
        if terms:
            if self._finds_unused:
                self._check_used(session, loss, terms)
            try:
                total = self._objective.penalized(total, terms)
            except Exception as error:
                calls.blame(error, "on_loss", session)
        if total.requires_grad:
            self._silence.in_loss(session)
            if not self.gradients_through_it or self._silence.waiting is not None:
                self._watch_backward(total)
        return total

    def _check_used(self, session: SessionView, loss: torch.Tensor, terms: Iterable[Term]) -> None:
        """Refuse what DDP would end with, "mark a variable ready only once"."""
        if unused := _weights(terms) - wrappers.leaves(loss):
            known = {id(n.parameter): n.name for n in named_parameters(self._model)}
            names = ", ".join(sorted(known.get(id(w), "?") for w in unused))
            error = UnsupportedError(
                f"DistributedDataParallel(find_unused_parameters=True) takes no gradient from a "
                f"penalty in the loss for parameters that took no part in forward, here {names}: "
                "use delivery='step', which leaves them alone, or exclude them with where="
            )
            self._calls.blame(error, "on_loss", session)

    def _watch_backward(self, total: torch.Tensor) -> None:
        """See the next backward pass through ``total``, which may be the caller's own tensor."""

        def saw(gradient: torch.Tensor) -> None:
            handle.remove()  # what comes later is no concern of this loss event
            self.gradients_through_it = True
            if self._silence.waiting is not None:
                self._silence.waiting += 1

        handle = total.register_hook(saw)


def _weights(terms: Iterable[Term]) -> set[torch.Tensor]:
    return {entry.parameter for term in terms for entry in term.coverage.trainable}


def _is_term(value: object) -> bool:
    return isinstance(value, Term) or is_scalar(value)
