"""Findings about penalties in the loss."""

from collections.abc import Iterator, Sequence
from statistics import median

from regplug.doctor.findings import Finding, listed
from regplug.doctor.run import Run
from regplug.doctor.summary import Treated, names
from regplug.doctor.tracks import Look

__all__ = [
    "clipped_away",
    "detached_penalty",
    "norm_not_squared",
    "penalizes_bias_or_norm",
    "penalty_dominates",
    "penalty_once",
    "scaled",
    "shared_counted_twice",
]


def penalizes_bias_or_norm(run: Run, all_: Sequence[Treated]) -> Iterator[Finding]:
    """Biases and normalization are in a penalty."""
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
            names(found),
            f"{listed(names(found))}: biases and normalization are in the loss's penalty "
            f"({', '.join(kinds)}) too: sum over `p for n, p in model.named_parameters() if p.ndim "
            "> 1`",
            {"kinds": kinds},
        )


def norm_not_squared(run: Run, all_: Sequence[Treated]) -> Iterator[Finding]:
    """A norm stands where its square is meant."""
    found = [t for t in all_ if (p := t.penalty("norm")) is not None and p.strength != 0]
    if found:
        strength = found[0].penalty("norm")
        yield Finding(
            "norm-not-squared",
            "warning",
            names(found),
            f"{listed(names(found))}: the loss has λ·‖w‖, the norm and not its square: its pull "
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
            names(by_passes),
            f"{listed(names(by_passes))}: {k:g} backward passes before each step have the penalty "
            f"in full, so λ acts {k:g} times as written: divide the whole loss, the penalty too, "
            f"by {k:g}, or add the penalty in the last pass alone",
            {"times": k},
        )
    if by_world:
        yield Finding(
            "scaled-by-world-size",
            "warning",
            names(by_world),
            f"{listed(names(by_world))}: λ acts {world} times as written, once for each of the "
            f"{world} ranks: multiply the data's loss alone by the world's size",
            {"times": world},
        )


def _near(a: float, b: float) -> bool:
    return abs(a - b) <= 1e-3 * abs(b)


def clipped_away(run: Run, all_: Sequence[Treated]) -> Iterator[Finding]:
    """A penalty is clipped with the gradients."""
    found, factors = [], []
    for t in all_:
        if not any(p.kind != "other" and p.strength != 0 for p in t.penalties):
            continue
        looks = [look for look in t.track.looks if look.penalties]
        clips = [look.clip * _raised(look) for look in looks if look.clip is not None]
        if clips and median(clips) < 0.1:
            found.append(t)
            factors.append(median(clips))
    if found:
        factor = median(factors)
        yield Finding(
            "clipped-away",
            "warning",
            names(found),
            f"{listed(names(found))}: clipping multiplies gradients by {factor:.2g}, and the "
            "penalty's with them, so λ acts at that share of what is written: penalize after the "
            "clipping (regplug's delivery='step'), or decay in the optimizer",
            {"factor": factor},
        )


def _raised(look: Look) -> float:
    """Return what the loss was multiplied by in each pass, as by a loss scale by hand; else 1."""
    raised = max(seen.scale / max(seen.passes, 1) for seen in look.penalties.values())
    return raised if raised > 1.001 else 1.0


def penalty_once(run: Run, all_: Sequence[Treated]) -> Iterator[Finding]:
    """A penalty is in the first loss alone."""
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
            names(found),
            f"{listed(names(found))}: the penalty was in the loss of the first step alone: a "
            "generator such as model.parameters() is empty after one pass, so keep "
            "list(model.parameters()), or call it in every step",
            {"steps": len(run.looked)},
        )


def penalty_dominates(run: Run, all_: Sequence[Treated]) -> Iterator[Finding]:
    """Regularization leaves the data no say."""
    ratios = []
    # From the last step back: what joined late has fewer looks.
    for back in range(len(run.looked), 0, -1):
        pulls = [t.track.looks[-back].pull for t in all_ if back <= len(t.track.looks)]
        penalty, rest = sum(p[0] for p in pulls), sum(p[1] for p in pulls)
        if penalty:
            ratios.append((penalty / max(rest, 1e-30)) ** 0.5)
    if run.with_data and ratios and (median(ratios) > 3 or ratios[0] > 10):
        found = [t for t in all_ if t.penalties or any(d.convention == "coupled" for d in t.decays)]
        ratio = max(median(ratios), ratios[0])
        yield Finding(
            "penalty-dominates",
            "warning",
            names(found),
            f"{listed(names(found))}: what pulls them to zero is {ratio:.3g} times the "
            "gradient of the data: the weights go to zero whatever the data say; λ is too large, "
            "or the penalty a sum where the loss is a mean",
            {"ratio": ratio},
        )
    fast = [t for t in all_ if any(d.rate > 0.1 for d in t.decays)]
    if fast:
        rate = max(d.rate for t in fast for d in t.decays)
        yield Finding(
            "penalty-dominates",
            "warning",
            names(fast),
            f"{listed(names(fast))}: each step decays them by {100 * rate:.3g} %: weight_decay is "
            "too large for this learning rate",
            {"rate": rate},
        )


def shared_counted_twice(run: Run, all_: Sequence[Treated]) -> Iterator[Finding]:
    """A shared weight is in a penalty twice."""
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
            names(found),
            f"{listed(names(found))}: this weight is shared ({listed(found[0].track.names)}) and "
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
    """A penalty has no graph."""
    found = [t for t in all_ if id(t.track.parameter) in run.lost]
    if found:
        yield Finding(
            "detached-penalty",
            "error",
            names(found),
            f"{listed(names(found))}: a term of the loss is computed from these weights and has "
            "no graph (.data, detach(), item(), no_grad), so that it changes the number that is "
            "printed and no weight: compute it from the parameters themselves",
            {},
        )
