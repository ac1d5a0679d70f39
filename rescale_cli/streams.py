"""The three standard streams, which a caller may have closed."""

from __future__ import annotations

import os


def open_missing() -> None:
    """Connect every standard stream that is closed to the null device.

    Otherwise the next files that are opened get the numbers 0 to 2, and what a library prints
    would be written into them; some libraries stop without a stdin.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # The system gives the lowest number that is free, which is this one.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
