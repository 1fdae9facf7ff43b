"""What tests of all folders share."""

from collections.abc import Iterator

import pytest
from pair import Pair


@pytest.fixture(scope="session")
def pair() -> Iterator[Pair]:
    """Two processes in one gloo group; ``pair.run(function, *args)`` calls it on both."""
    workers = Pair()
    yield workers
    workers.stop()
