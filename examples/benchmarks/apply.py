"""How fast `apply` is on a large file, beside `cp`, torch and safetensors doing the same edit.

    python examples/benchmarks/apply.py [--gib 2] [--runs 5] [--folder DIR] [--no-libraries]

Every round runs all of them one after another on the same file, each as a process of its own, and
the ratios are taken within a round, so that a busy machine slows all of them alike. `apply` hashes
the source and the output, proves every byte and syncs; `cp` is followed by `sync`, and once more
also by `sha256sum` of both files, the same work with standard tools; the two libraries do neither,
but are followed by `sync`, too.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from multiprocessing import get_context
from pathlib import Path

CLASSES, WIDTH = 1000, 2048
CP, SAME, APPLY = "cp, sync", "cp, sync, sha256sum of both", "rescale-cli apply"

LIBRARIES = {
    "safetensors load_file, save_file": """
import sys, torch
from safetensors.torch import load_file, save_file
source, target, factors = sys.argv[1], sys.argv[2], torch.load(sys.argv[3])
tensors = load_file(source)
tensors["fc.weight"] = (tensors["fc.weight"].double() * factors[:, None]).float()
save_file(tensors, target)
""",
    "torch.load, torch.save": """
import sys, torch
source, target, factors = sys.argv[1], sys.argv[2], torch.load(sys.argv[3])
tensors = torch.load(source.replace(".safetensors", ".pth"), weights_only=True)
tensors["fc.weight"] = (tensors["fc.weight"].double() * factors[:, None]).float()
torch.save(tensors, target)
""",
}


def main() -> None:
    """Make the files, run the rounds, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gib", type=float, default=2.0, help="size of the file")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where; default: a temporary folder")
    parser.add_argument("--no-libraries", action="store_true", help="leave out torch, safetensors")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        # In a process of its own: a child's peak memory counts that of its parent at the fork.
        with get_context("spawn").Pool(1) as pool:
            commands = pool.apply(prepare, (folder, options.gib))
        pair = {name: c for name, c in commands.items() if name not in LIBRARIES}
        together, alone = (
            [{k: measure(c, folder) for k, c in some.items()} for _ in range(options.runs)]
            for some in ({} if options.no_libraries else commands, pair)
        )
    if not options.no_libraries:
        table(together, baseline=CP)
    print("Without the libraries:")  # what they leave in memory makes cp faster
    table(alone, baseline=CP)
    table([{name: r[name] for name in (SAME, APPLY)} for r in alone], baseline=SAME)
    help_ratio(options.runs)


def prepare(folder: Path, gib: float) -> dict[str, list[str]]:
    """Write the checkpoint in both formats; the command of each contestant."""
    import torch
    from safetensors.torch import save_file

    head = torch.randn(CLASSES, WIDTH, generator=torch.Generator().manual_seed(0)) * 0.02
    side = 4096
    blocks = max(1, round(gib * 2**30 / (4 * side * side)))
    tensors = {f"layers.{i}.weight": torch.randn(side, side) for i in range(blocks)}
    tensors |= {"neck.weight": torch.randn(WIDTH, side), "fc.weight": head}
    source, out = folder / "model.safetensors", folder / "out"
    save_file(tensors, source, metadata={"format": "pt"})
    torch.save(tensors, folder / "model.pth")
    counts = [max(1, int(1000 * 100 ** (-i / (CLASSES - 1)))) for i in range(CLASSES)]
    (folder / "counts.json").write_text(json.dumps(counts))
    factors = folder / "factors.pt"
    torch.save((counts[0] / torch.tensor(counts, dtype=torch.float64)) ** 0.3, factors)
    apply = [
        *(sys.executable, "-m", "rescale_cli", "apply", str(source), "--head", "fc", "--json"),
        *("--counts", str(folder / "counts.json"), "--gamma", "0.3", "-o", str(out)),
    ]
    copy = f"cp {source} {out} && sync"
    commands = {
        CP: ["sh", "-c", copy],
        APPLY: apply,
        SAME: ["sh", "-c", f"{copy} && sha256sum {source} {out}"],
    }
    for name, code in LIBRARIES.items():
        script = folder / f"edit_with_{name.split('.')[0].split()[0]}.py"
        script.write_text(code)
        call = f"{sys.executable} {script} {source} {out} {factors} && sync"
        commands[name] = ["sh", "-c", call]
    return commands


def measure(command: list[str], folder: Path) -> tuple[float, float]:
    """Seconds and peak memory (MB, of the largest process) of one run; the output is removed."""
    (folder / "out").unlink(missing_ok=True)
    os.sync()
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status:
        raise SystemExit(f"failed: {command}")
    return seconds, usage.ru_maxrss / 1000


def table(rounds: list[dict[str, tuple[float, float]]], baseline: str) -> None:
    """Print medians and ratios within a round."""
    print(f"{'':36} {'seconds':>8} {'ratio':>9} {'min':>6} {'max':>6} {'peak MB':>8}")
    for name in rounds[0]:
        seconds = [r[name][0] for r in rounds]
        ratios = [r[name][0] / r[baseline][0] for r in rounds]
        memory = max(r[name][1] for r in rounds)
        print(
            f"{name:36} {statistics.median(seconds):8.2f} {statistics.median(ratios):9.2f} "
            f"{min(ratios):6.2f} {max(ratios):6.2f} {memory:8.0f}"
        )


def help_ratio(runs: int) -> None:
    """Time `--help` against the imports that it cannot do without."""
    base = [sys.executable, "-c", "import numpy, typer, rich"]
    ours = [sys.executable, "-m", "rescale_cli", "--help"]
    ratios = []
    for _ in range(2 * runs):
        times = []
        for command in (base, ours):
            start = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            times.append(time.perf_counter() - start)
        ratios.append(times[1] / times[0])
    print(f"--help takes {statistics.median(ratios):.2f} times `import numpy, typer, rich`")


if __name__ == "__main__":
    main()
