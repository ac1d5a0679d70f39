"""A fault at a system call never damages the source or leaves an output that is not proven."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import child_environment

import rescale_cli

RUNNER = Path(__file__).parents[1] / "fault_runner.py"


def strace_works() -> bool:
    """Containers often forbid one process to trace another."""
    command = ["strace", "-o", "/dev/null", "true"]
    return (
        bool(shutil.which("strace")) and not subprocess.run(command, capture_output=True).returncode
    )


@pytest.mark.slow
@pytest.mark.skipif(not strace_works(), reason="needs strace and the permission to trace")
def test_a_fault_at_a_system_call_leaves_the_source_and_no_unproven_output() -> None:
    command = [sys.executable, str(RUNNER), "--format", "zip", "--mode", "force", "--points", "4"]
    root = str(Path(rescale_cli.__file__).parents[1])
    # Newer Pythons warn of every fork of a process with threads; those of torch are idle here.
    environment = child_environment(PYTHONPATH=root, PYTHONWARNINGS="default")
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    # Each of the four faults was injected.
    for fault in ("EIO", "ENOSPC", "KILL", "TERM"):
        assert f"{fault} exit " in done.stdout
