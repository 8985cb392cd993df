"""The kernel that makes a batch of training images, and its reference, against the transforms of the CPU: the same bits
for any images, any batch and any random words, in every order of threads."""

import itertools

import numpy as np
import pytest
from cuda_places import PLACES
from hypothesis import given
from hypothesis import strategies as st
from test_kernels import quick

from tinyres import kernels
from tinyres.data import Dataset, philox
from tinyres.data.augment import Cutout, RandomCrop, RandomFlip, fused
from tinyres.kernels import layout, reference
from tinyres.kernels.cuda import augment as launcher
from tinyres.kernels.cuda import emulator, launch

anywhere = pytest.mark.parametrize("place", PLACES)
KEY = (2**64 - 1, 3)


def dataset(shape=(23, 3, 9, 11), dtype=np.uint8, seed=0):
    """Images without zeros, so that padding is seen."""
    n, c, h, w = shape
    rng = np.random.default_rng(seed)
    values = rng.integers(1, 256, (n, h, w, c)) if dtype == np.uint8 else rng.random((n, h, w, c)) + 0.1
    images = layout.nchw(values.astype(dtype))
    return Dataset(images, np.zeros(n, int), ["a"], rng.random(c), rng.random(c) + 0.1, 255 if dtype == np.uint8 else 1)


def by_transforms(data, index, transforms, key=KEY):
    """What the Loader does on the CPU."""
    images = data.stored(index)
    for number, transform in enumerate(transforms):
        images = transform(images, philox.words(*key, 1 + number, len(data))[index])
    return data.normalise(images)


def by_kernel(place, data, index, transforms, key=KEY, augment=launcher):
    options = fused(transforms, data.images.shape[1], data.images.dtype)
    if "cutout" in options:
        options["cutout"] = (*options["cutout"][:2], place.put(options["cutout"][2]))
    all_options = {"crop": None, "flip": None, "cutout": None} | options
    x = augment(place.put(data.images), place.put(index), *map(place.put, data.factors()), key, **all_options)
    assert layout.is_channels_last(x)
    return place.get(x)


def assert_same_bits(found, expected):
    assert found.dtype == expected.dtype == np.float32 and found.shape == expected.shape
    np.testing.assert_array_equal(found.view(np.uint32), expected.view(np.uint32))


SUBSETS = [[t for t, chosen in zip((RandomCrop(2), RandomFlip(), Cutout(4, (7, 8, 9))), bits, strict=True) if chosen]
           for bits in itertools.product((False, True), repeat=3)]


@anywhere
@pytest.mark.parametrize("augment", [launcher, reference.augment])
@pytest.mark.parametrize("transforms", SUBSETS, ids=lambda ts: "-".join(type(t).__name__ for t in ts) or "none")
def test_equals_the_transforms_bit_by_bit(place, augment, transforms):
    data = dataset()
    index = np.array([22, 0, 5, 5, 17])
    found = by_kernel(place, data, index, transforms, augment=augment)
    assert_same_bits(found, by_transforms(data, index, transforms))
    if transforms:
        assert not np.array_equal(found, by_transforms(data, index, []))


@st.composite
def cases(draw):
    """A data set, a batch of it, transforms and a key."""
    dtype = draw(st.sampled_from([np.uint8, np.float32, np.float64, np.float16]))
    shape = draw(st.tuples(st.integers(1, 30), st.sampled_from([1, 2, 3, 7]), st.integers(1, 20), st.integers(1, 20)))
    fill = draw(st.sampled_from([0, 130, tuple(range(shape[1]))]))
    crop, flip = RandomCrop(draw(st.integers(1, 25))), RandomFlip()
    chosen = draw(st.lists(st.booleans(), min_size=3, max_size=3))
    cut = Cutout(draw(st.integers(1, 30)), fill)
    transforms = [t for t, there in zip((crop, flip, cut), chosen, strict=True) if there]
    index = draw(st.lists(st.integers(0, shape[0] - 1), min_size=1, max_size=9))
    key = draw(st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1)))
    return dataset(shape, dtype, draw(st.integers(0, 99))), np.array(index), transforms, key


@anywhere
@pytest.mark.parametrize("augment", [launcher, reference.augment])
@quick(60)
@given(cases())
def test_equals_the_transforms_for_any_images(place, augment, case):
    """Padding and squares larger than the image too; float16 is left to the reference."""
    data, index, transforms, key = case
    found = by_kernel(place, data, index, transforms, key, augment)
    assert_same_bits(found, by_transforms(data, index, transforms, key))


@anywhere
@pytest.mark.parametrize("values", [1, 4, 100_000])
def test_an_image_in_several_blocks_or_many_turns_of_one(place, values, monkeypatch):
    monkeypatch.setitem(launcher.__globals__, "VALUES", values)
    data, index, transforms = dataset((3, 3, 41, 40)), np.array([2, 0]), SUBSETS[-1]
    assert_same_bits(by_kernel(place, data, index, transforms), by_transforms(data, index, transforms))


@pytest.mark.parametrize("order", ["forward", "reverse", "random"])
def test_the_order_of_threads_changes_no_bit(order):
    place = PLACES[0].values[0]
    data, index = dataset((9, 3, 32, 32)), np.array([8, 1, 4])
    with emulator.settings(order=order):
        found = by_kernel(place, data, index, SUBSETS[-1])
    assert_same_bits(found, by_transforms(data, index, SUBSETS[-1]))


def test_more_images_than_32_bits_count_go_the_reference_s_way(monkeypatch):
    data, index = dataset(), np.array([3, 4])
    expected = by_transforms(data, index, SUBSETS[-1])
    monkeypatch.setattr(launch, "MOST_VALUES", data.images.size - 1)
    monkeypatch.setattr(launch, "launch", None)
    assert_same_bits(by_kernel(PLACES[0].values[0], data, index, SUBSETS[-1]), expected)


@pytest.mark.parametrize("name, runs", [("emulator", 1), ("reference", 0), ("fast", 0)])
def test_the_kernel_set_chooses(name, runs, monkeypatch):
    launched, run = [], emulator.launch
    monkeypatch.setattr(emulator, "launch", lambda kernel, *args: (launched.append(kernel.name), run(kernel, *args)))
    data, index = dataset(), np.array([3, 4])
    with kernels.use_kernels(name):
        x = kernels.augment(data.images, index, *data.factors(), KEY, flip=1)
    assert launched == ["augment<unsigned char>"] * runs
    assert_same_bits(x, by_transforms(data, index, [RandomFlip()]))
