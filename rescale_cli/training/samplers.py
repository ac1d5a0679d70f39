"""Which images a class keeps, an epoch draws, and a step and a rank take.

Ours instead of torch's samplers: a sampler draws the order of an epoch for all ranks at once from
seed and epoch, and a rank takes every `world`-th image of each global batch. So any number of ranks
sees the same batches, no image is lost or repeated, and a run can be resumed at any step.

To add a sampler, write one function here under `@sampler("name", reference=...)`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rescale_cli.errors import BadInput, UsageError
from rescale_cli.json_text import clip
from rescale_cli.registry import Registry


def seed_of(*words: int) -> int:
    """A seed below 2^63 that is derived from whole numbers such as (seed, epoch, step, rank).

    Example:
        >>> seed_of(0, 1) == seed_of(0, 1), seed_of(0, 1) == seed_of(1, 0)
        (True, False)
    """
    drawn = np.random.SeedSequence(words).generate_state(1, np.uint64)
    return int(drawn[0] >> np.uint64(1))


Kept = NDArray[np.int64]

#: The kinds of `--imbalance`.
KINDS = ("exp", "step", "none")
#: In float64 49 * (1 / 49) is a little less than 1.
_SLACK = 1e-9


@dataclass(frozen=True, slots=True)
class Imbalance:
    """An imbalance of the classes: `exp:100`, `step:10` or `none`.

    Raises:
        UsageError: the kind is unknown, or the ratio is below 1.

    Example:
        >>> Imbalance.parse("exp:100").sizes([5000] * 10).tolist()
        [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
        >>> Imbalance.parse("step:10").sizes([500] * 4).tolist()
        [500, 500, 50, 50]
    """

    kind: str = "none"
    ratio: float = 1.0
    """Size of the largest class over that of the smallest."""

    def __post_init__(self) -> None:
        whole = self.kind in KINDS and (self.kind != "none" or self.ratio == 1)
        if not (whole and 1 <= self.ratio < math.inf):
            raise _no_imbalance(str(self))

    @classmethod
    def parse(cls, text: str) -> Imbalance:
        """Parse `exp:100`, `step:10` or `none`."""
        if text == "none":
            return cls()
        if not re.fullmatch(r"(exp|step):[0-9]{1,9}(\.[0-9]{1,9})?", text, re.ASCII):
            raise _no_imbalance(text)
        kind, _, ratio = text.partition(":")
        return cls(kind, float(ratio))

    def __str__(self) -> str:
        return self.kind if self.kind == "none" else f"{self.kind}:{self.ratio:.17g}"

    def sizes(self, available: NDArray[np.int64] | list[int]) -> Kept:
        """The number of images that each class keeps, (C,), in label order.

        exp: class i keeps int(n_max R^(-i / (C - 1))). step: the first C // 2 classes keep n_max,
        the others int(n_max / R). n_max is the largest size that every class allows: in a balanced
        set, the size of a class.

        Args:
            available: the number of images of each class, (C,).

        Raises:
            BadInput: a class would be left without an image.
        """
        have = np.asarray(available, np.int64)
        if self.kind == "none":
            return have
        shares = self._shares(len(have))
        # If a later class is small, all classes shrink, so that the ratio is kept.
        most = math.floor(min(have / shares) + _SLACK)
        sizes: Kept = (most * shares + _SLACK).astype(np.int64)
        if not sizes.all():
            row = int(np.flatnonzero(sizes == 0)[0])
            raise BadInput(
                f"--imbalance {self} leaves class {row} without images",
                saw=f"it has {have[row]} images; the largest class keeps {most}",
                fix="use a smaller ratio, or the data as they are: --imbalance none",
            )
        return sizes

    def choose(self, labels: NDArray[np.int64], classes: int, seed: int | None = None) -> Kept:
        """The indices of the images that are kept, in ascending order.

        Args:
            labels: (N,), 0 to C - 1.
            classes: C.
            seed: None keeps the first images of each class, as the paper's code does; with a number
                they are drawn at random.

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
        "--imbalance is invalid",
        saw=clip(repr(text), 80),
        fix="--imbalance exp:100, step:10 or none; the ratio is at least 1",
    )


Indices = NDArray[np.int64]
#: Text, because numpy.random takes 6 ms to import, and `--help` of every command needs this file.
Sampler = Callable[[Indices, "np.random.Generator"], Indices]

samplers: Registry[Sampler] = Registry("sampler")
sampler = samplers.register


@sampler("instance", reference="every image once, shuffled")
def instance(labels: Indices, random: np.random.Generator) -> Indices:
    """Every image once: an epoch has n_i images of class i.

    Args:
        labels: (N,); only N is read.
        random: source of randomness.

    Returns:
        (N,), a permutation.
    """
    return random.permutation(len(labels))


