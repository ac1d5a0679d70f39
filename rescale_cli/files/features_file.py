"""The inputs of the head in a file, .npz or safetensors, with labels and names."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from rescale_cli.core.predictions import Predictions
from rescale_cli.errors import EnvironmentProblem, OutputExists
from rescale_cli.files.big_array import row_blocks
from rescale_cli.files.staging import Staging, refuse_existing, system_errors


def write_features(path: Path, predictions: Predictions, *, force: bool = False) -> None:
    """Write features (N, D) float32, labels (N,) int64 and names (N,), by suffix; all or nothing.

    In a .safetensors file the names are JSON in the metadata, as in files of logits.

    Raises:
        OutputExists: the name is taken, and `force` was not given.
        EnvironmentProblem: the system refused something.
    """
    assert predictions.features is not None
    # The labels first: then each array begins at a multiple of its element's size.
    arrays: dict[str, NDArray[Any]] = {}
    if predictions.labels is not None:
        arrays["labels"] = predictions.labels
    arrays["features"] = predictions.features
    names = predictions.names
    # A name that is not UTF-8 has half characters, which no format takes.
    clean = None if names is None else [
        name.encode("utf-8", "backslashreplace").decode() for name in names
    ]  # fmt: skip
    write = _write_npz if path.suffix == ".npz" else _write_safetensors
    try:
        with system_errors(f"writing {path}"):
            refuse_existing(path, replace=force)
            with Staging(path.parent, replace=force) as staging:
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
                with os.fdopen(os.open(staging.aside(path), flags, 0o666), "wb") as file:
                    write(file, arrays, clean)
                    file.flush()
                    os.fsync(file.fileno())
                staging.commit()
    except (OutputExists, EnvironmentProblem) as error:
        error.fix = error.fix.replace("--output", "--save-features")
        raise


def _write_npz(
    file: IO[bytes], arrays: Mapping[str, NDArray[Any]], names: Sequence[str] | None
) -> None:
    more = {} if names is None else {"names": np.array(names, dtype=np.str_)}
    np.savez(file, **arrays, **more)  # type: ignore[arg-type]


def _write_safetensors(
    file: IO[bytes], arrays: Mapping[str, NDArray[Any]], names: Sequence[str] | None
) -> None:
    metadata = {"format": "np", **({} if names is None else {"names": json.dumps(names)})}
    header: dict[str, Any] = {"__metadata__": metadata}
    at = 0
    for name, array in arrays.items():
        dtype = f"{array.dtype.kind.upper()}{8 * array.dtype.itemsize}"
        offsets = [at, at + array.nbytes]
        header[name] = {"dtype": dtype, "shape": array.shape, "data_offsets": offsets}
        at += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the data can be mapped
    file.write(struct.pack("<Q", len(text)) + text)
    for array in arrays.values():
        for rows in row_blocks(array):
            file.write(np.ascontiguousarray(array[rows], array.dtype.newbyteorder("<")).data)
