"""No step of a built-in plugin has the host wait for the device."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from torch.utils import backend_registration

NO_OTHER = not hasattr(backend_registration, "_setup_privateuseone_for_python_backend")


@pytest.mark.skipif(NO_OTHER, reason="this torch takes no device that is written in Python")
def test_no_operation_of_a_step_waits_for_a_device_that_is_not_the_host() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", Path(__file__).with_name("waiting.py")],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert len(told) > 100
    assert {who: what for who, what in told.items() if what} == {}
