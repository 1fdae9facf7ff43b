"""What is installed is read once, and anew as soon as it is something else."""

import importlib.metadata
import shutil
import sys
import time

import pytest
import torch

import regplug
from regplug.discovery import catalog
from regplug.errors import PluginNotFoundError
from regplug.installed import offers

PLAIN = "import regplug\nclass Plain(regplug.Plugin): pass\n"


@pytest.fixture
def settled():
    """Folders that a test changed are old by then, as those of a real environment are."""

    def settle():
        time.sleep(0.15)
        offers()

    return settle


def parsed(monkeypatch):
    """Count how often a metadata file is parsed, whoever asks."""
    times = []
    plain = importlib.metadata.Distribution.metadata.fget

    def counted(self):
        times.append(self)
        return plain(self)

    monkeypatch.setattr(importlib.metadata.Distribution, "metadata", property(counted))
    return times


def test_no_metadata_is_parsed_for_a_second_spec(monkeypatch):
    model = torch.nn.Linear(2, 2)
    regplug.attach(model, plugins=["l1(1e-4)"]).detach()
    times = parsed(monkeypatch)
    for _ in range(3):
        session = regplug.attach(model, plugins=["l1(1e-4)", "l2(1e-4)"])
        session.describe()
        session.detach()
    assert times == []


def test_what_is_installed_is_parsed_once_for_each_distribution(install, monkeypatch):
    install("acme-many", [(f"many_{n}", "acme_many:Plain") for n in range(9)], acme_many=PLAIN)
    times = parsed(monkeypatch)
    catalog.load("many_3()")
    assert 1 <= len(times) <= len({offer.distribution for offer in offers()})


def test_a_spec_costs_at_most_three_milliseconds_more_than_an_instance():
    from regplug_builtins import L1

    model = torch.nn.Linear(2, 2)

    def best(make):
        taken = []
        for _ in range(30):
            started = time.perf_counter()
            session = regplug.attach(model, plugins=[make()])
            taken.append(time.perf_counter() - started)
            session.detach()
        return min(taken)

    assert best(lambda: "l1(1e-4)") - best(lambda: L1(1e-4)) < 3e-3


def test_a_plugin_that_is_installed_meanwhile_is_found(install, settled):
    site = install("acme-first", [("first", "acme_first:Plain")], acme_first=PLAIN)
    settled()
    assert catalog.load("first()").name == "first"
    # As pip does it in a notebook: another distribution, into a folder that was there before.
    other = install("acme-second", [("second", "acme_second:Plain")], acme_second=PLAIN)
    sys.path.remove(str(other))
    with pytest.raises(PluginNotFoundError):
        catalog.load("second()")
    settled()
    for path in other.iterdir():
        shutil.move(path, site / path.name)
    assert {"first", "second"} <= set(catalog.names())
    assert catalog.load("second()").source == "acme-second 1.0"


def test_a_plugin_that_is_uninstalled_meanwhile_is_gone(install, settled):
    site = install("acme-first", [("first", "acme_first:Plain")], acme_first=PLAIN)
    settled()
    assert "first" in catalog.names()
    shutil.rmtree(site / "acme_first-1.0.dist-info")
    assert "first" not in catalog.names()
    with pytest.raises(PluginNotFoundError):
        catalog.load("first()")


def test_a_distribution_that_is_upgraded_meanwhile_has_its_new_version(install, settled):
    site = install("acme-first", [("first", "acme_first:Plain")], acme_first=PLAIN)
    settled()
    assert catalog.find("first").source == "acme-first 1.0"
    newer = site / "acme_first-2.0.dist-info"
    (site / "acme_first-1.0.dist-info").rename(newer)
    metadata = (newer / "METADATA").read_text().replace("1.0", "2.0")
    (newer / "METADATA").write_text(metadata)
    assert catalog.find("first").source == "acme-first 2.0"
    assert catalog.load("first()").source == "acme-first 2.0"


def test_an_entry_point_that_is_added_or_moved_in_place_is_found(install, settled):
    """An editable install that is made again may leave every folder as it was."""
    site = install(
        "acme-first",
        [("first", "acme_gone:Plain")],
        acme_first=PLAIN,
    )
    settled()
    assert catalog.find("first").value == "acme_gone:Plain"
    with (site / "acme_first-1.0.dist-info" / "entry_points.txt").open("w") as file:
        file.write("[regplug]\nfirst = acme_first:Plain\nlater = acme_first:Plain\n")
    assert catalog.find("first").value == "acme_gone:Plain"  # nothing shows
    assert catalog.load("first()").source == "acme-first 1.0"
    assert catalog.load("later()").source == "acme-first 1.0"


def test_files_that_a_script_writes_beside_itself_read_nothing_anew(install, settled, monkeypatch):
    site = install("acme-first", [("first", "acme_first:Plain")], acme_first=PLAIN)
    settled()
    catalog.load("first()")
    times = parsed(monkeypatch)
    for number in range(3):
        (site / f"log-{number}.txt").write_text("a line")
        catalog.load("first()")
    assert times == []


def test_a_path_that_is_none_disturbs_nobody(monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path, "/no/such/place", "", __file__])
    assert catalog.load("l1(1)").strength == 1
