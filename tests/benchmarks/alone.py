"""Figures that want a process of their own: ``python alone.py memory|import|fsdp2``.

``fsdp2`` is run under ``torchrun``. Each prints one JSON object.
"""

import json
import sys
import time
from pathlib import Path


def memory(weights: int) -> dict[str, float]:
    """Return the MiB by which step events raise the peak of a process with so many weights."""
    import torch
    from passes import Weights

    import regplug

    torch.set_num_threads(1)
    model = Weights(weights // 1_000_000, 1_000_000)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-9)
    optimizer.step()

    result = {}
    for spec in ("l1(1e-4)", "elastic_net(1e-4, 1e-4)", "l1(1e-4, delivery='proximal')"):
        before = _reset_peak()
        with regplug.attach(model, optimizer, [spec]):
            for _ in range(3):
                optimizer.step()
        result[spec] = _mebibytes("VmHWM") - before
    return result


def _reset_peak() -> float:
    """Make the kernel forget the peak so far, and return what is in use now."""
    Path("/proc/self/clear_refs").write_text("5")
    return _mebibytes("VmRSS")


def _mebibytes(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))


def import_time() -> dict[str, float]:
    """Return the milliseconds that ``import regplug`` takes after ``import torch``, and to attach.

    Names are imported when they are first asked for, so that the second figure is what a loop pays.
    """
    import torch  # noqa: F401

    start = time.perf_counter()
    import regplug

    taken = (time.perf_counter() - start) * 1e3
    unwanted = [m for m in sys.modules if m.split(".")[0] in ("accelerate", "regplug_builtins")]
    if unwanted:
        raise SystemExit(f"import regplug imports {unwanted}")
    start = time.perf_counter()
    _ = regplug.attach
    return {"ms": taken, "attach": taken + (time.perf_counter() - start) * 1e3}


def fsdp2(rounds: int) -> dict[str, object]:
    """Return each rank's cost of ``l1`` relative to a pass over its own shards, and collectives."""
    import torch
    import torch.distributed as dist
    from passes import Weights
    from timing import in_turn
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor.debug import CommDebugMode

    import regplug

    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    model = Weights(24, 1_000_000)
    for w in model.all:
        w.grad = None
    fully_shard(model)
    for w in model.parameters():
        w.grad = torch.randn_like(w)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-9)
    session = regplug.attach(model, optimizer, ["l1(1e-4)"])
    rows = [(w.to_local().detach(), w.grad.to_local()) for w in model.parameters()]

    def bare() -> None:
        for w, g in rows:
            g.add_(w, alpha=1e-4)

    @torch.no_grad()
    def events() -> None:
        session.gradients_ready()
        session.before_update()
        session.after_update()

    _, own = in_turn({"bare": bare, "l1": events}, rounds=rounds)
    with CommDebugMode() as counted:
        optimizer.step()
    result = {
        "ranks": dist.get_world_size(),
        "passes": own.median,
        "ms": own.seconds * 1e3,
        "collectives": counted.get_total_counts(),
    }
    first = dist.get_rank() == 0
    dist.destroy_process_group()
    return result if first else {}


if __name__ == "__main__":
    what, *rest = sys.argv[1:]
    run = {"memory": memory, "import": import_time, "fsdp2": fsdp2}[what]
    found = run(*map(int, rest))
    if found:
        print(json.dumps(found))
