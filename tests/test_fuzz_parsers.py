"""A short run of examples/fuzz/fuzz.py over every parser that reads bytes from outside."""

from __future__ import annotations

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[1] / "examples" / "fuzz" / "fuzz.py"
#: Inputs of a format; those whose every input goes through torch or a disk get fewer.
INPUTS = {"torch-zip": 25, "torch-legacy": 40, "pt2": 30, "safetensors": 60}


def script() -> ModuleType:
    spec = spec_from_file_location("fuzz", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules["fuzz"] = module  # a dataclass looks its module up there
    spec.loader.exec_module(module)
    return module


fuzz = script()


@pytest.mark.parametrize("name", fuzz.FORMATS)
def test_a_mutated_file_is_refused_clearly_or_gives_a_proven_result(name: str) -> None:
    inputs = INPUTS.get(name, 200)
    result, failures = fuzz.fuzz(name, inputs, seed=20261128)
    assert not failures
    assert sum(result.values()) == inputs
    assert result["refused"] > inputs // 10
    assert result["accepted"] > 0


def test_the_same_seed_gives_the_same_inputs() -> None:
    one, other = (fuzz.fuzz("json", 100, seed=7)[0] for _ in range(2))
    assert one == other
