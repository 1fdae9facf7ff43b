"""Weights whose optimizer has counted other steps for each, as numbers of the host's."""

import pytest
import torch
from torch import nn

from regplug.backend.update_rules import update_rule
from regplug.delivery.proximal import apply_elementwise_steps
from regplug.penalty import Penalty
from regplug_builtins import L1


@pytest.mark.parametrize("as_number", [int, lambda n: torch.tensor(float(n))], ids=["int", "0-d"])
@pytest.mark.parametrize("kernels", ["foreach", "auto"])
def test_each_weight_is_moved_by_its_own_count(kernels, as_number):
    """A kernel that took the first one's for all would be right for one weight alone."""
    weights = [nn.Parameter(torch.full((200, 200), 5.0, dtype=torch.float64)) for _ in range(3)]
    optimizer = torch.optim.Adam(weights, lr=0.1, betas=(0.9, 0.99), eps=0.0)
    counts = (1, 10, 1000)
    states = {
        w: {"step": as_number(count), "exp_avg_sq": torch.full_like(w, 0.25)}
        for w, count in zip(weights, counts, strict=True)
    }
    penalty: Penalty = L1(0.5, delivery="proximal")
    penalty._kernels = kernels
    with torch.no_grad():
        apply_elementwise_steps(
            penalty._formula_kernel,
            update_rule(optimizer),
            optimizer.param_groups[0],
            states,
            weights,
            weights,
        )
    for w, count in zip(weights, counts, strict=True):
        expected = 5.0 - 0.5 * 0.1 * (1 - 0.99**count) ** 0.5 / 0.5
        torch.testing.assert_close(w.detach(), torch.full_like(w, expected), rtol=1e-9, atol=0)
