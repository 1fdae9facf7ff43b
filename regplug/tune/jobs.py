"""Tasks of a search, here or in joblib's workers (processes, or a Dask or Ray cluster)."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import joblib
from joblib.parallel import get_active_backend

from regplug.tune.fits import Outcome

__all__ = ["Task", "run", "workers"]

Task: TypeAlias = tuple[Callable[..., list[Outcome]], tuple[Any, ...]]


def workers(n_jobs: int | None) -> int:
    """Return how many processes will work.

    One, if joblib's backend is threads: fits are seeded, and threads share their generators. Inside
    another search's worker joblib would use threads as well.
    """
    backend, _ = get_active_backend()
    threads = getattr(backend, "supports_sharedmem", False)
    return 1 if threads else int(joblib.effective_n_jobs(n_jobs))


def run(tasks: Sequence[Task], n_jobs: int | None) -> Iterator[list[Outcome]]:
    """Yield what each task returns, as soon as it is there, in any order.

    A task that raises ends the others, and so does closing the iterator.
    """
    if workers(n_jobs) == 1:
        for call, arguments in tasks:
            yield call(*arguments)
        return
    backend, _ = get_active_backend()
    streams = getattr(backend, "supports_return_generator", False)
    parallel = joblib.Parallel(
        n_jobs=n_jobs, return_as="generator_unordered" if streams else "list"
    )
    found = parallel(joblib.delayed(call)(*arguments) for call, arguments in tasks)
    try:
        yield from found
    finally:
        if streams:
            found.close()
