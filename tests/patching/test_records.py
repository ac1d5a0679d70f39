"""What a record says and does not say, where it is found, and what can be done without it."""

from __future__ import annotations

import getpass
import hashlib
import json
import os
import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import CONTAINERS, COUNTS, GAMMA, C, D, Made, net
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from rescale_cli import api
from rescale_cli.checkpoints.checkpoint import open_checkpoint
from rescale_cli.cli import main
from rescale_cli.core.floats import to_bits
from rescale_cli.errors import (
    AlreadyRescaled,
    AmbiguousHead,
    BadInput,
    NoClassifier,
    NotProven,
    OutputExists,
    UsageError,
)
from rescale_cli.patching import record_writer
from rescale_cli.patching.proof import verify
from rescale_cli.patching.record import KEPT
from rescale_cli.patching.revert import revert

Containers = Callable[[str], Made]
Capture = pytest.CaptureFixture[str]

KINDS = [
    "safetensors float32", "safetensors without metadata", "state dict", "legacy state dict",
    "Hugging Face .bin shards",
]  # fmt: skip


def sidecar(file: Path) -> Path:
    return file.with_name(file.name + ".rescale.json")


def contents(path: Path) -> list[str]:
    """The SHA-256 of everything that was written: a file and what is beside it, or a folder."""
    files = path.parent.glob(path.name + "*") if path.is_file() else path.rglob("*")
    found = [file for file in sorted(files) if file.is_file()]
    return [hashlib.sha256(file.read_bytes()).hexdigest() for file in found]


def copied(made: Made, folder: Path) -> Path:
    """A container under another name in another folder."""
    folder.mkdir(parents=True)
    copy = folder / ("model" + made.path.suffix)
    (shutil.copytree if made.path.is_dir() else shutil.copy)(made.path, copy)
    return copy


@pytest.fixture
def model(containers: Containers, tmp_path: Path) -> Path:
    """A state dict, whose record stands beside it."""
    return copied(containers("state dict"), tmp_path / "in")


def patch(source: Path, output: Path, gamma: float = GAMMA, **more: Any) -> Path:
    api.apply(source, COUNTS, gamma, output=output, **more)
    return output


# ------------------------------------------------------------------------- nothing but the edit


