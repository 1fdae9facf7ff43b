"""``python -m regplug``."""

from regplug.command.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
