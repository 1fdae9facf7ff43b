"""proxtorch's operators: value and proximal operator of each; and its constraints.

An operator's own call detaches its value, for proxtorch is made for proximal algorithms, so
``value`` is the sum that it returns, before that: ``_smooth`` and ``_nonsmooth``. Operators take a
number as the step, so those that may be given one for each element are told by ``separable``.
"""

from proxtorch import constraints, operators

import regplug
from tests.scores.adapters import Bounded, Entry, OfWeights


class _Operator(regplug.Penalty):
    def operator(self, w):
        raise NotImplementedError

    def value(self, w):
        return self.operator(w)._nonsmooth(w)

    def proximal(self, w, step):
        # Some write into what they are given.
        return self.operator(w).prox(w.clone(), step * self.strength)


class L1(_Operator):
    separable = True

    def operator(self, w):
        return operators.L1(1.0)


class L2(_Operator):
    separable = True

    def operator(self, w):
        return operators.L2(1.0)


class ElasticNet(_Operator):
    separable = True

    def operator(self, w):
        return operators.ElasticNet(1.0, l1_ratio=0.5)


class Frobenius(_Operator):
    def operator(self, w):
        return operators.Frobenius(1.0)


class Huber(_Operator):
    def operator(self, w):
        return operators.Huber(1.0, delta=0.1)


class GroupLasso(_Operator):
    """Each row is a group."""

    def operator(self, w):
        return operators.GroupLasso(1.0, group_sizes=[1] * len(w))


class FusedLasso(_Operator):
    """Of a vector, which it is written for: other weights are flattened to one."""

    def operator(self, w):
        return operators.FusedLasso(1.0)

    def value(self, w):
        return super().value(w.flatten())

    def proximal(self, w, step):
        return super().proximal(w.flatten(), step).reshape(w.shape)


class _Matrix(_Operator):
    """Of what is a matrix: other weights are flattened to one."""

    def value(self, w):
        return super().value(w.flatten(1))

    def proximal(self, w, step):
        return super().proximal(w.flatten(1), step).reshape(w.shape)


class TraceNorm(_Matrix):
    def operator(self, w):
        return operators.TraceNorm(1.0)


class TV2D(_Matrix):
    def operator(self, w):
        return operators.TV_2D(1.0)


class _Ball(OfWeights):
    def ball(self):
        raise NotImplementedError

    def mapped(self, w):
        return self.ball().prox(w)


class NonNegative(_Ball):
    def ball(self):
        return constraints.NonNegative()


class LInfinityBall(_Ball, Bounded):
    def ball(self):
        return constraints.LInfinityBall(self.bound)


class L2Ball(_Ball, Bounded):
    def ball(self):
        return constraints.L2Ball(self.bound)


class L1Ball(_Ball, Bounded):
    """Of what is a vector: it is written for these."""

    def ball(self):
        return constraints.L1Ball(self.bound)

    def mapped(self, w):
        return super().mapped(w.reshape(-1)).reshape(w.shape)


class Rank(_Ball):
    """Of what is a matrix."""

    def ball(self):
        return constraints.Rank(1)

    def mapped(self, w):
        return super().mapped(w.flatten(1)).reshape(w.shape)


ENTRIES = [
    Entry("proxtorch", "operators.L1", lambda: L1(1e-3)),
    Entry("proxtorch", "operators.L2", lambda: L2(1e-3)),
    Entry("proxtorch", "operators.ElasticNet", lambda: ElasticNet(1e-3)),
    Entry("proxtorch", "operators.Frobenius", lambda: Frobenius(1e-3)),
    Entry("proxtorch", "operators.Huber", lambda: Huber(1.0)),
    Entry("proxtorch", "operators.GroupLasso", lambda: GroupLasso(1e-3)),
    Entry("proxtorch", "operators.FusedLasso", lambda: FusedLasso(1e-3)),
    Entry("proxtorch", "operators.TraceNorm", lambda: TraceNorm(1e-3)),
    Entry("proxtorch", "operators.TV_2D", lambda: TV2D(1e-3)),
    Entry("proxtorch", "constraints.NonNegative", NonNegative),
    Entry("proxtorch", "constraints.LInfinityBall", lambda: LInfinityBall(0.1)),
    Entry("proxtorch", "constraints.L2Ball", lambda: L2Ball(0.5)),
    Entry("proxtorch", "constraints.L1Ball", lambda: L1Ball(0.5)),
    Entry("proxtorch", "constraints.Rank", Rank),
]
