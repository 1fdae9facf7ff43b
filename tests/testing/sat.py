"""An exam without a process of its own: quick, for plugins that neither hang nor end it."""

from regplug.testing.bench import Bench
from regplug.testing.candidate import Answer, answers, attachable, own_settings
from regplug.testing.registry import registered
from regplug.testing.report import NOT_JUDGED, Report, Result
from regplug.testing.subject import Subject
from regplug.testing.surroundings import Surroundings


def sat(plugin, checks):
    """Return the report of some checks; one whose precondition failed is not judged."""
    subject, results, failed = Subject(plugin, Bench()), [], set()
    around = Surroundings()
    try:
        with own_settings():
            attachable(subject)
            for check in registered():
                if check.id not in checks:
                    continue
                found = [Answer("–", NOT_JUDGED)]
                if failed.isdisjoint(check.after):
                    found = [a for a in answers(subject, check) if isinstance(a, Answer)]
                if any(a.outcome in ("failed", NOT_JUDGED) for a in found):
                    failed.add(check.id)
                results += [Result(subject.title, check.id, *vars(a).values()) for a in found]
    finally:
        around.put_back()
    return Report(subject.title, results, 0.0)
