"""Formulas retyped from libraries whose packages need more than torch (torchvision, say).

Each says where its formula stands. What fails here is in the formula, as far as it is retyped
rightly: the libraries' own code was not run.
"""

import torch

from tests.scores.adapters import BoundedGradients, Decay, Entry


def unitwise_norm(x, norm_type=2.0):
    # timm/utils/agc.py, unitwise_norm, version 1.0.
    if x.ndim <= 1:
        return x.norm(norm_type)
    return x.norm(norm_type, dim=tuple(range(1, x.ndim)), keepdim=True)


class AdaptiveClipGrad(BoundedGradients):
    def mapped(self, w, g):
        # timm/utils/agc.py, adaptive_clip_grad, version 1.0.
        eps = 1e-3
        max_norm = unitwise_norm(w).clamp_(min=eps).mul_(self.bound)
        grad_norm = unitwise_norm(g)
        clipped_grad = g * (max_norm / grad_norm.clamp(min=1e-6))
        return torch.where(grad_norm < max_norm, g, clipped_grad)


class DecoupledSGDW(Decay):
    """Composer's decay goes by the learning rate's share of the first one."""

    def __init__(self, rate, *, initial_lr=0.1, where="weights", name=None):
        super().__init__(rate, where=where, name=name)
        self.initial_lr = initial_lr

    def decay_(self, w, lr):
        # composer/optim/decoupled_weight_decay.py, DecoupledSGDW.sgdw, version 0.30.
        decay_factor = (lr / self.initial_lr) if self.initial_lr else 1.0
        w.mul_(1 - decay_factor * self.rate)


ENTRIES = [
    Entry("timm", "adaptive_clip_grad", lambda: AdaptiveClipGrad(0.01), retyped=True),
    Entry("composer", "DecoupledSGDW", lambda: DecoupledSGDW(0.01), retyped=True),
]
