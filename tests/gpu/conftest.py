"""What needs a GPU, and is skipped without one: ``REGPLUG_GPU=1 pytest tests/gpu``."""

from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="there is no GPU, or REGPLUG_GPU=1 was not said")
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(skip)
