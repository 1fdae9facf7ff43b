"""Findings about decay, and about penalties in the loss."""

from collections.abc import Iterator, Sequence
from statistics import median

from regplug.doctor.findings import Finding, listed
from regplug.doctor.run import Run
from regplug.doctor.summary import Treated

__all__ = ["CHECKS"]


def _names(members: Sequence[Treated]) -> tuple[str, ...]:
    return tuple(member.track.name for member in members)


def nothing_acts(run: Run, all_: Sequence[Treated]) -> Iterator[Finding]:
    if not run.looked or run.hidden:
        return
    acting = any(t.decays or t.plugins or any(p.strength != 0 for p in t.penalties) for t in all_)
    drops = any(max(d.training, default=0.0) > 0 for d in run.dropouts.all if not d.without_effect)
    if acting or drops:
        return
    said = [float(group.get("weight_decay", 0.0) or 0.0) for group in run.optimizer.param_groups]
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
        _names(zero),
        f"{what}: this run has no regularization; if one is wanted, regplug.attach(model, "
        "optimizer, ['weight_decay(0.1)']), say",
        {"weight_decay": max(said, default=0.0)},
    )


def decayed_twice(run: Run, all_: Sequence[Treated]) -> Iterator[Finding]:
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
            _names(found),
            f"{listed(_names(found))}: decayed in two ways ({'; '.join(ways_)}): keep one of them, "
            "with weight_decay=0 in the optimizer or without the term in the loss",
            {"ways": ways_},
        )


def decays_bias_or_norm(run: Run, all_: Sequence[Treated]) -> Iterator[Finding]:
    found = [t for t in all_ if t.track.role in ("bias", "norm") and _is_decayed(t)]
    if found:
        yield Finding(
            "decays-bias-or-norm",
            "warning",
            _names(found),
            f"{listed(_names(found))}: biases and normalization are decayed as weights are, which "
            "costs fit and regularizes nothing: put them into a parameter group of their own with "
            "weight_decay=0",
            {"rate": max(d.rate for t in found for d in t.decays)},
        )


def _is_decayed(t: Treated) -> bool:
    return bool(t.decays) and t.track.parameter.requires_grad


def decays_embedding(run: Run, all_: Sequence[Treated]) -> Iterator[Finding]:
    found = [t for t in all_ if t.track.role == "embedding" and _is_decayed(t)]
    if found:
        yield Finding(
            "decays-embedding",
            "note",
            _names(found),
            f"{listed(_names(found))}: embeddings are decayed, so that rows of rare tokens shrink "
            "between two uses: if that is not meant, a group with weight_decay=0",
            {"rate": max(d.rate for t in found for d in t.decays)},
        )


def penalizes_bias_or_norm(run: Run, all_: Sequence[Treated]) -> Iterator[Finding]:
    found = [
        t
        for t in all_
        if t.track.role in ("bias", "norm")
        and (p := t.penalty("l1", "l2", "norm")) is not None
        and p.strength != 0
    ]
    if found:
        kinds = sorted({p.kind for t in found for p in t.penalties})
        yield Finding(
            "penalizes-bias-or-norm",
            "warning",
            _names(found),
            f"{listed(_names(found))}: biases and normalization are in the loss's penalty "
            f"({', '.join(kinds)}) too: sum over `p for n, p in model.named_parameters() if p.ndim "
            "> 1`",
            {"kinds": kinds},
        )


def norm_not_squared(run: Run, all_: Sequence[Treated]) -> Iterator[Finding]:
    found = [t for t in all_ if (p := t.penalty("norm")) is not None and p.strength != 0]
    if found:
        strength = found[0].penalty("norm")
        yield Finding(
            "norm-not-squared",
            "warning",
            _names(found),
            f"{listed(_names(found))}: the loss has λ·‖w‖, the norm and not its square: its pull "
            "does not weaken as the weights shrink, and it is no L2 penalty: write p.pow(2).sum()",
            {"strength": None if strength is None else strength.strength},
        )


def scaled(run: Run, all_: Sequence[Treated]) -> Iterator[Finding]:
    """Penalties that are added in full in each of several passes, or times the world's size."""
    by_passes, by_world = [], []
    times: list[float] = []
    world = run.world
    for t in all_:
        for kind in dict.fromkeys(k for look in t.track.looks for k in look.penalties):
            seen = [look.penalties[kind] for look in t.track.looks if kind in look.penalties]
            scale = median(s.scale for s in seen)
            # What is left of it once the loop has divided the gradients, too.
            clips = [look.clip for look in t.track.looks if kind in look.penalties]
            known = [clip for clip in clips if clip is not None]
            left = scale * (median(known) if known else 1.0)
            passes = median(s.passes for s in seen)
            if kind == "other" or any(s.strength == 0 for s in seen):
                continue
            if _near(left, 1.0):
                continue
            if passes >= 2 and _near(scale, passes):
                by_passes.append(t)
                times.append(scale)
            elif world > 1 and _near(scale, world):
                by_world.append(t)
    if by_passes:
        k = max(times)
        yield Finding(
            "scaled-by-accumulation",
            "warning",
            _names(by_passes),
            f"{listed(_names(by_passes))}: {k:g} backward passes before each step have the penalty "
            f"in full, so λ acts {k:g} times as written: divide the whole loss, the penalty too, "
            f"by {k:g}, or add the penalty in the last pass alone",
            {"times": k},
        )
    if by_world:
        yield Finding(
            "scaled-by-world-size",
            "warning",
            _names(by_world),
            f"{listed(_names(by_world))}: λ acts {world} times as written, once for each of the "
            f"{world} ranks: multiply the data's loss alone by the world's size",
            {"times": world},
        )


