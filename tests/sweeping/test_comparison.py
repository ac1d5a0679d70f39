"""`compare`: what it concludes, what it writes, and the interval of every change."""

from __future__ import annotations

import hashlib
import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file, save_file

from rescale_cli.cli import main
from rescale_cli.commands.schema import schema_text
from rescale_cli.core.counts import ClassCounts
from rescale_cli.core.methods import Adjustment
from rescale_cli.sweeping.comparison import Comparison, RankedMethod
from rescale_cli.sweeping.verdict import Gain, Verdict, recall_changes

EXAMPLE = Path(__file__).parents[2] / "examples" / "fashion_lt"
MODEL, COUNTS, LOGITS = (
    EXAMPLE / n for n in ("model.safetensors", "counts.json", "val_logits.npz")
)
BUNDLED = (MODEL, "--counts", COUNTS, "--logits", LOGITS, "--bootstrap", 0)
Capture = pytest.CaptureFixture[str]


def run(capsys: Capture, *words: object) -> tuple[int, dict[str, Any]]:
    capsys.readouterr()
    code = main([*(str(word) for word in words), "--json"])
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    jsonschema.validate(document, json.loads(schema_text(str(words[0]))))
    return code, document


@pytest.fixture
def bare(tmp_path: Path) -> tuple[object, ...]:
    """The words for the bundled model without its bias, and for its counts and logits."""
    tensors = load_file(MODEL)
    save_file({name: t for name, t in tensors.items() if name != "linear.bias"},
              tmp_path / "bare.safetensors")  # fmt: skip
    kept = np.load(LOGITS)  # they do not say that they are of the head with its bias
    np.savez(tmp_path / "logits.npz", logits=kept["logits"], labels=kept["labels"])
    words = [tmp_path / "logits.npz" if word == LOGITS else word for word in BUNDLED[1:]]
    return (tmp_path / "bare.safetensors", *words, "--classes", COUNTS)


# ------------------------------------------------------------------------ intervals of the changes


def test_the_intervals_of_recalls_are_those_of_a_plain_bootstrap() -> None:
    rng = np.random.default_rng(4)
    support, c = np.array([120, 60, 25, 8]), 4
    labels = np.repeat(np.arange(c), support)
    before, after = (np.where(rng.random(len(labels)) < p, labels, rng.integers(0, c, len(labels)))
                     for p in (0.5, 0.7))  # fmt: skip
    groups = ClassCounts.of([500, 200, 60, 5]).groups()
    found = recall_changes(before, after, labels, groups, c)
    change = (after == labels).astype(float) - (before == labels)
    plain = np.stack(
        [
            change[labels == row][rng.integers(0, n, (20_000, n))].mean(axis=1)
            for row, n in enumerate(support)
        ]
    )
    weights = {"accuracy": support / support.sum(), "balanced_accuracy": np.ones(c) / c}
    weights |= {name: mask / mask.sum() for name, mask in groups.items()}
    for name, weight in weights.items():
        interval = found.means[name]
        assert interval is not None
        own = [change[labels == row].mean() for row in range(c)]
        assert interval.value == pytest.approx(weight @ own)
        near(interval.low, interval.high, weight @ plain)
    for row in range(c):
        assert found.difference[row] == pytest.approx(change[labels == row].mean())
        near(found.low[row], found.high[row], plain[row])


def near(low: float, high: float, drawn: Any) -> None:
    """The ends are quantiles of 10,000 replicates: their ranks in others differ by 4 errors."""
    error = 4 * np.sqrt(0.025 * 0.975 * (1 / 10_000 + 1 / len(drawn)))
    for end, rank in ((low, 0.025), (high, 0.975)):
        least, most = np.quantile(drawn, [rank - error, rank + error])
        assert least - 1e-9 <= end <= most + 1e-9


