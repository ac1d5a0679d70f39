"""Every picture, one grammar: Vega-Altair, drawn by vl-convert without a browser (extra `plot`)."""

from __future__ import annotations

import sys
from importlib.util import find_spec

import numpy as np

from rescale_cli.files.text_file import write_text
from rescale_cli.loading.libraries import library
from rescale_cli.training.train import Trained

#: Classes that are drawn: of more, some at even distances.
MOST = 1000


def can_draw() -> bool:
    """Whether what the extra `plot` brings is here."""
    # Altair builds itself from its docstrings, which python -OO removes.
    here = all(find_spec(name) is not None for name in ("altair", "vl_convert"))
    return here and sys.flags.optimize < 2


def write_norms(trained: Trained) -> None:
    """Draw the row norms of a run's head beside its counts into norms.svg, in its folder.

    Raises:
        EnvironmentProblem: the extra `plot` is missing, or the system refused something.
    """
    counts, names = trained.counts.values, trained.counts.names
    norms = np.array(trained.lines[-1]["row_norms"])
    order = np.argsort(-counts, kind="stable")
    shown = np.unique(np.linspace(1, len(order), MOST).round().astype(int))
    rows = [
        {
            "rank": rank,
            "class": names[row] if names else f"class {row}",
            "norm": float(norms[row]),
            "count": int(counts[row]),
        }
        for rank, row in zip(shown.tolist(), order[shown - 1].tolist(), strict=True)
    ]
    write_text(trained.folder.norms, norms_svg(rows), force=True)


def norms_svg(rows: list[dict[str, object]]) -> str:
    """Row norms as bars, and training samples as points on a logarithmic axis, as SVG.

    Args:
        rows: one a class, the most frequent first: rank from 1, class, norm, count.
    """
    alt, convert = library("altair", "plot"), library("vl_convert", "plot")
    title, red = "class, the most frequent first", "#e45756"
    if len(rows) <= 40:  # names of more cannot be read
        across = alt.X("class:N", sort=None, title=title, axis=alt.Axis(labelAngle=-40))
    else:
        across = alt.X("rank:Q", title=title, scale=alt.Scale(domain=[0, len(rows) + 1]))
    base = alt.Chart(alt.Data(values=rows)).encode(x=across)
    bars = base.mark_bar(color="#9ecae9").encode(y=alt.Y("norm:Q", title="row norm |w_i|"))
    counts = alt.Y("count:Q", title="training samples n_i", scale=alt.Scale(type="log"))
    points = base.mark_line(color=red, point={"color": red}).encode(
        y=counts.axis(titleColor=red, labelColor=red)
    )
    chart = alt.layer(bars, points).resolve_scale(y="independent").properties(width=480, height=240)
    svg: str = convert.vegalite_to_svg(chart.to_json())
    return svg
