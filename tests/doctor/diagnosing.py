"""Training scripts run under examination, within this process."""

import gc
import textwrap

from regplug.command.doctor.examining import Examiner

START = """
import torch, torch.nn.functional as F
from torch import nn
torch.manual_seed(0)
x, y = torch.randn(64, 6), torch.randint(0, 3, (64,))

class Net(nn.Module):
    def __init__(self, drop=0.0):
        super().__init__()
        self.inner = nn.Linear(6, 8)
        self.norm = nn.LayerNorm(8)
        self.dropout = nn.Dropout(drop)
        self.outer = nn.Linear(8, 3)
    def forward(self, x):
        return self.outer(self.dropout(F.relu(self.norm(self.inner(x)))))

def weights(model):
    return [p for p in model.parameters() if p.ndim > 1]

def split(model, wd):
    return [
        {"params": weights(model), "weight_decay": wd},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
"""

LOOP = """
def train(model, optimizer, penalty=lambda: 0.0, steps=8):
    for _ in range(steps):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y) + penalty()
        loss.backward()
        optimizer.step()
"""


def diagnosed(text, steps=20, scope=None):
    """Return what is reported of each run of a script; ``scope`` is left with its variables."""
    scope = {} if scope is None else scope
    scope["__name__"] = "__main__"
    gc.freeze()  # nothing of other tests is to be found, nor to be searched
    with Examiner(steps) as examiner:
        exec(compile(START + LOOP + textwrap.dedent(text), "<script>", "exec"), scope)
    reports = examiner.reports()
    assert [trouble for report in reports for trouble in report.unseen] == []
    return reports


def codes(reports, *severities):
    """Return the codes of all findings, of these severities if any are named."""
    return {
        finding.code
        for report in reports
        for finding in report.findings
        if not severities or finding.severity in severities
    }


def undiagnosed(text):
    """Return the variables that a script ends with by itself."""
    scope = {"__name__": "__main__"}
    exec(compile(START + LOOP + textwrap.dedent(text), "<script>", "exec"), scope)
    return scope
