"""Optimizers of other libraries, as they are widely written."""

from collections import OrderedDict

import torch


class Lookahead(torch.optim.Optimizer):
    """As timm's: not initialised as an optimizer on purpose, so hooks on it never fire."""

    def __init__(self, base, alpha=0.5, k=2):
        self._optimizer_step_pre_hooks = OrderedDict()
        self._optimizer_step_post_hooks = OrderedDict()
        self._base_optimizer = base
        self.param_groups = base.param_groups
        self.defaults = base.defaults
        self.state = {}
        self.alpha, self.k, self.count = alpha, k, 0

    @torch.no_grad()
    def step(self, closure=None):
        loss = self._base_optimizer.step(closure)
        self.count += 1
        for group in self.param_groups:
            for w in group["params"]:
                slow = self.state.setdefault(w, w.detach().clone())
                if self.count % self.k == 0:
                    slow.add_(w - slow, alpha=self.alpha)
                    w.copy_(slow)
        return loss

    def zero_grad(self):
        self._base_optimizer.zero_grad()
