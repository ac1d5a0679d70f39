"""Bits to numbers exactly, numbers to bits with one rounding, against whole-number arithmetic."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rescale_cli.core.floats import (
    HEAD_DTYPES,
    ITEM_SIZES,
    bits_dtype,
    ordered,
    to_bits,
    to_float64,
    unordered,
)

#: dtype -> bits of the stored fraction, bits of the exponent.
LAYOUT = {"float64": (52, 11), "float32": (23, 8), "float16": (10, 5), "bfloat16": (7, 8)}
SHORT = ("float16", "bfloat16")


def meaning(bits: int, dtype: str) -> Fraction | float:
    """What a bit pattern means, by the definition of IEEE 754."""
    digits, size = LAYOUT[dtype]
    fraction, exponent = bits & (2**digits - 1), bits >> digits & (2**size - 1)
    sign, bias = (-1 if bits >> (digits + size) else 1), 2 ** (size - 1) - 1
    if exponent == 2**size - 1:
        return math.nan if fraction else sign * math.inf
    if exponent == 0:
        return sign * fraction * Fraction(2) ** (1 - bias - digits)
    return sign * (2**digits + fraction) * Fraction(2) ** (exponent - bias - digits)


def nearest(value: Fraction, dtype: str) -> int:
    """The bit pattern nearest to a positive number, ties to the even pattern: a binary search."""
    digits, size = LAYOUT[dtype]
    low, high = 0, (2**size - 1) << digits  # high is infinity: as if the next power of two
    largest = meaning(high - 1, dtype)
    assert isinstance(largest, Fraction)
    beyond = largest + (largest - meaning(high - 2, dtype))
    while high - low > 1:
        middle = (low + high) // 2
        if meaning(middle, dtype) <= value:
            low = middle
        else:
            high = middle
    top = meaning(high, dtype)
    below, above = meaning(low, dtype), beyond if top == math.inf else top
    if value - below == above - value:
        return low if low % 2 == 0 else high
    return low if value - below < above - value else high


def every_pattern(dtype: str) -> np.ndarray[tuple[int], np.dtype[np.uint16]]:
    return np.arange(2**16, dtype=np.uint16)


@pytest.mark.parametrize("dtype", SHORT)
def test_every_16_bit_pattern_decodes_to_its_meaning(dtype: str) -> None:
    for bits, value in enumerate(to_float64(every_pattern(dtype), dtype).tolist()):
        wanted = meaning(bits, dtype)
        assert math.isnan(value) if wanted != wanted else value == wanted


@pytest.mark.parametrize("dtype", SHORT)
def test_every_16_bit_number_comes_back_from_float64(dtype: str) -> None:
    bits = every_pattern(dtype)
    values = to_float64(bits, dtype)
    numbers = ~np.isnan(values)
    assert np.array_equal(to_bits(values[numbers], dtype), bits[numbers])
    assert np.isnan(to_float64(to_bits(values[~numbers], dtype), dtype)).all()


@pytest.mark.parametrize("dtype", SHORT)
def test_every_tie_goes_to_the_even_neighbour_and_the_next_number_does_not(dtype: str) -> None:
    digits, size = LAYOUT[dtype]
    bits = np.arange((2**size - 1) << digits, dtype=np.uint16)[:-1]
    low, high = to_float64(bits, dtype), to_float64(bits + np.uint16(1), dtype)
    middle = (low + high) / 2  # exact in float64
    even = np.where(bits % 2 == 0, bits, bits + np.uint16(1))
    assert np.array_equal(to_bits(middle, dtype), even)
    assert np.array_equal(to_bits(np.nextafter(middle, np.inf), dtype), bits + np.uint16(1))
    assert np.array_equal(to_bits(np.nextafter(middle, -np.inf), dtype), bits)
    assert np.array_equal(to_bits(-middle, dtype), even | np.uint16(0x8000))


@pytest.mark.parametrize("dtype", HEAD_DTYPES)
@given(value=st.floats(allow_nan=False, allow_infinity=False))
def test_encode_rounds_once_to_the_nearest(dtype: str, value: float) -> None:
    sign = math.copysign(1, value) < 0
    wanted = nearest(Fraction(abs(value)), dtype) | sign << (8 * ITEM_SIZES[dtype] - 1)
    assert int(to_bits(np.array([value]), dtype)[0]) == wanted


@pytest.mark.parametrize("dtype", HEAD_DTYPES)
@given(data=st.data())
def test_encode_is_right_beside_every_border(dtype: str, data: st.DataObject) -> None:
    digits, size = LAYOUT[dtype]
    low = data.draw(st.integers(0, ((2**size - 1) << digits) - 2))
    middle = (Fraction(meaning(low, dtype)) + Fraction(meaning(low + 1, dtype))) / 2
    near = float(middle)
    for value in (near, math.nextafter(near, math.inf), math.nextafter(near, -math.inf)):
        if value >= 0:
            assert int(to_bits(np.array([value]), dtype)[0]) == nearest(Fraction(value), dtype)


@pytest.mark.parametrize("dtype", HEAD_DTYPES)
def test_the_largest_numbers_and_what_lies_beyond(dtype: str) -> None:
    digits, size = LAYOUT[dtype]
    infinite = (2**size - 1) << digits
    largest = float(meaning(infinite - 1, dtype))
    assert int(to_bits(np.array([largest]), dtype)[0]) == infinite - 1
    assert int(to_bits(np.array([math.inf]), dtype)[0]) == infinite
    if dtype != "float64":
        half_step = (largest - float(meaning(infinite - 2, dtype))) / 2
        assert int(to_bits(np.array([largest + half_step]), dtype)[0]) == infinite
        under = math.nextafter(largest + half_step, 0)
        assert int(to_bits(np.array([under]), dtype)[0]) == infinite - 1


@pytest.mark.parametrize("dtype", HEAD_DTYPES)
def test_signed_zeros_and_the_smallest_number_survive(dtype: str) -> None:
    sign = 1 << (8 * ITEM_SIZES[dtype] - 1)
    bits = np.array([0, sign, 1, sign | 1], bits_dtype(dtype))
    assert np.array_equal(to_bits(to_float64(bits, dtype), dtype), bits)


def test_float32_to_bfloat16_by_way_of_float32_would_be_wrong_here() -> None:
    """A number just above a tie, which float32 rounds onto the tie: torch goes wrong, we do not."""
    value = 1 + 2.0**-8 + 2.0**-30
    assert torch.tensor([value], dtype=torch.float64).bfloat16().item() == 1.0
    assert to_float64(to_bits(np.array([value]), "bfloat16"), "bfloat16")[0] == 1 + 2.0**-7


@pytest.mark.parametrize("dtype", HEAD_DTYPES)
@given(data=st.data())
def test_torch_reads_the_same_numbers(dtype: str, data: st.DataObject) -> None:
    size = ITEM_SIZES[dtype]
    raw = data.draw(st.binary(min_size=size, max_size=8 * size).filter(lambda b: not len(b) % size))
    theirs = torch.frombuffer(bytearray(raw), dtype=getattr(torch, dtype)).double().numpy()
    mine = to_float64(np.frombuffer(raw, bits_dtype(dtype)), dtype)
    assert np.array_equal(mine, theirs, equal_nan=True)


@pytest.mark.parametrize("byteorder", ["little", "big"])
@pytest.mark.parametrize("dtype", HEAD_DTYPES)
def test_either_byte_order_decodes_to_the_same(dtype: str, byteorder: str) -> None:
    values = np.array([1.5, -2.25, 0.0, 1e-3])
    bits = to_bits(values, dtype)
    assert np.array_equal(
        to_float64(bits.astype(bits_dtype(dtype, byteorder)), dtype), to_float64(bits, dtype)
    )


@pytest.mark.parametrize("dtype", SHORT)
def test_ordered_numbers_every_16_bit_float_in_its_order(dtype: str) -> None:
    bits = every_pattern(dtype)
    steps = ordered(bits)
    assert len(np.unique(steps)) == 2**16
    assert np.array_equal(unordered(steps, dtype), bits)
    values = to_float64(bits, dtype)
    finite = np.isfinite(values)
    order = np.argsort(steps[finite])
    assert (np.diff(values[finite][order]) >= 0).all()
    assert (np.diff(np.sort(steps[finite])) == 1).all(), "no float lies between two neighbours"


@pytest.mark.parametrize("dtype", HEAD_DTYPES)
@given(data=st.data())
def test_ordered_and_unordered_are_one_to_one(dtype: str, data: st.DataObject) -> None:
    top = 2 ** (8 * ITEM_SIZES[dtype])
    drawn = data.draw(st.lists(st.integers(0, top - 1), min_size=1, max_size=20))
    corners = [0, 1, top // 2 - 1, top // 2, top // 2 + 1, top - 1]
    bits = np.array([*drawn, *corners], bits_dtype(dtype))
    back = unordered(ordered(bits), dtype)
    assert back.dtype == bits.dtype
    assert np.array_equal(back, bits)
    assert len(set(ordered(bits).tolist())) == len(set(bits.tolist()))
