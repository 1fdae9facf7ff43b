"""How the site is built: `make docs` does it, strictly and without a network.

Sphinx and not MkDocs: docstrings are written in reStructuredText with its roles and doctests, as
torch's are, and Sphinx resolves each of them or fails.
"""

import importlib.metadata
import re
from pathlib import Path
from typing import Any

import regplug

project = "regplug"
author = "The regplug developers"
copyright = author  # noqa: A001 - Sphinx's name
version = release = regplug.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
# A table that the demo writes; the page about the demo shows it.
exclude_patterns = ["demo.md"]
suppress_warnings = ["myst.header"]
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_default_options = {"members": True, "show-inheritance": True}
# Their packages are those of the extra `frameworks`, which the site is built without.
autodoc_mock_imports = ["keras", "lightning", "skorch", "transformers"]
napoleon_google_docstring = True
napoleon_use_ivar = True
python_use_unqualified_type_names = True

# Every reference must lead somewhere (`-n`), but for types of other packages, whose manuals are not
# at hand without a network, and for bases and helpers that nobody imports by name.
nitpick_ignore_regex = [
    (
        r"py:.*",
        r"(torch|collections|os|pathlib|pluggy|transformers|lightning|skorch|sklearn|hypothesis)\..*",
    ),
    (r"py:.*", r"regplug(_builtins)?\.(\w+\.)*_\w+(\.\w+)*"),
    (r"py:class", r"regplug\.(bases|doctor|backend|selection|session|strengths|tune)\..*"),
    (r"py:class", r"regplug\.kernels\..*|RowEngine|Accelerator"),
]

html_theme = "furo"
html_title = "regplug"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
html_search_scorer = str(Path(__file__).with_name("static") / "scorer.js")
copybutton_exclude = ".linenos, .gp"


SOURCE = next(
    url.partition(", ")[2]
    for url in importlib.metadata.metadata("regplug").get_all("Project-URL") or ()
    if url.startswith("Source,")
)


def _out(app: Any, name: str, source: list[str]) -> None:
    """Let links that leave the folder, which work where the repository is read, lead there."""
    out = "../" * (name.count("/") + 1)
    source[0] = source[0].replace(f"]({out}", f"]({SOURCE}/blob/main/")


def _skip(app: Any, what: str, name: str, member: Any, skip: bool, options: Any) -> bool | None:
    """Leave out what scikit-learn adds to each estimator, whose texts refer to its own manual."""
    return True if re.fullmatch(r"set_\w+_request", name) else None


def _bars(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Let |w| be what it is in a formula, and no substitution of reStructuredText."""
    for i, line in enumerate(lines):
        if ">>>" not in line:
            lines[i] = re.sub(r"(?<![`\\|])\|(?=[^|`]+\|)", r"\|", line)


def setup(app: Any) -> None:
    """Add what the configuration's names can't say."""
    app.connect("source-read", _out)
    app.connect("autodoc-process-docstring", _bars)
    app.connect("autodoc-skip-member", _skip)
