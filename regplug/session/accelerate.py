"""Accelerate: its checkpoints hold the sessions' state, each under its session's name.

``accelerator.save_state(folder)`` writes ``folder/regplug/<session>.pt``, and where parameters are
sharded ``<session>.rank<k>.pt`` on each rank, since what a plugin remembers of a shard is sharded
too. ``accelerator.load_state(folder)`` reads them before anything else is loaded. Metrics need
nothing: ``accelerator.log(session.metrics(), step=session.steps)`` goes to any tracker.
"""

import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist

from regplug.backend import shards
from regplug.errors import SpecError, StateError
from regplug.session.states import parts, weights
from regplug.view import SessionView

if TYPE_CHECKING:
    from accelerate import Accelerator


__all__ = ["FOLDER", "connect", "is_sharded", "is_wrapper", "owners", "read", "write"]

FOLDER = "regplug"
"""The folder within a checkpoint."""

_sessions: "WeakKeyDictionary[Accelerator, dict[str, SessionView]]" = WeakKeyDictionary()


def is_wrapper(optimizer: object) -> bool:
    """Return whether ``optimizer`` is Accelerate's wrapper, without importing Accelerate.

    Args:
        optimizer: anything.

    Returns:
        True for what ``accelerator.prepare`` makes of an optimizer.
    """
    bases = type(optimizer).__mro__  # by the package alone, whatever the class is called there
    return any(base.__module__.partition(".")[0] == "accelerate" for base in bases)


def owners(optimizer: object) -> "list[Accelerator]":
    """Return the accelerators that prepared ``optimizer``.

    The wrapper knows nothing of its Accelerator, so they are looked for among all living objects,
    once, at attach: tens of milliseconds. One that is not alive can't save a checkpoint either.

    Args:
        optimizer: what ``accelerator.prepare`` returned.

    Returns:
        Them, or nothing for any other optimizer.
    """
    from regplug.backend import others

    return others.prepared_by(optimizer)


def connect(session: SessionView, accelerator: Any, optimizer: object) -> "Callable[[], None]":
    """Make the checkpoints of ``accelerator`` hold the state of ``session``.

    Args:
        session: an attached session.
        accelerator: an ``accelerate.Accelerator``; None for the one that prepared ``optimizer``.
        optimizer: the optimizer as it was given to ``attach``.

    Returns:
        A function that undoes it.

    Raises:
        SpecError: ``accelerator`` is none, or has a session of that name already.
    """
    from accelerate import Accelerator

    if accelerator is not None and not isinstance(accelerator, Accelerator):
        raise SpecError(
            f"accelerator must be an accelerate.Accelerator, got {type(accelerator).__name__}"
        )
    undo: list[Callable[[], Any]] = []
    for each in [accelerator] if accelerator is not None else owners(optimizer):
        sessions = _sessions.setdefault(each, {})
        if session.name in sessions:
            for remove in undo:
                remove()
            raise SpecError(
                f"this accelerator has a session named {session.name!r} already, and its "
                "checkpoints could not tell the two apart. At the end of each fold or run write\n"
                "    session.detach()\n"
                "or, where both go on, give each a name, as in attach(…, name='another') or\n"
                "    regplug.attach(…, name=f'fold{k}')"
            )
        sessions[session.name] = session
        undo += [
            each.register_save_state_pre_hook(_saver(each, session)).remove,
            each.register_load_state_pre_hook(_loader(each, session)).remove,
            partial(sessions.pop, session.name, None),
        ]

    def disconnect() -> None:
        while undo:
            undo[-1]()  # let go of once it is done: Ctrl-C may come in between
            undo.pop()

    return disconnect


# --- saving ------------------------------------------------------------------------------------


def _saver(accelerator: "Accelerator", session: SessionView) -> Callable[..., None]:
    def save(models: Any, weights: Any, output_dir: str) -> None:
        sharded = is_sharded(session)
        everywhere = accelerator.project_configuration.save_on_each_node
        rank, ranks = _place(accelerator)
        if sharded or (accelerator.is_local_main_process if everywhere else rank == 0):
            write(output_dir, session, rank, ranks)

    return save


