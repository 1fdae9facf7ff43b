"""What tests of events share."""

import pytest
import torch


@pytest.fixture
def log():
    """Where a ``Watch`` notes what it sees."""
    return []


@pytest.fixture
def model():
    """A layer that is trained."""
    return torch.nn.Linear(3, 2)
