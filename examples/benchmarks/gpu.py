"""Every check that needs a CUDA device, in one table: what was compared, and how far apart it was.

python examples/benchmarks/gpu.py
"""

from __future__ import annotations

import copy
import sys
import time

import torch

import rescale_cli

CLASSES, WIDTH = 1000, 2048


def rescale_on_cuda(dtype: torch.dtype) -> tuple[str, str]:
    """`rescale_` on a CUDA module gives the bits that it gives on the CPU."""
    counts = [max(1, int(1000 * 100 ** (-i / (CLASSES - 1)))) for i in range(CLASSES)]
    here = torch.nn.Linear(WIDTH, CLASSES).to(dtype)
    there = copy.deepcopy(here).cuda()
    rescale_cli.rescale_(here, counts, 0.3, bias="scale")
    torch.cuda.synchronize()
    start = time.perf_counter()
    rescale_cli.rescale_(there, counts, 0.3, bias="scale")
    torch.cuda.synchronize()
    milliseconds = 1e3 * (time.perf_counter() - start)
    differ = int((here.weight != there.weight.cpu()).sum() + (here.bias != there.bias.cpu()).sum())
    return f"{differ} of {CLASSES * (WIDTH + 1):,} differ", f"{milliseconds:.1f} ms"


CHECKS = {
    f"rescale_ on CUDA and CPU, {str(dtype).removeprefix('torch.')}": (rescale_on_cuda, dtype)
    for dtype in (torch.float32, torch.float16, torch.bfloat16)
}


def main() -> int:
    """Run all checks and print them; 5 without a CUDA device."""
    if not torch.cuda.is_available():
        print("no CUDA device here: nothing was checked", file=sys.stderr)
        return 5
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    for name, (check, dtype) in CHECKS.items():
        verdict, cost = check(dtype)
        print(f"{name:44} {verdict:28} {cost:>10}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
