"""What the regularization of a run really does, read from the running program.

>>> import regplug, torch
>>> model = torch.nn.Linear(4, 2)
>>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.02)
>>> with regplug.doctor.examine(model, optimizer) as report:
...     for _ in range(3):
...         loss = model(torch.ones(3, 4)).square().mean() + 1e-3 * model.weight.abs().sum()
...         optimizer.zero_grad()
...         loss.backward()
...         optimizer.step()
>>> [(p.kind, round(p.strength, 9)) for p in report.groups[0].penalties]
[('l1', 0.001)]
>>> report.groups[0].decay.convention, round(report.groups[0].decay.strength, 9)
('coupled', 0.02)
"""

from regplug.doctor.examine import Examination, examine
from regplug.doctor.findings import Finding
from regplug.doctor.groups import Decay, Group, Penalty

__all__ = ["Decay", "Examination", "Finding", "Group", "Penalty", "examine"]
