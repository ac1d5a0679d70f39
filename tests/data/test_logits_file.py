"""Logits in files: what numpy and safetensors write is read, and what cannot be is refused."""

from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from rescale_cli.core.predictions import Predictions
from rescale_cli.data.logits_file import read_logits, write_logits
from rescale_cli.errors import BadInput, EnvironmentProblem, OutputExists, UsageError
from rescale_cli.files import arrays

N, C = 9, 4
LOGITS = np.random.default_rng(0).standard_normal((N, C)).astype(np.float32)
LABELS = np.arange(N, dtype=np.int64) % C
SUFFIXES = (".npz", ".safetensors")


def save(path: Path, **arrays: Any) -> Path:
    """By the library that owns the format."""
    arrays = {name: np.asarray(array) for name, array in arrays.items()}
    if path.suffix == ".npz":
        np.savez(path, **arrays)
    else:
        ordered = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        safetensors.numpy.save_file(ordered, path)
    return path


@pytest.fixture(params=SUFFIXES)
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / f"logits{request.param}"


# ---------------------------------------------------------------- reading


def test_what_the_libraries_write_is_read(path: Path) -> None:
    found = read_logits(save(path, logits=LOGITS, labels=LABELS, other=np.ones(3)))
    assert np.array_equal(found.logits, LOGITS)
    assert np.array_equal(found.labels, LABELS)
    assert found.labels.dtype == np.int64
    assert (found.source, found.names, found.num_classes) == (path.name, None, C)


def test_labels_may_be_missing(path: Path) -> None:
    assert read_logits(save(path, logits=LOGITS)).labels is None


def test_the_suffix_says_nothing(path: Path) -> None:
    renamed = save(path, logits=LOGITS).rename(path.with_suffix(".dat"))
    assert np.array_equal(read_logits(renamed).logits, LOGITS)


@pytest.mark.parametrize(
    ("dtype", "wanted"),
    [("f2", "f4"), ("f4", "f4"), ("f8", "f8"), ("i1", "f4"), ("i2", "f4"), ("i4", "f8"),
     ("u1", "f4"), ("i8", "f8")],
)  # fmt: skip
def test_halves_and_integers_become_floats_that_hold_them(
    path: Path, dtype: str, wanted: str
) -> None:
    values = (10 * LOGITS).astype(dtype)
    found = read_logits(save(path, labels=LABELS, logits=values)).logits
    assert found.dtype == wanted
    assert found.flags.carray
    assert np.array_equal(found, values)


def test_bfloat16_is_read_exactly(tmp_path: Path) -> None:
    values = torch.from_numpy(LOGITS).bfloat16()
    safetensors.torch.save_file({"logits": values}, tmp_path / "x.safetensors")
    found = read_logits(tmp_path / "x.safetensors").logits
    assert np.array_equal(found, values.float().numpy())


@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"])
def test_labels_of_any_dtype_are_whole_numbers(path: Path, dtype: str) -> None:
    found = read_logits(save(path, logits=LOGITS, labels=LABELS.astype(dtype)))
    assert np.array_equal(found.labels, LABELS)


def test_compressed_and_transposed_and_big_endian_arrays_are_read(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    for values in (LOGITS, np.asfortranarray(LOGITS), LOGITS.astype(">f4"), LOGITS.astype(">f8")):
        for write in (np.savez, np.savez_compressed):
            write(path, labels=LABELS.astype(">i2"), logits=values)
            found = read_logits(path)
            assert np.array_equal(found.logits, LOGITS)
            assert found.logits.flags.carray
            assert found.logits.dtype.isnative
            assert np.array_equal(found.labels, LABELS)


def test_large_logits_are_mapped_and_the_file_is_never_changed(path: Path) -> None:
    write_logits(path, Predictions(LOGITS, LABELS, "x"))
    before = path.read_bytes()
    found = read_logits(path).logits
    assert not found.flags.owndata
    torch.from_numpy(found).zero_()
    assert path.read_bytes() == before
    assert np.array_equal(read_logits(path).logits, LOGITS)


def test_infinite_logits_are_numbers(path: Path) -> None:
    values = LOGITS.copy()
    values[3, 1], values[4, 0] = np.inf, -np.inf
    assert np.array_equal(read_logits(save(path, logits=values)).logits, values)


# ---------------------------------------------------------------- what cannot be right


def refused(path: Path, words: str, **arrays: Any) -> BadInput:
    with pytest.raises(BadInput, match=words) as caught:
        read_logits(save(path, **arrays))
    assert caught.value.fix
    return caught.value


def test_nan_is_counted_and_its_first_row_named(path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(arrays, "_BLOCK", 40)
    values = LOGITS.copy()
    values[5, 1:3] = values[8, 0] = np.nan
    error = refused(path, "3 of the logits .* are NaN", logits=values)
    assert "row 5" in error.saw


@pytest.mark.parametrize("shape", [(0, C), (0,), (N, 0), (N, C, 1), (N, 1, 1)])
def test_logits_of_another_shape_are_refused(path: Path, shape: tuple[int, ...]) -> None:
    refused(path, "not N rows of C classes", logits=np.zeros(shape, np.float32))


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (LABELS[:-1], "must be one whole number per row"),
        (LABELS[:, None], "must be one whole number per row"),
        (LABELS + 0.5, "not whole numbers"),
        (LABELS - 1, "3 labels in .* outside 0 to 3"),
        (LABELS + 1, "2 labels in .* outside 0 to 3"),
        (np.where(LABELS == 1, np.nan, LABELS), "outside 0 to 3"),
        (LABELS.astype("u8") + np.uint64(2**63), "outside 0 to 3"),
        (LABELS == 0, "must be one whole number per row|has the dtype bool"),
    ],
)
def test_labels_that_cannot_be_are_refused(path: Path, labels: Any, words: str) -> None:
    refused(path, words, logits=LOGITS, labels=labels)


