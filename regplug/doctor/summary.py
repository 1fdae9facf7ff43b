"""What was seen of each parameter, summed up; and those that are treated alike, put together."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from regplug.backend.groups import sign
from regplug.backend.shards import local
from regplug.doctor.groups import Decay, Group, Penalty
from regplug.doctor.run import Run
from regplug.doctor.tracks import Look, Track

__all__ = ["Treated", "groups_of", "names", "treated"]


@dataclass(frozen=True)
class Treated:
    """How one parameter was treated, over all steps that were looked at.

    Attributes:
        track: the parameter.
        penalties: its penalties.
        decays: its decays.
        plugins: regplug's plugins on it.
        decaying_plugins: how many of those decay it.
        lr: the last learning rate.
    """

    track: Track
    penalties: tuple[Penalty, ...]
    decays: tuple[Decay, ...]
    plugins: tuple[str, ...]
    lr: float
    decaying_plugins: int = 0

    def penalty(self, *kinds: str) -> Penalty | None:
        """Return the first of its penalties that is of one of these kinds."""
        return next((p for p in self.penalties if p.kind in kinds), None)

    @property
    def key(self) -> Any:
        """What those that are treated alike have in common."""
        return (
            tuple((p.kind, _rounded(p.strength)) for p in self.penalties if p.kind != "other"),
            any(p.kind == "other" for p in self.penalties),
            tuple((d.by, d.convention, _rounded(d.strength)) for d in self.decays),
            self.plugins,
            _rounded(self.lr),
            self.track.parameter.requires_grad,
        )


def names(members: Sequence[Treated]) -> tuple[str, ...]:
    """Return the names of these parameters."""
    return tuple(member.track.name for member in members)


def treated(run: Run) -> list[Treated]:
    """Return how each parameter was treated."""
    plugins = run.plugins
    return [
        Treated(
            track,
            _penalties(track, sign(run.optimizer.param_groups[track.group])),
            tuple(_decays(track)),
            tuple(name for name, _ in plugins.get(track.name, ())),
            track.looks[-1].lr if track.looks else 0.0,
            sum(decays for _, decays in plugins.get(track.name, ())),
        )
        for track in run.tracks
    ]


def _penalties(track: Track, sign_: float) -> tuple[Penalty, ...]:
    found = []
    for kind in dict.fromkeys(kind for look in track.looks for kind in look.penalties):
        # As it acts where it does: one that is there in every 16th step only is told as that.
        seen = [look.penalties[kind].strength for look in track.looks if kind in look.penalties]
        known = [strength for strength in seen if strength is not None]
        # Of an objective that is maximized, what is subtracted penalizes.
        found.append(Penalty(kind, sign_ * median(known) if len(known) == len(seen) else None))
    return tuple(sorted(found, key=lambda penalty: penalty.kind))


def _decays(track: Track) -> list[Decay]:
    looks = track.looks
    found = []
    measured = [look.decay for look in looks if look.decay is not None]
    if measured:
        last = measured[-1]
        found.append(Decay(last.rate, last.lr, last.convention, last.strength, dict(last.in_each)))
    found += _by_hand(looks)
    added = [look.added for look in looks if look.added > 0]
    if len(added) > len(looks) / 2:
        lr, strength = looks[-1].lr, median(added)
        found.append(Decay(lr * strength, lr, "coupled", strength, by="loop"))
    return found


def _by_hand(looks: Sequence[Look]) -> list[Decay]:
    # That of the last step shows in none after it, and the first has none before it.
    seen = [look for look in looks[1:] if look.by_hand > 0]
    if not seen or len(seen) < (len(looks) - 1) / 2:
        return []
    norms = [look.norm for look in seen]
    if len(norms) > 1 and max(norms) - min(norms) < 1e-6 * max(norms):
        return []  # that is a projection to one norm
    rate, lr = median(look.by_hand for look in seen), seen[-1].lr
    lrs, rates = {look.lr for look in seen}, [look.by_hand for look in seen]
    plain = len(lrs) > 1 and max(rates) < 1.001 * min(rates)
    if plain or lr == 0:
        return [Decay(rate, lr, "plain wd", rate, {"plain wd": rate}, by="loop")]
    each = {"lr·wd": rate / lr, "plain wd": rate}
    return [Decay(rate, lr, "lr·wd", rate / lr, each, by="loop")]


def groups_of(run: Run, all_treated: Sequence[Treated]) -> list[Group]:
    """Return the parameters that are treated alike, each group once, the largest first."""
    alike: dict[Any, list[Treated]] = {}
    for each in all_treated:
        alike.setdefault(each.key, []).append(each)
    groups = [_group(run, members) for members in alike.values()]
    return sorted(groups, key=lambda group: -group.weights)


def _group(run: Run, members: Sequence[Treated]) -> Group:
    tracks = [member.track for member in members]
    first = members[0]
    with torch.no_grad():
        parts = [local(track.parameter.detach()) for track in tracks]
        here = sum(part.numel() for part in parts)
        zeros = sum(int((part == 0).sum()) for part in parts)
        squares = sum(float(part.double().square().sum()) for part in parts)
    # Those of the last look, of which one is told as they act now.
    shares = [look.share for track in tracks for look in track.looks]
    moved, update = sum(s[0] for s in shares), sum(s[1] for s in shares)
    return Group(
        parameters=tuple(track.name for track in tracks),
        weights=sum(track.parameter.numel() for track in tracks),
        penalties=first.penalties,
        decays=first.decays,
        plugins=first.plugins,
        dropout=_dropout(run, tracks),
        share=math.sqrt(moved / update) if update and not run.decays.unmeasured else None,
        time=_time(first),
        zeros=zeros / here if here else 0.0,
        norm=math.sqrt(squares),
        lr=first.lr,
    )


def _time(member: Treated) -> float | None:
    rate = sum(decay.rate for decay in member.decays)
    l2 = member.penalty("l2", "l2_to_anchor")
    if l2 is not None and l2.strength is not None:
        rate += 2 * l2.strength * member.lr
    return 1 / rate if rate > 0 else None


def _dropout(run: Run, tracks: Sequence[Track]) -> dict[str, Any]:
    """Return the rates of what drops, in the smallest modules around these parameters."""
    found = [d for d in run.dropouts.all if not d.without_effect]
    evaluation = {rate for d in found for rate in d.evaluation}
    by_function = run.dropouts.by_function
    return {
        "training": sorted({rate for d in found for rate in d.training} | by_function),
        "evaluation": sorted(evaluation | run.dropouts.by_function_in_eval),
        "modules": [d.name for d in found],
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.3g}")
