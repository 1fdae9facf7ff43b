"""Reproduce findings of papers, two at a time, each by a script of its own in this folder.

    python examples/papers/run.py [grokking decoupling early_dropout] [--quick] [--out FOLDER]

With ``--page PAGE`` what they find is put into that page, and their pictures beside it.
"""

import argparse
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).parent
PAPERS = ("grokking", "decoupling", "early_dropout")
GENERATED = HERE.parents[1] / "tests" / "helpers" / "generated.py"


def reproduce(paper: str, options: list[str]) -> str:
    """Run one script to its end and return what it tells.

    Raises:
        CalledProcessError: it failed.
    """
    command = [sys.executable, str(HERE / f"{paper}.py"), *options]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("papers", nargs="*", metavar="PAPER", help=f"of {', '.join(PAPERS)}")
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that they run")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder to write into")
    parser.add_argument("--page", type=Path, help="a page to put it into, and into its folder")
    options = parser.parse_args()
    papers = options.papers or list(PAPERS)
    if unknown := set(papers) - set(PAPERS):
        parser.error(f"no such paper: {', '.join(sorted(unknown))}; there is {', '.join(PAPERS)}")
    passed = ["--out", str(options.out), *(["--quick"] if options.quick else [])]
    with ThreadPoolExecutor(2) as two:
        for paper, told in zip(
            papers, two.map(lambda p: reproduce(p, passed), papers), strict=True
        ):
            print(f"{paper}\n\n{told}")
            if options.page:
                shutil.copy(options.out / f"papers_{paper}.png", options.page.parent)
                found = str(options.out / f"papers_{paper}.md")
                command = f"make papers PAPERS={paper}"
                subprocess.run(
                    [sys.executable, str(GENERATED), str(options.page), command, found], check=True
                )


if __name__ == "__main__":
    main()
