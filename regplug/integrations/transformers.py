"""Hugging Face's Trainer: a callback that attaches plugins to what it trains.

The Trainer makes its optimizer itself, and late; where it is handed one, plain
:func:`regplug.attach` before ``Trainer(…, optimizers=(optimizer, None))`` serves as well. The
callback adds what that lacks: checkpoints hold the session's state, and resuming restores it.

    trainer = Trainer(model, args, train_dataset=data, callbacks=[RegplugCallback(["l1(1e-5)"])])

With delivery at the step, the strength that is written is the one that arrives, whatever
``gradient_accumulation_steps`` is. A penalty that is added in ``compute_loss`` may arrive as many
times as there are accumulated batches.

For a script that reads its arguments with ``HfArgumentParser`` there is the flag ``--regplug``::

    parser = HfArgumentParser((TrainingArguments, RegplugArguments))
    args, plugins = parser.parse_args_into_dataclasses()
    trainer = Trainer(model, args, callbacks=[RegplugCallback.from_args(plugins)], …)

    python train.py --regplug "l1(1e-5)" "weight_decay(0.1)" --output_dir out
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers import TrainerCallback

from regplug.errors import SpecError, StateError
from regplug.plugin import Plugin
from regplug.session import Session, attach
from regplug.session.accelerate import is_sharded

__all__ = ["RegplugArguments", "RegplugCallback"]


@dataclass
class RegplugArguments:
    """The flag ``--regplug`` for ``HfArgumentParser``, beside ``TrainingArguments``.

    Attributes:
        regplug: specs, such as ``["l1(1e-5)", "weight_decay(0.1)"]``; none is no plugin.
    """

    regplug: list[str] = field(
        default_factory=list,
        metadata={
            "help": "regularizers, a spec each; `regplug plugins` lists what is installed",
            "nargs": "*",
        },
    )


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

    @classmethod
    def from_args(cls, args: Any) -> "RegplugCallback":
        """Return a callback with the plugins that a command line or a configuration names.

        Args:
            args: anything with an attribute or key ``regplug``: :class:`RegplugArguments`, your own
                subclass of ``TrainingArguments``, an ``argparse.Namespace``, a mapping. Its value
                is a spec or several; None or none at all is no plugin. ``resume_from_checkpoint``
                is heeded where it is a folder.

        Raises:
            SpecError: there is no ``regplug``, or it is neither a string nor several.
        """
        values = args if isinstance(args, Mapping) else vars(args)
        if "regplug" not in values:
            raise SpecError(
                f"{type(args).__name__} has no 'regplug': add RegplugArguments to the parser, or a "
                "field or option of that name"
            )
        given = values["regplug"]
        plugins = [given] if isinstance(given, str) else given or []
        if not isinstance(plugins, Iterable) or not all(isinstance(p, str) for p in plugins):
            raise SpecError(f"regplug takes one spec or several, got {given!r}")
        folder = values.get("resume_from_checkpoint")
        return cls(plugins, resume_from=folder if isinstance(folder, str | Path) else None)

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
