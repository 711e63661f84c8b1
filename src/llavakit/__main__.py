"""``python -m llavakit`` is the ``llavakit`` command."""

from __future__ import annotations

from llavakit.cli.main import main

if __name__ == "__main__":
    main()