def test_a_class_of_one_sample_says_nothing_and_one_without_samples_has_no_interval() -> None:
    labels = np.array([0] * 20 + [1])
    found = recall_changes(np.zeros(21, int), labels, labels, {"few": np.arange(3) == 2}, 3)
    assert found.of_class(0) == (0.0, 0.0)
    assert found.of_class(1) == (-1.0, 1.0)
    assert found.of_class(2) is None
    assert found.means["few"] is None


def test_every_change_of_a_sweep_has_its_interval(capsys: Capture) -> None:
    words = ("sweep-gamma", *BUNDLED[:-1], 50, "--groups", "1000,200")
    _, document = run(capsys, *words)
    result = document["result"]
    before, after = result["at"]["0"], result["at"][f"{result['chosen']['gamma']:.12g}"]
    known = {name for name, value in after.items() if value is not None}
    assert set(result["changes"]) == known >= {"many", "medium", "few", "nll", "classwise_ece"}
    for name, change in result["changes"].items():
        assert change["difference"] == pytest.approx(after[name] - before[name])
        assert change["interval"][0] <= change["interval"][1]
    gain = result["gain"]
    assert result["changes"]["balanced_accuracy"]["interval"] == gain["interval"]
    for entry in result["per_class"]:
        assert entry["difference"] == pytest.approx(entry["recall_chosen"] - entry["recall"])
        low, high = entry["interval"]
        assert low - 1e-9 <= entry["difference"] <= high + 1e-9
    _, document = run(capsys, *words[:-3], 0, *words[-2:])
    assert {"many", "medium", "few", "accuracy"} <= set(document["result"]["changes"])


# ------------------------------------------------------------------------------------- conclusions


def test_methods_that_cannot_be_written_are_named_and_the_command_is_for_one_that_can(
    bare: tuple[object, ...], capsys: Capture, tmp_path: Path
) -> None:
    out = tmp_path / "out.safetensors"
    code, document = run(capsys, "compare", *bare, "--apply", out)
    result = document["result"]
    entries = {entry["name"]: entry for entry in result["methods"]}
    assert (code, entries["logit-adjust"]["writable"]) == (0, False)
    assert "bias" in entries["logit-adjust"]["obstacle"]
    assert entries["logit-adjust"]["apply"] is None
    helping = [e for e in result["methods"] if e["verdict"] == "helps" and e["writable"]]
    assert helping
    assert result["to_write"] == helping[0]["name"]
    assert result["apply"] == helping[0]["apply"]
    assert result["apply"].endswith(f"--output {out}")
    (warning,) = (w for w in document["warnings"] if w["code"] == "not-writable")
    assert warning["message"].startswith("logit-adjust cannot be written to bare.safetensors: ")
    again = tmp_path / "again.safetensors"
    typed = shlex.split(result["apply"])[1:-1]
    assert main([*typed, str(again), "--classes", str(COUNTS)]) == 0
    one, two = load_file(out), load_file(again)
    assert {name: t.tobytes() for name, t in one.items()} == {
        n: t.tobytes() for n, t in two.items()
    }
    code, proof = run(capsys, "verify", out, "--against", bare[0])
    assert (code, proof["result"]["gamma"]) == (0, helping[0]["gamma"])


def test_what_cannot_be_distinguished_from_the_best_is_said_with_its_interval(
    capsys: Capture,
) -> None:
    _, document = run(capsys, "compare", *BUNDLED)
    result = document["result"]
    level = [e for e in result["methods"] if e["name"] in result["not_told_apart"]]
    assert level
    name = result["best"][0].upper() + result["best"][1:]
    assert result["text"].startswith(f"{name} is best, but cannot be distinguished from ")
    for entry in level:
        low, high = (f"{100 * end:+.1f}" for end in entry["behind_best"]["interval"])
        change = f"{100 * entry['behind_best']['difference']:+.1f} points"
        said = f"{entry['name']} (difference {change}, 95 % interval {low} to {high})"
        assert said in result["text"]


