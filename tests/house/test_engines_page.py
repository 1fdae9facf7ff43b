"""docs/engines.md names tests that are there, and a reason for each refusal."""

import re

from tests.house.pages import ROOT, page, rows

PAGE = page("engines.md")


def test_the_tests_that_it_names_are_there():
    named = re.findall(r"`((?:distributed|engines)/test_\w+\.py)`", PAGE.text)
    assert len(named) > 12
    assert [name for name in named if not (ROOT / "tests" / name).is_file()] == []


def test_each_refusal_has_a_reason_a_way_out_and_a_test():
    refused = rows(PAGE.section("What is refused, and why"))
    assert len(refused) >= 6
    assert any("FSDP1" in row[0] for row in refused)
    for engine, measured, instead, test in refused:
        assert measured, engine
        assert instead, engine
        assert (ROOT / "tests" / test.strip("`")).is_file(), engine


def test_each_engine_that_works_says_how_it_was_tested():
    for engine, works, tested, communication in rows(PAGE.section("What works")):
        assert works, engine
        assert communication, engine
        assert "rank" in tested or tested == "not run", engine
