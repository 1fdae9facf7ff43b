"""The scripts are run by the tests, never imported."""

collect_ignore = ["scripts"]