def write(folder: str, session: SessionView, rank: int, ranks: int) -> None:
    """Write the state of ``session``, for this rank alone where parameters are sharded."""
    sharded = is_sharded(session)
    path = _path(folder, session, rank if sharded else None)
    path.parent.mkdir(parents=True, exist_ok=True)
    how = {"ranks": ranks if sharded else 0, "arrangement": shards.arrangement(weights(session))}
    torch.save({**how, "state": session.state_dict()}, path)


def is_sharded(session: SessionView) -> bool:
    """Whether each rank holds a part of some parameters only."""
    return any(map(shards.is_sharded, weights(session)))


def _path(folder: str, session: SessionView, rank: int | None) -> Path:
    part = "" if rank is None else f".rank{rank}"
    return Path(folder) / FOLDER / f"{quote(session.name, safe='')}{part}.pt"


# --- loading -----------------------------------------------------------------------------------


def _loader(accelerator: "Accelerator", session: SessionView) -> Callable[..., None]:
    def load(models: Any, input_dir: str) -> None:
        attached = _sessions[accelerator]
        saved = _saved_names(input_dir)
        if next(iter(attached)) == session.name and (left := sorted(saved - set(attached))):
            warnings.warn(
                f"the checkpoint {input_dir} holds the state of {', '.join(map(repr, left))}, and "
                "no session of that name is attached: attach it before load_state to restore it",
                stacklevel=3,
            )
        read(input_dir, session, *_place(accelerator), accelerator.device)

    return load


def _place(accelerator: "Accelerator") -> tuple[int, int]:
    """Return this rank and the number of ranks. With DeepSpeed on CPUs Accelerate knows of one."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return accelerator.process_index, accelerator.num_processes


def read(folder: str, session: SessionView, rank: int, ranks: int, device: Any) -> None:
    """Have ``session`` go on from what :func:`write` wrote, or say that there is nothing.

    Raises:
        StateError: there is something, of other sessions or of another number of ranks.
    """
    saved = _saved_names(folder)
    if not saved:
        warnings.warn(
            f"the checkpoint {folder} was saved without regplug: session "
            f"{session.name!r} goes on as it is, at step {session.steps}",
            stacklevel=4,
        )
        return
    if session.name not in saved:
        raise StateError(
            f"the checkpoint {folder} holds no state of session {session.name!r}, only of "
            f"{', '.join(map(repr, sorted(saved)))}: attach under the same name, or attach "
            "after load_state to start anew"
        )
    session.load_state_dict(_read(folder, session, rank, ranks, device))


def _saved_names(folder: str) -> set[str]:
    return {
        unquote(path.name.removesuffix(".pt").partition(".rank")[0])
        for path in (Path(folder) / FOLDER).glob("*.pt")
    }


def _read(
    folder: str, session: SessionView, rank: int, ranks: int, device: Any
) -> Mapping[str, Any]:
    """Return this rank's state, or that of any rank where nothing in it is a part of a shard."""
    sharded = is_sharded(session)
    own = _path(folder, session, rank if sharded else None)
    others = [_path(folder, session, None), _path(folder, session, 0)]
    path = next(path for path in [own, *others] if path.exists())

    def here(storage: Any, kept_on: str) -> Any:
        return storage if kept_on == "cpu" else storage.to(device=device)

    saved = torch.load(path, map_location=here, weights_only=True)
    as_many = path == own and saved["ranks"] == (ranks if sharded else 0)
    arrangement = shards.arrangement(weights(session))
    as_it_was = as_many and saved.get("arrangement", arrangement) == arrangement
    if not as_it_was and any(parts(saved["state"], session.plugins)):
        was = f"sharded over {saved['ranks']} ranks" if saved["ranks"] else "not sharded"
        now = f"is sharded over {ranks}" if sharded else "is not"
        if as_many:
            now = f"is sharded otherwise over {ranks} ranks"
        raise StateError(
            f"the checkpoint {folder} holds tensors of session {session.name!r} as they were when "
            f"the model was {was}, and it {now} now: go on with the ranks and the mesh of before, "
            "attach after load_state to start the plugins anew, or have them say what is the whole "
            "model's (whole_state)"
        )
    return saved["state"]  # type: ignore[no-any-return]
