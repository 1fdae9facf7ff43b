"""skorch: a callback that attaches plugins to the optimizer that a net makes.

A ``NeuralNet`` makes its optimizer in ``initialize``, anew for each ``fit`` and each candidate of a
search, so there is nothing to attach to before. Strengths are parameters like any others:

    net = NeuralNetClassifier(Net, callbacks=[("regplug", RegplugCallback(["l1(1e-4)"]))])
    GridSearchCV(net, {"callbacks__regplug__plugins": [["l1(1e-4)"], ["l1(1e-3)"]]}, …)
"""

from collections.abc import Sequence
from typing import Any

from skorch.callbacks import Callback

from regplug.backend.wrapped import unwrap
from regplug.session import Session, attach

__all__ = ["RegplugCallback"]


class RegplugCallback(Callback):
    """Attaches when training begins; ``partial_fit`` goes on with the same session.

    A pickled net carries the session's state, and goes on from it. Beside
    ``net.save_params(f_params=…, f_optimizer=…)`` save ``callback.session_.state_dict()``, and give
    it to ``load_state_dict`` of the callback before going on.

    Args:
        plugins: specs, as :func:`regplug.attach` takes them. An instance serves one fit of one net
            only, so searches want specs.
        module: the attribute of the net that holds the model.
        optimizer: the attribute of the net that holds the optimizer.

    Attributes:
        session_: the session, from the beginning of training on.

    Raises:
        RegplugError: as :func:`regplug.attach`, when training begins.
    """

    def __init__(
        self,
        plugins: Sequence[Any] = (),
        module: str = "module_",
        optimizer: str = "optimizer_",
    ) -> None:
        self.plugins = plugins
        self.module = module
        self.optimizer = optimizer

    def initialize(self) -> "RegplugCallback":
        """Forget the last fit."""
        self.session_: Session | None = None
        self._saved: dict[str, Any] | None = None
        return self

    def on_train_begin(self, net: Any, X: Any = None, y: Any = None, **_: Any) -> None:
        optimizer = getattr(net, self.optimizer)
        if self.session_ is not None and self.session_.optimizer is unwrap(optimizer):
            return
        self.session_ = attach(getattr(net, self.module), optimizer, self.plugins)
        if self._saved is not None:
            self.session_.load_state_dict(self._saved)
            self._saved = None

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from ``state`` when training begins, or at once if it has."""
        if self.session_ is None:
            self._saved = state
        else:
            self.session_.load_state_dict(state)

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        if (session := state.pop("session_", None)) is not None:
            state["_saved"] = session.state_dict()
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, session_=None)
