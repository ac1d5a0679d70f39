"""`python -m rescale_cli`, and what the installed command calls."""

from __future__ import annotations

import sys

from rescale_cli.signals import hold_back
from rescale_cli.streams import open_missing


def run() -> None:
    """Run the command line of this process."""
    hold_back()
    open_missing()
    from rescale_cli.files.hashing import begin_hashing

    begin_hashing(sys.argv[1:])
    from rescale_cli.cli import main

    sys.exit(main())


if __name__ == "__main__":
    run()
