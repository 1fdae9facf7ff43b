"""Findings about decay, and about runs in which nothing acts."""

from collections.abc import Iterator, Sequence

from regplug.backend.groups import number
from regplug.doctor.findings import Finding, listed
from regplug.doctor.run import Run
from regplug.doctor.summary import Treated, names
from regplug.doctor.tracks import Look

__all__ = [
    "adapter_decay",
    "decay_of_zero_gradient",
    "decayed_twice",
    "decays_bias_or_norm",
    "decays_embedding",
    "frozen_decay",
    "lr_zero",
    "nothing_acts",
]

# A schedule may well end at 0: so many steps of it are no end.
_AT_THE_END = 3


def nothing_acts(run: Run, all_: Sequence[Treated]) -> Iterator[Finding]:
    """Nothing regularizes this run."""
    if not run.looked or run.hidden or run.unfollowed or run.decays.unmeasured:
        return  # something may act that was not seen
    if all_ and all(t.lr == 0 for t in all_):
        return  # that is what there is to say
    acting = any(t.decays or t.plugins or any(p.strength != 0 for p in t.penalties) for t in all_)
    unused = run.dropouts.unused
    drops = any(
        max(d.training, default=0.0) > 0
        for d in run.dropouts.all
        if not d.without_effect and d not in unused
    )
    if acting or drops or run.dropouts.by_function:
        return
    said = [number(group, "weight_decay") for group in run.optimizer.param_groups]
    zero = [t for t in all_ if t.penalties]
    tried = any(said) or bool(zero)
    what = (
        f"the optimizer says weight_decay={max(said):g}, and decays nothing"
        if any(said)
        else "a penalty is in the loss, and its strength is 0"
        if zero
        else "no penalty is in the loss, nothing decays and nothing drops"
    )
    yield Finding(
        "nothing-acts",
        "warning" if tried else "note",
        names(zero),
        f"{what}: this run has no regularization; if one is wanted, regplug.attach(model, "
        "optimizer, ['weight_decay(0.1)']), say",
        {"weight_decay": max(said, default=0.0)},
    )


def decayed_twice(run: Run, all_: Sequence[Treated]) -> Iterator[Finding]:
    """A weight is decayed in two ways."""
    found = []
    for t in all_:
        l2 = t.penalty("l2")
        ways = len(t.decays) + (l2 is not None and l2.strength != 0)
        ways += t.decaying_plugins
        if ways > 1:
            found.append(t)
    if found:
        first = found[0]
        ways_ = [f"{d.by}: {d.convention} {d.strength:.3g}" for d in first.decays]
        ways_ += [
            f"loss: λ·Σw² with λ = {p.strength:.3g}"
            for p in first.penalties
            if p.kind == "l2" and p.strength is not None
        ]
        ways_ += list(first.plugins)
        yield Finding(
            "decayed-twice",
            "warning",
            names(found),
            f"{listed(names(found))}: decayed in two ways ({'; '.join(ways_)}): keep one of them, "
            "with weight_decay=0 in the optimizer or without the term in the loss",
            {"ways": ways_},
        )


def decays_bias_or_norm(run: Run, all_: Sequence[Treated]) -> Iterator[Finding]:
    """Biases and normalization are decayed."""
    found = [t for t in all_ if t.track.role in ("bias", "norm") and _is_decayed(t)]
    if found:
        yield Finding(
            "decays-bias-or-norm",
            "warning",
            names(found),
            f"{listed(names(found))}: biases and normalization are decayed as weights are, which "
            "costs fit and regularizes nothing: put them into a parameter group of their own with "
            "weight_decay=0",
            {"rate": max(d.rate for t in found for d in t.decays)},
        )


def _is_decayed(t: Treated) -> bool:
    return bool(t.decays) and t.track.parameter.requires_grad


def _of_decay(code: str, severity: str, found: Sequence[Treated], told: str) -> Iterator[Finding]:
    """Yield what there is to say of parameters that are decayed, if there are any."""
    if found:
        rate = max(d.rate for t in found for d in t.decays)
        said = f"{listed(names(found))}: {told}"
        yield Finding(code, severity, names(found), said, {"rate": rate})


def decays_embedding(run: Run, all_: Sequence[Treated]) -> Iterator[Finding]:
    """Embeddings are decayed."""
    found = [t for t in all_ if t.track.role == "embedding" and _is_decayed(t)]
    yield from _of_decay(
        "decays-embedding",
        "note",
        found,
        "embeddings are decayed, so that rows of rare tokens shrink "
        "between two uses: if that is not meant, a group with weight_decay=0",
    )


def decay_of_zero_gradient(run: Run, all_: Sequence[Treated]) -> Iterator[Finding]:
    """What has no gradient is decayed."""
    found = [
        t
        for t in all_
        if _is_decayed(t)
        and len(t.track.looks) >= 2
        and all(look.gradient == "zero" for look in t.track.looks)
    ]
    yield from _of_decay(
        "decay-of-zero-gradient",
        "warning",
        found,
        "their gradient is zero in every step, and they are decayed "
        "all the same, towards zero: leave them out of the optimizer, or let their .grad be "
        "None (zero_grad(set_to_none=True))",
    )


def frozen_decay(run: Run, all_: Sequence[Treated]) -> Iterator[Finding]:
    """What is frozen is decayed."""
    found = [
        t
        for t in all_
        if not t.track.parameter.requires_grad
        and any(
            (d.by == "loop") or any(look.gradient != "none" for look in _frozen(t))
            for d in t.decays
        )
    ]
    yield from _of_decay(
        "frozen-decay",
        "warning",
        found,
        "frozen (requires_grad is False), and decayed all the same: "
        "they have a .grad still; set it to None, or leave them out of the optimizer",
    )


def _frozen(t: Treated) -> list[Look]:
    return [look for look in t.track.looks if not look.trains]


def adapter_decay(run: Run, all_: Sequence[Treated]) -> Iterator[Finding]:
    """Low-rank adapters are decayed."""
    found = [t for t in all_ if t.track.role == "adapter" and _is_decayed(t)]
    yield from _of_decay(
        "adapter-decay",
        "note",
        found,
        "low-rank adapters are decayed: that pulls the model towards "
        "the pretrained one and not towards zero; if that is not meant, weight_decay=0",
    )


def lr_zero(run: Run, all_: Sequence[Treated]) -> Iterator[Finding]:
    """The learning rate is 0 throughout, or in the end."""
    found = [
        t
        for t in all_
        if t.track.parameter.requires_grad
        and (since := _steps_at_zero(t)) >= 2
        and (since >= _AT_THE_END or since == len(t.track.looks))
    ]
    if found:
        never = all(_steps_at_zero(t) == len(t.track.looks) for t in found)
        when = "in every step that was looked at" if never else "since a while, to the end"
        yield Finding(
            "lr-zero",
            "warning",
            names(found),
            f"{listed(names(found))}: the learning rate is 0 {when}, so neither data nor "
            "regularization changes them: look at the schedule, and at how many steps it is for",
            {"steps": min(_steps_at_zero(t) for t in found)},
        )


def _steps_at_zero(t: Treated) -> int:
    """Return in how many steps, of those that were looked at, the rate was 0 to the end."""
    looks = t.track.looks
    return next((n for n, look in enumerate(reversed(looks)) if look.lr != 0), len(looks))