@pytest.fixture
def hopeless(tmp_path: Path) -> tuple[object, ...]:
    """A model on whose samples no method changes a decision."""
    labels = np.repeat([0, 1, 2], 30)
    tensors = {"net.0.weight": np.ones((3, 3), "float32"), "fc.weight": np.eye(3, dtype="float32")}
    save_file(tensors, tmp_path / "m.safetensors")
    np.savez(tmp_path / "l.npz", logits=50 * np.eye(3, dtype="float32")[labels], labels=labels)
    (tmp_path / "c.json").write_text("[400, 100, 25]")
    return (tmp_path / "m.safetensors", "--counts", tmp_path / "c.json",
            "--logits", tmp_path / "l.npz")  # fmt: skip


def test_where_nothing_helps_the_checkpoint_is_written_unchanged_and_a_gain_can_be_required(
    hopeless: tuple[object, ...], capsys: Capture, tmp_path: Path
) -> None:
    out, table, kept = (tmp_path / name for name in ("o.safetensors", "c.csv", "c.out.json"))
    words = ("compare", *hopeless, "--apply", out, "--csv", table, "-o", kept, "--require-gain")
    code, document = run(capsys, *words)
    result = document["result"]
    assert (code, document["error"]["code"]) == (6, "gate-failed")
    assert (result["to_write"], result["apply"]) == (None, None)
    assert "no method has the verdict helps (rescale: no-gain" in document["error"]["saw"]
    assert "left-alone" in [warning["code"] for warning in document["warnings"]]
    before, after = load_file(str(hopeless[0])), load_file(out)
    assert {n: t.tobytes() for n, t in before.items()} == {n: t.tobytes() for n, t in after.items()}
    assert run(capsys, "verify", out, "--against", hopeless[0])[1]["result"]["gamma"] == 0
    assert (written := result.pop("written"))["gamma"] == 0
    assert written["sha256"] == hashlib.sha256(out.read_bytes()).hexdigest()
    assert json.loads(kept.read_text())["result"] == result
    assert len(pd.read_csv(table)) == len(result["methods"])
    assert main([str(word) for word in ("compare", *hopeless)]) == 0
    assert "There is no command to write a method: " in capsys.readouterr().out


def test_the_csv_has_one_row_a_method(bare: tuple[object, ...], capsys: Capture) -> None:
    table = Path(str(bare[0])).with_name("c.csv")
    _, document = run(capsys, "compare", *bare, "--csv", table)
    rows = pd.read_csv(table).to_dict("records")
    for row, entry in zip(rows, document["result"]["methods"], strict=True):
        same = ("name", "method", "normalize", "gamma", "verdict", "writable")
        assert {name: row[name] for name in same} == {name: entry[name] for name in same}
        gain = entry["gain"]
        named = ("before", "after", "difference", "p")
        assert [row[name] for name in named] == [gain[name] for name in named]
        assert [row["difference_low"], row["difference_high"]] == gain["interval"]
        assert (row["bias"], row["metric"]) == (entry["bias_policy"], "balanced_accuracy")
        assert row["accuracy"] == entry["metrics"]["accuracy"]
    code, document = run(capsys, "compare", *bare, "--csv", table)
    assert (code, document["error"]["code"]) == (4, "output-exists")


def test_a_row_that_its_dtype_cannot_hold_is_an_obstacle(tmp_path: Path, capsys: Capture) -> None:
    labels = np.repeat([0, 1, 2], 60)
    logits = np.random.default_rng(0).normal(1.0, 0.3, (180, 3)).clip(0.05)
    logits[np.arange(180), labels] += 1.0
    logits[:, 2] *= 0.4
    weight = (60_000 * np.eye(3)).astype("float16")
    save_file({"net.0.weight": np.ones((3, 3), "float16"), "fc.weight": weight},
              tmp_path / "m.safetensors")  # fmt: skip
    np.savez(tmp_path / "l.npz", logits=logits.astype("float32"), labels=labels)
    (tmp_path / "c.json").write_text("[400, 100, 25]")
    words = (tmp_path / "m.safetensors", "--counts", tmp_path / "c.json",
             "--logits", tmp_path / "l.npz")  # fmt: skip
    _, document = run(capsys, "compare", *words)
    (entry,) = (e for e in document["result"]["methods"] if e["name"] == "rescale")
    assert entry["gamma"] > 0
    assert (entry["writable"], entry["apply"]) == (False, None)
    assert "does not fit into float16" in entry["obstacle"]


