"""Devices that no machine of the tests has: one without float64, and a default that is another."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from torch.utils import backend_registration

NO_OTHER = not hasattr(backend_registration, "_setup_privateuseone_for_python_backend")


def told(how):
    """Run in a process of its own, which alone has the device, or the default."""
    done = subprocess.run(
        [sys.executable, "-W", "error", Path(__file__).with_name("devices.py"), how],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def expected():
    return told("cpu")


@pytest.mark.skipif(NO_OTHER, reason="this torch takes no device that is written in Python")
@pytest.mark.parametrize("how", ["narrow", "narrow first", "narrow second"])
def test_a_device_without_float64_is_served_and_says_the_same(how, expected):
    found = told(how)
    devices = {
        "narrow": ["nodouble"] * 4,
        "narrow first": ["nodouble", "nodouble", "cpu", "cpu"],
        "narrow second": ["cpu", "cpu", "nodouble", "nodouble"],
    }
    assert found["devices"] == devices[how]
    for row, wanted in zip(found["rows"], expected["rows"], strict=True):
        assert row == pytest.approx(wanted, rel=1e-6)
    for layer, wanted in zip(found["norms"], expected["norms"], strict=True):
        assert layer == pytest.approx(wanted, rel=1e-6)
    assert found["limit"] == pytest.approx(expected["limit"], rel=1e-6)
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-6)
    for when in ("before", "after"):
        assert sum(found[when]) == sum(expected[when]) == 16
        moved = sum(abs(a - b) for a, b in zip(found[when], expected[when], strict=True))
        assert moved <= 2  # a weight at the edge of its bin


def test_another_default_device_changes_nothing(expected):
    assert told("meta") == expected
