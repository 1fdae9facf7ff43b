"""Pictures and tables of a run: what the plugins did to the weights over the steps.

>>> import regplug, torch
>>> from regplug.report import Recorder
>>> model = torch.nn.Linear(4, 2)
>>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
>>> session = regplug.attach(model, optimizer, ["l1(1e-3)"])
>>> recorder = Recorder(session, every=2)
>>> for _ in range(4):
...     loss = model(torch.ones(1, 4)).sum()
...     loss.backward()
...     recorder.note(loss=loss)          # if the data's own loss is to be in the picture
...     optimizer.step()
>>> [int(row["step"]) for row in recorder.rows]
[0, 2, 4]

``recorder.write("folder")`` then writes ``<session>.csv``, ``<session>.layers.csv``,
``<session>.json`` and, where matplotlib is installed, ``<session>.png``.
"""

from regplug.report.measures import Histogram, LayerRow
from regplug.report.recorder import Recorder

__all__ = ["Histogram", "LayerRow", "Recorder"]
