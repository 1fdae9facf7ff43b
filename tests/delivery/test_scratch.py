"""The memory that a delivery asks for at each step."""

import os
import platform
import subprocess
import sys

import pytest
import torch
from torch import nn

import regplug
from tests.delivery.written_out import LR, spec


def test_step_delivery_needs_no_scratch_of_the_models_size():
    """A temporary of the model's size costs page faults: many times the memory traffic."""
    model = nn.Linear(2048, 1024, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    model.weight.grad = torch.zeros_like(model.weight)
    for delivery in ("step", "proximal"):
        with (
            regplug.attach(model, optimizer, [spec("l1", delivery)]),
            torch.profiler.profile(profile_memory=True, acc_events=True) as profile,
        ):
            optimizer.step()
        largest = max(event.self_cpu_memory_usage for event in profile.events())
        assert largest <= 1 << 22, f"{delivery}: {largest} bytes of the model's {2 << 22}"


# Minor page faults of a few steps, once everything is warm, in a process that has freed nothing
# large before. A tensor of a mebibyte is 250 pages.
FAULTS = """
import resource, sys
import torch
import regplug

torch.set_num_threads(1)
model = torch.nn.ParameterList(torch.randn(500, 500) for _ in range(20))
optimizer = getattr(torch.optim, sys.argv[1])(model.parameters(), lr=1e-3)
for w in model:
    w.grad = torch.ones_like(w)
session = regplug.attach(model, optimizer, [sys.argv[2]])
one = torch.ones((), requires_grad=True)
counts = []
for _ in range(8):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    session.loss(one * 1.0).backward()
    optimizer.step()
    counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(min(counts[3:]))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="about glibc's allocator")
@pytest.mark.parametrize(
    ("optimizer", "plugin"),
    [
        ("SGD", "l1(1e-4, delivery='step')"),
        ("SGD", "elastic_net(1e-4, 1e-4, delivery='step')"),
        ("SGD", "l1(1e-4, delivery='loss')"),
        ("SGD", "l2_sp(1e-4, delivery='step')"),
    ],
)
def test_temporaries_of_a_block_cost_no_page_faults(optimizer, plugin):
    """Each one mapped anew makes a step five to twenty times as dear: 5,000 faults here."""
    done = subprocess.run(
        [sys.executable, "-c", FAULTS, optimizer, plugin],
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert int(done.stdout) < 500
