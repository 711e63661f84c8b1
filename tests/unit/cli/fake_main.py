"""The command line with a fake model, as a program of its own; tests run it on a terminal."""

from __future__ import annotations

import llavakit.cli.main as cli
from tests.unit.cli.fake_model import FakeModel, make_load

if __name__ == "__main__":
    run_command = cli.run_command
    load = make_load(FakeModel())
    cli.run_command = lambda arguments, **options: run_command(arguments, load=load, **options)
    cli.main()
