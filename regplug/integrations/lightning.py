"""PyTorch Lightning: a callback that attaches plugins to the optimizers of a LightningModule.

Plain :func:`regplug.attach` in ``configure_optimizers`` acts just as well, under automatic and
manual optimization alike. The callback adds what that lacks: Lightning's checkpoints hold the
sessions' state, resuming restores it, and all is detached after ``fit``.

    trainer = Trainer(callbacks=[RegplugCallback(["l1(1e-5)"])])
    trainer = Trainer(callbacks=[RegplugCallback({0: ["l2(1e-4)"], 1: []})])    # a GAN, say
"""

from collections.abc import Iterable, Mapping
from typing import Any

from lightning.pytorch import Callback

from regplug.errors import SpecError, StateError
from regplug.plugin import Plugin
from regplug.session import Session, attach

__all__ = ["RegplugCallback"]

Plugins = Iterable[str | Plugin]


class RegplugCallback(Callback):
    """Attaches when a fit starts, and detaches when it is over.

    Args:
        plugins: specs and instances for every optimizer, or a mapping of the optimizer's index
            (in the order of ``configure_optimizers``) to those for it.

    Attributes:
        sessions: a session for each optimizer that has plugins, by its index.

    Raises:
        SpecError: ``plugins`` names an optimizer that there is not, or gives one instance to
            several.
        StateError: the checkpoint has the state of other optimizers than these.
        RegplugError: as :func:`regplug.attach`, when the fit starts.
    """

    def __init__(self, plugins: Plugins | Mapping[int, Plugins]) -> None:
        super().__init__()
        self.plugins = (
            {index: list(of_one) for index, of_one in plugins.items()}
            if isinstance(plugins, Mapping)
            else list(plugins)
        )
        self.sessions: dict[int, Session] = {}
        self._loaded: dict[int, Any] | None = None

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Attach to the optimizers, which Lightning has made by now."""
        self._detach()
        self.sessions = {}
        wanted = self.plugins
        if not isinstance(wanted, dict):
            wanted = dict.fromkeys(range(len(trainer.optimizers)), wanted)
        if beyond := [index for index in wanted if index not in range(len(trainer.optimizers))]:
            raise SpecError(
                f"plugins are for optimizer {beyond[0]}, but there are {len(trainer.optimizers)}"
            )
        model = trainer.strategy.model if trainer.strategy.model is not None else pl_module
        try:
            for index, plugins in wanted.items():
                if plugins:
                    self.sessions[index] = attach(
                        model, trainer.optimizers[index], plugins, name=f"optimizer-{index}"
                    )
            if self._loaded is not None:
                self._restore(self._loaded)
        except BaseException:
            self._detach()
            raise

    def state_dict(self) -> dict[str, Any]:
        return {str(index): session.state_dict() for index, session in self.sessions.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # Lightning restores callbacks before or after the fit starts, as the strategy wants it.
        self._loaded = {int(index): state for index, state in state_dict.items()}
        if self.sessions:
            self._restore(self._loaded)

    def _restore(self, states: Mapping[int, Any]) -> None:
        if states.keys() != self.sessions.keys():
            raise StateError(
                f"the checkpoint has sessions of the optimizers {sorted(states)}, "
                f"this fit of {sorted(self.sessions)}"
            )
        for index, session in self.sessions.items():
            session.load_state_dict(states[index])
        self._loaded = None

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Detach; the sessions still describe and save."""
        self._detach()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self._detach()

    def _detach(self) -> None:
        for session in self.sessions.values():
            session.detach()
