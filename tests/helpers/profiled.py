"""What is launched on a GPU, as torch's profiler sees it."""

from collections import Counter
from collections.abc import Callable

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile


def on_the_device(run: Callable[[], object]) -> Counter[str]:
    """Return how often each kernel and each copy ran on the GPU while ``run`` was called."""
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        run()
        torch.cuda.synchronize()
    return Counter(
        event.name
        for event in seen.events()
        # What a program names itself, such as an optimizer's step, is shown there as well.
        if event.device_type == DeviceType.CUDA and not event.is_user_annotation
    )


def launches(run: Callable[[], object]) -> int:
    """Return how many kernels ``run`` launches; copies and fillings are not counted."""
    found = on_the_device(run)
    return sum(n for name, n in found.items() if not name.startswith(("Memcpy", "Memset")))
