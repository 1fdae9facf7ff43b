"""torch.distributed.checkpoint: a session beside model and optimizer, and on to another mesh.

    from torch.distributed import checkpoint
    from regplug.integrations.checkpoint import stateful

    state = {"model": …, "optimizer": …, "regplug": stateful(session)}
    checkpoint.save(state, checkpoint_id=folder)
    checkpoint.load(state, checkpoint_id=folder)    # attach first; any mesh, any number of ranks

What plugins keep as ``DTensor``, or of a whole model as tensors of each weight's name and shape,
torch saves as it does the weights: each rank its part. The rest, which is little, goes as bytes.
Hand over ``stateful(session)``, not the session: torch would take that for a dictionary of tensors
alike on all ranks, and drop what is empty in it.
"""

import hashlib
import io
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist

from regplug.backend import shards
from regplug.backend.names import named_parameters
from regplug.errors import StateError
from regplug.session.session import Session
from regplug.session.states import parts, weights

__all__ = ["Stateful", "stateful"]


def stateful(session: Session) -> "Stateful":
    """Return what ``torch.distributed.checkpoint`` saves and loads the state of ``session`` by.

    Args:
        session: attached, to the model as it is spread now.

    Returns:
        An object in torch's ``Stateful`` protocol, to stand beside model and optimizer.

    >>> import tempfile, torch, regplug
    >>> from torch.distributed import checkpoint
    >>> session = regplug.attach(torch.nn.Linear(2, 1), plugins=["l2_sp(0.1)"])
    >>> saved = stateful(session).state_dict()
    >>> stateful(session).load_state_dict(saved)
    """
    return Stateful(session)


