"""The JSON Schemas: sound, strict, shipped, and true of what the commands print."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from conftest import COUNTS, FORMATS, Made, schema_of

from rescale_cli import errors
from rescale_cli.cli import COMMANDS, main
from rescale_cli.commands import demo_report
from rescale_cli.commands.console import Screen

Capture = pytest.CaptureFixture[str]
Containers = Callable[[str], Made]


def run(capsys: Capture, *words: object) -> tuple[int, dict[str, Any]]:
    """The exit code and the one document of a command with --json, held against its schema."""
    capsys.readouterr()
    code = main([str(word) for word in words] + ["--json"])
    out = capsys.readouterr().out
    document = json.loads(out)
    jsonschema.validate(document, schema_of(str(words[0])))
    assert document["schema"] == f"rescale-cli/{words[0]}@1"
    assert document["ok"] == (code == 0)
    return code, document.get("result", document.get("error"))


@pytest.fixture
def counts_file(tmp_path: Path) -> Path:
    path = tmp_path / "counts.json"
    path.write_text(json.dumps(COUNTS))
    return path


def test_every_command_has_a_schema_and_no_other_has() -> None:
    folder = resources.files("rescale_cli") / "schemas"
    assert sorted(f.name for f in folder.iterdir()) == sorted(f"{name}.json" for name in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_schema_is_sound_and_closed(command: str) -> None:
    schema = schema_of(command)
    jsonschema.Draft202012Validator.check_schema(schema)
    success, failure = schema["oneOf"]
    for variant in (success, failure):
        assert variant["additionalProperties"] is False
        assert variant["properties"]["schema"] == {"const": f"rescale-cli/{command}@1"}
    result = schema["$defs"]["result"]
    if command != "schema":
        assert result["additionalProperties"] is False
        assert set(result["required"]) <= set(result["properties"])


@pytest.mark.parametrize("command", COMMANDS)
def test_the_command_prints_it(command: str, capsys: Capture) -> None:
    assert main(["schema", command]) == 0
    assert json.loads(capsys.readouterr().out) == schema_of(command)
    _, result = run(capsys, "schema", command)
    assert result == schema_of(command)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    "kind",
    [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.RescaleError)
    ],
)
def test_every_error_fits_every_schema(
    command: str, kind: type[errors.RescaleError], capsys: Capture
) -> None:
    more = {"candidates": ({"weight": "a", "shape": [2, 3], "why": "b"},)}
    looks = "candidates" in schema_of(command)["$defs"]["error"]["properties"]
    extra = more if kind is errors.AmbiguousHead and looks else {}
    problem = kind("what", saw="", fix="do", **extra)
    if kind is errors.AmbiguousHead and not extra:
        return  # no other command looks for a head
    Screen(command, as_json=True).error(problem)
    jsonschema.validate(json.loads(capsys.readouterr().out), schema_of(command))


def test_a_schema_notices_a_surplus_and_a_missing_field(
    containers: Containers, counts_file: Path, capsys: Capture
) -> None:
    made = containers("state dict")
    _, result = run(capsys, "inspect", made.path)
    document = {"schema": "rescale-cli/inspect@1", "ok": True, "result": result, "warnings": []}
    jsonschema.validate(document, schema_of("inspect"))
    for wrong in ({**result, "extra": 1}, {k: v for k, v in result.items() if k != "head"}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**document, "result": wrong}, schema_of("inspect"))


@pytest.mark.parametrize(
    "name", [*FORMATS, "Hugging Face shards", "Lightning with an averaged copy"]
)
def test_inspect_apply_verify_and_revert_print_what_their_schemas_say(
    name: str, containers: Containers, counts_file: Path, tmp_path: Path, capsys: Capture
) -> None:
    made = containers(name)
    suffix = made.path.suffix
    out, back = tmp_path / f"out{suffix}", tmp_path / f"back{suffix}"
    code, seen = run(capsys, "inspect", made.path, "--counts", counts_file)
    assert code == 0
    assert seen["head"]["weight"] == next(iter(made.weights))
    assert [head["weight"] for head in seen["heads"]] == list(made.weights)
    assert seen["counts"] == COUNTS
    code, planned = run(
        capsys, "apply", made.path, "--counts", counts_file, "-g", "0.3", "--dry-run"
    )
    assert (code, planned["output"], planned["record"]) == (0, None, None)
    code, applied = run(capsys, "apply", made.path, "--counts", counts_file, "-g", "0.3", "-o", out)
    assert code == 0
    assert applied["factors"] == planned["factors"]
    assert applied["counts"] == COUNTS
    assert applied["bytes_changed"] > 0
    assert applied["record"]["source_digest"].startswith("sha256:")
    code, again = run(capsys, "inspect", out)
    assert code == 0
    assert again["rescalings"][0]["gamma"] == 0.3
    code, proven = run(capsys, "verify", out, "--against", made.path)
    assert (code, proven["proven"]) == (0, True)
    code, reverted = run(capsys, "revert", out, "-o", back)
    assert (code, reverted["sha256"]) == (0, applied["source_sha256"])


@pytest.mark.parametrize(
    "text", ["[5, 4, 3]", '{"cat": 5, "dog": 0}', '{"0": 5, "1": 3}', "label\nb\na\nb\n"]
)
def test_counts_prints_what_its_schema_says(text: str, tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / ("a.csv" if text.startswith("label") else "a.json")
    path.write_text(text)
    saved = tmp_path / "saved.json"
    source = f"csv:{path}" if path.suffix == ".csv" else path
    code, result = run(capsys, "counts", source, "-o", saved)
    assert code == 0
    assert result["total"] == sum(result["counts"])
    assert saved.is_file()


def test_counts_of_a_folder_and_of_labels_print_what_their_schema_says(
    tmp_path: Path, capsys: Capture
) -> None:
    for name, size in (("cat", 3), ("dog", 1), ("eel", 0)):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(size):
            (tmp_path / "data" / name / f"{i}.png").touch()
    code, result = run(capsys, "counts", tmp_path / "data")
    assert code == 0
    assert (result["counts"], result["classes"]) == ([3, 1], ["cat", "dog"])  # eel is empty
    assert (result["total"], result["empty_classes"], result["imbalance_ratio"]) == (4, 0, 3)
    assert result["order"] == "imagefolder"
    code, result = run(capsys, "counts", tmp_path / "data", "--order", "natural")
    assert (code, result["order"], result["order_given"]) == (0, "natural", True)
    np.savez(tmp_path / "a.npz", images=np.zeros((4, 1)), labels=np.array([0, 2, 2, 1]))
    code, result = run(capsys, "counts", f"npz:{tmp_path / 'a.npz'}")
    assert (code, result["counts"], result["classes"]) == (0, [1, 1, 2], None)


@pytest.mark.parametrize(
    ("words", "exit_code", "error"),
    [
        (("inspect", "missing.pth"), 3, "bad-checkpoint"),
        (("counts", "missing"), 3, None),
        (("apply", "missing.pth", "--counts", "c.json", "-g", "1"), 3, None),
        (("apply", "missing.pth", "--counts", "c.json", "-g", "much"), 2, "usage"),
        (("apply", "missing.pth"), 2, "usage"),
        (("evaluate", "missing.pth"), 2, "usage"),
        (("evaluate", "missing.pth", "--data", "missing"), 3, None),
        (("evaluate", "missing.pth", "--logits", "missing"), 3, "bad-checkpoint"),
        (("sweep-gamma", "missing.pth"), 2, "usage"),
        (("sweep-gamma", "missing.pth", "--counts", "c.json", "--logits", "missing"), 3, None),
        (("compare", "missing.pth", "--counts", "c.json"), 2, "usage"),
        (("compare", "missing.pth", "--counts", "c.json", "--logits", "missing"), 3, None),
        (("train",), 2, "usage"),
        (("train", "--data", "missing", "-o", "run"), 3, None),
        (("train", "--resume", "missing"), 3, None),
        (("train", "--preset", "missing"), 2, "usage"),
        (("train", "--lr", "much"), 2, "usage"),
        (("verify", "missing.pth", "--against", "also.pth"), 3, "bad-checkpoint"),
        (("verify", "missing.pth"), 2, "usage"),
        (("revert", "missing.pth", "-o", "x"), 3, "bad-checkpoint"),
        (("schema", "nonsense"), 2, "usage"),
        (("demo", "--nonsense"), 2, "usage"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_failures_print_what_the_schema_says(
    words: tuple[str, ...], exit_code: int, error: str | None, capsys: Capture, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    code, said = run(capsys, *words)
    assert code == exit_code
    assert error in (None, said["code"])


def test_train_prints_what_its_schema_says(tmp_path: Path, capsys: Capture) -> None:
    labels = np.repeat(np.arange(3), [40, 20, 10])
    images = np.random.default_rng(0).integers(0, 60, (70, 8, 8), np.uint8)
    images += (90 * labels[:, None, None]).astype(np.uint8)
    np.savez(tmp_path / "a.npz", images=images, labels=labels)
    words = ["--data", f"npz:{tmp_path / 'a.npz'}", "--arch", "rescale:resnet8", "-b", "16"]
    words += ["--epochs", "1", "--milestones", "none", "--device", "cpu"]
    code, printed = run(capsys, "train", *words, "--print-config")
    assert (code, printed["run"], printed["recipe"]["epochs"]) == (0, None, 1)
    code, result = run(capsys, "train", *words, "-g", "0.2", "-o", tmp_path / "run")
    assert (code, result["counts"], len(result["epochs"])) == (0, [36, 18, 9], 1)
    assert result["data"]["validation"]["samples"] == 7
    assert result["recipe"] == {**printed["recipe"], "gamma": 0.2}
    assert all(Path(result[name]).is_file() for name in ("model", "rescaled"))
    code, said = run(capsys, "train", *words, "-o", tmp_path / "run")
    assert (code, said["code"]) == (4, "output-exists")


def test_an_ambiguous_head_is_listed_with_candidates(tmp_path: Path, capsys: Capture) -> None:
    import torch

    # Two layers at the end, and only their users know which is which.
    state = {"branch_a.fc.weight": torch.randn(10, 6), "branch_b.fc.weight": torch.randn(11, 6)}
    torch.save({"stem.weight": torch.randn(6, 4), **state}, tmp_path / "two.pth")
    code, said = run(capsys, "inspect", tmp_path / "two.pth")
    assert (code, said["code"]) == (4, "ambiguous-head")
    assert {entry["weight"] for entry in said["candidates"]} == set(state)


def test_the_demo_prints_what_its_schema_says_and_gains(tmp_path: Path, capsys: Capture) -> None:
    folder = tmp_path / "demo"
    code, result = run(capsys, "demo", "-o", folder)
    assert code == 0
    for command in ("inspect", "sweep-gamma", "apply", "evaluate"):
        own = schema_of(command)
        said = result[command.replace("-", "_")]
        jsonschema.validate(said, {"$ref": "#/$defs/result", "$defs": own["$defs"]})
    assert result["sweep_gamma"]["exact"]
    assert result["apply"]["gamma"] == result["sweep_gamma"]["chosen"]["gamma"]
    assert result["balanced_accuracy"]["after"] > result["balanced_accuracy"]["before"]
    code, said = run(capsys, "demo", "-o", folder)
    assert (code, said["code"]) == (4, "output-exists")


def test_the_demo_shows_commands_that_do_what_it_did(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["demo"]) == 0
    shown = capsys.readouterr().out
    typed = [line for line in shown.splitlines() if line.startswith("$ rescale-cli ")]
    assert [line.split()[2] for line in typed] == ["inspect", "sweep-gamma", "apply", "evaluate"]
    for line in typed:
        more = ["--force"] if {"apply", "sweep-gamma"} & set(line.split()) else []
        assert main([*line.split()[2:], *more]) == 0
        again = capsys.readouterr().out
        varies = ("sha256", "images/s")  # the record holds the command; no two runs are as fast
        lines = [text for text in again.splitlines() if not any(word in text for word in varies)]
        assert lines[:3] == [text for text in lines[:3] if text in shown]


def test_an_installation_without_the_example_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Capture
) -> None:
    monkeypatch.setattr(demo_report, "__file__", str(tmp_path / "package/commands/demo.py"))
    code, said = run(capsys, "demo", "-o", tmp_path / "demo")
    assert (code, said["code"]) == (5, "environment")
