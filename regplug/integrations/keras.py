"""Keras 3 on its torch backend: plugins in an optimizer that is Keras' own.

Keras' optimizers are no torch optimizers and have no step hooks, but a model is a torch module, so
a session without an optimizer fits. The mix-in fires its step events around the update itself:
after clipping and accumulation, once for each real step.

    class Adam(Regularized, keras.optimizers.Adam):
        pass

    optimizer = Adam(1e-3)
    model.compile(optimizer, loss)
    optimizer.attach(model, ["l1(1e-4)"])         # a built model
    model.fit(x, y)

Only penalties at the step, decays and constraints can act: ``fit`` has no place for the loss event
(Keras' own regularizers are in the loss), and of the proximal step only plain SGD's is known.
"""

import io
from collections.abc import Iterable, Mapping
from typing import Any

import keras
import numpy as np
import torch

from regplug.backend.others import UpdateStep
from regplug.errors import SpecError, UnsupportedError
from regplug.plugin import Plugin
from regplug.session import Session, attach

__all__ = ["Regularized"]

_KEY = "regplug"


class Regularized(UpdateStep):
    """Mix-in for a Keras optimizer, to stand before it among the bases.

    Attributes:
        session: the session, None before :meth:`attach`.

    What ``model.save`` writes holds the session's state, which is restored when it is loaded into
    an optimizer that is attached, or is attached after.
    """

    session: Session | None = None
    _saved_session: dict[str, Any] | None = None

    def attach(self, model: Any, plugins: Iterable[str | Plugin]) -> Session:
        """Attach ``plugins`` to the weights of ``model``, which must be built.

        Raises:
            SpecError: the model is not built, or attached already.
            UnsupportedError: another backend than torch, a version of Keras whose updates can't
                be seen, or a proximal operator under an optimizer
                whose step is not known.
            RegplugError: as :func:`regplug.attach`.
        """
        if keras.backend.backend() != "torch":
            raise UnsupportedError(
                f"Keras runs on {keras.backend.backend()}, and regplug on torch: set "
                "KERAS_BACKEND=torch"
            )
        self.check_update_step()
        if not model.built:
            raise SpecError("the model has no weights yet: call it once, or model.build(shape)")
        if self.session is not None:
            self.session.detach()
        session = attach(model, plugins=plugins)
        plain = isinstance(self, keras.optimizers.SGD) and not self.momentum
        for plugin in session.plugins:
            delivery = getattr(plugin, "delivery", None)
            if delivery == "loss" or (delivery == "proximal" and not plain):
                session.detach()
                raise UnsupportedError(
                    f"{plugin.name}: delivery={delivery!r} can't act in {type(self).__name__} of "
                    "Keras: use delivery='step'"
                )
        # Keras would track it as a part of the optimizer, and copy it.
        object.__setattr__(self, "session", session)
        if self._saved_session is not None:
            session.load_state_dict(self._saved_session)
        return session

    def around_update(self, update: Any, grads: Any, variables: Any, learning_rate: Any) -> None:
        """Fire the step events around Keras' own update."""
        if self.session is None:
            update(grads, variables, learning_rate)
            return
        weights = [variable.value for variable in variables]
        before = [w.grad for w in weights]
        for w, g in zip(weights, grads, strict=True):
            w.grad = g
        with torch.no_grad(), self.session.step(lr=float(learning_rate)):
            final = [w.grad for w in weights]
            update(final, variables, learning_rate)
        for w, g in zip(weights, before, strict=True):
            w.grad = g

    def save_own_variables(self, store: Any) -> None:
        super().save_own_variables(store)  # type: ignore[misc]
        if self.session is not None:
            buffer = io.BytesIO()
            torch.save(self.session.state_dict(), buffer)
            store[_KEY] = np.frombuffer(buffer.getvalue(), dtype=np.uint8)

    def load_own_variables(self, store: Any) -> None:
        own: Mapping[str, Any] = {key: store[key] for key in store.keys()}  # noqa: SIM118
        mine = {key: own[key] for key in own if key != _KEY}
        super().load_own_variables(mine)  # type: ignore[misc]
        if _KEY in own:
            buffer = io.BytesIO(np.asarray(own[_KEY]).tobytes())
            saved = torch.load(buffer, weights_only=True)
            object.__setattr__(self, "_saved_session", saved)
            if self.session is not None:
                self.session.load_state_dict(saved)
