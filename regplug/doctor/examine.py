"""One's own loop under examination."""

from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as module_hooks

from regplug.backend import wrapped, wrappers
from regplug.doctor.findings import Finding
from regplug.doctor.groups import Group
from regplug.doctor.report import RunReport, as_json
from regplug.doctor.run import Run
from regplug.doctor.watch import Watch

__all__ = ["Examination", "examine"]


class Examination:
    """What :func:`examine` returns: on while it is entered, a report at any time.

    Weights, gradients, random numbers and the optimizer's state stay what they would have been.
    """

    def __init__(self, run: Run, model: nn.Module) -> None:
        self._run, self._model = run, model
        self._watch = Watch([run])
        self._hook: Any = None

    def __enter__(self) -> "Examination":
        self._watch.__enter__()
        # Not the model's own hook, which its copies and pickles would take along.
        self._hook = module_hooks.register_module_forward_pre_hook(self._called)
        return self

    def _called(self, module: nn.Module, arguments: Any) -> None:
        if module is self._model and not torch.compiler.is_compiling():
            self._watch.called(self._run, module)

    def __exit__(self, *error: object) -> None:
        self._watch.__exit__(*error)
        self._hook.remove()

    @property
    def report(self) -> RunReport:
        """What was seen so far."""
        return RunReport(self._run)

    @property
    def groups(self) -> list[Group]:
        """The parameters by how they are treated, the most weights first."""
        return self.report.groups

    @property
    def findings(self) -> list[Finding]:
        """The findings so far, worst first."""
        return self.report.findings

    @property
    def steps(self) -> int:
        """Real steps so far."""
        return self._run.steps

    def as_json(self) -> dict[str, Any]:
        """Return what ``regplug doctor --json`` writes of one run."""
        return as_json([self.report])

    def __str__(self) -> str:
        return str(self.report)


def examine(model: nn.Module, optimizer: object, steps: int = 20) -> Examination:
    """Examine what regularization really does in a loop of one's own.

    Args:
        model: the model that the loop trains, bare or wrapped.
        optimizer: its optimizer, or a wrapper of it.
        steps: at so many first steps it is looked, and then ever more rarely.

    Returns:
        An :class:`Examination`, to enter (``with``) around the loop and to print afterwards.

    Raises:
        SpecError: ``optimizer`` is no optimizer.
        UnsupportedError: it is one that can't be looked into.

    >>> import torch
    >>> model = nn.Linear(3, 1)
    >>> optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    >>> with examine(model, optimizer) as report:
    ...     for _ in range(2):
    ...         model(torch.ones(2, 3)).sum().backward()
    ...         optimizer.step()
    >>> [finding.code for finding in report.findings]
    ['decays-bias-or-norm']
    """
    inner = wrapped.unwrap(optimizer)
    *_, bare = wrappers.layers(model)
    return Examination(Run(bare, inner, steps), model)
