"""Augmentation against plain loops over the samples, which say what each transform means."""

import numpy as np
import pytest

from tinyres.data import augment, philox
from tinyres.data.augment import Cutout, RandomCrop, RandomFlip

WORDS = philox.words(seed=11, epoch=4, stream=1, count=40)


def images(c: int = 3, dtype: type = np.uint8, h: int = 8, w: int = 10) -> np.ndarray:
    values = np.random.default_rng(0).integers(1, 256, (40, h, w, c)).astype(dtype)  # no zeros: padding is seen
    return values.transpose(0, 3, 1, 2)


def crop_one(image: np.ndarray, word: int, padding: int) -> np.ndarray:
    c, h, w = image.shape
    top = (int(word) >> 32) * (2 * padding + 1) >> 32
    left = (int(word) & 0xFFFFFFFF) * (2 * padding + 1) >> 32
    padded = np.pad(image, ((0, 0), (padding, padding), (padding, padding)))
    return padded[:, top : top + h, left : left + w]


def flip_one(image: np.ndarray, word: int) -> np.ndarray:
    return image[:, :, ::-1] if int(word) >= 2**63 else image


def cut_one(image: np.ndarray, word: int, size: int, fill: float | tuple[float, ...]) -> np.ndarray:
    c, h, w = image.shape
    top = ((int(word) >> 32) * h >> 32) - size // 2
    left = ((int(word) & 0xFFFFFFFF) * w >> 32) - size // 2
    image = image.copy()
    image[:, max(top, 0) : max(top + size, 0), max(left, 0) : max(left + size, 0)] = np.reshape(fill, (-1, 1, 1))
    return image


CASES = [
    pytest.param(RandomCrop(1), lambda image, word: crop_one(image, word, 1), id="crop1"),
    pytest.param(RandomCrop(4), lambda image, word: crop_one(image, word, 4), id="crop4"),
    pytest.param(RandomFlip(), flip_one, id="flip"),
    pytest.param(Cutout(4), lambda image, word: cut_one(image, word, 4, 0), id="cutout4"),
    pytest.param(Cutout(5, fill=7), lambda image, word: cut_one(image, word, 5, 7), id="cutout5"),
    pytest.param(Cutout(30), lambda image, word: cut_one(image, word, 30, 0), id="cutout_all"),
]


@pytest.mark.parametrize("transform, one", CASES)
@pytest.mark.parametrize("c", [1, 3])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_equals_the_loop_over_samples(transform, one, c, dtype):
    x = images(c, dtype)
    before = x.copy()
    y = transform(x, WORDS)
    assert y.dtype == dtype and y.shape == x.shape and y.transpose(0, 2, 3, 1).flags.c_contiguous
    np.testing.assert_array_equal(y, [one(image, word) for image, word in zip(x, WORDS, strict=True)])
    np.testing.assert_array_equal(x, before)
    assert not np.shares_memory(x, y)
    assert (y != x).any()


def test_cutout_fills_each_channel_with_its_own_value():
    x = images()
    y = Cutout(4, fill=(10, 20, 30))(x, WORDS)
    np.testing.assert_array_equal(y, [cut_one(i, w, 4, (10, 20, 30)) for i, w in zip(x, WORDS, strict=True)])


def test_every_offset_and_both_sides_occur():
    words = philox.words(0, 0, 1, 4000)
    corner = np.zeros((4000, 1, 4, 4), np.uint8)
    corner[:, :, 0, 0] = 1  # after a crop by 1 this pixel tells the offset, unless it was cut off
    moved = RandomCrop(1)(corner, words).sum(axis=0)[0]
    assert (moved[:2, :2] > 350).all() and moved.sum() == moved[:2, :2].sum()  # 4000 / 9 each
    flipped = RandomFlip()(corner, words)
    assert abs(int(flipped[:, 0, 0, 3].sum()) - 2000) < 200


@pytest.mark.parametrize("transform", [RandomCrop(4), RandomFlip(), Cutout(4)])
def test_a_sample_alone_is_augmented_as_in_its_batch(transform):
    x = images()
    together = transform(x, WORDS)
    for n in (0, 17, 39):
        np.testing.assert_array_equal(transform(x[n : n + 1], WORDS[n : n + 1])[0], together[n])


def test_standard_recipes():
    assert augment.standard("digits") == (RandomCrop(1),)  # a mirrored digit is no digit
    assert augment.standard("cifar10") == augment.standard("cifar100") == (RandomCrop(4), RandomFlip())
    with pytest.raises(ValueError, match="there is none for 'cifar'. Did you mean 'cifar10"):
        augment.standard("cifar")


def test_bad_sizes_are_refused():
    with pytest.raises(ValueError, match="padding is 0, expected at least 1"):
        RandomCrop(0)
    with pytest.raises(ValueError, match="size is 0, expected at least 1"):
        Cutout(0)
