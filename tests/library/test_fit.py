"""A sweep in memory gives the numbers of the command, to the last bit."""

from __future__ import annotations

import json
import pickle
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import rescale_cli as rc
from rescale_cli import cli
from rescale_cli.checkpoints.checkpoint import open_checkpoint
from rescale_cli.commands import demo_report
from rescale_cli.patching.head_identity import identity_of

#: Names with the counts are joined with the rows by names; config.json has them for the command.
COUNTS = CLASSES = "counts.json"


@pytest.fixture
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    for name in demo_report.EXAMPLE:
        shutil.copy(demo_report.bundled() / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rc.RescaleWarning)
        yield tmp_path


def given(play: Path) -> tuple[Any, Any, Any]:
    """Logits, labels and head of the example."""
    from safetensors.torch import load_file

    arrays = np.load(play / "val_logits.npz")
    state = load_file(play / "model.safetensors")
    layer = torch.nn.Linear(64, 10)
    layer.load_state_dict({k: state[f"linear.{k}"] for k in ("weight", "bias")})
    return arrays["logits"], arrays["labels"], layer


def by_command(*words: str) -> dict[str, Any]:
    line = ["sweep-gamma", "model.safetensors", "--counts", "counts.json",
            "--logits", "val_logits.npz", "-o", "by_command.json", "--force"]  # fmt: skip
    assert cli.main([*line, *words]) == 0
    return json.loads(Path("by_command.json").read_text())["result"]


WAYS: list[tuple[dict[str, Any], list[str]]] = [
    ({}, []),
    ({"bias": "all", "normalize": "both", "fit_temperature": True},
     ["--bias", "all", "--normalize", "both", "--fit-temperature"]),
    ({"method": "tau-norm", "metric": "macro-f1", "choose": "one-se", "seed": 3},
     ["--method", "tau-norm", "--metric", "macro-f1", "--choose", "one-se", "--seed", "3"]),
    ({"method": "logit-adjust", "holdout": 0, "bootstrap": 20, "groups": (2000, 200)},
     ["--method", "logit-adjust", "--holdout", "0", "--bootstrap", "20", "--groups", "2000,200"]),
    ({"exclude_class": "Ankle boot", "gamma_max": 1.5},
     ["--exclude-class", "Ankle boot", "--gamma-max", "1.5"]),
]  # fmt: skip


@pytest.mark.parametrize(("options", "words"), WAYS, ids=str)
def test_command_and_library_give_the_same_numbers(
    options: dict[str, Any], words: list[str], play: Path
) -> None:
    logits, labels, layer = given(play)
    wanted = by_command(*words)
    fit = rc.sweep(logits, labels, COUNTS, head=layer, classes=CLASSES, **options)
    fit.save("saved.json")
    found = json.loads(Path("saved.json").read_text())["result"]
    for key in wanted.keys() - {"path", "apply", "data", "alignment", "versions", "preprocessing"}:
        assert found[key] == wanted[key], key
    assert (fit.verdict, fit.gamma) == (wanted["verdict"], wanted["chosen"]["gamma"])
    assert fit.interval == (None if (ends := wanted["chosen"]["interval"]) is None else (*ends,))
    assert fit.result["head_sha256"] == identity_of(open_checkpoint(Path("model.safetensors")))


def test_without_labels_the_choice_is_that_of_unlabeled(play: Path) -> None:
    logits, _, layer = given(play)
    np.savez("val_logits.npz", logits=logits)
    wanted = by_command("--unlabeled")
    fit = rc.sweep(logits, None, COUNTS, head=layer, classes=CLASSES)
    assert (fit.gamma, fit.verdict) == (wanted["chosen"]["gamma"], wanted["verdict"])
    assert fit.metrics == {}
    assert fit.interval is None


