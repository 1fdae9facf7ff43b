"""Keras' regularizers and constraints, on its torch backend.

Keras keeps kernels as ``(in, out)``, torch as ``(out, in)``: constraints are given the weight as a
Keras layer has it, with the axis of Keras' default. Keras computes on the device of
``keras.device``, wherever a weight is, so each adapter names the weight's.
"""

import os

os.environ["KERAS_BACKEND"] = "torch"

import keras

import regplug
from tests.scores.adapters import Bounded, Entry, OfWeights


class _Regularizer(regplug.Penalty):
    def regularizer(self):
        raise NotImplementedError

    def value(self, w):
        with keras.device(str(w.device)):
            return self.regularizer()(w)


class L1(_Regularizer):
    separable = True

    def regularizer(self):
        return keras.regularizers.L1(1.0)


class L2(_Regularizer):
    separable = True

    def regularizer(self):
        return keras.regularizers.L2(1.0)


class L1L2(_Regularizer):
    separable = True

    def regularizer(self):
        return keras.regularizers.L1L2(l1=1.0, l2=0.5)


class Orthogonal(_Regularizer):
    """Of a kernel as Keras keeps it, which is a matrix: other weights are flattened to one."""

    orientation = "rows"

    def regularizer(self):
        return keras.regularizers.OrthogonalRegularizer(1.0, mode="columns")

    def value(self, w):
        return super().value(w.flatten(1).T)


class _Constraint(OfWeights):
    def constraint(self):
        raise NotImplementedError

    def mapped(self, w):
        with keras.device(str(w.device)):
            return self.constraint()(w.flatten(1).T).T.reshape(w.shape)


class MaxNorm(_Constraint, Bounded):
    def constraint(self):
        return keras.constraints.MaxNorm(self.bound)


class UnitNorm(_Constraint):
    def constraint(self):
        return keras.constraints.UnitNorm()


class NonNeg(_Constraint):
    def constraint(self):
        return keras.constraints.NonNeg()


class MinMaxNorm(_Constraint, Bounded):
    def constraint(self):
        return keras.constraints.MinMaxNorm(min_value=0.5 * self.bound, max_value=self.bound)


ENTRIES = [
    Entry("keras", "regularizers.L1", lambda: L1(1e-3)),
    Entry("keras", "regularizers.L2", lambda: L2(1e-3)),
    Entry("keras", "regularizers.L1L2", lambda: L1L2(1e-3)),
    Entry("keras", "regularizers.OrthogonalRegularizer", lambda: Orthogonal(1e-3)),
    Entry("keras", "constraints.MaxNorm", lambda: MaxNorm(0.5)),
    Entry("keras", "constraints.NonNeg", NonNeg),
    Entry("keras", "constraints.UnitNorm", UnitNorm),
    Entry("keras", "constraints.MinMaxNorm", lambda: MinMaxNorm(0.5)),
]
