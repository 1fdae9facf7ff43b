"""Findings about dropout."""

from collections.abc import Iterator, Sequence

from regplug.doctor.findings import Finding, listed
from regplug.doctor.run import Run
from regplug.doctor.summary import Treated

__all__ = ["dropout_in_eval", "dropout_off", "dropout_without_effect"]


def dropout_off(run: Run, all_: Sequence[Treated]) -> Iterator[Finding]:
    """Dropout is off where the model trains."""
    drops = [d for d in run.dropouts.all if not d.without_effect]
    # Off throughout, or since an evaluation.
    modes = run.dropouts.modes
    since = modes[::-1].index(True) if True in modes else len(modes)
    off = [d for d in drops if d.training and max(d.training) == 0]
    if not off and since >= 2:
        off = [d for d in drops if max(d.training[-since:], default=0.0) == 0]
    if off and modes:
        whole = since >= min(2, len(modes))
        yield Finding(
            "dropout-off-in-training",
            "warning" if whole else "note",
            tuple(d.name for d in off),
            f"{listed([d.name for d in off])}: off in every step that was looked at, as "
            + (
                "the model is in evaluation mode while it trains: model.train() before the loop, "
                "and after each evaluation"
                if whole
                else "these modules are in evaluation mode while the model trains"
            ),
            {"rate": off[0].rate},
        )
    rates = run.dropouts.by_function_off - run.dropouts.by_function - {d.rate for d in drops}
    if modes and rates:
        rate = max(rates)
        yield Finding(
            "dropout-off-in-training",
            "note" if any(modes) else "warning",
            (),
            f"a function that could drop with p={rate:g} is told not to, where the model trains: "
            + (
                "F.dropout(x, p, training=self.training), if that is not meant"
                if any(modes)
                else "the model is in evaluation mode, so model.train() before the loop"
            ),
            {"rate": rate},
        )


def dropout_in_eval(run: Run, all_: Sequence[Treated]) -> Iterator[Finding]:
    """Dropout is on where nothing is trained."""
    on = [d for d in run.dropouts.all if d.evaluation and max(d.evaluation) > 0]
    if on and True in run.dropouts.evaluated and False not in run.dropouts.evaluated:
        told = f"{listed([d.name for d in on])}: on in forwards without gradients"
        way_out = "model.eval() before an evaluation, model.train() after it"
        yield _noisy(run, tuple(d.name for d in on), told, way_out, on[0].rate)
    elif run.dropouts.by_function_in_eval:
        rate = max(run.dropouts.by_function_in_eval)
        told = f"a function drops with p={rate:g} in forwards without gradients"
        way_out = (
            "F.dropout(x, p, training=self.training), as it is on unless it is told otherwise, and "
            "model.eval() before an evaluation"
        )
        yield _noisy(run, (), told, way_out, rate)


def _noisy(run: Run, names: tuple[str, ...], told: str, way_out: str, rate: float) -> Finding:
    # What another model learns from may well be made without gradients, and with dropout.
    return Finding(
        "dropout-in-eval",
        "warning" if run.alone and not run.dropouts.evaluated_always else "note",
        names,
        f"{told}, so that what is measured there is noisy and too low: {way_out}",
        {"rate": rate},
    )


def dropout_without_effect(run: Run, all_: Sequence[Treated]) -> Iterator[Finding]:
    """A rate that nothing is dropped by."""
    found = [d for d in run.dropouts.all if d.without_effect]
    if found:
        yield Finding(
            "dropout-without-effect",
            "warning",
            tuple(d.name for d in found),
            f"{listed([d.name for d in found])}: dropout={found[0].rate:g} acts between the layers "
            "of a recurrent network, and this one has a single layer: put an nn.Dropout after it",
            {"rate": found[0].rate},
        )
    if unused := run.dropouts.unused:
        yield Finding(
            "dropout-without-effect",
            "note",
            tuple(d.name for d in unused),
            f"{listed([d.name for d in unused])}: never called while the model trains, so that "
            "nothing is dropped by it: forward() has to call it",
            {"rate": unused[0].rate},
        )
