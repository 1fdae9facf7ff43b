"""What Dynamo did."""

from torch._dynamo.utils import counters


def graphs() -> int:
    return counters["stats"]["unique_graphs"]
