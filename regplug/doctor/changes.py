"""What a loop itself makes of weights and gradients, between its own calls and the step."""

import torch

from regplug.doctor.samples import fit
from regplug.doctor.tracks import Look, Track

__all__ = ["is_rescaled", "look_at_gradient", "look_at_weights"]


def look_at_weights(track: Track, look: Look) -> None:
    """See whether weights were shrunk since the step before."""
    before, after = track.before, track.after
    if before is None or after is None or after.shape != before.shape or before.numel() < 2:
        return
    finite = bool(before.isfinite().all()) and bool(after.isfinite().all())
    if finite and not torch.equal(after, before):
        (kept,), left = fit(before, after)
        # What was added and taken off again leaves a rounding, which no factor explains.
        change = before.double() - after.double()
        apart = change - (kept - 1.0) * after.double()
        if left < 1e-5 and float(apart.norm()) < 0.5 * float(change.norm()):
            look.by_hand = 1.0 - kept
            look.norm = float(track.parameter.detach().double().norm())


def look_at_gradient(track: Track, look: Look, loss_scale: float, within: float) -> bool:
    """See what became of a gradient since the last backward pass; return whether it is known.

    Args:
        track: the parameter.
        look: where it is noted.
        loss_scale: what the loss was multiplied by.
        within: what the optimizer itself divides gradients by.
    """
    g, was = track.parameter.grad, track.accumulated
    track.at_update = None
    if g is None:
        return True
    now = track.at_update = track.sampler.of(g)
    look.gradient = "some" if bool(now.any()) else "zero"
    if not bool(now.isfinite().all()) or (was is not None and not bool(was.isfinite().all())):
        look.gradient = "not finite"  # of a step that diverges nothing can be told by numbers
        return True
    if was is None or was.shape != now.shape or not bool(was.any()):
        if was is not None and not bool(now.any()):
            look.ratio, look.clip = 1.0 / within, loss_scale / within
        return True
    (ratio,), left = fit(now, was)
    if left > 1e-4:
        added = _added(track, now, was)
        if added is not None:
            ratio, look.added = added[0], added[1] / within
        else:
            middle = _cut_off(now, was, loss_scale)
            if middle is None:
                return not track.pending
            ratio = middle
    look.ratio = ratio / within
    look.clip = look.ratio * loss_scale
    return True


def is_rescaled(before: torch.Tensor | None, after: torch.Tensor | None) -> bool:
    """Whether the one is a multiple of the other, and not the same."""
    if before is None or after is None or before.shape != after.shape or before.numel() < 3:
        return False
    if torch.equal(before, after) or not (bool(before.any()) and bool(after.any())):
        return False
    if not bool(after.isfinite().all()):
        return False
    (ratio,), left = fit(after, before)
    return left < 1e-5 and ratio > 0


def _added(track: Track, now: torch.Tensor, was: torch.Tensor) -> list[float] | None:
    """Return the shares of the gradient and of the weights that make the gradient of now."""
    if track.before is None or now.numel() < 3:
        return None  # two factors would fit any two elements
    factors, left = fit(now, was, track.before.to(now.dtype))
    return factors if left <= 1e-4 else None


def _cut_off(now: torch.Tensor, was: torch.Tensor, loss_scale: float) -> float | None:
    """Return what is left of the middle element, where elements were cut off at one value."""
    unscaled, most = was / loss_scale, now.abs().max()
    if not torch.allclose(now, unscaled.clamp(-most, most), rtol=1e-4):
        return None
    left = (now / was)[was != 0]
    return float(left.median())
