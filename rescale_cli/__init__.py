"""Repair trained classifiers that ignore their rare classes, without retraining.

`apply` and `inspect` work on checkpoint files and import no torch; `rescale_` works on a live
module. Everything is imported on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "apply": "api",
    "inspect": "api",
    "verify": "patching.proof",
    "revert": "patching.revert",
    "rescale_": "patching.module",
    "RescaleError": "errors",
}

__all__ = ["RescaleError", "__version__", "apply", "inspect", "rescale_", "revert", "verify"]

if TYPE_CHECKING:
    from rescale_cli.api import apply, inspect
    from rescale_cli.errors import RescaleError
    from rescale_cli.patching.module import rescale_
    from rescale_cli.patching.proof import verify
    from rescale_cli.patching.revert import revert


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
