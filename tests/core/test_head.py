"""The head: row norms and the part that its rows share."""

from __future__ import annotations

import numpy as np
import pytest

from rescale_cli.core.counts import ClassCounts, warnings_of
from rescale_cli.core.head import Head


def test_the_gauge_ratio_is_1_where_all_rows_point_one_way_and_0_where_they_cancel() -> None:
    assert Head.of(np.array([[3.0, 4.0], [6.0, 8.0]])).gauge == pytest.approx(1)
    assert Head.of(np.array([[3.0, 4.0], [-3.0, -4.0]])).gauge == 0


def test_a_head_of_zeros_shares_nothing() -> None:
    head = Head.of(np.zeros((3, 2)))
    assert head.gauge == 0
    assert head.relative_norms.tolist() == [0, 0, 0]


def test_logits_alone_give_no_warning_about_rows() -> None:
    assert warnings_of(Head.of_logits(3), ClassCounts.of([9, 4, 1])) == []
