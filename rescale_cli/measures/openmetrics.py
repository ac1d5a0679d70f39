"""Metrics as OpenMetrics text, which Prometheus and GitLab read (OpenMetrics 1.0)."""

from __future__ import annotations

import math
from collections.abc import Mapping

PREFIX = "rescale_"


def openmetrics(models: Mapping[str, Mapping[str, float | None]], about: Mapping[str, str]) -> str:
    """One gauge a metric, one sample a model; a metric without a value has no sample.

    Args:
        models: name of the model to its metrics, each a name of letters, digits and _.
        about: the help text of each metric, where there is one.

    Example:
        >>> print(openmetrics({"a.pth": {"accuracy": 0.5}}, {"accuracy": "share"}), end="")
        # TYPE rescale_accuracy gauge
        # HELP rescale_accuracy share
        rescale_accuracy{model="a.pth"} 0.5
        # EOF
    """
    lines = []
    for name in dict.fromkeys(name for metrics in models.values() for name in metrics):
        values = {model: metrics.get(name) for model, metrics in models.items()}
        known = {model: value for model, value in values.items() if value is not None}
        if not known:
            continue
        lines.append(f"# TYPE {PREFIX}{name} gauge")
        if name in about:
            lines.append(f"# HELP {PREFIX}{name} {_escaped(about[name])}")
        for model, value in known.items():
            lines.append(f'{PREFIX}{name}{{model="{_escaped(model)}"}} {_number(value)}')
    return "\n".join([*lines, "# EOF", ""])


def _escaped(text: str) -> str:
    whole = text.encode("utf-8", "backslashreplace").decode()
    return whole.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _number(value: float) -> str:
    if math.isfinite(value):
        return repr(float(value))
    return "NaN" if math.isnan(value) else "+Inf" if value > 0 else "-Inf"
