"""The undo part restores every bit, or says that it is damaged."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rescale_cli.checkpoints import read_tensors
from rescale_cli.checkpoints.read_tensors import blocks
from rescale_cli.errors import NotProven
from rescale_cli.files.contents import TensorInfo
from rescale_cli.patching.record_writer import UndoWriter, restorings
from rescale_cli.patching.rewrite import RowScaling

SIZES = {"float16": "<u2", "float32": "<u4"}
FACTORS = st.sampled_from([0.0, 1e-4, 0.5, 1.0, 1.3, 2.0])


@st.composite
def tensors(draw: Any) -> tuple[str, bool, Any, list[float]]:
    """Dtype, whether it is stored by columns, values (C, D) and a factor for each row."""
    rows, columns = draw(st.integers(1, 5)), draw(st.integers(1, 7))
    seed = draw(st.integers(0, 2**32 - 1))
    values = np.random.default_rng(seed).normal(
        0, draw(st.sampled_from([1e-3, 1])), (rows, columns)
    )
    factors = draw(st.lists(FACTORS, min_size=rows, max_size=rows))
    return draw(st.sampled_from(sorted(SIZES))), draw(st.booleans()), values, factors


def packed_and_back(
    cases: list[Any],
) -> tuple[bytes, list[RowScaling], list[Any], list[Any], list[Any]]:
    """The undo part of some edits, the edits, and of each block: tensor, bits before and after."""
    writer, edits, infos, old, new = UndoWriter(), [], [], [], []
    with tempfile.TemporaryDirectory() as folder:
        for number, (dtype, turned, values, factors) in enumerate(cases):
            file, (rows, columns) = Path(folder) / str(number), values.shape
            stored = values.astype(dtype)
            file.write_bytes((stored.T if turned else stored).tobytes("C"))
            strides = (1, rows) if turned else (columns, 1)
            info = TensorInfo("w", (rows, columns), strides, dtype, file, 0, stored.nbytes)
            edit = RowScaling(info, 0, np.array(factors), np.zeros(rows))
            with file.open("rb") as source:
                for block in blocks(info):
                    bits = block.read(source.fileno())
                    scaled = edit.rewrite(bits, block)
                    writer.add(edit, block, bits, scaled)
                    infos.append(info)
                    old.append(bits)
                    new.append((block, scaled))
            edits.append(edit)
    return writer.packed(), edits, infos, old, new


@given(st.lists(tensors(), min_size=1, max_size=3), st.sampled_from([8, 1 << 20]))
def test_what_was_scaled_comes_back_bit_for_bit(cases: list[Any], size: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(read_tensors, "BLOCK_BYTES", size)
        packed, edits, infos, old, new = packed_and_back(cases)
    undo = {id(found.info): found for found in restorings(packed, edits)}
    for info, bits, (block, scaled) in zip(infos, old, new, strict=True):
        assert undo[id(info)].rewrite(scaled, block).tolist() == bits.tolist()


@given(tensors(), st.data())
def test_a_part_of_an_undo_part_is_damaged(case: Any, data: Any) -> None:
    packed, edits, *_ = packed_and_back([case])
    with pytest.raises(NotProven, match="damaged"):
        restorings(packed[: data.draw(st.integers(0, len(packed) - 1))], edits)
    with pytest.raises(NotProven, match="damaged"):
        restorings(packed, edits * 5)
    longer, *_ = packed_and_back([case] * 5)
    with pytest.raises(NotProven, match="damaged"):
        restorings(longer, edits)
