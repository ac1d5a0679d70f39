"""The head that the user named: a tensor, its module, or the unique end of either."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import replace

from rescale_cli.errors import BadInput
from rescale_cli.finding.head_evidence import Scored, ambiguous
from rescale_cli.finding.matrices import Matrix


def named_heads(
    everywhere: Sequence[Matrix], leading: Sequence[Matrix], names: Sequence[str], k: int | None
) -> list[Scored]:
    """Look the names up.

    Args:
        everywhere: the matrices of all copies of the model; a whole name may be in any of them.
        leading: those of the leading copy; the end of a name is looked for here only.
        names: what the user typed after --head.
        k: the class count, if the user told it.

    Raises:
        BadInput: nothing has that name, or it has another number of rows.
        AmbiguousHead: several names end so.
    """
    chosen = []
    for name in names:
        exact = [m for m in everywhere if name in (m.weight.name, m.module)]
        end = "." + name
        hits = exact or [
            m for m in leading if m.weight.name.endswith(end) or m.module.endswith(end)
        ]
        if not hits:
            known = [m.module or m.weight.name for m in everywhere]
            steps = name.removesuffix(".weight").split(".")
            ends = {".".join(module.split(".")[-len(steps) :]): module for module in known}
            meant = difflib.get_close_matches(".".join(steps), ends, 3, 0.5)
            close = [ends[end] for end in meant] or known[-3:]
            raise BadInput(
                f"no linear layer is named {name}",
                saw=", ".join(close) or "the checkpoint has no matrix",
                fix=f"--head {close[0]}" if close else "pass a checkpoint with a linear layer",
            )
        if len(hits) > 1:
            raise ambiguous([Scored(m, 0, (f"its name ends in {name}",)) for m in hits])
        m = hits[0]
        if k is not None and m.rows not in (k, 1) and m.width == k and not m.bias:
            layout = "linear" if m.layout == "transposed" else "transposed"
            m = replace(m, layout=layout, rows=m.width, width=m.rows)
        if k is not None and m.rows != k and (m.rows, k) != (1, 2):
            raise BadInput(
                f"{name} has {m.rows} rows, but there are {k} classes",
                saw=f"{m.weight.name} {m.weight.shape}",
                fix="pass the counts of the data this checkpoint was trained on, or another --head",
            )
        chosen.append(Scored(m, 0, (f"named by --head {name}",)))
    return chosen
