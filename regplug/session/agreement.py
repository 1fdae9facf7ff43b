"""Do all ranks attach the same? Compared over the process group's store, never by a collective.

Ranks that train one model together (DDP, a sharded model, one prepared by Accelerate) must attach
the same plugins with the same settings, or their weights drift apart, or one waits for the other
without end. A collective could not tell: the rank that never attaches never joins it. So each rank
leaves word in the key-value store through which the process group was made, and waits for the
words of the others, a minute at most.
"""

import json
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist
from torch import nn

from regplug.backend import deepspeeds, others, shards, wrappers
from regplug.backend.living import living
from regplug.errors import RegplugError
from regplug.view import SessionView

__all__ = ["PATIENCE", "Ranks", "difference", "summary"]

PATIENCE = 50.0
"""Seconds that a rank waits for the others to attach."""

AGREED = "agreed"

_Ddp = nn.parallel.DistributedDataParallel

# In the repr of a callable: of no meaning on another rank.
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")

_counts: Counter[tuple[str, tuple[int, ...]]] = Counter()


class Ranks:
    """The ranks that train one model together, and one session's words to each other.

    Args:
        model: the model as the loop has it, wrapped or bare.
        prepared: whether the loop is Accelerate's, so that all its processes train the model.
        name: the session's name.

    Attributes:
        members: the global ranks, or nothing for a bare model, which is each rank's own business.
    """

    def __init__(self, model: nn.Module, *, prepared: bool, name: str) -> None:
        self.name = name
        self.members: tuple[int, ...] = ()
        self.compared = False
        self._notes = 0
        self._failed = False
        self._model, self._prepared = model, prepared
        self._find()

    def _find(self) -> None:
        self.members = _members(self._model, prepared=self._prepared)
        if self.members:
            # The n-th session of this name is the n-th on every rank.
            _counts[self.name, self.members] += 1
            number = _counts[self.name, self.members]
            who = "-".join(map(str, self.members)) if len(self.members) < 9 else hash(self.members)
            self._prefix = f"regplug/{self.name}/{who}/{number}"
            self._rank = dist.get_rank()

    @contextmanager
    def telling(self) -> Iterator[None]:
        """Tell the others of an error inside the block, for which they would wait in vain."""
        try:
            yield
        except Exception as error:
            self.tell(error)
            raise

    def tell(self, error: BaseException) -> None:
        """Leave word that this rank failed. Costs nothing until then; never raises."""
        if not self.members or self._failed:
            return
        self._failed = True
        words = f"rank {self._rank} failed: {type(error).__name__}: {error}"
        try:
            _decide(self._store(), words)  # of no effect once the ranks have agreed
            self._store().compare_set("failed", "", words)
        except Exception:  # the store may be gone, and the error itself is what matters
            return

    def explained(self, error: BaseException | None) -> RegplugError | None:
        """Return what to raise instead where another rank failed first, if it left word.

        All that is seen of that rank is a lost connection, in the loop or in a plugin's hook, which
        is not to blame. Where all ranks fail alike there is nothing to explain. An error that is no
        lost connection is this rank's own, of a backward pass, say, or of the loop: it leaves word.
        Never raises.
        """
        if not self.members or error is None:
            return None
        if not _may_be_lost(error):
            if isinstance(error, Exception):
                self.tell(error)
            return None
        try:
            store = self._store()
            words: str = store.get("failed").decode() if store.check(["failed"]) else ""
        except Exception:
            return None
        if not words or words.endswith(f" failed: {type(error).__name__}: {error}"):
            return None
        kind = type(error) if isinstance(error, RegplugError) else RegplugError
        return kind(f"session {self.name!r}: {words}")

    def compare(self, session: SessionView) -> None:
        """Compare with the other ranks, if it is known by now that there are any.

        Raises:
            RegplugError: they differ, one failed, or one did not attach within
                :data:`PATIENCE` seconds. Every rank raises it, also one that attaches later on.
        """
        if self.members and not self.compared:
            self.compared = True
            mine = summary(session)
            self._agree(
                mine,
                self._prefix,
                "attach it",
                "Attach on every rank, the same plugins with the same arguments in the same "
                "order (not under `if is_main_process`).",
            )

    def compare_note(self, values: Mapping[str, Any]) -> None:
        """Compare what is noted with what the other ranks note, for plugins that act by it.

        Raises:
            RegplugError: they differ, or one noted nothing within :data:`PATIENCE` seconds.
        """
        if not self.members:
            return
        self._notes += 1
        self._agree(
            {name: repr(_number(value)) for name, value in values.items()},
            f"{self._prefix}/note/{self._notes}",
            "note anything",
            "A plugin acts by what is noted, and the ranks' weights would drift apart: note the "
            "same values on every rank (the mean over them, by accelerator.reduce or "
            "torch.distributed.all_reduce; not under `if is_main_process`).",
        )

    def _agree(self, mine: dict[str, str], prefix: str, what: str, way_out: str) -> None:
        try:
            verdict = self._compare(mine, others.prefixed_store(prefix), what)
        except RuntimeError as error:
            raise RegplugError(
                f"session {self.name!r}: the store of the process group, over which the ranks "
                f"compare what they attach, does not answer: have others ended? ({error})"
            ) from error
        if verdict != AGREED:
            self._failed = True
            raise RegplugError(f"session {self.name!r}: {verdict}\n{way_out}")

    def compare_late(self, session: SessionView) -> None:
        """Compare at the first step, if the model was still bare when it was attached."""
        if not self.members and dist.is_available() and dist.is_initialized():
            around = _wrapper_of(session.model)
            self._prepared = self._prepared or deepspeeds.is_engine(around)
            self._model = session.model if around is None else around
            self._find()
        self.compare(session)
        self.compared = True  # what is bare by now stays so

    def _store(self) -> Any:
        return others.prefixed_store(self._prefix)

    def _compare(self, mine: dict[str, str], store: Any, what: str) -> str:
        """Return the verdict, which is the same on every rank: the first that any of them set."""
        store.set(f"here/{self._rank}", "1")
        words = json.dumps([self._rank, mine])
        first, theirs = json.loads(store.compare_set("first", "", words))
        if theirs != mine:
            lines = difference(first, theirs, self._rank, mine)
            _decide(store, "the ranks differ:\n" + "\n".join(lines))
        store.add("arrived", 1)
        deadline, pause = time.monotonic() + PATIENCE, 0.001
        while not store.check(["verdict"]):
            if store.add("arrived", 0) >= len(self.members):
                return _decide(store, AGREED)
            if time.monotonic() > deadline:
                missing = [r for r in self.members if not store.check([f"here/{r}"])]
                return _decide(
                    store,
                    f"of the ranks that train this model, {_listed(missing)} did not {what} "
                    f"within {PATIENCE:.0f} seconds",
                )
            time.sleep(pause)
            pause = min(2 * pause, 0.1)
        verdict: str = store.get("verdict").decode()
        return verdict