def test_a_step_on_github_gets_the_ranking_and_the_method_to_write(
    capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs, page, out = (tmp_path / name for name in ("outputs", "page.md", "out.safetensors"))
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_OUTPUT", str(outputs))
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(page))
    _, document = run(capsys, "compare", *BUNDLED, "--apply", out)
    said = dict(line.split("=", 1) for line in outputs.read_text().splitlines())
    entry = next(m for m in document["result"]["methods"] if m["name"] == said["method"])
    assert float(said["gamma"]) == entry["gamma"]
    assert said["verdict"] == entry["verdict"] == "helps"
    assert float(said["gain"]) == entry["gain"]["difference"]
    assert [float(said["gain_low"]), float(said["gain_high"])] == entry["gain"]["interval"]
    assert said["output"] == str(out)
    assert said["sha256"] == hashlib.sha256(out.read_bytes()).hexdigest()
    assert f"helps, {said['method']}, strength {entry['gamma']:g}" in page.read_text()
    assert all(m["name"].split()[0] in page.read_text() for m in document["result"]["methods"])
    assert "is best" in page.read_text()
    outputs.unlink()
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path))
    _, document = run(capsys, "compare", *BUNDLED)
    assert [w for w in document["warnings"] if w["code"] == "github"]


@pytest.mark.parametrize("command", ["sweep-gamma", "compare"])
def test_apply_lists_the_training_state_that_a_run_keeps(
    command: str, capsys: Capture, tmp_path: Path
) -> None:
    source = tmp_path / "run"
    source.mkdir()
    for name in ("model.safetensors", "config.json"):
        shutil.copy(EXAMPLE / name, source / name)
    for name in ("metrics.jsonl", "norms.svg"):
        (source / name).write_text(name)
    words = [command, source, *BUNDLED[1:], "--apply", tmp_path / "out"]
    assert main([str(word) for word in words]) == 0
    assert (
        "left behind, because it belongs to the original model: metrics.jsonl"
        in capsys.readouterr().out
    )
    assert not (tmp_path / "out" / "norms.svg").exists()


# ------------------------------------------------------------------------------- what is level


def verdict(kind: str, interval: Any, why: str = "interval") -> Verdict:
    gain = None if interval is None else Gain("accuracy", 0.5, 0.6, interval or None, 1.0)
    return Verdict(kind, why, gain, 100)  # type: ignore[arg-type]


def ranked(name: str, behind: Verdict | None, kind: str = "helps") -> RankedMethod:
    at: Any = None
    return RankedMethod(name, Adjustment(), None, at, behind, verdict(kind, (0.1, 0.2)))


def test_a_method_is_level_with_the_best_unless_the_interval_shows_a_difference() -> None:
    assert not ranked("the best", None).level
    assert not ranked("no labels", verdict("undecided", None)).level
    assert ranked("no interval", verdict("undecided", ())).level
    for low, level in ((-0.1, True), (0.0, True), (0.01, False)):
        assert ranked("one", verdict("helps", (low, 0.2))).level == level
    assert ranked("five samples", verdict("undecided", (0.01, 0.2), "few-changes")).level


def test_the_best_method_that_helps_and_has_no_obstacle_is_written() -> None:
    entries = (ranked("a", None, "undecided"), ranked("b", None), ranked("c", None))
    made = Comparison("accuracy", entries, {}, 10, 10, apart=True)
    assert made.best.name == "a"
    for obstacles, name in (({}, "b"), ({"b": "no bias"}, "c"), ({"b": ""}, "b")):
        found = made.to_write(obstacles)
        assert found is not None
        assert found.name == name
    assert made.to_write({"b": "x", "c": "x"}) is None
