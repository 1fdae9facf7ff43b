"""A plugin sits the exam in a copy of a process that has threads of its own."""

import os
import subprocess
import sys

from tests.house.pages import ROOT

SCRIPT = """
import torch
from regplug.testing import check_plugin

if __name__ == "__main__":
    torch.set_num_threads(2)
    for _ in range(3):  # OpenMP starts its threads
        w = torch.randn(2000, 500, requires_grad=True)
        torch.nn.functional.layer_norm(w, (500,)).sum().backward()
    print(check_plugin("l1(1e-3)", checks=["surroundings"]).passed)
"""


def test_threads_of_the_examiner_don_t_hang_the_exam(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT, encoding="utf-8")
    environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    done = subprocess.run(
        [sys.executable, tmp_path / "script.py"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout.strip().endswith("True"), done.stdout + done.stderr
