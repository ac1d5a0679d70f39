"""The validation of a run: loss, error rates and logits of a network on a labelled set."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rescale_cli.core.predictions import Images, Predictions, Preprocessing
from rescale_cli.errors import BadInput
from rescale_cli.evaluating.batches import batches
from rescale_cli.evaluating.ranks import Ranks
from rescale_cli.measures.metrics import Groups, Tallies, accuracy, table_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


_BATCH = {"cuda": 512, "cpu": 128}


class Validation:
    """Validates a network on a labelled set.

    Args:
        images: N, with labels as rows of the head.
        preprocessing: from an image to the network's input.
        groups: which classes are many, medium and few, (C,) each.
        device: the device of the network.
        workers: number of processes that decode images.
        ranks: the ranks, each of which takes a share of the images.
    """

    def __init__(
        self,
        images: Images,
        preprocessing: Preprocessing,
        groups: Groups,
        device: torch.device,
        workers: int | None,
        ranks: Ranks,
    ) -> None:
        import torch

        self._images, self._preprocessing, self._groups = images, preprocessing, groups
        self._device, self._workers, self._ranks = device, workers, ranks
        n, world = len(images), ranks.world
        self._share = range(n * ranks.rank // world, n * (ranks.rank + 1) // world)
        assert images.labels is not None
        self._labels = torch.from_numpy(images.labels.astype(np.int64)).to(device)
        if device.type == "cuda" and images.array is not None and images.array.nbytes < 1 << 30:
            # The images are needed at every epoch, so they stay on the device.
            self._images = replace(images, array=torch.from_numpy(images.array).to(device))  # type: ignore[arg-type]

    def first(self) -> Tensor:
        """The first few images, on the device, to find problems before a run begins."""
        few = range(min(8, len(self._images)))  # not of this rank's share, which may be empty
        for batch in self._batches(few):
            return batch[1]
        raise BadInput(f"{self._images.source} has no images", fix="--val-data DATA")

    def errors(
        self, network: nn.Module, weights: Mapping[str, Tensor], layout: torch.memory_format
    ) -> dict[str, Any]:
        """Loss and error rates of a network with these weights; the same on every rank.

        Returns:
            `val_loss`, `val_error`, `val_balanced_error`, `val_top_5` (accuracy; None for five
            classes or fewer), `val_recalls` (C,), and the mean recall of the classes with `many`,
            `medium` and `few` training samples; None where there are no classes or samples.
        """
        import torch
        from torch.func import functional_call
        from torch.nn import functional

        c = len(next(iter(self._groups.values())))
        tallies = torch.zeros(3 * c + 2, dtype=torch.float64, device=self._device)
        was_training = network.training
        network.eval()
        with torch.no_grad():
            for rows, x in self._batches(self._share):
                x = x.contiguous(memory_format=layout)
                logits = functional_call(network, dict(weights), (x,)).float()
                y = self._labels[rows]
                predicted = logits.argmax(1)
                hit = predicted[predicted == y]
                counted = [torch.bincount(v, minlength=c) for v in (hit, y, predicted)]
                tallies[:-2] += torch.cat(counted)
                if c > 5:
                    tallies[-2] += (logits.topk(5).indices == y[:, None]).sum()
                tallies[-1] += functional.cross_entropy(logits, y, reduction="sum")
        network.train(was_training)
        found: NDArray[np.float64] = self._ranks.total(tallies).cpu().numpy()
        hits, support, predictions = found[:-2].reshape(3, c)
        line = _errors(Tallies(hits, support, predictions), self._groups, found[-1])
        recalls = [None if n == 0 else float(hit / n) for hit, n in zip(hits, support, strict=True)]
        top_5 = float(found[-2] / support.sum()) if c > 5 else None
        return {**line, "val_top_5": top_5, "val_recalls": recalls}

    def predictions(
        self, network: nn.Module, weights: Mapping[str, Tensor], layout: torch.memory_format
    ) -> Predictions:
        """The logits of all images, not only this rank's share, with labels as rows of the head."""
        import torch
        from torch.func import functional_call

        was_training = network.training
        network.eval()
        with torch.no_grad():
            logits = [
                functional_call(network, dict(weights), (x.contiguous(memory_format=layout),))
                .float()
                .cpu()
                for _, x in self._batches(range(len(self._images)))
            ]
        network.train(was_training)
        labels = self._labels.cpu().numpy()
        source, names = self._images.source, self._images.names
        return Predictions(torch.cat(logits).numpy(), labels, source, names)

    def _batches(self, samples: range) -> Iterator[tuple[Tensor, Tensor]]:
        """Indices of images, and the images on the device, batch by batch."""
        import torch

        size = _BATCH[self._device.type]
        stream = batches(
            self._images, self._preprocessing, samples, size, self._workers, self._device
        )
        for batch in stream:
            if batch.bad:
                index, why = batch.bad[0]
                raise BadInput(
                    f"a validation image cannot be read: {self._images.names[index]}",
                    saw=why,
                    fix="replace the file, or remove it from the data",
                )
            rows = torch.tensor(batch.indices, device=self._device)
            yield rows, batch.take(0, len(batch.indices))


def _errors(tallies: Tallies, groups: Groups, loss: float) -> dict[str, float | None]:
    table = table_of(tallies, groups)
    named = {
        "val_loss": loss / tallies.support.sum(),
        "val_error": 1 - accuracy(tallies),
        "val_balanced_error": 1 - table["balanced_accuracy"],
        **{name: table[name] for name in groups},
    }
    return {name: None if np.isnan(value) else float(value) for name, value in named.items()}