def _near(a: float, b: float) -> bool:
    return abs(a - b) <= 1e-3 * abs(b)


def clipped_away(run: Run, all_: Sequence[Treated]) -> Iterator[Finding]:
    found, factors = [], []
    for t in all_:
        if not any(p.kind != "other" and p.strength != 0 for p in t.penalties):
            continue
        clips = [look.clip for look in t.track.looks if look.clip is not None and look.penalties]
        if clips and median(clips) < 0.1:
            found.append(t)
            factors.append(median(clips))
    if found:
        factor = median(factors)
        yield Finding(
            "clipped-away",
            "warning",
            _names(found),
            f"{listed(_names(found))}: clipping multiplies gradients by {factor:.2g}, and the "
            "penalty's with them, so λ acts at that share of what is written: penalize after the "
            "clipping (regplug's delivery='step'), or decay in the optimizer",
            {"factor": factor},
        )


def penalty_once(run: Run, all_: Sequence[Treated]) -> Iterator[Finding]:
    if len(run.looked) < 3:
        return
    found = []
    for t in all_:
        had = [bool(look.penalties) for look in t.track.looks]
        if had and had[0] and not any(had[1:]):
            found.append(t)
    if found:
        yield Finding(
            "penalty-once",
            "error",
            _names(found),
            f"{listed(_names(found))}: the penalty was in the loss of the first step alone: a "
            "generator such as model.parameters() is empty after one pass, so keep "
            "list(model.parameters()), or call it in every step",
            {"steps": len(run.looked)},
        )


def penalty_dominates(run: Run, all_: Sequence[Treated]) -> Iterator[Finding]:
    ratios = []
    for step in range(len(run.looked)):
        pulls = [t.track.looks[step].pull for t in all_ if step < len(t.track.looks)]
        penalty, rest = sum(p[0] for p in pulls), sum(p[1] for p in pulls)
        if penalty:
            ratios.append((penalty / max(rest, 1e-30)) ** 0.5)
    if run.with_data and ratios and (median(ratios) > 3 or ratios[0] > 10):
        found = [t for t in all_ if t.penalties]
        ratio = max(median(ratios), ratios[0])
        yield Finding(
            "penalty-dominates",
            "warning",
            _names(found),
            f"{listed(_names(found))}: the penalty's gradient is {ratio:.3g} times that of the "
            "data: the weights go to zero whatever the data say; λ is too large, or the penalty a "
            "sum where the loss is a mean",
            {"ratio": ratio},
        )
    fast = [t for t in all_ if any(d.rate > 0.1 for d in t.decays)]
    if fast:
        rate = max(d.rate for t in fast for d in t.decays)
        yield Finding(
            "penalty-dominates",
            "warning",
            _names(fast),
            f"{listed(_names(fast))}: each step decays them by {100 * rate:.3g} %: weight_decay is "
            "too large for this learning rate",
            {"rate": rate},
        )


def decay_of_zero_gradient(run: Run, all_: Sequence[Treated]) -> Iterator[Finding]:
    found = [
        t
        for t in all_
        if _is_decayed(t)
        and len(t.track.looks) >= 2
        and all(look.gradient == "zero" for look in t.track.looks)
    ]
    if found:
        yield Finding(
            "decay-of-zero-gradient",
            "warning",
            _names(found),
            f"{listed(_names(found))}: their gradient is zero in every step, and they are decayed "
            "all the same, towards zero: leave them out of the optimizer, or let their .grad be "
            "None (zero_grad(set_to_none=True))",
            {"rate": max(d.rate for t in found for d in t.decays)},
        )


def frozen_decay(run: Run, all_: Sequence[Treated]) -> Iterator[Finding]:
    found = [
        t
        for t in all_
        if not t.track.parameter.requires_grad
        and any(
            (d.by == "loop") or any(look.gradient != "none" for look in t.track.looks)
            for d in t.decays
        )
    ]
    if found:
        yield Finding(
            "frozen-decay",
            "warning",
            _names(found),
            f"{listed(_names(found))}: frozen (requires_grad is False), and decayed all the same: "
            "they have a .grad still; set it to None, or leave them out of the optimizer",
            {"rate": max(d.rate for t in found for d in t.decays)},
        )


