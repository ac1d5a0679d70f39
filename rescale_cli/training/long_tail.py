"""Make a data set long-tailed: how many images each class keeps, and which (Cui et al. 2019)."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rescale_cli.errors import BadInput, UsageError
from rescale_cli.json_text import clip

Indices = NDArray[np.int64]

#: Written as `--imbalance` reads it.
KINDS = ("exp", "step", "none")
#: In float64 49 * (1 / 49) is a little less than 1.
_SLACK = 1e-9


@dataclass(frozen=True, slots=True)
class Imbalance:
    """What `--imbalance` says: `exp:100`, `step:10` or `none`.

    Raises:
        UsageError: an unknown kind, or a ratio below 1.

    Example:
        >>> Imbalance.parse("exp:100").sizes([5000] * 10).tolist()
        [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
        >>> Imbalance.parse("step:10").sizes([500] * 4).tolist()
        [500, 500, 50, 50]
    """

    kind: str = "none"
    ratio: float = 1.0
    """Images of the largest class over those of the smallest."""

    def __post_init__(self) -> None:
        whole = self.kind in KINDS and (self.kind != "none" or self.ratio == 1)
        if not (whole and 1 <= self.ratio < math.inf):
            raise _no_imbalance(str(self))

    @classmethod
    def parse(cls, text: str) -> Imbalance:
        """Read `exp:100`, `step:10` or `none`."""
        if text == "none":
            return cls()
        if not re.fullmatch(r"(exp|step):[0-9]{1,9}(\.[0-9]{1,9})?", text, re.ASCII):
            raise _no_imbalance(text)
        kind, _, ratio = text.partition(":")
        return cls(kind, float(ratio))

    def __str__(self) -> str:
        return self.kind if self.kind == "none" else f"{self.kind}:{self.ratio:.17g}"

    def sizes(self, available: NDArray[np.int64] | list[int]) -> Indices:
        """Images that each class keeps, (C,), in label order.

        exp: class i keeps int(n_max R^(-i / (C - 1))). step: the first C // 2 classes keep n_max,
        the others int(n_max / R). n_max is what every class can provide: of a balanced set, the
        size of a class.

        Args:
            available: images there are of each class, (C,).

        Raises:
            BadInput: a class would be left without an image.
        """
        have = np.asarray(available, np.int64)
        if self.kind == "none":
            return have
        shares = self._shares(len(have))
        # Where a later class is small, all shrink: the ratio is what was asked for.
        most = math.floor(min(have / shares) + _SLACK)
        sizes: Indices = (most * shares + _SLACK).astype(np.int64)
        if not sizes.all():
            row = int(np.flatnonzero(sizes == 0)[0])
            raise BadInput(
                f"{self} leaves class {row} without an image",
                saw=f"{have[row]} images of it, {most} of the largest class can be kept",
                fix="ask for a smaller ratio, or take the data as they are: --imbalance none",
            )
        return sizes

    def choose(self, labels: NDArray[np.int64], classes: int, seed: int | None = None) -> Indices:
        """Indices of the images that are kept, ascending.

        Args:
            labels: (N,), 0 to C - 1.
            classes: C.
            seed: None keeps the first images of each class, as the paper's code does; a number
                draws them at random, the same ones for the same number.

        Raises:
            BadInput: a class would be left without an image.
        """
        if self.kind == "none":
            return np.arange(len(labels))
        sizes = self.sizes(np.bincount(labels, minlength=classes))
        order = np.arange(len(labels))
        if seed is not None:
            order = np.random.default_rng(seed).permutation(order)
        by_class = order[np.argsort(labels[order], kind="stable")]
        of = labels[by_class]
        place = np.arange(len(of)) - np.searchsorted(of, of)  # within its class, from 0
        return np.sort(by_class[place < sizes[of]])

    def _shares(self, classes: int) -> NDArray[np.float64]:
        """Size of each class over that of the first, (C,)."""
        if self.kind == "step":
            return np.where(np.arange(classes) < classes // 2, 1.0, 1 / self.ratio)
        return np.array([self.ratio ** (-i / max(classes - 1, 1)) for i in range(classes)])


def _no_imbalance(text: str) -> UsageError:
    return UsageError(
        "there is no such imbalance",
        saw=clip(repr(text), 80),
        fix="--imbalance exp:100, step:10 or none; the ratio is at least 1",
    )
