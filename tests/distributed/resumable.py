"""A run that goes on from its last checkpoint, to be killed at any moment. Run by test_resume.py.

python resumable.py FOLDER STEPS
"""

import json
import sys
import warnings
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn

import regplug
from tests.helpers.penalties import Remembers

PLUGINS = [
    "l1(linear(0, 0.05, steps=20), delivery='proximal')",
    "l2(0.01)",
    "weight_decay(cosine(0.2, 0, steps=20))",
    "dropout(linear(0.5, 0.1, steps=20))",
]


def last(folder: Path) -> Path | None:
    """Return the last checkpoint that is complete: it has got its name only then."""
    found = sorted(folder.glob("step-*"), key=lambda path: int(path.name.partition("-")[2]))
    return found[-1] if found else None


def main(folder: Path, steps: int) -> None:
    accelerator = Accelerator(cpu=True)
    torch.manual_seed(accelerator.process_index)  # dropout differs from rank to rank
    model = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.3), nn.Tanh(), nn.Linear(8, 1))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.linspace(-1, 1, parameter.numel()).view_as(parameter))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    model, optimizer = accelerator.prepare(model, optimizer)
    plugins = [*PLUGINS, Remembers()]
    session = regplug.attach(model, optimizer, plugins, accelerator=accelerator)
    if (checkpoint := last(folder)) is not None:
        accelerator.load_state(str(checkpoint))
    while session.steps < steps:
        generator = torch.Generator().manual_seed(10 * session.steps + accelerator.process_index)
        x = torch.randn(4, 6, generator=generator)
        accelerator.backward((model(x).squeeze(-1) - x[:, 0]).square().mean())
        optimizer.step()
        optimizer.zero_grad()
        if session.steps % 2 == 0:
            unfinished = folder / f"unfinished-{session.steps}"
            accelerator.save_state(str(unfinished))
            accelerator.wait_for_everyone()
            if accelerator.is_main_process:
                unfinished.replace(folder / f"step-{session.steps}")
            accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            (folder / "progress").write_text(str(session.steps))
    if accelerator.is_main_process:
        metrics = session.metrics()
        weights = {name: p.tolist() for name, p in session.model.named_parameters()}
        remembered = {name: w.tolist() for name, w in plugins[-1]._sums.items()}
        (folder / "result.json").write_text(json.dumps([weights, remembered, metrics]))


def on_rank(rank: int, folder: str, steps: int) -> None:
    """The same run in processes that stand already."""
    main(Path(folder), steps)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main(Path(sys.argv[1]), int(sys.argv[2]))
