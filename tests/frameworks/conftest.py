"""Every test here needs the extra ``frameworks`` and carries its marker (`make frameworks`)."""

import os
from pathlib import Path

import pytest

# Read at import, hence before any test module; the default would be another backend.
os.environ.setdefault("KERAS_BACKEND", "torch")
os.environ.setdefault("ACCELERATE_USE_CPU", "true")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


def pytest_collection_modifyitems(items):
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker(pytest.mark.frameworks)
