"""Hugging Face's Trainer: a callback that attaches plugins to what it trains.

The Trainer makes its optimizer itself, and late; where it is handed one, plain
:func:`regplug.attach` before ``Trainer(…, optimizers=(optimizer, None))`` serves as well. The
callback adds what that lacks: checkpoints hold the session's state, and resuming restores it.

    trainer = Trainer(model, args, train_dataset=data, callbacks=[RegplugCallback(["l1(1e-5)"])])

With delivery at the step, the strength that is written is the one that arrives, whatever
``gradient_accumulation_steps`` is. A penalty that is added in ``compute_loss`` may arrive as many
times as there are accumulated batches.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers import TrainerCallback

from regplug.errors import StateError
from regplug.plugin import Plugin
from regplug.session import Session, attach
from regplug.session.accelerate import is_sharded

__all__ = ["RegplugCallback"]


class RegplugCallback(TrainerCallback):
    """Attaches when training begins, and detaches when it ends.

    Each checkpoint of the Trainer gets a file ``regplug.pt`` (where parameters are sharded one for
    each rank), and ``trainer.train(resume_from_checkpoint=…)`` goes on from it.

    Args:
        plugins: specs and instances, as :func:`regplug.attach` takes them.
        resume_from: the checkpoint that training resumes from, if it is neither in the output
            folder nor named in ``TrainingArguments.resume_from_checkpoint``: the Trainer does not
            tell its callbacks.

    Attributes:
        session: the session, from the beginning of training on.

    Raises:
        StateError: training resumes from a checkpoint without a session's state.
        RegplugError: as :func:`regplug.attach`, when training begins.
    """

    def __init__(
        self, plugins: Iterable[str | Plugin], *, resume_from: str | Path | None = None
    ) -> None:
        self.plugins = list(plugins)
        self.resume_from = resume_from
        self.session: Session | None = None

    def on_train_begin(
        self,
        args: Any,
        state: Any,
        control: Any,
        model: Any = None,
        optimizer: Any = None,
        **_: Any,
    ) -> None:
        """Attach, and go on from where the checkpoint was."""
        if self.session is not None:
            self.session.detach()
        self.session = attach(model, optimizer, self.plugins)
        if state.global_step:
            self.session.load_state_dict(self._saved(args, state.global_step))

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Put the session's state beside what the Trainer has saved."""
        if self.session is None:
            return
        if self._sharded or state.is_world_process_zero:
            path = Path(args.output_dir) / f"checkpoint-{state.global_step}" / self._file
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.save(self.session.state_dict(), path)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Detach; the session still describes and saves."""
        if self.session is not None:
            self.session.detach()

    @property
    def _sharded(self) -> bool:
        assert self.session is not None
        return is_sharded(self.session)

    @property
    def _file(self) -> str:
        return f"regplug.rank{dist.get_rank()}.pt" if self._sharded else "regplug.pt"

    def _saved(self, args: Any, step: int) -> Any:
        folders = [
            self.resume_from,
            getattr(args, "resume_from_checkpoint", None),
            Path(args.output_dir) / f"checkpoint-{step}",
        ]
        for folder in folders:
            if isinstance(folder, str | Path) and (path := Path(folder) / self._file).is_file():
                return torch.load(path, weights_only=True)
        raise StateError(
            f"training resumes at step {step}, but there is no {self._file} in "
            f"{args.output_dir}/checkpoint-{step}: if the checkpoint is elsewhere, say "
            "RegplugCallback(…, resume_from=folder)"
        )
