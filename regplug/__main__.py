"""``python -m regplug``."""

from regplug.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
