"""Results in a notebook: a small table, and a curve as inline SVG."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

import numpy as np

from rescale_cli.core.floats import Float64

_WIDTH, _HEIGHT, _EDGE = 360, 140, 24


def sketch(gammas: Float64, values: Float64, chosen: float, title: str) -> str:
    """A curve as SVG with the chosen strength marked.

    Args:
        gammas: (G,), ascending.
        values: (G,), the metric; NaN is left out.
        chosen: the strength to mark.
        title: what the curve is.
    """
    known = np.isfinite(values)
    low, high = float(values[known].min()), float(values[known].max())
    across = _EDGE + (_WIDTH - 2 * _EDGE) * gammas[known] / gammas[-1]
    down = _HEIGHT - _EDGE - (_HEIGHT - 2 * _EDGE) * (values[known] - low) / ((high - low) or 1)
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(across, down, strict=True))
    at = _EDGE + (_WIDTH - 2 * _EDGE) * chosen / gammas[-1]
    return (
        f'<svg width="{_WIDTH}" height="{_HEIGHT}" role="img" font-size="11" fill="currentColor">'
        f'<text x="{_EDGE}" y="14">{escape(title.replace("_", " "))} '
        f"{low:.3f} to {high:.3f}</text>"
        f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{_EDGE}" y2="{_HEIGHT - _EDGE}" '
        'stroke="currentColor" stroke-dasharray="3"/>'
        f'<polyline points="{points}" fill="none" stroke="steelblue" stroke-width="2"/>'
        f'<text x="{at:.1f}" y="{_HEIGHT - 8}">{chosen:g}</text></svg>'
    )


def page(text: str, at: Mapping[str, Mapping[str, float | None]], svg: str) -> str:
    """A text, the metrics at each strength as a table, and a drawing, as HTML."""
    names = [name for name in next(iter(at.values()), {}) if any(t.get(name) for t in at.values())]
    heads = "".join(f"<th>{'as it is' if key == '0' else escape(key)}</th>" for key in at)
    rows = "".join(
        f"<tr><td>{escape(name.replace('_', ' '))}</td>"
        + "".join(
            f"<td>{'n/a' if (value := table.get(name)) is None else f'{value:.4f}'}</td>"
            for table in at.values()
        )
        + "</tr>"
        for name in names
    )
    table = f"<table><tr><th>metric</th>{heads}</tr>{rows}</table>" if rows else ""
    return f"<p>{escape(text).replace(chr(10), '<br>')}</p>{table}{svg}"
