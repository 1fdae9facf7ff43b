"""Plugins that cost too much: time, memory, more of either with each step; and some that don't."""

import collections
import tempfile
import threading

import torch

import regplug
from regplug import Penalty, hookimpl
from tests.testing.wrong_formulas import L1, weights
from tests.testing.wrong_runs import Acts

# --- cost -------------------------------------------------------------------------------------


class AllPairs(Penalty):
    """cost: compares each weight with each."""

    def value(self, w):
        flat = w.reshape(-1)
        return (flat[:, None] - flat[None, :]).abs().mean()


class PairsInPython(Acts):
    """cost: the same, one after another."""

    def act(self, session):
        for w in weights(session):
            values = regplug.local(w).detach().reshape(-1).tolist()
            closest = sum(abs(a - b) for a in values for b in values)
            w.grad.add_(w.detach().sign(), alpha=self.signed(session) * (1 + 0 * closest))


class TensorByTensor(Acts):
    """cost: goes through all weights for each of them."""

    def act(self, session):
        covered = weights(session)
        for w in covered:
            norms = [other.detach().norm() for other in covered]
            w.grad.add_(w.detach() / torch.stack(norms).max(), alpha=self.signed(session))


class AllOfHistory(Acts):
    """cost: goes through all steps there ever were, of which it keeps no more than the number."""

    def act(self, session):
        factor = 1.0
        for _ in range(session.steps * 100):
            factor *= 1.0
        for w in weights(session):
            w.grad.add_(w.detach().sign(), alpha=self.signed(session) * factor)


class RowsWithRows(Penalty):
    """Right: compares rows with rows, which is quadratic in their number alone."""

    def value(self, w):
        rows = w.flatten(1)
        return (rows @ rows.T).square().mean()


# --- memory -----------------------------------------------------------------------------------


class AllSigns(Acts):
    """memory: makes the signs of all weights before it uses the first."""

    def act(self, session):
        covered = weights(session)
        signs = torch._foreach_sign([w.detach() for w in covered])
        for w, sign in zip(covered, signs, strict=True):
            w.grad.add_(sign, alpha=self.signed(session))


class OneVector(Acts):
    """memory: makes one long vector of the model, to see whether it is finite."""

    def act(self, session):
        covered = weights(session)
        vector = torch.nn.utils.parameters_to_vector([regplug.local(w).detach() for w in covered])
        finite = bool(vector.isfinite().all())
        for w in covered:
            w.grad.add_(w.detach(), alpha=self.signed(session) * finite)


class OneByOne(Acts):
    """Right: needs a tensor of the size of each weight, one at a time."""

    def act(self, session):
        norm = torch.stack([w.detach().norm() for w in weights(session)]).norm()
        for w in weights(session):
            w.grad.add_(w.detach().sign() / norm, alpha=self.signed(session))


# --- growth -----------------------------------------------------------------------------------


class Logs(Acts):
    """growth: keeps a number of each step, for ever."""

    def __init__(self, strength=0.01, name=None):
        super().__init__(strength, name)
        self.seen = []

    def act(self, session):
        super().act(session)
        self.seen.append(float(session.steps) + 0.5)


class OpensFiles(Acts):
    """growth: opens a file in each step."""

    def __init__(self, strength=0.01, name=None):
        super().__init__(strength, name)
        self.files = {}

    def act(self, session):
        super().act(session)
        self.files[session.steps % 10**9] = tempfile.TemporaryFile()  # noqa: SIM115


class StartsThreads(Acts):
    """growth: starts a thread in each step, which waits for its end."""

    def act(self, session):
        super().act(session)
        threading.Thread(target=threading.Event().wait, args=(40,), daemon=True).start()


class KeepsGraphs(L1):
    """loss-event: adds up what it has cost so far, with every graph."""

    total = 0.0

    def value(self, w):
        value = w.abs().sum()
        if value.requires_grad:
            self.total = self.total + value
        return value

    def gradient(self, w):
        with torch.enable_grad():
            x = w.detach().requires_grad_()
            self.value(x)
        return w.sign()


class LastHundred(Acts):
    """Right: keeps numbers too, but no more than a hundred."""

    def __init__(self, strength=0.01, name=None):
        super().__init__(strength, name)
        self.seen = collections.deque(maxlen=100)

    def act(self, session):
        super().act(session)
        self.seen.append(float(session.steps) + 0.5)


class OneThread(Acts):
    """Right: has a thread and a file of its own, which end with it."""

    @hookimpl
    def on_attach(self, session):
        self._stop = threading.Event()
        self._file = tempfile.TemporaryFile()  # noqa: SIM115
        self._thread = threading.Thread(target=self._stop.wait, daemon=True)
        self._thread.start()

    @hookimpl
    def on_detach(self, session):
        self._stop.set()
        self._thread.join()
        self._file.close()
