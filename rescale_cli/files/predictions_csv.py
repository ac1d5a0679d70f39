"""Predictions as CSV: what each sample is, and what the model took it for."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from io import StringIO

from rescale_cli.core.predictions import Labels


def predictions_csv(actual: Labels, predicted: Labels, names: Sequence[str] | None = None) -> str:
    r"""CSV with the columns `actual,predicted`, rows of the head both, and `name` where known.

    Args:
        actual: (N,).
        predicted: (N,).
        names: (N,), the file or key of each sample.

    Example:
        >>> import numpy as np
        >>> predictions_csv(np.array([0, 2]), np.array([0, 1]), ["a.png", "b,c.png"])
        'actual,predicted,name\n0,0,a.png\n2,1,"b,c.png"\n'
    """
    text = StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["actual", "predicted", *(["name"] if names is not None else [])])
    columns = [actual.tolist(), predicted.tolist(), *([names] if names is not None else [])]
    writer.writerows(zip(*columns, strict=True))
    return text.getvalue()
