"""Each test is of a process in which nothing was compiled yet, whatever tests came before."""

import sys

import pytest


@pytest.fixture(autouse=True)
def forget_compilations():
    if "torch._dynamo.utils" in sys.modules:
        sys.modules["torch._dynamo.utils"].counters.clear()
