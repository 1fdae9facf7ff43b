"""Formulas that are wrong on purpose in places: at edges, in shapes, in memory, the second time."""

import torch

from regplug import Penalty, hookimpl
from tests.testing.wrong_formulas import L1

# --- pure -----------------------------------------------------------------------------------


class ClampsWeights(Penalty):
    """pure: keeps what it looks at within bounds, in place."""

    def value(self, w):
        w.data.clamp_(-0.5, 0.5)
        return w.square().sum()


class ClampsInGradient(L1):
    """runs: its gradient makes the weights' own memory positive and back, nearly."""

    def gradient(self, w):
        found = w.sign()
        w.abs_().mul_(found + (found == 0)).mul_(1 + 1e-12)
        return found


class WithLambda(L1):
    """pure: has the strength in its value, once more."""

    def value(self, w):
        return self.strength * w.abs().sum()

    def gradient(self, w):
        return self.strength * w.sign()


class GrowsWithCalls(Penalty):
    """pure: a temperature that falls whenever somebody asks."""

    calls = 0

    def value(self, w):
        self.calls += 1
        return w.square().sum() / (1 + 0.1 * self.calls)


class InPlaceOnACopy(Penalty):
    """A look-alike: works in place, on memory of its own."""

    separable = True

    def value(self, w):
        return w.clone().abs_().add_(1).log_().sum()


# --- extremes -------------------------------------------------------------------------------


class RootOfSquares(Penalty):
    """extremes: the norm as it is taught, whose gradient at 0 is 0/0."""

    def value(self, w):
        return w.square().sum().sqrt()


class Cosh(Penalty):
    """extremes: cosh overflows where its logarithm does not."""

    separable = True

    def value(self, w):
        return w.cosh().log().sum()


class Spread(Penalty):
    """extremes: a deviation, whose gradient at equal weights is 0/0, as at a constant start."""

    def value(self, w):
        return w.std(correction=0)


class Cosines(Penalty):
    """extremes: directions of rows, of which a row of zeros has none."""

    def value(self, w):
        rows = w.flatten(1)
        unit = rows / rows.norm(dim=1, keepdim=True)
        return (unit @ unit.T).square().sum()


class RootNearZero(L1):
    """extremes: states the gradient of the root, which is infinite at 0."""

    def value(self, w):
        return (w.abs() + 1e-12).sqrt().sum()

    def gradient(self, w):
        return 0.5 * w.sign() / w.abs().sqrt()


class WrongWhenNegative(L1):
    """extremes: states a gradient that is right within [−3, 3], as were all that were tried."""

    def value(self, w):
        return w.square().sum()

    def gradient(self, w):
        return 2 * w.clamp(-5, 5)


class SafeCosines(Penalty):
    """A look-alike: directions that are none where there is nothing."""

    def value(self, w):
        unit = torch.nn.functional.normalize(w.flatten(1), dim=1)
        return (unit @ unit.T).square().sum()


# --- memory-order ---------------------------------------------------------------------------


class ByStorage(Penalty):
    """memory-order: differences of neighbours in memory, not in the weight."""

    def value(self, w):
        flat = w.as_strided((w.numel(),), (1,)) if w.numel() else w.reshape(-1)
        return flat.diff().square().sum()


class Views(Penalty):
    """memory-order: a view where only a copy will do."""

    def value(self, w):
        return w.view(w.shape[0] if w.ndim else 1, -1).sum(1).square().sum()


class StridedGradient(L1):
    """memory-order: fills its gradient in the order of memory."""

    def value(self, w):
        return (0.5 * w.square()).sum()

    def gradient(self, w):
        if w.is_contiguous():
            return w.clone()
        found = torch.empty(w.shape, dtype=w.dtype)
        low = torch.as_strided(w, (min(w.numel(), w.untyped_storage().nbytes() // 8),), (1,), 0)
        return found.flatten().fill_(low[0]).view(w.shape)


class ByIndex(Penalty):
    """A look-alike: neighbours by index."""

    def value(self, w):
        return w.reshape(-1).diff().square().sum()


# --- shapes ---------------------------------------------------------------------------------


class GradientOfMatrices(Penalty):
    """shapes: states a gradient that takes a weight for a matrix."""

    def value(self, w):
        return w.flatten(1).sum(1).square().sum() if w.ndim > 1 else w.sum().square()

    def gradient(self, w):
        if w.ndim < 2:
            return 2 * w.sum() * torch.ones_like(w)
        return 2 * w.sum(1, keepdim=True).expand_as(w).clone()


class LeavesConvolutionsOut(L1):
    """shapes: lets nothing come out of a formula that does not fit."""

    def value(self, w):
        if w.ndim > 2:
            raise ValueError("no matrix")
        return w.abs().sum()

    @hookimpl
    def on_loss(self, session):
        try:
            for entry in session.coverage(self._selection):
                self.value(entry.parameter)
        except ValueError:
            return None
        return super().on_loss(session)

    @hookimpl
    def on_gradients(self, session):
        try:
            for entry in session.coverage(self._selection):
                self.value(entry.parameter)
        except ValueError:
            return
        super().on_gradients(session)


class SilentConvolutions(Penalty):
    """shapes: a formula of matrices, and nothing, without a word, where there is none."""

    def value(self, w):
        try:
            return (w @ w.mT if w.ndim == 2 else w @ w.t()).square().sum()
        except Exception:
            return 0.0 * w.sum()


class MeanOfAll(Penalty):
    """A look-alike: the mean of no element is no number, and no weight has none."""

    def value(self, w):
        return w.abs().mean()


class MatricesOnly(Penalty):
    """A look-alike: is not for convolutions, and says so."""

    def value(self, w):
        if w.ndim != 2:
            raise ValueError(f"{w.ndim} dimensions are no matrix")
        return (w @ w.T).square().sum()
