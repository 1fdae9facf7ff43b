"""Where the exam's own ranks can't start, that is said, and no plugin is blamed."""

import subprocess
import sys

import pytest

SCRIPT = """
from regplug.testing import check_plugin

report = check_plugin("l1(1e-3)", checks=["collective", "ddp", "fsdp2"])
print(report)
print(sorted(report.failed_checks()))
"""


@pytest.mark.slow
def test_a_script_without_a_guard_is_told_of_it(tmp_path):
    script = tmp_path / "examine.py"
    script.write_text(SCRIPT, encoding="utf-8")
    command = [sys.executable, script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    *report, failed = done.stdout.splitlines()
    assert failed == "['collective']"
    assert "did not start, which is no fault of the plugin's" in report[0]
    assert '`if __name__ == "__main__":`' in report[0]