def test_transform_and_metrics_are_those_of_evaluate(
    play: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logits, labels, layer = given(play)
    fit = rc.sweep(logits, labels, COUNTS, head=layer, classes=CLASSES)
    fit.save("saved.json")
    capsys.readouterr()
    assert cli.main(["evaluate", "model.safetensors", "--counts", "counts.json", "--logits",
                     "val_logits.npz", "--gamma", "@saved.json", "--json",
                     ]) == 0  # fmt: skip
    wanted = json.loads(capsys.readouterr().out)["result"]["models"][0]["metrics"]
    assert rc.metrics(fit.transform(logits), labels, COUNTS, classes=CLASSES) == wanted
    tensor = fit.transform(torch.from_numpy(logits))
    assert isinstance(tensor, torch.Tensor)
    assert np.array_equal(tensor.numpy(), fit.transform(logits))


def test_tensors_lists_and_arrays_give_the_same(play: Path) -> None:
    logits, labels, layer = given(play)
    counts = rc.counts(COUNTS, classes=CLASSES)
    wanted = rc.sweep(logits, labels, counts, head=layer).result
    pair = (layer.weight.detach().numpy(), layer.bias)
    for one, other, head in (
        (torch.from_numpy(logits).requires_grad_(), torch.from_numpy(labels), layer),
        (logits.tolist(), labels.tolist(), pair),
    ):
        assert rc.sweep(one, other, counts, head=head).result["chosen"] == wanted["chosen"]


def test_it_is_an_estimator_of_scikit_learn(play: Path) -> None:
    base = pytest.importorskip("sklearn.base")
    logits, labels, layer = given(play)
    fit = rc.Fit(COUNTS, head=layer, classes=CLASSES, metric="accuracy", bootstrap=0)
    again = base.clone(fit)
    assert again.get_params()["metric"] == "accuracy"
    assert "metric='accuracy'" in repr(again)
    assert again.set_params(seed=4).seed == 4
    assert np.array_equal(fit.fit_transform(logits, labels), fit.transform(logits))
    with pytest.raises(rc.UsageError, match="no result yet"):
        again.verdict  # noqa: B018
    with pytest.raises(rc.UsageError, match="no argument"):
        fit.set_params(sead=1)
    copied = pickle.loads(pickle.dumps(fit))  # noqa: S301 - our own
    assert repr(copied.result) == repr(fit.result)


def test_results_show_themselves(play: Path) -> None:
    pandas = pytest.importorskip("pandas")
    logits, labels, layer = given(play)
    fit = rc.sweep(logits, labels, COUNTS, head=layer, classes=CLASSES)
    assert isinstance(fit.to_frame(), pandas.DataFrame)
    assert fit.to_frame().columns[0] == "gamma"
    assert repr(fit).startswith("Fit: helps, gamma ")
    assert len(repr(fit).splitlines()) <= 4
    html = fit._repr_html_()
    assert html.count("<svg") == html.count("</svg>") == 1
    assert "<table>" in html


@pytest.mark.parametrize(
    ("change", "word"),
    [({"head": None}, "reads the rows"), ({"head": torch.nn.Linear(64, 9)}, "9 rows"),
     ({"head": torch.nn.ReLU()}, "no weight"), ({"metric": "nll"}, "cannot be chosen"),
     ({"holdout": 2}, "share"), ({"head": "fc"}, "no weight"), ({"counts": 5}, "known form")],
    ids=str,
)  # fmt: skip
def test_wrong_arguments_are_errors_that_speak_of_arguments(
    change: dict[str, Any], word: str, play: Path
) -> None:
    logits, labels, layer = given(play)
    options = {"counts": COUNTS, "classes": CLASSES, "head": layer} | change
    with pytest.raises(rc.RescaleError, match=word) as refused:
        rc.sweep(logits, labels, **options)
    assert "--" not in str(refused.value)


@pytest.mark.parametrize("logits", [None, "logits.npz", [[1, 2], [3]], [["a"]], 5])
def test_wrong_logits_are_an_error(logits: Any) -> None:
    with pytest.raises(rc.RescaleError):
        rc.metrics(logits, [0, 1])


def test_a_fit_and_its_file_write_the_checkpoint_of_the_command(play: Path) -> None:
    logits, labels, layer = given(play)
    fit = rc.sweep(logits, labels, COUNTS, head=layer, classes=CLASSES)
    fit.save("saved.json")
    rc.apply("model.safetensors", fit, output="by_fit.safetensors")
    rc.apply("model.safetensors", COUNTS, "saved.json", output="by_file.safetensors")
    line = ["apply", "model.safetensors", "--counts", "counts.json", "--gamma", "@saved.json"]
    assert cli.main([*line, "-o", "by_command.safetensors"]) == 0
    wanted = Path("by_command.safetensors").read_bytes()
    assert Path("by_file.safetensors").read_bytes() == wanted
    from safetensors.torch import load_file

    tensors = load_file("by_fit.safetensors")
    assert all(torch.equal(t, tensors[n]) for n, t in load_file("by_command.safetensors").items())
    with pytest.raises(rc.OtherModel):
        rc.apply("by_fit.safetensors", fit, output="again.safetensors")
    rc.rescale_(layer, fit)
    assert torch.equal(layer.weight.detach(), tensors["linear.weight"])


def test_a_fit_is_a_step_of_a_pipeline() -> None:
    pipeline = pytest.importorskip("sklearn.pipeline")
    labels = np.arange(300) % 3
    logits = np.eye(3)[labels] + np.random.default_rng(0).normal(size=(300, 3))
    fit = rc.Fit([300, 30, 3], method="logit-adjust")
    steps = pipeline.make_pipeline(fit)
    assert (steps.fit(logits, labels).transform(logits) == fit.transform(logits)).all()
