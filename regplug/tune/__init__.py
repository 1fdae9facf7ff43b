"""Choosing strengths: cross-validation, the one-standard-error rule, and pictures, for any loop.

Needs the extra ``regplug[tune]`` (scikit-learn, joblib, matplotlib, tqdm).

- :class:`StrengthCV`: a scikit-learn estimator around your own training loop.
- :class:`Recipe`: a loop written as data, of which all fits are trained at once.
- :class:`Auto`: the settings of an automatic grid.
"""

try:
    from regplug.tune.grid import Auto
    from regplug.tune.recipe import Recipe
    from regplug.tune.search import StrengthCV
except ModuleNotFoundError as error:
    missing = (error.name or "").partition(".")[0]
    if missing not in ("joblib", "sklearn", "tqdm"):
        raise
    raise ModuleNotFoundError(
        f"regplug.tune needs {missing}: pip install 'regplug[tune]'", name=missing
    ) from error

__all__ = ["Auto", "Recipe", "StrengthCV"]