def _may_be_lost(error: BaseException) -> bool:
    """Whether all that there is to an error may be that the connection to another rank is lost."""
    return any(isinstance(each, RuntimeError) for each in (error, error.__cause__))


def _decide(store: Any, verdict: str) -> str:
    """Set the verdict, unless there is one, and return which it is."""
    decided: str = store.compare_set("verdict", "", verdict).decode()
    return decided


def _number(value: Any) -> Any:
    """Return what ranks can compare of a value: a tensor's number is the same wherever it is."""
    one = hasattr(value, "numel") and value.numel() == 1
    return value.item() if one else value


def summary(session: SessionView) -> dict[str, str]:
    """Return what all ranks must have alike, as flat texts under readable keys."""
    found = {"plugins": ", ".join(plugin.name for plugin in session.plugins)}
    for plugin in session.plugins:
        found[f"{plugin.name} comes from"] = plugin.source
        found.update({f"{plugin.name}.{k}": _text(v) for k, v in plugin.agreement(session).items()})
        found.update({f"{plugin.name}.{k} now": repr(v) for k, v in plugin.strengths().items()})
    return found


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    return _ADDRESS.sub("", text)


def difference(
    one: int, ones: Mapping[str, str], other: int, others: Mapping[str, str]
) -> list[str]:
    """Return a line for each setting in which two ranks differ, the lower rank first.

    >>> difference(0, {"l1.strength": "0.1"}, 3, {"l1.strength": "0.2"})
    ['  l1.strength: 0.1 on rank 0, 0.2 on rank 3']
    """
    if one > other:  # whichever was there first
        one, ones, other, others = other, others, one, ones
    keys = [k for k in dict.fromkeys([*ones, *others]) if ones.get(k) != others.get(k)]
    if "plugins" in keys:
        keys = ["plugins"]  # all else follows from it
    return [
        f"  {key}: {_short(ones.get(key))} on rank {one}, {_short(others.get(key))} on rank {other}"
        for key in keys[:8]
    ] + ([f"  and {len(keys) - 8} more"] if len(keys) > 8 else [])


def _short(text: str | None, most: int = 200) -> str:
    text = text or "nothing"
    return text if len(text) <= most else text[: most - 1] + "…"


def _listed(ranks: Sequence[int], most: int = 8) -> str:
    shown = ", ".join(map(str, ranks[:most]))
    more = f" and {len(ranks) - most} more" if len(ranks) > most else ""
    return f"rank{'s' if len(ranks) > 1 else ''} {shown}{more}"


def _members(model: nn.Module, *, prepared: bool) -> tuple[int, ...]:
    """Return the ranks that train ``model`` together, or nothing where each is on its own."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return ()
    ddps = [m for m in wrappers.layers(model) if isinstance(m, _Ddp)]
    # Some layers may be in one of their own.
    ddps = ddps[-1:] or [m for m in model.modules() if isinstance(m, _Ddp)]
    groups = [tuple(dist.get_process_group_ranks(ddp.process_group)) for ddp in ddps]
    meshes = [shards.mesh_ranks(p) for p in model.parameters()]
    members: tuple[int, ...] = max(groups + meshes, key=len, default=())
    if not members and (prepared or others.is_prepared(list(wrappers.layers(model)))):
        members = tuple(range(dist.get_world_size()))
    return members if len(members) > 1 and dist.get_rank() in members else ()


def _wrapper_of(model: nn.Module) -> nn.Module | None:
    """Return the DDP or the engine around ``model``, which leaves no trace in it.

    Looked for once, at the first step of a session whose model was bare when it was attached.
    """
    for candidate in living(lambda kind: issubclass(kind, nn.Module)):
        if issubclass(type(candidate), _Ddp):
            inside = list(wrappers.layers(candidate))
        else:
            inside = [candidate.module] if deepspeeds.is_engine(candidate) else []
        if any(m is model for m in inside):
            return candidate  # type: ignore[no-any-return]
    return None
