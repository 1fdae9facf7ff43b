"""What tests of all folders share."""

from collections.abc import Iterator

import pytest
from pair import Pair

# Whole scripts, which tests run in processes of their own: an import would train, and write files.
collect_ignore_glob = ["run/scripts/*"]


@pytest.fixture(scope="session")
def pair() -> Iterator[Pair]:
    """Two processes in one gloo group; ``pair.run(function, *args)`` calls it on both."""
    workers = Pair()
    yield workers
    workers.stop()
