"""Batches of a data set, epoch by epoch.

There is no thread that works ahead: a batch of 128 costs about 0.3 ms, of a training step some 100, and threads would
fight the kernels for the cores. There is no state either: batch b of epoch e is a function of (seed, e, b), so a run
resumes where it was by asking for `epoch(e, start_batch=b)`.

A data set on the GPU has its batches made there, by one launch each; only the order of an epoch is copied to it. They
are the batches that the CPU would have made, bit for bit.
"""

import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from tinyres import kernels
from tinyres.data import philox
from tinyres.data.augment import Transform, fused
from tinyres.data.dataset import Dataset
from tinyres.data.mixup import MOST_ALPHA, beta_weight, mix
from tinyres.ops.create import move

Batch = tuple[Any, Any]


class Loader:
    """Cuts a Dataset into batches: x (B, C, H, W) float32, normalised, channels-last, and y (B,) int64, where it lives.

    shuffle: a new order every epoch (training); False keeps the data set's order (evaluation).
    augment: transforms applied in turn to the stored images; `augment.standard(dataset.name)` is the usual choice.
    drop_last: leave out the last batch if it is smaller than the others; otherwise it is smaller.
    mixup: above 0, every batch is mixed with itself, by weights from Beta(mixup, mixup), once it is augmented and
    normalised (see mixup.py); y is then (B, K) float32, the probabilities that cross_entropy takes as well as labels.

    Raises ValueError if batch_size is below 1, if dropping the last batch would leave none, or if mixup is no number
    from 0 to 1,000.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        shuffle: bool = False,
        seed: int = 0,
        augment: Sequence[Transform] = (),
        drop_last: bool = False,
        mixup: float = 0.0,
    ):
        self.dataset = dataset
        self.batch_size = operator.index(batch_size)
        self.shuffle = shuffle
        self.seed = seed
        self.augment = tuple(augment)
        self.drop_last = drop_last
        self.mixup = mixup
        if self.batch_size < 1:
            raise ValueError(f"Loader: batch_size is {batch_size}, expected at least 1")
        if not isinstance(mixup, (int, float, np.number)) or not 0 <= mixup <= MOST_ALPHA:
            raise ValueError(
                f"Loader: mixup is {mixup!r}, expected a number from 0 (no mixing) to {MOST_ALPHA:,.0f}, the alpha of "
                "Beta(alpha, alpha); 0.2 and 1 are usual"
            )
        if len(self) == 0:
            raise ValueError(
                f"Loader: batch_size {batch_size} with drop_last leaves no batch of {len(dataset)} images; "
                "use a smaller batch_size or drop_last=False"
            )

    def __len__(self) -> int:
        """The number of batches in an epoch."""
        full, rest = divmod(len(self.dataset), self.batch_size)
        return full + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[Batch]:
        raise TypeError("Loader: say which epoch: `for x, y in loader.epoch(e)`; order and augmentation depend on it")

    def epoch(self, epoch: int, start_batch: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from number `start_batch` on; the same ones every time it is asked for.

        Raises ValueError for a negative epoch, or a start_batch that is not from 0 to the number of batches.
        """
        if not 0 <= start_batch <= len(self):
            raise ValueError(f"Loader.epoch: start_batch is {start_batch}, expected 0 to {len(self)}")
        count = len(self.dataset)
        order = philox.permutation(self.seed, epoch, count) if self.shuffle else np.arange(count)
        weights = partners = np.empty(0, np.uint64)
        if self.mixup > 0:
            weights = philox.words(self.seed, epoch, philox.MIXUP_WEIGHT, len(self))
            partners = self._partners(philox.words(self.seed, epoch, philox.MIXUP_PARTNER, count)[order])
        return self._batches(order, partners, weights, self._images(epoch), start_batch)

    def _partners(self, words: np.ndarray) -> np.ndarray:
        """With whom each sample of an epoch is mixed, a number in its batch: the batch sorted by its words."""
        cuts = range(0, len(words), self.batch_size)
        return np.concatenate([np.argsort(words[cut : cut + self.batch_size], kind="stable") for cut in cuts])

    def _images(self, epoch: int) -> Callable[[Any], Any]:
        """The function that makes the images of a batch from its index, an array where the data set lives."""
        data, key = self.dataset, philox.checked_key(self.seed, epoch)
        options = fused(self.augment, data.images.shape[1], data.images.dtype) if data.device == "cuda" else None
        if options is not None:
            if "cutout" in options:
                stream, size, fill = options["cutout"]
                options["cutout"] = stream, size, move(fill, data.device)
            return lambda index: kernels.augment(data.images, index, *data.factors(), key, **options)
        draws = [move(philox.words(*key, 1 + k, len(data)), data.device) for k in range(len(self.augment))]

        def by_transforms(index: Any) -> Any:
            images = data.stored(index)
            for transform, words in zip(self.augment, draws, strict=True):
                images = transform(images, words[index])
            return data.normalise(images)

        return by_transforms

    def _batches(self, order: np.ndarray, partners: np.ndarray, weights: np.ndarray, images: Callable[[Any], Any],
                 start_batch: int) -> Iterator[Batch]:
        order, partners = (move(array, self.dataset.device) for array in (order, partners))
        for number in range(start_batch, len(self)):
            places = slice(number * self.batch_size, (number + 1) * self.batch_size)
            index = order[places]
            x, y = images(index), self.dataset.labels[index]
            if self.mixup > 0:
                weight = beta_weight(int(weights[number]), self.mixup)
                x, y = mix(x, y, len(self.dataset.classes), partners[places], weight)
            yield x, y