@sampler("over", reference="Kim & Kim 2020, Section IV-E; Kang et al. 2020, Eq. 1 with q = 0")
def over(labels: Indices, random: np.random.Generator) -> Indices:
    """Over-sampling: each image is of class i with probability 1 / C, drawn with replacement.

    First a class is drawn, then one of its images. An epoch is as long as without over-sampling.

    Args:
        labels: (N,); classes without images are never drawn.
        random: source of randomness.

    Returns:
        (N,), with rare images many times and some frequent ones not at all.
    """
    return _by_class(labels, random, power=0.0)


@sampler("sqrt", reference="Mahajan et al. 2018; Kang et al. 2020, Eq. 1 with q = 1/2")
def sqrt(labels: Indices, random: np.random.Generator) -> Indices:
    """Square-root sampling: the probability of class i is proportional to the root of n_i.

    Half-way between `instance` and `over`; N draws with replacement.

    Args:
        labels: (N,).
        random: source of randomness.
    """
    return _by_class(labels, random, power=0.5)


@sampler("under", reference="Buda et al. 2018, Section 2.2.1, random under-sampling")
def under(labels: Indices, random: np.random.Generator) -> Indices:
    """Under-sampling: as many images of each class as the rarest class has, none twice.

    Every epoch draws other images, and has only C * min(n_i) of them.

    Args:
        labels: (N,); classes without images are ignored.
        random: source of randomness.
    """
    shuffled = random.permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    sizes = np.bincount(labels)
    starts = np.cumsum(sizes) - sizes
    wanted = sizes[sizes > 0].min()
    kept = starts[sizes > 0][:, None] + np.arange(wanted)
    return random.permutation(by_class[kept.ravel()])


def epoch_order(name: str, labels: Indices, seed: int, epoch: int) -> Indices:
    """The order of one epoch, the same for all ranks.

    Args:
        name: the name of a sampler.
        labels: (N,), 0 to C - 1.
        seed: the seed of the run.
        epoch: the epoch, from 0.

    Returns:
        (M,), indices into the labels; M is N except for `under`.

    Raises:
        UsageError: there is no such sampler.
    """
    return samplers[name](labels, np.random.default_rng([seed, epoch]))


@dataclass(frozen=True, slots=True)
class Batches:
    """How an epoch of M images is divided into steps, and a step into ranks.

    Every step takes `size` images over all ranks. The last step takes the rest, size / 2 to
    3 size / 2 images, so that no step has only a few. Rank r takes positions r, r + world, ... of a
    step; the shares of two ranks differ by at most one image.

    Raises:
        UsageError: a batch has fewer images than there are ranks.

    Example:
        >>> batches = Batches(total=9, size=4, world=2)
        >>> [batches.share(step, rank=0) for step in range(batches.steps)]
        [slice(0, 4, 2), slice(4, 9, 2)]
    """

    total: int
    """M, the number of images of the epoch."""
    size: int
    """Images per step, over all ranks."""
    world: int = 1
    """The number of ranks."""

    def __post_init__(self) -> None:
        if self.size < 1 or min(self.total, self.size // 2 or 1) < self.world:
            raise UsageError(
                "a batch does not have an image for every rank",
                saw=f"{self.total} images, batches of {self.size}, {self.world} ranks",
                fix=f"-b {max(2 * self.world, 2)} or more, or fewer ranks",
            )

    @property
    def steps(self) -> int:
        """Steps of the epoch, at least 1."""
        return max((2 * self.total + self.size) // (2 * self.size), 1)

    def share(self, step: int, rank: int = 0) -> slice:
        """The positions in the epoch's order that a rank takes at a step."""
        stop = self.total if step == self.steps - 1 else (step + 1) * self.size
        return slice(step * self.size + rank, stop, self.world)

    def size_of(self, step: int) -> int:
        """The number of images of a step, over all ranks."""
        return (self.total if step == self.steps - 1 else (step + 1) * self.size) - step * self.size

    def weight(self, step: int, rank: int = 0) -> float:
        """The factor of a rank's mean loss with which the mean over ranks is the mean over images.

        It is 1 if the shares of all ranks are equally large.
        """
        shares = [self.share(step, r) for r in range(self.world)]
        sizes = [len(range(share.start, share.stop, share.step)) for share in shares]
        return sizes[rank] * self.world / sum(sizes)


def _by_class(labels: Indices, random: np.random.Generator, power: float) -> Indices:
    """N draws: class i with probability proportional to n_i^power, then any of its images."""
    by_class = np.argsort(labels, kind="stable")
    sizes = np.bincount(labels)
    starts = np.cumsum(sizes) - sizes
    weights = np.where(sizes > 0, sizes.astype(np.float64) ** power, 0.0)
    drawn = random.choice(len(sizes), size=len(labels), p=weights / weights.sum())
    place = (random.random(len(labels)) * sizes[drawn]).astype(np.int64)  # random() is below 1
    result: Indices = by_class[starts[drawn] + place]
    return result
