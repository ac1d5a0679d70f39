"""From logits to a picture, in Python.

Each cell runs by itself in an editor that knows `# %%`, or all of them with
`python examples/library.py`, which writes `library.svg` into the current folder.
"""

# %% The logits of a validation set, their labels, and the training samples of each class.
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

import rescale_cli as rc

example = Path(__file__).parent / "fashion_lt"
val = np.load(example / "val_logits.npz")
counts = rc.counts(example / "counts.json", classes=example / "counts.json")
state = load_file(example / "model.safetensors")

# %% Choose the strength on one half of the samples, and judge it on the other.
fit = rc.sweep(
    val["logits"], val["labels"], counts, head=(state["linear.weight"], state["linear.bias"])
)
print(fit)

# %% The metrics before and after, on all samples: more optimistic than the verdict above.
before = rc.metrics(val["logits"], val["labels"], counts)
after = rc.metrics(fit.transform(val["logits"]), val["labels"], counts)
for name in ("balanced_accuracy", "accuracy", "many", "medium", "worst_recall"):
    print(f"{name:18} {before[name]:.3f} -> {after[name]:.3f}")

# %% The curve; `fit.to_frame()` is a DataFrame where pandas is installed.
curve = fit.to_frame()
print(
    f"{len(curve['gamma'])} strengths, best balanced accuracy {max(curve['balanced_accuracy']):.3f}"
)

# %% Re-scale the state dict: the result is a new one, with the head of `apply`.
new = rc.rescale(state, fit, head="linear")
print("rows are longer by", np.round(new["linear.weight"][:, 0] / state["linear.weight"][:, 0], 3))

# %% A picture, with the extra `plot`.
try:
    import altair as alt
except ImportError:
    print("no picture: pip install 'rescale-cli[plot]'")
else:
    names = ("balanced_accuracy", "many", "medium")
    rows = [
        {"gamma": float(gamma), "metric": name, "value": float(value)}
        for name in names
        for gamma, value in zip(curve["gamma"], curve[name], strict=True)
    ]
    lines = (
        alt.Chart(alt.Data(values=rows))
        .mark_line()
        .encode(
            x=alt.X("gamma:Q"), y=alt.Y("value:Q", scale=alt.Scale(zero=False)), color="metric:N"
        )
    )
    chosen = alt.Chart(alt.Data(values=[{"gamma": fit.gamma}])).mark_rule(strokeDash=[4, 4])
    (lines + chosen.encode(x="gamma:Q")).save("library.svg")
    print("wrote library.svg")