def test_a_file_without_logits_lists_what_it_has(path: Path) -> None:
    assert refused(path, "no array `logits`", scores=LOGITS).saw == "it has scores"


@pytest.mark.parametrize("dtype", ["c8", "U3", "?", "V2"])
def test_logits_that_are_no_numbers_are_refused(tmp_path: Path, dtype: str) -> None:
    refused(tmp_path / "x.npz", "no numbers", logits=np.zeros((N, C), dtype))


def test_a_pickled_array_is_refused_unread(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", logits=np.array([[{}, {}]], object))
    with pytest.raises(BadInput, match=r"logits of x\.npz cannot be read"):
        read_logits(tmp_path / "x.npz")


@pytest.mark.parametrize("content", [b"", b"hello", b"\x93NUMPY", b"\x80\x04", b"PK\x03\x04"])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(BadInput):
        read_logits(tmp_path / "x.npz")


def test_there_must_be_such_a_file(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="there is no file"):
        read_logits(tmp_path / "none.npz")


def npz_of(header: str, data: bytes, path: Path, method: int = zipfile.ZIP_DEFLATED) -> Path:
    """One array with a header of our own."""
    text = header.encode().ljust(118) + b"\n"
    npy = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("logits.npy", npy)
    return path


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize(
    "shape", ["(1 << 40, 9)", "(1099511627776, 9)", "(-4, 4)", "(3, 4)", "(5, 4)"]
)
def test_claims_that_the_bytes_do_not_bear_out_are_refused(
    tmp_path: Path, shape: str, method: int
) -> None:
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}}}"
    with pytest.raises(BadInput, match="cannot be read"):
        read_logits(npz_of(header, bytes(64), tmp_path / "x.npz", method))


@given(data=st.data())
def test_a_damaged_file_is_an_error_or_says_the_same(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    kind = data.draw(st.sampled_from(["npz", "compressed", "safetensors"]))
    whole = _WRITTEN[kind]
    at = data.draw(st.integers(0, len(whole) - 1))
    damage = data.draw(st.sampled_from(["cut", "flip"]))
    flipped = whole[:at] + bytes([whole[at] ^ data.draw(st.integers(1, 255))]) + whole[at + 1 :]
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(whole[:at] if damage == "cut" else flipped)
    try:
        found = read_logits(path)
    except BadInput:
        return
    if kind != "safetensors":  # which has no checksums
        assert np.array_equal(found.logits, LOGITS)


def _written() -> dict[str, bytes]:
    plain, packed = io.BytesIO(), io.BytesIO()
    np.savez(plain, logits=LOGITS, labels=LABELS)
    np.savez_compressed(packed, logits=LOGITS, labels=LABELS)
    tensors = safetensors.numpy.save({"logits": LOGITS, "labels": LABELS})
    return {
        "npz": plain.getvalue(),
        "compressed": packed.getvalue(),
        "safetensors": tensors,
    }


_WRITTEN = _written()


# ---------------------------------------------------------------- writing


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("labels", [LABELS, None])
@pytest.mark.parametrize("names", [None, [f"naïve {i}.jpg" for i in range(N)]])
def test_what_is_written_comes_back(path: Path, dtype: str, labels: Any, names: Any) -> None:
    write_logits(path, Predictions(LOGITS.astype(dtype), labels, "a test", names))
    found = read_logits(path)
    assert found.logits.dtype == dtype
    assert np.array_equal(found.logits, LOGITS)
    assert (found.labels is None) == (labels is None)
    assert labels is None or np.array_equal(found.labels, labels)
    assert found.names == (None if names is None else tuple(names))


def test_the_libraries_read_what_is_written(path: Path) -> None:
    write_logits(path, Predictions(LOGITS[::2], LABELS[::2], "a test", ["a\udcff"] * 5))
    load = np.load if path.suffix == ".npz" else safetensors.numpy.load_file
    found = load(path)
    assert np.array_equal(found["logits"], LOGITS[::2])
    assert np.array_equal(found["labels"], LABELS[::2])
    assert path.stat().st_mode & 0o444 == 0o444
    if path.suffix == ".npz":
        found.close()


def test_an_existing_file_is_replaced_only_by_force(path: Path) -> None:
    path.write_bytes(b"mine")
    with pytest.raises(OutputExists) as caught:
        write_logits(path, Predictions(LOGITS, LABELS, "x"))
    assert path.read_bytes() == b"mine"
    assert "--save-logits" in caught.value.fix
    write_logits(path, Predictions(LOGITS, LABELS, "x"), force=True)
    assert np.array_equal(read_logits(path).logits, LOGITS)


def test_a_failed_writing_leaves_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(EnvironmentProblem, match="no space left") as caught:
        write_logits(path, Predictions(LOGITS, LABELS, "x"))
    assert "--save-logits" in caught.value.fix
    assert list(path.parent.iterdir()) == []


def test_only_two_suffixes_are_written(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        write_logits(tmp_path / "logits.csv", Predictions(LOGITS, LABELS, "x"))
    assert caught.value.fix == "--save-logits logits.npz"


def test_logits_above_the_limit_are_unpacked_into_a_file_without_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez_compressed(tmp_path / "x.npz", logits=LOGITS.astype("f2"), labels=LABELS)
    monkeypatch.setattr(arrays, "IN_MEMORY", 10)
    found = read_logits(tmp_path / "x.npz")
    assert np.array_equal(found.logits, LOGITS.astype("f2"))
    assert [file.name for file in tmp_path.iterdir()] == ["x.npz"]
