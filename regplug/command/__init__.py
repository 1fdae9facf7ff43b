"""The ``regplug`` command."""
