"""docs/kernels.md is true: its code runs, and it lists what there is."""

import re
from pathlib import Path

from regplug.kernels.choice import KERNELS
from regplug.kernels.operations import OPERATIONS

PAGE = (Path(__file__).parents[2] / "docs" / "kernels.md").read_text(encoding="utf-8")


def test_its_code_runs(capsys):
    (block,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    exec(compile(block, "docs/kernels.md", "exec"), {"__name__": "page"})
    assert "log_sum" in capsys.readouterr().out


def test_it_names_each_choice_and_operations_that_are_recorded():
    for name in KERNELS:
        assert f'"{name}"' in PAGE
    recorded = PAGE.partition("## What is recorded")[2].partition("these. The numbers")[0]
    named = set(re.findall(r"`(\w+)`", recorded))
    assert len(named) >= 10
    assert named <= set(OPERATIONS)