def adapter_decay(run: Run, all_: Sequence[Treated]) -> Iterator[Finding]:
    found = [t for t in all_ if t.track.role == "adapter" and _is_decayed(t)]
    if found:
        yield Finding(
            "adapter-decay",
            "note",
            _names(found),
            f"{listed(_names(found))}: low-rank adapters are decayed: that pulls the model towards "
            "the pretrained one and not towards zero; if that is not meant, weight_decay=0",
            {"rate": max(d.rate for t in found for d in t.decays)},
        )


def lr_zero(run: Run, all_: Sequence[Treated]) -> Iterator[Finding]:
    found = [
        t
        for t in all_
        if len(t.track.looks) >= 2
        and t.track.parameter.requires_grad
        and all(look.lr == 0 for look in t.track.looks)
    ]
    if found:
        yield Finding(
            "lr-zero",
            "warning",
            _names(found),
            f"{listed(_names(found))}: the learning rate is 0 in every step that was looked at, so "
            "neither data nor regularization changes them",
            {},
        )


def shared_counted_twice(run: Run, all_: Sequence[Treated]) -> Iterator[Finding]:
    found = []
    usual = _usual_spots(all_)
    for t in all_:
        if len(t.track.names) < 2:
            continue
        for look in t.track.looks:
            if any(seen.spots > usual.get(kind, 1) for kind, seen in look.penalties.items()):
                found.append(t)
                break
    if found:
        yield Finding(
            "shared-counted-twice",
            "warning",
            _names(found),
            f"{listed(_names(found))}: this weight is shared ({listed(found[0].track.names)}) and "
            "is in the penalty once for each name, so λ acts twice: sum over model.parameters(), "
            "which has it once",
            {"names": list(found[0].track.names)},
        )


def _usual_spots(all_: Sequence[Treated]) -> dict[str, float]:
    counts: dict[str, list[int]] = {}
    for t in all_:
        if len(t.track.names) < 2:
            for look in t.track.looks:
                for kind, seen in look.penalties.items():
                    counts.setdefault(kind, []).append(seen.spots)
    return {kind: median(spots) for kind, spots in counts.items()}


def detached_penalty(run: Run, all_: Sequence[Treated]) -> Iterator[Finding]:
    found = [t for t in all_ if id(t.track.parameter) in run.lost]
    if found:
        yield Finding(
            "detached-penalty",
            "error",
            _names(found),
            f"{listed(_names(found))}: a term of the loss is computed from these weights and has "
            "no graph (.data, detach(), item(), no_grad), so that it changes the number that is "
            "printed and no weight: compute it from the parameters themselves",
            {},
        )


def dropout_off(run: Run, all_: Sequence[Treated]) -> Iterator[Finding]:
    drops = [d for d in run.dropouts.all if not d.without_effect]
    # Off throughout, or since an evaluation.
    modes = run.dropouts.modes
    since = modes[::-1].index(True) if True in modes else len(modes)
    off = [d for d in drops if d.training and max(d.training) == 0]
    if not off and since >= 2:
        off = [d for d in drops if max(d.training[-since:], default=0.0) == 0]
    if off and modes:
        whole = since >= min(2, len(modes))
        yield Finding(
            "dropout-off-in-training",
            "warning" if whole else "note",
            tuple(d.name for d in off),
            f"{listed([d.name for d in off])}: off in every step that was looked at, as "
            + (
                "the model is in evaluation mode while it trains: model.train() before the loop, "
                "and after each evaluation"
                if whole
                else "these modules are in evaluation mode while the model trains"
            ),
            {"rate": off[0].rate},
        )


def dropout_in_eval(run: Run, all_: Sequence[Treated]) -> Iterator[Finding]:
    on = [d for d in run.dropouts.all if d.evaluation and max(d.evaluation) > 0]
    if on and True in run.dropouts.evaluated and False not in run.dropouts.evaluated:
        yield Finding(
            "dropout-in-eval",
            "warning",
            tuple(d.name for d in on),
            f"{listed([d.name for d in on])}: on in forwards without gradients, so that what is "
            "measured there is noisy and too low: model.eval() before an evaluation, model.train() "
            "after it",
            {"rate": on[0].rate},
        )


def dropout_without_effect(run: Run, all_: Sequence[Treated]) -> Iterator[Finding]:
    found = [d for d in run.dropouts.all if d.without_effect]
    if found:
        yield Finding(
            "dropout-without-effect",
            "warning",
            tuple(d.name for d in found),
            f"{listed([d.name for d in found])}: dropout={found[0].rate:g} acts between the layers "
            "of a recurrent network, and this one has a single layer: put an nn.Dropout after it",
            {"rate": found[0].rate},
        )


CHECKS = (
    detached_penalty,
    penalty_once,
    decayed_twice,
    scaled,
    shared_counted_twice,
    norm_not_squared,
    clipped_away,
    penalty_dominates,
    lr_zero,
    dropout_off,
    dropout_in_eval,
    dropout_without_effect,
    frozen_decay,
    decay_of_zero_gradient,
    decays_bias_or_norm,
    penalizes_bias_or_norm,
    decays_embedding,
    adapter_decay,
    nothing_acts,
)