class Stateful:
    """One session's state, in torch's protocol of that name. Both are collectives if it is sharded.

    Args:
        session: attached, to the model as it is spread now.
    """

    def __init__(self, session: Session) -> None:
        self._session = session

    def state_dict(self) -> dict[str, Any]:
        """Return the sharded tensors by a path, and all else as bytes.

        Raises:
            StateError: a plugin keeps a ``DTensor`` within a list.
        """
        session = self._session
        shapes = {n.name: n.parameter.shape for n in named_parameters(session.model)}
        split = _Split(shapes if _mesh(session) is None else {})
        rest = split.rest(session.state_dict(sharded=True), ())
        own = {"state": rest, "tensors": list(split.tensors)}
        # Copies: to load is to write into what stands here.
        tensors = {_label(path): t.detach().clone() for path, t in split.tensors.items()}
        return {"rest": _packed(_of_all_ranks(session, own)), "tensors": tensors}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Have the session go on from what was saved.

        Raises:
            StateError: it does not fit this session, or this number of ranks.
        """
        by_rank, loaded = _unpacked(state["rest"]), state.get("tensors", {})
        own = _unpacked(_mine(self._session, by_rank))
        missing = []
        for path in own["tensors"]:
            *keys, last = path
            place = own["state"]
            for key in keys:
                place = place[key]
            if _label(path) in loaded:
                place[last] = loaded[_label(path)]
            elif last not in place or _mesh(self._session) is not None:
                missing.append(_label(path))
        if missing:
            raise StateError(
                f"the checkpoint holds {', '.join(missing)} of session {self._session.name!r}, for "
                "which there was nothing to load into: a plugin that keeps a tensor for each "
                "weight has to have them from on_attach on"
            )
        self._session.load_state_dict(own["state"])


_WHOLE, _ALIKE = -1, -2  # instead of a rank


def _label(path: tuple[Any, ...]) -> str:
    return "/".join(map(repr, path))


class _Split:
    """Takes out of a state what torch is to save of each rank's part.

    Args:
        shapes: of the weights by name, of a model that is whole.
    """

    def __init__(self, shapes: Mapping[str, torch.Size]) -> None:
        self.shapes = shapes
        self.tensors: dict[tuple[Any, ...], torch.Tensor] = {}

    def rest(self, state: Any, path: tuple[Any, ...]) -> Any:
        """Return ``state`` without its sharded tensors."""
        if not isinstance(state, dict):
            leaves = state if isinstance(state, list | tuple) else ()
            if any(isinstance(leaf, torch.Tensor) and shards.is_dtensor(leaf) for leaf in leaves):
                raise StateError(
                    f"{_label(path)} is a list with a DTensor in it: keep them in a dict by name"
                )
            return state
        rest = {}
        for key, value in state.items():
            sharded = isinstance(value, torch.Tensor) and shards.is_dtensor(value)
            if sharded or getattr(value, "shape", None) == self.shapes.get(key, 0):
                self.tensors[(*path, key)] = value
            if not sharded:
                rest[key] = self.rest(value, (*path, key))
        return rest


def _packed(state: Any) -> bytes:
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


def _unpacked(state: bytes) -> Any:
    return torch.load(io.BytesIO(state), map_location="cpu", weights_only=True)


def _of_all_ranks(session: Session, own: dict[str, Any]) -> dict[int, bytes]:
    """Return what each rank keeps: by rank, or under one key where all keep the same."""
    mesh, packed = _mesh(session), _packed(own)
    if mesh is None:
        return {_WHOLE: packed}
    digests = _gathered(mesh, hashlib.sha256(packed).digest())
    if len(set(digests.values())) == 1:
        return {_ALIKE: packed}
    return _gathered(mesh, _packed({**own, "arrangement": shards.arrangement(weights(session))}))


def _gathered(mesh: Any, own: Any) -> dict[int, Any]:
    found = {dist.get_rank(): own}
    for dim in range(mesh.ndim):
        group = mesh.get_group(dim)
        others: list[Any] = [None] * dist.get_world_size(group)
        dist.all_gather_object(others, found, group=group)
        found = {rank: each for other in others for rank, each in other.items()}
    return found


def _mesh(session: Session) -> Any:
    """Return the largest mesh over which parameters are spread, or None."""
    spread = [p for p in weights(session) if len(shards.mesh_ranks(p)) > 1]
    largest: Any = max(spread, key=lambda p: len(shards.mesh_ranks(p)), default=None)
    return None if largest is None else largest.device_mesh


def _mine(session: Session, by_rank: Mapping[int, bytes]) -> bytes:
    mesh = _mesh(session)
    if _ALIKE in by_rank:
        return by_rank[_ALIKE]
    ranks = [_WHOLE] if mesh is None else sorted(mesh.mesh.flatten().tolist())
    own = by_rank.get(_WHOLE if mesh is None else dist.get_rank(), b"")
    as_many = sorted(by_rank) == ranks
    if as_many and (mesh is None or _fits(session, _unpacked(own))):
        return own
    if _WHOLE in by_rank and not _has_parts(session, _unpacked(by_rank[_WHOLE])):
        return by_rank[_WHOLE]
    was = "the whole model" if _WHOLE in by_rank else f"its part on each of {len(by_rank)} ranks"
    now = "is whole" if mesh is None else f"is spread over {len(ranks)} ranks"
    raise StateError(
        f"the checkpoint holds what plugins of session {session.name!r} kept of {was}, and the "
        f"model {'is spread otherwise' if as_many else now} now: go on as before, or have the "
        "plugin keep a tensor for each weight, by its name and like it (regplug.like), from "
        "on_attach on, which loads on any; or say what is the whole model's (whole_state)"
    )


def _fits(session: Session, saved: Any) -> bool:
    """Whether what a rank kept is of the part that it has now, or of no part."""
    now = shards.arrangement(weights(session))
    return saved.get("arrangement", now) == now or not _has_parts(session, saved)


def _has_parts(session: Session, saved: Any) -> bool:
    """Whether there are parts that torch has not saved by itself."""
    known = set(map(tuple, saved["tensors"]))
    return any(path not in known for path in parts(saved["state"], session.plugins))
