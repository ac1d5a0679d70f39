"""The blocks of a tensor contain each element once, and shared bytes are found exactly."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from rescale_cli.checkpoints import read_tensors
from rescale_cli.checkpoints.checkpoint import open_checkpoint
from rescale_cli.checkpoints.read_tensors import (
    blocks,
    memory_order,
    overlaps_itself,
    read_head,
    share_bytes,
)
from rescale_cli.core.floats import ITEM_SIZES, bits_dtype
from rescale_cli.errors import BadHead
from rescale_cli.files.contents import TensorInfo, row_major
from rescale_cli.finding.find_head import HeadKeys
from rescale_cli.patching.rewrite import RowScaling, regions

SIZES = (1, 2, 7, 24, 100, 1 << 20)


@pytest.fixture(autouse=True)
def no_leak() -> Iterator[None]:
    size = read_tensors.BLOCK_BYTES
    yield
    read_tensors.BLOCK_BYTES = size


def info_of(
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    start: int,
    dtype: str,
    byteorder: str = "little",
) -> TensorInfo:
    """A tensor whose first element is at byte `start`; stop by the definition."""
    reach = sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    stop = start + (reach + 1) * ITEM_SIZES[dtype] if 0 not in shape else start
    return TensorInfo("t", shape, strides, dtype, Path("file"), start, stop, byteorder)


@st.composite
def tensors(draw: st.DrawFn, dtypes: tuple[str, ...] = ("float16", "float32")) -> TensorInfo:
    """Any strides, overlapping ones too."""
    shape = tuple(draw(st.lists(st.integers(1, 5), min_size=1, max_size=3)))
    strides = tuple(draw(st.integers(0, 12)) for _ in shape)
    return info_of(
        shape, strides, draw(st.integers(0, 40)), draw(st.sampled_from(dtypes)),
        draw(st.sampled_from(["little", "big"])),
    )  # fmt: skip


@st.composite
def views(draw: st.DrawFn) -> TensorInfo:
    """What torch makes of a buffer by slicing and transposing: no element twice."""
    dims = draw(st.integers(1, 3))
    whole = [draw(st.integers(1, 6)) for _ in range(dims)]
    strides, shape, offset = row_major(tuple(whole)), [], 0
    stepped = []
    for size, stride in zip(whole, strides, strict=True):
        first = draw(st.integers(0, size - 1))
        step = draw(st.integers(1, 3))
        offset += first * stride
        shape.append(len(range(first, size, step)))
        stepped.append(stride * step)
    order = draw(st.permutations(range(dims)))
    dtype = draw(st.sampled_from(["float16", "float32", "float64"]))
    return info_of(
        tuple(shape[a] for a in order), tuple(stepped[a] for a in order),
        draw(st.integers(0, 20)) + offset * ITEM_SIZES[dtype], dtype,
    )  # fmt: skip


def elements(info: TensorInfo) -> dict[tuple[int, ...], int]:
    """Index -> first byte of the element."""
    size = ITEM_SIZES[info.dtype]
    return {
        index: info.start + size * sum(i * s for i, s in zip(index, info.strides, strict=True))
        for index in itertools.product(*map(range, info.shape))
    }


def bytes_of(info: TensorInfo) -> set[int]:
    return {at + i for at in elements(info).values() for i in range(ITEM_SIZES[info.dtype])}


def file_of(info: TensorInfo, tmp_path: Path) -> tuple[Path, bytes]:
    data = np.random.default_rng(0).bytes(info.stop + 16)
    path = tmp_path / "file"
    path.write_bytes(data)
    return path, data


@given(info=st.one_of(tensors(), views()), size=st.sampled_from(SIZES))
def test_blocks_read_every_element_once_and_nothing_else(
    info: TensorInfo, size: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    read_tensors.BLOCK_BYTES = size
    path, data = file_of(info, tmp_path_factory.mktemp("f"))
    kind = bits_dtype(info.dtype, info.byteorder)
    width = kind.itemsize
    wanted = {i: int(np.frombuffer(data, kind, 1, at)[0]) for i, at in elements(info).items()}
    found: dict[tuple[int, ...], int] = {}
    fd = os.open(path, os.O_RDONLY)
    try:
        for block in blocks(info):
            assert info.start <= block.start < block.stop <= info.stop
            part = block.read(fd)
            for index, value in np.ndenumerate(part):
                place = list(index)
                place[block.axis] += block.lo
                assert tuple(place) not in found
                found[tuple(place)] = int(value)
    finally:
        os.close(fd)
    assert found == wanted
    assert width == ITEM_SIZES[info.dtype]


@given(info=views(), size=st.sampled_from(SIZES))
def test_blocks_follow_one_another_in_the_file(info: TensorInfo, size: int) -> None:
    read_tensors.BLOCK_BYTES = size
    starts = [block.start for block in blocks(info)]
    assert starts == sorted(starts)
    spans = [block.stop - block.start for block in blocks(info)]
    longest = max(info.strides[a] for a in range(len(info.shape))) * ITEM_SIZES[info.dtype]
    assert all(span <= size + longest for span in spans), "memory use is bounded"


@given(info=st.one_of(tensors(), views()))
def test_overlaps_itself_never_misses_a_shared_element(info: TensorInfo) -> None:
    twice = len(set(elements(info).values())) < info.numel
    if twice:
        assert overlaps_itself(info)


@given(info=views())
def test_slices_and_transposed_tensors_do_not_overlap_themselves(info: TensorInfo) -> None:
    assert len(bytes_of(info)) == info.numel * ITEM_SIZES[info.dtype]
    assert not overlaps_itself(info)


@given(
    one=st.one_of(tensors(), views()),
    other=st.one_of(tensors(), views()),
    size=st.sampled_from(SIZES),
)
def test_share_bytes_agrees_with_the_sets_of_bytes(
    one: TensorInfo, other: TensorInfo, size: int
) -> None:
    read_tensors.BLOCK_BYTES = size
    shared = bool(bytes_of(one) & bytes_of(other))
    assert share_bytes(one, other) == shared
    assert share_bytes(other, one) == shared


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    ("shape", "strides"),
    [
        ((1 << 20, 1 << 20), (0, 0)),
        ((1 << 61, 5), (0, 1)),
        ((1 << 20, 1 << 20), (1, 1)),
        ((2,) * 60, (1,) * 60),
    ],
)
def test_a_huge_broadcast_view_is_compared_quickly(
    shape: tuple[int, ...], strides: tuple[int, ...]
) -> None:
    many, head = info_of(shape, strides, 80, "float32"), info_of((5, 16), (16, 1), 0, "float32")
    assert share_bytes(many, head)
    assert share_bytes(head, many)
    beyond = info_of((5, 16), (16, 1), many.stop, "float32")
    assert not share_bytes(many, beyond)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("rows", [(5, 1 << 24), (5, 1 << 55), (1 << 40, 16)])
def test_a_broadcast_head_is_refused_before_memory_is_allocated(
    tmp_path: Path, rows: tuple[int, int]
) -> None:
    net = {"layer.weight": torch.ones(16, 8), "fc.weight": torch.ones(1, 1).expand(*rows)}
    torch.save(net, tmp_path / "m.pt")
    checkpoint = open_checkpoint(tmp_path / "m.pt")
    with pytest.raises(BadHead, match="broadcast"):
        read_head(checkpoint, HeadKeys("fc.weight", None, "linear", *rows, ""))


@given(info=views())
def test_tensors_of_two_files_share_nothing(info: TensorInfo) -> None:
    other = TensorInfo("t", info.shape, info.strides, info.dtype, Path("b"), info.start, info.stop)
    assert not share_bytes(info, other)


def test_a_tensor_without_elements_has_no_blocks_and_shares_nothing() -> None:
    empty = info_of((0, 3), (3, 1), 8, "float32")
    assert list(blocks(empty)) == []
    assert not share_bytes(empty, info_of((4,), (1,), 0, "float32"))


@given(info=views(), size=st.sampled_from(SIZES), data=st.data())
def test_regions_change_only_the_bytes_of_the_elements(
    info: TensorInfo, size: int, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    assume(info.dtype == "float32")
    read_tensors.BLOCK_BYTES = size
    path, _ = file_of(info, tmp_path_factory.mktemp("f"))
    values = np.random.default_rng(1).normal(size=info.stop // 4 + 4).astype("<f4")
    before = np.zeros(info.stop + 16, np.uint8)
    offset = info.start % 4
    raw = np.frombuffer(values.tobytes(), np.uint8)[: len(before) - offset]
    before[offset : offset + len(raw)] = raw
    path.write_bytes(before.tobytes())
    axis = data.draw(st.integers(0, len(info.shape) - 1))
    factor = np.arange(2.0, 2.0 + info.shape[axis])
    edit = RowScaling(info, axis, factor, np.zeros(info.shape[axis]))
    after = before.copy()
    fd = os.open(path, os.O_RDONLY)
    try:
        stretches = regions([edit])
        assert all(a.stop <= b.start for a, b in itertools.pairwise(stretches))
        for region in stretches:
            after[region.start : region.stop] = np.frombuffer(region.rewritten(fd), np.uint8)
    finally:
        os.close(fd)
    wanted = before.copy()
    for index, at in elements(info).items():
        old = np.frombuffer(before.tobytes(), "<f4", 1, at)[0]
        new = np.float32(np.float64(old) * factor[index[axis]])
        wanted[at : at + 4] = np.frombuffer(new.tobytes(), np.uint8)
    assert np.array_equal(after, wanted)


def test_the_order_in_the_file_is_from_the_longest_stride_to_the_shortest() -> None:
    assert memory_order(info_of((3, 4, 5), (1, 15, 3), 0, "float32")) == [1, 2, 0]
