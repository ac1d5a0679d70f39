"""Logits without a model, labels that are not one class each, and models that take no images."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from rescale_cli.cli import main
from rescale_cli.commands.schema import schema_text
from rescale_cli.data.logits_file import read_logits
from rescale_cli.models.hugging_face import script

Run = Callable[..., tuple[int, dict[str, Any]]]
COUNTS = [400, 90, 12, 0]
SWEEP = ("sweep-gamma", "--counts", "n.json", "--logits", "z.npz", "--zero-count", "one")


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Logits and labels of four classes, with labels of each kind; a folder that is multi-label."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 200)
    logits = np.eye(4)[labels] * 2 + rng.normal(size=(200, 4)) + [2, 1, 0, 0]
    np.savez(tmp_path / "z.npz", logits=logits.astype(np.float32), labels=labels)
    np.savez(tmp_path / "ml.npz", logits=logits, labels=rng.integers(0, 2, (200, 4)))
    np.savez(tmp_path / "onehot.npz", logits=logits, labels=np.eye(4)[labels].astype(bool))
    (tmp_path / "n.json").write_text(json.dumps(COUNTS))
    folder = tmp_path / "tags"
    folder.mkdir()
    weights = {
        "bert.x.weight": torch.randn(16, 8),
        "classifier.weight": torch.randn(4, 16),
        "classifier.bias": torch.randn(4),
    }
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    config = {"model_type": "bert", "problem_type": "multi_label_classification"}
    (folder / "config.json").write_text(json.dumps(config))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(work: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """One command with --json: its exit code and its document, checked against the schema."""

    def do(command: str, *words: object) -> tuple[int, dict[str, Any]]:
        capsys.readouterr()
        code = main([command, *map(str, words), "--json"])
        document: dict[str, Any] = json.loads(capsys.readouterr().out)
        jsonschema.validate(document, json.loads(schema_text(command)))
        return code, document

    return do


# --------------------------------------------------------------------------------------- no MODEL


def test_evaluate_measures_logits_without_a_model(run: Run) -> None:
    code, document = run("evaluate", "--logits", "z.npz", "--counts", "n.json")
    assert code == 0, document
    (model,) = document["result"]["models"]
    with np.load("z.npz") as kept:
        right = (kept["logits"].argmax(axis=1) == kept["labels"]).mean()
    assert model["metrics"]["accuracy"] == pytest.approx(right)
    assert model["path"] == "z.npz"
    assert model["metrics"]["roc_auc"] is None


def test_logit_adjust_needs_no_model_and_rescale_does(run: Run) -> None:
    words = ("evaluate", "--logits", "z.npz", "--counts", "n.json", "--zero-count", "one")
    code, document = run(
        *words, "--method", "logit-adjust", "--tau", 1, "--against-logits", "z.npz"
    )
    assert code == 0, document
    (model,) = document["result"]["models"]
    with np.load("z.npz") as kept:
        adjusted = kept["logits"].astype(float) - np.log(np.array([400, 90, 12, 1]) / 503)
        assert model["metrics"]["accuracy"] == np.mean(adjusted.argmax(axis=1) == kept["labels"])
    assert document["result"]["against"]["path"] == "z.npz"
    code, document = run(*words, "--gamma", 0.5)
    assert (code, "MODEL" in document["error"]["fix"]) == (2, True)


def test_a_sweep_of_logits_alone_says_that_writing_needs_a_model(run: Run) -> None:
    code, document = run(*SWEEP, "--method", "logit-adjust", "-o", "sweep.json", "--bootstrap", 20)
    assert code == 0, document
    assert document["result"]["path"] is None
    assert document["result"]["apply"] is None
    assert document["result"]["exact"]


@pytest.mark.parametrize(
    "words",
    [SWEEP, (*SWEEP, "--method", "logit-adjust", "--apply", "out"), (*SWEEP[:3], "--data", "x")],
)
def test_a_sweep_that_needs_the_model_asks_for_it(words: tuple[str, ...], run: Run) -> None:
    code, document = run(*words)
    assert (code, "MODEL" in document["error"]["fix"]) == (2, True)


def test_an_explicit_zero_count_error_overrides_the_policy_of_a_sweep(run: Run, work: Path) -> None:
    layer = {"body.weight": torch.randn(6, 5), "fc.weight": torch.randn(4, 6)}
    save_file({**layer, "fc.bias": torch.randn(4)}, work / "m.safetensors")
    assert run(*SWEEP, "--method", "logit-adjust", "-o", "sweep.json", "--bootstrap", 20)[0] == 0
    words = ("m.safetensors", "--counts", "n.json", "--gamma", "@sweep.json", "--dry-run")
    assert run("apply", *words)[0] == 0
    code, document = run("apply", *words, "--zero-count", "error")
    assert (code, document["error"]["code"]) == (3, "bad-counts")


# ------------------------------------------------------------------------------------ multi-label


@pytest.mark.parametrize("file", ["ml.npz", "onehot.npz"])
@pytest.mark.parametrize("command", ["evaluate", "sweep-gamma", "compare"])
def test_labels_of_several_classes_a_sample_are_called_multi_label(
    command: str, file: str, run: Run
) -> None:
    code, document = run(
        command, "tags", "--head", "classifier", "--logits", file,
        "--counts", "n.json", "--zero-count", "one",
    )  # fmt: skip
    assert code == 3
    assert "multi-label" in document["error"]["what"]


@pytest.mark.parametrize("command", ["evaluate", "sweep-gamma", "compare"])
def test_a_multi_label_model_is_measured_only_if_its_head_is_named(command: str, run: Run) -> None:
    words = ("tags", "--logits", "z.npz", "--counts", "n.json", "--zero-count", "one")
    code, document = run(command, *words)
    assert code == 3
    assert "multi-label" in document["error"]["what"]
    assert run(command, *words, "--head", "classifier", "--bootstrap", 20)[0] == 0


def test_apply_warns_of_a_multi_label_model(run: Run) -> None:
    words = ("tags", "--counts", "n.json", "--zero-count", "one", "--gamma", 0.5, "--dry-run")
    code, document = run("apply", *words)
    assert code == 0
    assert any("multi-label" in warning["message"] for warning in document["warnings"])


def test_one_sigmoid_of_transformers_is_a_binary_head(run: Run, work: Path) -> None:
    weights = {"bert.x.weight": torch.randn(16, 8), "classifier.weight": torch.randn(1, 16)}
    save_file({**weights, "classifier.bias": torch.randn(1)}, work / "tags/model.safetensors")
    code, document = run("inspect", "tags")
    assert (code, document["result"]["head"]["binary"]) == (0, True)
    assert not any("multi-label" in warning["message"] for warning in document["warnings"])
    config = {"model_type": "bert", "problem_type": "regression"}
    (work / "tags/config.json").write_text(json.dumps(config))
    assert run("inspect", "tags", "--counts", "n.json")[0] == 3


# --------------------------------------------------------------------------- models of other input


def _bert(folder: Path) -> list[Any]:
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizer

    vocabulary = folder.with_suffix(".txt")
    vocabulary.write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\ngood\nbad\nfilm")
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BertConfig(vocab_size=8, intermediate_size=16, num_labels=3, **small)
    BertForSequenceClassification(config).save_pretrained(folder)
    BertTokenizer(str(vocabulary)).save_pretrained(folder)
    return ["a good film", "bad", "film"]


def _wav2vec2(folder: Path) -> list[Any]:
    from transformers import (
        Wav2Vec2Config,
        Wav2Vec2FeatureExtractor,
        Wav2Vec2ForSequenceClassification,
    )

    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Wav2Vec2Config(
        intermediate_size=16, conv_dim=(8, 8), conv_stride=(5, 2), conv_kernel=(10, 3),
        num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2, classifier_proj_size=8,
        num_labels=3, **small,
    )  # fmt: skip
    Wav2Vec2ForSequenceClassification(config).save_pretrained(folder)
    Wav2Vec2FeatureExtractor().save_pretrained(folder)
    return list(np.random.default_rng(0).normal(size=(3, 800)).astype(np.float32))


@pytest.mark.parametrize(("kind", "make"), [("text", _bert), ("audio", _wav2vec2)])
def test_a_model_without_images_gets_lines_that_write_its_logits(
    kind: str, make: Callable[[Path], list[Any]], run: Run, work: Path
) -> None:
    samples = make(work / kind)
    code, document = run("evaluate", kind, "--data", "folder:nowhere")
    assert (code, document["error"]["code"]) == (3, "not-images")
    lines = document["error"]["fix"].split("\n")[1:]
    assert lines == list(script(kind, Path(kind)))
    assert len(lines) == 5
    exec("\n".join(lines), {"samples": samples, "labels": [0, 1, 2]})
    assert read_logits(work / "logits.npz").logits.shape == (3, 3)
    assert run("evaluate", kind, "--logits", "logits.npz")[0] == 0
