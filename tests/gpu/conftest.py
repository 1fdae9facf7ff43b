"""What needs a GPU: everything here is skipped where there is none."""

from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="there is no GPU")
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(skip)
