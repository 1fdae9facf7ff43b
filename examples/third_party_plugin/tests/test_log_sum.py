"""The plugin sits the exam, and is compared with its formula in closed form."""

import doctest
import math

import pytest
import regplug_log_sum
import torch
from regplug_log_sum import LogSum

from regplug.errors import SpecError
from regplug.testing import PluginContract


class TestLogSum(PluginContract):
    """The whole exam, a test for each check."""

    spec = "log_sum(1e-3, epsilon=0.2)"


def test_value_is_that_of_the_formula() -> None:
    """Against the standard library's logarithm."""
    weights = (0.0, 2.0, -3.0, 0.5)
    value = LogSum(1.0, epsilon=0.5).value(torch.tensor(weights, dtype=torch.float64).view(2, 2))
    assert math.isclose(value, sum(math.log(1 + abs(w) / 0.5) for w in weights))


@pytest.mark.parametrize("epsilon", [0.0, -1.0, float("inf"), float("nan")])
def test_bad_epsilon_is_refused(epsilon: float) -> None:
    """When it is made, not at some step."""
    with pytest.raises(SpecError, match="epsilon must be positive and finite"):
        LogSum(1e-3, epsilon=epsilon)


def test_examples_of_the_docstring() -> None:
    """As they stand there."""
    assert doctest.testmod(regplug_log_sum).failed == 0
