"""Logits and labels in a file, .npz or safetensors: what a model said, without the model."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from rescale_cli.checkpoints.formats import safetensors_file
from rescale_cli.core.floats import HEAD_DTYPES, to_float64
from rescale_cli.core.head import two_columns
from rescale_cli.core.predictions import Labels, Predictions, Provenance
from rescale_cli.errors import BadCheckpoint, BadInput, EnvironmentProblem, OutputExists, UsageError
from rescale_cli.files.arrays import NpzFile, big_array, mapped, row_blocks
from rescale_cli.files.contents import TensorInfo
from rescale_cli.files.reading import opened, refuse_lfs_pointer
from rescale_cli.files.staging import Staging, refuse_existing, system_errors
from rescale_cli.json_text import clip, parse_json

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


#: The array, or the key of the metadata, that says where the logits come from.
_ORIGIN = "provenance"
_FIX = "np.savez(FILE, logits=logits, labels=labels), with logits (N, C) and labels (N,)"


def read_logits(path: Path) -> Predictions:
    """Read `logits` (N, C), `labels` (N,) and `names` (N,) of a file; only logits must be there.

    A file of `write_logits` also says where they come from: see `Provenance`.

    Logits (N,) or (N, 1) are those of class 1 of two classes, from a binary head.

    Told by content. Large logits stay in the file and are mapped into memory; those of 16 bits
    and integers are turned into floats.

    Raises:
        BadInput: neither format, damaged, no logits, NaN among them, multi-label labels, or shapes
            and labels that do not fit each other.
    """
    with opened(path, BadInput) as fd:
        head = os.pread(fd, 64, 0)
    refuse_lfs_pointer(path, head, BadInput)
    if head.startswith(b"PK\x03\x04"):
        arrays = _of_npz(path)
    elif safetensors_file.matches(path):
        arrays = _of_safetensors(path)
    else:
        saw = f"the first bytes {head[:8]!r}" if head else "an empty file"
        raise BadInput(f"{path.name} is neither .npz nor safetensors", saw=saw, fix=_FIX)
    if "logits" not in arrays:
        saw = f"it has {clip(', '.join(arrays), 200)}" if arrays else "it has no arrays"
        raise BadInput(f"{path.name} has no array `logits`", saw=saw, fix=_FIX)
    found = given_logits(arrays["logits"], arrays.get("labels"), path.name)
    names = _names(arrays.get("names"), len(found.logits))
    return replace(found, names=names, provenance=_provenance(arrays.get(_ORIGIN), path.name))


def given_logits(raw: NDArray[Any], labels: NDArray[Any] | None, source: str) -> Predictions:
    """Logits (N, C), or (N,) of a binary head, and labels (N,), checked; see `read_logits`."""
    binary = raw.ndim == 1 or raw.shape[1:] == (1,)
    logits = _checked_logits(raw.reshape(-1, 1) if binary else raw, source)
    logits = two_columns(logits) if binary else logits
    if labels is not None:
        if binary:  # as binary_cross_entropy_with_logits takes them: a column, or true and false
            labels = labels[:, 0] if labels.shape[1:] == (1,) else labels
            labels = labels.astype(np.int64) if labels.dtype == bool else labels
        refuse_multi_label(labels, source)
        labels = checked_labels(labels, len(logits), logits.shape[1], source)
    return Predictions(logits, labels, source, binary=binary)


def _provenance(raw: NDArray[Any] | None, source: str) -> Provenance:
    """What the file says of where it comes from; nothing where another program wrote it."""
    text = raw.reshape(-1).tolist()[0] if raw is not None and raw.size == 1 else None
    if not isinstance(text, str):
        return Provenance()
    try:
        return Provenance.of(parse_json(text.encode("utf-8", "surrogatepass"), source))
    except BadCheckpoint:  # another program's idea of it
        return Provenance()


def _of_npz(path: Path) -> dict[str, NDArray[Any]]:
    file = NpzFile.of(path)
    wanted = [name for name in ("logits", "labels", "names", _ORIGIN) if name in file.names]
    if "logits" in wanted:
        return {name: file.array(name) for name in wanted}
    return dict.fromkeys(file.names, np.empty(0))


def _of_safetensors(path: Path) -> dict[str, NDArray[Any]]:
    try:
        contents = safetensors_file.list_tensors(path)
        names = contents.metadata.get("names")
        texts = (
            None if names is None else parse_json(names.encode("utf-8", "surrogatepass"), "`names`")
        )
    except BadCheckpoint as error:
        raise BadInput(error.what, saw=error.saw, fix=_FIX) from None
    with opened(path, BadInput) as fd:
        arrays = {
            info.name: _tensor(fd, info) if info.name in ("logits", "labels") else np.empty(0)
            for info in contents.tensors
            if info.name not in ("names", _ORIGIN)
        }
    if texts is not None:
        arrays["names"] = np.array(texts, dtype=object)
    if _ORIGIN in contents.metadata:
        arrays[_ORIGIN] = np.array([contents.metadata[_ORIGIN]], dtype=object)
    return arrays


def _tensor(fd: int, info: TensorInfo) -> NDArray[Any]:
    """One tensor where it lies; halves as float32."""
    half = info.dtype in ("float16", "bfloat16")
    if not (half or info.dtype in HEAD_DTYPES or info.dtype.lstrip("u").startswith("int")):
        raise BadInput(f"`{info.name}` has the dtype {info.dtype}", fix=_FIX)
    if not info.numel:
        return np.empty(info.shape, np.float32)
    stored = mapped(fd, info.start, info.shape, "<u2" if half else np.dtype(info.dtype))
    if not half:
        return stored
    floats = big_array(info.shape, np.float32)
    for rows in row_blocks(stored):
        floats[rows] = to_float64(stored[rows], info.dtype)
    return floats


def _checked_logits(raw: NDArray[Any], source: str) -> NDArray[Any]:
    """The logits as float32 or float64, in C order, (N, C), without a NaN."""
    if raw.ndim != 2 or not raw.size:
        raise BadInput(
            f"the logits in {source} are not N rows of C classes",
            saw=f"shape {raw.shape}; (N, C) is needed, or (N,) for one logit of two classes",
            fix=_FIX,
        )
    if raw.dtype.kind not in "iuf" or raw.dtype.itemsize > 8:
        raise BadInput(f"the logits in {source} are no numbers", saw=f"{raw.dtype}", fix=_FIX)
    wanted = np.result_type(raw.dtype, np.float32)
    in_place = raw.dtype == wanted and raw.flags.carray
    logits = raw if in_place else big_array(raw.shape, wanted)
    missing, first = 0, -1
    for rows in row_blocks(raw):
        if not in_place:
            logits[rows] = raw[rows]
        nan = np.isnan(logits[rows])
        if nan.any():
            missing += int(nan.sum())
            first = first if first >= 0 else rows.start + int(nan.any(axis=1).argmax())
    if missing:
        raise BadInput(
            f"{missing:,} of the logits in {source} are NaN",
            saw=f"row {first} is the first with one",
            fix="save the logits of a model that gives numbers; half precision may overflow",
        )
    return logits


def refuse_multi_label(labels: NDArray[Any], source: str) -> None:
    """Refuse labels of which a sample may have several.

    Raises:
        BadInput: they are a matrix of 0 and 1.
    """
    if labels.ndim == 2 and labels.size and labels.shape[1] > 1 and labels.dtype.kind in "biuf":
        if not np.isin(labels, (0, 1)).all():
            return
        each = labels.sum(axis=1)
        raise BadInput(
            f"the labels in {source} are multi-label: one 0 or 1 for each sample and class",
            saw=f"shape {labels.shape}; from {each.min():g} to {each.max():g} classes a sample",
            fix="if each row has a single 1, save labels.argmax(axis=1), which is (N,); otherwise "
            "the classes do not compete, and there is no single predicted class to measure",
        )


def checked_labels(raw: NDArray[Any], rows: int, classes: int, source: str) -> Labels:
    """Labels (N,) as int64, each a row of the head.

    Raises:
        BadInput: not one a sample, no whole numbers, or outside 0 to C - 1.
    """
    if raw.shape != (rows,) or raw.dtype.kind not in "iuf":
        raise BadInput(
            f"the labels in {source} must be one whole number per row of logits",
            saw=f"labels {raw.shape} of {raw.dtype}, logits ({rows}, {classes})",
            fix=_FIX,
        )
    outside = ~((raw >= 0) & (raw < classes))
    if outside.any():
        at = int(outside.argmax())
        raise BadInput(
            f"{int(outside.sum()):,} labels in {source} are outside 0 to {classes - 1}",
            saw=f"row {at} has {raw[at]}",
            fix="number the classes from 0, in the order of the logits' columns; "
            "leave `labels` out where they are unknown",
        )
    labels = raw.astype(np.int64)
    if (labels != raw).any():
        at = int((labels != raw).argmax())
        raise BadInput(
            f"the labels in {source} are not whole numbers",
            saw=f"row {at} has {raw[at]}",
            fix="save the number of each sample's class",
        )
    return labels


def _names(raw: NDArray[Any] | None, rows: int) -> Sequence[str] | None:
    """One text a row; whatever else has that name, such as those of the classes, is left alone."""
    texts = raw.tolist() if raw is not None and raw.shape == (rows,) else ()
    return tuple(texts) if texts and all(isinstance(text, str) for text in texts) else None


def write_logits(path: Path, predictions: Predictions, *, force: bool = False) -> None:
    """Write logits, labels and names, and where they come from; see `write_arrays`.

    Raises:
        UsageError, OutputExists, EnvironmentProblem: see `write_arrays`.
    """
    origin = predictions.provenance
    arrays = {"logits": predictions.columns, **_known(predictions)}
    texts = {"names": predictions.names,
             _ORIGIN: json.dumps(origin.as_json()) if origin != Provenance() else None}  # fmt: skip
    write_arrays(path, arrays, texts, option="--save-logits", force=force)


def write_features(path: Path, predictions: Predictions, *, force: bool = False) -> None:
    """Write features (N, D) float32, the inputs of the head, with labels and names.

    Raises:
        UsageError, OutputExists, EnvironmentProblem: see `write_arrays`.
    """
    assert predictions.features is not None
    arrays = {**_known(predictions), "features": predictions.features}
    texts = {"names": predictions.names}
    write_arrays(path, arrays, texts, option="--save-features", force=force)


def _known(predictions: Predictions) -> dict[str, NDArray[Any]]:
    """The labels (N,) as int64, where somebody knows them."""
    labels = predictions.labels
    return {} if labels is None else {"labels": labels.astype(np.int64, copy=False)}
