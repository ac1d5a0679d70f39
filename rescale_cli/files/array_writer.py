"""Arrays and texts as a new file, .npz or .safetensors by its suffix: there whole or not at all."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from rescale_cli.errors import EnvironmentProblem, OutputExists, UsageError
from rescale_cli.files.big_array import row_blocks
from rescale_cli.files.staging import Staging, refuse_existing, system_errors

Arrays = Mapping[str, NDArray[Any]]
#: A text, or one a row.
Texts = Mapping[str, str | Sequence[str] | None]


def write_arrays(
    path: Path, arrays: Arrays, texts: Texts, *, option: str, force: bool = False
) -> None:
    """Write arrays, and texts beside them.

    In .npz a text is an array of one text, and texts are an array of them. In .safetensors they are
    metadata: a text as it is, texts as a JSON list.

    Args:
        path: of the new file.
        arrays: floats or integers; of any size, as they are written a block at a time.
        texts: None for what is not known.
        option: which option names the file, for errors.
        force: whether a file that is there may be replaced.

    Raises:
        UsageError: another suffix.
        OutputExists: the name is taken, and `force` was not given.
        EnvironmentProblem: the system refused something.
    """
    writers = {".npz": _write_npz, ".safetensors": _write_safetensors}
    if path.suffix not in writers:
        what = f"the name {path.name} ends in neither .npz nor .safetensors"
        raise UsageError(what, fix=f"{option} {path.with_suffix('.npz').name}")
    clean = {name: _clean(text) for name, text in texts.items() if text is not None}
    try:
        with system_errors(f"writing {path}"):
            refuse_existing(path, replace=force)
            with Staging(path.parent, replace=force) as staging:
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
                with os.fdopen(os.open(staging.aside(path), flags, 0o666), "wb") as file:
                    writers[path.suffix](file, arrays, clean)
                    file.flush()
                    os.fsync(file.fileno())
                staging.commit()
    except (OutputExists, EnvironmentProblem) as error:
        error.fix = error.fix.replace("--output", option)
        raise


def _clean(text: str | Sequence[str]) -> str | list[str]:
    """A name of a file that is not UTF-8 has half characters, which no format takes."""
    if isinstance(text, str):
        return text.encode("utf-8", "backslashreplace").decode()
    return [one.encode("utf-8", "backslashreplace").decode() for one in text]


def _write_npz(file: IO[bytes], arrays: Arrays, texts: Mapping[str, str | list[str]]) -> None:
    more = {
        name: np.array([text] if isinstance(text, str) else text, dtype=np.str_)
        for name, text in texts.items()
    }
    np.savez(file, **arrays, **more)  # type: ignore[arg-type]


def _write_safetensors(
    file: IO[bytes], arrays: Arrays, texts: Mapping[str, str | list[str]]
) -> None:
    said = {name: t if isinstance(t, str) else json.dumps(t) for name, t in texts.items()}
    header: dict[str, Any] = {"__metadata__": {"format": "np", **said}}
    # Large elements first: then each array begins at a multiple of its element's size.
    ordered = dict(sorted(arrays.items(), key=lambda entry: -entry[1].dtype.itemsize))
    at = 0
    for name, array in ordered.items():
        dtype = f"{array.dtype.kind.upper()}{8 * array.dtype.itemsize}"
        offsets = [at, at + array.nbytes]
        header[name] = {"dtype": dtype, "shape": array.shape, "data_offsets": offsets}
        at += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the data can be mapped
    file.write(struct.pack("<Q", len(text)) + text)
    for array in ordered.values():
        for rows in row_blocks(array):
            file.write(np.ascontiguousarray(array[rows], array.dtype.newbyteorder("<")).data)