@pytest.mark.parametrize("name", KINDS)
def test_the_same_edit_gives_the_same_bytes(
    name: str, containers: Containers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the folders, the names, the date, the time zone, the umask, and what was there."""
    made, written = containers(name), []
    for place, zone, mask in (("a", "Asia/Tokyo", 0o22), ("b c/d", "America/Lima", 0o77)):
        source = copied(made, tmp_path / place)
        counts = source.parent / f"counts {len(place)}.json"
        counts.write_text(json.dumps(COUNTS))
        monkeypatch.setenv("TZ", zone)
        time.tzset()
        monkeypatch.chdir(source.parent)
        before = os.umask(mask)
        try:
            output = Path(place[0] + made.path.suffix)
            if len(place) > 1:  # over an older output
                patch(source, output, 0.1)
            words = ["apply", source.name, "--counts", counts.name, "-g", str(GAMMA)]
            assert main([*words, "-o", str(output), "--force"]) == 0
        finally:
            os.umask(before)
        written.append(contents(output))
    assert written[0] == written[1]


@pytest.mark.parametrize("name", KINDS)
def test_a_record_says_nothing_of_who_where_and_when(
    name: str, containers: Containers, tmp_path: Path
) -> None:
    source = copied(containers(name), tmp_path / "secret place")
    counts = source.parent / "private.json"
    counts.write_text(json.dumps(COUNTS))
    applied = api.apply(source, counts, GAMMA, output=tmp_path / f"out{source.suffix}")
    assert applied.patched is not None
    text = json.dumps(applied.patched.record)
    year = time.strftime("%Y-")
    for word in ("secret", "private", str(tmp_path), socket.gethostname(), year, "command"):
        assert word not in text
    assert f'"{getpass.getuser()}"' not in text
    assert not {"source", "command", "history", "replaced"} & applied.patched.record.keys()


def test_a_program_can_keep_a_command_in_the_record(model: Path, tmp_path: Path) -> None:
    output = patch(model, tmp_path / "o.pth", command="make fixed")
    assert json.loads(sidecar(output).read_text())["command"] == "make fixed"
    verify(output, model)
    shown = revert(output, tmp_path / "b.pth")
    assert shown.records[0].fields["command"] == "make fixed"


# ----------------------------------------------------------------------------------- the history


def test_the_history_is_a_flat_list_that_leads_back(model: Path, tmp_path: Path) -> None:
    states = [model]
    for step in range(KEPT + 3):
        states.append(patch(states[-1], tmp_path / f"{step}.pth", 0.01, compose=True))
    record = json.loads(sidecar(states[-1]).read_text())
    assert len(record["history"]) == KEPT
    assert all(not {"history", "previous", "replaced"} & e.keys() for e in record["history"])
    sizes = [sidecar(state).stat().st_size for state in states[-2:]]
    assert abs(sizes[0] - sizes[1]) < 100, "it does not grow any more"
    (tmp_path / "back").mkdir()
    back = states[-1]
    for step in range(KEPT + 1):
        wanted = states[-2 - step]
        back = revert(back, tmp_path / "back" / f"{step}.pth").output
        assert back.read_bytes() == wanted.read_bytes()
        if step < KEPT:
            verify(back, states[-3 - step])
    with pytest.raises(NotProven, match="no record"):
        revert(back, tmp_path / "further.pth")


def test_the_record_that_comes_back_is_the_one_that_was_there(model: Path, tmp_path: Path) -> None:
    once = patch(model, tmp_path / "once.pth")
    twice = patch(once, tmp_path / "twice.pth", 0.1, compose=True)
    thrice = patch(twice, tmp_path / "thrice.pth", 0.2, compose=True)
    back = revert(thrice, tmp_path / "back.pth").output
    assert sidecar(back).read_bytes() == sidecar(twice).read_bytes()
    first = revert(back, tmp_path / "first.pth").output
    assert sidecar(first).read_bytes() == sidecar(once).read_bytes()
    steps = [step.get("gamma") for step in api.inspect(thrice).records[0].past()]
    assert steps == [0.2, 0.1, GAMMA]


def test_inspect_lists_the_re_scalings_in_a_header_too(
    containers: Containers, tmp_path: Path
) -> None:
    once = patch(containers("safetensors float32").path, tmp_path / "1.safetensors")
    twice = patch(once, tmp_path / "2.safetensors", 0.1, compose=True)
    steps = [step.get("gamma") for step in api.inspect(twice).records[0].past()]
    assert steps == [0.1, GAMMA]


def old_form(record: dict[str, Any], previous: dict[str, Any] | None = None) -> dict[str, Any]:
    """A record as version 0.1 wrote it at first: with paths, and with nested records."""
    new = {k: v for k, v in record.items() if k not in ("record_sha256", "history")}
    new |= {"command": "rescale-cli apply m.pth", "counts_source": "c.json", "source": "m.pth"}
    if previous is not None:
        new["previous"] = previous
    sealed = json.dumps(new).encode()
    replaced = {"replaced": {"tool": "rescale-cli", "gamma": 3}}
    return {**new, "record_sha256": hashlib.sha256(sealed).hexdigest(), **replaced}


def test_records_of_older_versions_are_proven_taken_back_and_flattened(
    model: Path, tmp_path: Path
) -> None:
    once = patch(model, tmp_path / "once.pth")
    twice = patch(once, tmp_path / "twice.pth", 0.1, compose=True)
    fields = [json.loads(sidecar(file).read_text()) for file in (once, twice)]
    first = old_form(fields[0])
    sidecar(once).write_text(json.dumps(first))
    sidecar(twice).write_text(json.dumps(old_form(fields[1], first)))
    verify(once, model)
    verify(twice, once)
    thrice = patch(twice, tmp_path / "thrice.pth", 0.2, compose=True)
    history = json.loads(sidecar(thrice).read_text())["history"]
    assert [entry["gamma"] for entry in history] == [0.1, GAMMA]
    assert all(not {"history", "previous", "replaced"} & entry.keys() for entry in history)
    back = revert(thrice, tmp_path / "back.pth").output
    verify(back, once)
    for file in (back, twice):
        whole = revert(revert(file, tmp_path / "a.pth", force=True).output, tmp_path / "b.pth",
                       force=True)  # fmt: skip
        assert whole.output.read_bytes() == model.read_bytes()
        assert not sidecar(whole.output).exists()


@pytest.mark.parametrize("history", [3, "x", {}, [], [3], [None, {}], [{"edits": 3}], [[]]])
def test_a_history_of_nonsense_is_no_bug_of_ours(
    history: object, model: Path, tmp_path: Path, capsys: Capture
) -> None:
    output = patch(model, tmp_path / "o.pth")
    fields = json.loads(sidecar(output).read_text()) | {"history": history, "previous": history}
    sidecar(output).write_text(json.dumps(fields))
    assert main(["inspect", str(output)]) == 0
    assert main(["verify", str(output), "--against", str(model)]) in (0, 3)
    assert main(["revert", str(output), "-o", str(tmp_path / "b.pth")]) == 0
    assert (tmp_path / "b.pth").read_bytes() == model.read_bytes()
    counts = tmp_path / "c.json"
    counts.write_text(json.dumps(COUNTS))
    words = ["apply", str(output), "--counts", str(counts), "-g", "0.1", "--compose"]
    assert main([*words, "-o", str(tmp_path / "twice.pth")]) == 0
    assert "bug" not in capsys.readouterr().err


# ----------------------------------------------------------------------------- without a record


@pytest.mark.parametrize("more", [{}, {"normalize": True}, {"temperature": 1.7, "bias": "scale"}])
@pytest.mark.parametrize("name", [n for n in CONTAINERS if "safetensors" not in n
                                  and "timm" not in n and "Face folder" not in n
                                  and "Face shards" not in n])  # fmt: skip
def test_a_file_without_its_record_is_proven_and_taken_back_against_the_original(
    name: str, more: dict[str, Any], containers: Containers, tmp_path: Path
) -> None:
    made = containers(name)
    output = patch(made.path, tmp_path / f"out{made.path.suffix}", **more)
    intended = verify(output, made.path)
    for record in [*output.parent.glob("out*.rescale.json"), *output.glob("*.rescale.json")]:
        record.unlink()
    proof = verify(output, made.path)
    assert (proof.records, proof.source_sha256) == ((), intended.source_sha256)
    assert proof.heads == intended.heads
    # bfloat16 keeps eight bits, and this head has twelve elements a row.
    np.testing.assert_allclose(proof.factors, intended.factors, rtol=2**-7)
    with pytest.raises(NotProven, match="no record"):
        revert(output, tmp_path / "alone")
    back = revert(output, tmp_path / f"back{made.path.suffix}", against=made.path).output
    assert contents(back) == contents(made.path)


def test_only_rows_times_one_number_pass_without_a_record(model: Path, tmp_path: Path) -> None:
    output = patch(model, tmp_path / "o.pth")
    sidecar(output).unlink()
    good = output.read_bytes()
    for name in ("fc.weight", "conv.weight", "bn.running_mean"):
        info = open_checkpoint(output).tensor(name)
        wrong = bytearray(good)
        wrong[info.stop - 4] ^= 1
        output.write_bytes(wrong)
        with pytest.raises(BadInput):
            verify(output, model)
        with pytest.raises(BadInput):
            revert(output, tmp_path / "back.pth", against=model)
        assert not (tmp_path / "back.pth").exists()


def test_a_file_equal_to_the_original_is_not_re_scaled(model: Path, tmp_path: Path) -> None:
    with pytest.raises(NotProven, match=r"same\.pth and model\.pth are equal") as caught:
        verify(shutil.copy(model, tmp_path / "same.pth"), model)
    assert caught.value.fix.endswith(f"rescale-cli verify PATCHED --against {model}")


def test_a_record_of_another_head_beside_a_file_is_not_passed_over(
    model: Path, tmp_path: Path
) -> None:
    output = patch(model, tmp_path / "o.pth")
    patch(model, tmp_path / "other.pth", 0.1)
    shutil.copy(sidecar(tmp_path / "other.pth"), sidecar(output))
    with pytest.raises(NotProven, match="another head"):
        verify(output, model)
    with pytest.raises(NotProven, match="another head"):
        revert(output, tmp_path / "back.pth")


def test_a_head_that_cannot_be_told_must_be_named(tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = {"conv.weight": torch.randn(8, 3, 3, 3)}
    state |= {f"{n}.weight": torch.randn(C, D) for n in ("one", "two")}
    torch.save(state, tmp_path / "m.pth")
    output = patch(tmp_path / "m.pth", tmp_path / "o.pth", heads=["one"], only=True)
    sidecar(output).unlink()
    with pytest.raises((AmbiguousHead, NoClassifier)) as unknown:
        verify(output, tmp_path / "m.pth")
    assert "--head NAME" in unknown.value.fix
    words = ["verify", str(output), "--against", str(tmp_path / "m.pth"), "--head", "one"]
    assert main(words) == 0
    words[words.index("one")] = "two"
    assert main(words) == 3


@given(
    dtype=st.sampled_from(["float64", "float32", "float16", "bfloat16"]),
    factors=st.lists(st.floats(1e-3, 1e3), min_size=2, max_size=4),
    seed=st.integers(0, 999),
    width=st.integers(1, 40),
)
def test_the_number_of_a_row_is_read_off_with_every_bit(
    dtype: str, factors: list[float], seed: int, width: int, tmp_path_factory: Any
) -> None:
    folder = tmp_path_factory.mktemp("rows")
    torch.manual_seed(seed)
    kind = getattr(torch, dtype)
    rows = torch.randn(len(factors), width).to(kind)
    bits = to_bits((np.array(factors)[:, None] * rows.double().numpy()), dtype)
    new = torch.from_numpy(bits.view(f"i{bits.itemsize}").copy()).view(kind)
    for name, head in (("old", rows), ("new", new)):
        save_file({"conv.weight": torch.zeros(width, 3, 3, 3), "fc.weight": head},
                  folder / f"{name}.safetensors")  # fmt: skip
    files = folder / "new.safetensors", folder / "old.safetensors"
    proof = verify(*files, heads=["fc"])
    # All bits are right, as the proof says; how well they tell the number depends on the dtype.
    close = {"float64": 1e-15, "float32": 1e-6, "float16": 2e-3, "bfloat16": 8e-3}[dtype]
    big = np.abs(rows.double().numpy()).max(axis=1) * factors > 1e-2
    np.testing.assert_allclose(proof.factors[big], np.array(factors)[big], rtol=close)


# ---------------------------------------------------------------------- a record in another place


def test_a_renamed_file_is_recognised_by_its_head(model: Path, tmp_path: Path) -> None:
    output = patch(model, tmp_path / "o.pth")
    moved = output.rename(tmp_path / "renamed.pth")
    with pytest.raises(AlreadyRescaled) as refused:
        patch(moved, tmp_path / "twice.pth")
    assert "o.pth.rescale.json" in refused.value.saw
    assert "renamed.pth" in verify(moved, model).notes[0]
    assert revert(moved, tmp_path / "b.pth").output.read_bytes() == model.read_bytes()
    twice = patch(moved, tmp_path / "twice.pth", 0.1, compose=True)
    back = revert(twice, tmp_path / "back.pth").output
    assert revert(back, tmp_path / "c.pth").output.read_bytes() == model.read_bytes()


def test_a_record_elsewhere_can_be_given(model: Path, tmp_path: Path, capsys: Capture) -> None:
    output = patch(model, tmp_path / "o.pth")
    (tmp_path / "records").mkdir()
    record = str(sidecar(output).rename(tmp_path / "records" / "r.json"))
    counts = tmp_path / "counts.json"
    counts.write_text(json.dumps(COUNTS))
    apply = ["apply", str(output), "--counts", str(counts), "-g", "0.1"]
    assert main([*apply, "--record", record]) == 4
    assert main(["inspect", str(output), "--record", record]) == 0
    assert "re-scaled: rescale" in capsys.readouterr().out
    assert main(["verify", str(output), "--against", str(model), "--record", record]) == 0
    back = str(tmp_path / "back.pth")
    assert main(["revert", str(output), "-o", back, "--record", record]) == 0
    assert Path(back).read_bytes() == model.read_bytes()
    assert main(["inspect", str(model), "--record", record]) == 3
    assert main([*apply, "--record", str(counts), "--compose"]) == 3
    with pytest.raises(OutputExists):
        revert(output, record, record=record, force=True)


def test_a_record_cannot_be_given_for_a_file_that_carries_its_own(
    containers: Containers, model: Path, tmp_path: Path
) -> None:
    other = sidecar(patch(model, tmp_path / "o.pth"))
    output = patch(containers("safetensors float32").path, tmp_path / "o.safetensors")
    with pytest.raises(UsageError):
        api.inspect(output, record=other)


def test_a_record_that_changed_nothing_does_not_speak_for_the_original(
    model: Path, tmp_path: Path
) -> None:
    patch(model, model.with_name("same.pth"), 0.0)
    verify(patch(model, model.with_name("o.pth")), model)


def test_strange_records_in_the_folder_are_passed_over(model: Path, tmp_path: Path) -> None:
    output = patch(model, tmp_path / "o.pth")
    moved = output.rename(tmp_path / "z.pth")
    for name, data in (("a", b"\xff"), ("b", b"[1]"), ("c", b"{"), ("d", b'{"edits": [{}]}')):
        (tmp_path / f"{name}.rescale.json").write_bytes(data)
    (tmp_path / "e.rescale.json").symlink_to(tmp_path / "nowhere")
    (tmp_path / "f.rescale.json").mkdir()
    os.mkfifo(tmp_path / "g.rescale.json")
    assert len(api.inspect(moved).records) == 1


def test_a_linked_record_is_read_and_not_written_through(model: Path, tmp_path: Path) -> None:
    output = patch(model, tmp_path / "o.pth")
    real = sidecar(output).rename(tmp_path / "real.json")
    sidecar(output).symlink_to(real)
    before = real.read_bytes()
    verify(output, model)
    patch(model, output, 0.1, force=True)
    assert real.read_bytes() == before
    assert not sidecar(output).is_symlink()
    verify(output, model)


def test_each_of_several_patched_files_has_its_record(model: Path, tmp_path: Path) -> None:
    for gamma in (0.1, 0.2, 0.3):
        patch(model, tmp_path / f"{gamma}.pth", gamma)
    for gamma in (0.1, 0.2, 0.3):
        moved = (tmp_path / f"{gamma}.pth").rename(tmp_path / f"moved {gamma}.pth")
        assert api.inspect(moved).records[0].fields["gamma"] == gamma


def test_a_separated_undo_file_restores_too(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record_writer, "MAX_INSIDE", 10)
    output = patch(model, tmp_path / "o.pth")
    assert (tmp_path / "o.pth.rescale.undo").is_file()
    moved = output.rename(tmp_path / "renamed.pth")
    assert revert(moved, tmp_path / "b.pth").output.read_bytes() == model.read_bytes()


# ------------------------------------------------------------------------ every file is named


def listed(capsys: Capture, *words: str | Path) -> tuple[dict[str, Any], str]:
    """The JSON result of `apply`, and what it tells a person, of the same call made twice."""
    assert main([*map(str, words), "--force"]) == 0
    told = capsys.readouterr().out
    assert main([*map(str, words), "--force", "--json"]) == 0
    result: dict[str, Any] = json.loads(capsys.readouterr().out)["result"]
    return result, told


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("name", KINDS)
def test_apply_names_every_file_that_it_wrote(
    name: str, large: bool, containers: Containers, tmp_path: Path, capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    if large:
        monkeypatch.setattr(record_writer, "MAX_INSIDE", 10)
    made = containers(name)
    (tmp_path / "c.json").write_text(json.dumps(COUNTS))
    (tmp_path / "out").mkdir()
    output = tmp_path / "out" / f"o{made.path.suffix}"
    words = ["apply", made.path, "--counts", tmp_path / "c.json", "-g", "0.3", "-o", output]
    result, told = listed(capsys, *words)
    written = {str(file) for file in (tmp_path / "out").rglob("*") if file.is_file()}
    assert set(result["files"]) == written
    for file, sha256 in result["files"].items():
        assert Path(file).name in told
        actual = hashlib.sha256(Path(file).read_bytes()).hexdigest()
        assert sha256 == actual or (sha256 is None and made.path.is_dir())
    assert next(iter(result["files"].values())) == result["sha256"]


def test_in_place_names_the_backup(model: Path, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "c.json").write_text(json.dumps(COUNTS))
    before = hashlib.sha256(model.read_bytes()).hexdigest()
    words = ["apply", str(model), "--counts", str(tmp_path / "c.json"), "-g", "0.3", "--in-place"]
    assert main([*words, "--json"]) == 0
    files = json.loads(capsys.readouterr().out)["result"]["files"]
    assert set(files) == {str(file) for file in model.parent.iterdir()}
    assert files[f"{model}.bak"] == before


# -------------------------------------------------------------------------------- run folders


def save(value: object, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(value, path)


@pytest.fixture
def run(containers: Containers, tmp_path: Path) -> Path:
    """A run of `train`, with a file of the user's."""
    folder = tmp_path / "run"
    folder.mkdir()
    state = {name: value.contiguous() for name, value in net().state_dict().items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    save_file(state, folder / "model.rs.safetensors", metadata={"format": "pt"})
    config = {"arch": "rescale:resnet32", "preprocessing": {}, "classes": list("abcdefg")}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "counts.json").write_text(json.dumps(COUNTS))
    for name in ("metrics.jsonl", "norms.svg", "val_logits.npz", "notes.txt"):
        (folder / name).write_text(name)
    save({"model": state}, folder / "last.ckpt")
    (folder / "tensorboard").mkdir()
    (folder / "tensorboard" / "events.out.tfevents.1.h").touch()
    return folder


STALE = ["last.ckpt", "metrics.jsonl", "model.rs.safetensors", "norms.svg", "tensorboard",
         "val_logits.npz"]  # fmt: skip


def test_of_a_run_what_holds_for_the_re_scaled_model_is_copied(run: Path, capsys: Capture) -> None:
    words = ["apply", str(run), "--counts", str(run / "counts.json"), "-g", "0.3"]
    assert main([*words, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["result"]["left_behind"] == STALE
    assert not [w for w in document["warnings"] if w["code"] == "other-weights"]
    output = run.with_name("run.rescaled")
    kept = {"model.safetensors", "config.json", "counts.json", "notes.txt"}
    assert {entry.name for entry in output.iterdir()} == kept
    assert {entry.name for entry in run.iterdir()} == kept | set(STALE), "nothing is lost"
    assert [str(entry) for entry in verify(output, run).left_behind] == STALE
    back = revert(output, run.with_name("back")).output
    assert (back / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()
    assert main([*words, "--force"]) == 0
    assert "left behind" in capsys.readouterr().out
    (output / "norms.svg").write_text("another")
    with pytest.raises(NotProven):
        verify(output, run)


def test_in_place_training_state_stays_and_is_named(run: Path, capsys: Capture) -> None:
    words = ["apply", str(run), "--counts", str(run / "counts.json"), "-g", "0.3", "--in-place"]
    before = {entry.name for entry in run.iterdir()}
    assert main([*words, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["result"]["left_behind"] == []
    (said,) = [w["message"] for w in document["warnings"] if w["code"] == "training-state"]
    assert "last.ckpt" in said
    assert {entry.name for entry in run.iterdir()} == before | {"model.safetensors.bak"}


def test_of_a_foreign_run_what_inference_needs_is_copied(
    containers: Containers, tmp_path: Path
) -> None:
    """What transformers' Trainer, accelerate and DeepSpeed leave beside a model."""
    source = tmp_path / "hf"
    shutil.copytree(containers("Hugging Face folder").path, source)
    needed = {str(file.relative_to(source)) for file in source.rglob("*")}
    for name in ("README.md", "tokenizer.json", "special/labels.txt", "runs/notes.txt"):
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_text(name)
        needed |= {name, str(Path(name).parent)}
    model = net()
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(2, 3, 5, 5)).sum().backward()
    optimizer.step()
    for name in ("optimizer.pt", "scheduler.pt", "scaler.pt", "rng_state.pth", "rng_state_0.pth",
                 "training_args.bin", "random_states_0.pkl"):  # fmt: skip
        save({"a": torch.zeros(3)}, source / name)
    save({"state_dict": model.state_dict(), "optimizer": optimizer.state_dict()},
         source / "epoch=3.ckpt")  # fmt: skip
    (source / "checkpoint-500").mkdir()
    shutil.copy(source / "model.safetensors", source / "checkpoint-500")
    for name in (
        "trainer_state.json", "all_results.json", "eval_results.json", "latest",
        "checkpoint-500/trainer_state.json", "runs/events.out.tfevents.1.host.2",
    ):  # fmt: skip
        (source / name).write_text("{}")
    save({}, source / "global_step500" / "mp_rank_00_model_states.pt")
    output = tmp_path / "out"
    applied = api.apply(source, COUNTS, GAMMA, output=output)
    assert {str(file.relative_to(output)) for file in output.rglob("*")} == needed - {"."}
    assert len(applied.plan.left_behind) == 15
    verify(output, source)
    head = applied.plan.heads[0].keys.weight
    assert not torch.equal(*(load_file(f / "model.safetensors")[head] for f in (source, output)))


def test_a_backup_of_the_weights_is_left_behind(containers: Containers, tmp_path: Path) -> None:
    source = copied(containers("Hugging Face .bin folder"), tmp_path / "in")
    api.apply(source, COUNTS, GAMMA, in_place=True)
    output = patch(source, tmp_path / "out", 0.1, compose=True)
    assert not list(output.glob("*.bak"))
    verify(output, source)
    back = revert(output, tmp_path / "back").output
    name = next(file.name for file in source.glob("*.bin"))
    assert (back / name).read_bytes() == (source / name).read_bytes()
    first = revert(back, tmp_path / "first").output
    assert (first / name).read_bytes() == (source / f"{name}.bak").read_bytes()


def test_the_same_head_in_another_network_is_proven_by_itself(tmp_path: Path) -> None:
    """The record of one network lies beside the other, whose own is lost."""
    for seed in (0, 1):
        state = net(seed).state_dict()
        state["fc.weight"] = net(0).state_dict()["fc.weight"]
        torch.save(state, tmp_path / f"{seed}.pth")
        patch(tmp_path / f"{seed}.pth", tmp_path / f"o{seed}.pth")
    sidecar(tmp_path / "o1.pth").unlink()
    assert verify(tmp_path / "o1.pth", tmp_path / "1.pth").records == ()
    with pytest.raises(NotProven, match="not the original"):
        revert(tmp_path / "o1.pth", tmp_path / "b.pth")
    back = revert(tmp_path / "o1.pth", tmp_path / "b.pth", against=tmp_path / "1.pth").output
    assert back.read_bytes() == (tmp_path / "1.pth").read_bytes()


def test_a_folder_is_not_proven_against_a_file(run: Path) -> None:
    output = patch(run, run.with_name("out"))
    with pytest.raises(BadInput, match="is a folder"):
        verify(output, run / "model.safetensors")
    verify(output / "model.safetensors", run / "model.safetensors")
