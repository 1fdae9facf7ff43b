"""Each diagnosis is of a program that has compiled nothing yet, whatever other tests did."""

import sys

import pytest


@pytest.fixture(autouse=True)
def nothing_compiled():
    if (dynamo := sys.modules.get("torch._dynamo.utils")) is not None:
        dynamo.counters.clear()
