"""Whole networks against their twins in PyTorch: the same names, and from the same weights the same outputs, loss,
gradients, running statistics, and parameters after three steps of SGD. With -s it prints what it measured."""

import inspect

import numpy as np
import pytest
from differences import norm_distance

from tinyres import models
from tinyres.analysis import parity
from tinyres.analysis.twins import twin

EXACT = 1e-8  # relative to the norm of each tensor, in float64

# Name -> (network, its options, images). Rounding is compared at batches that are not too small: one ReLU that switches
# in float32 is then a small part of the gradient.
NETWORKS = {
    "resnet20 A": ("resnet20", {"option": "A"}, (16, 3, 32, 32)),
    "resnet20 B": ("resnet20", {"option": "B"}, (16, 3, 32, 32)),
    "plain20": ("plain20", {}, (16, 3, 32, 32)),
    "preact20 A": ("preact_resnet20", {"option": "A"}, (16, 3, 32, 32)),
    "preact20 B": ("preact_resnet20", {"option": "B"}, (16, 3, 32, 32)),
    "resnet18, cifar stem": ("resnet18", {"num_classes": 10, "cifar_stem": True}, (8, 3, 16, 16)),
    "resnet18": ("resnet18", {"num_classes": 10}, (8, 3, 64, 64)),
    "resnet50, cifar stem": ("resnet50", {"num_classes": 10, "cifar_stem": True}, (8, 3, 16, 16)),
    "resnet50": ("resnet50", {"num_classes": 10}, (4, 3, 64, 64)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_in_float64(torch, name):
    """Three steps of training, then evaluation; all of it within 1e-8."""
    networks = parity.pair(*NETWORKS[name], "float64")
    start = [np.copy(p.numpy()) for p in networks.ours.parameters()]
    found = parity.exact_distances(networks)
    print(f"\n{name}: " + ", ".join(f"{what} {distance:.1e}" for what, distance in found.items()))
    assert set(found) == {"outputs", "loss", "gradients", "statistics", "weights", "eval"}
    assert max(found.values()) < EXACT, found
    trained = [p.numpy() for p in networks.ours.parameters()]
    assert min(norm_distance(p, q) for p, q in zip(trained, start, strict=True)) > 1e-4
    theirs = [p.detach().numpy() for p in networks.theirs.parameters()]
    assert max(norm_distance(p, q) for p, q in zip(trained, theirs, strict=True)) < EXACT


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_in_float32_are_as_near_to_float64_as_pytorch_is(torch, name):
    """The whole gradient's distance from that in float64, root mean square of three draws, is at most twice that of
    PyTorch in the channels_last format."""
    mine, pytorch = parity.rounding(*NETWORKS[name], draws=3)
    print(f"\n{name}: distance of the float32 gradient from float64: ours {mine:.1e}, PyTorch's {pytorch:.1e}, "
          f"ratio {mine / pytorch:.2f}")
    assert 1e-8 < mine <= 2 * pytorch


# --- the twins and the measuring --------------------------------------------------------------------------------------

CHOICES = [(name, {"option": option}) for name in ("resnet8", "preact_resnet20") for option in "ABC"]
DEFAULTS = [(network.__name__, {}) for family in (models.resnet, models.preact) for network in family.NETWORKS]


@pytest.mark.parametrize("name, options", [*DEFAULTS, *CHOICES, ("preact_resnet18", {"cifar_stem": True}),
                                           ("resnet34", {"num_classes": 7, "in_channels": 1})])
def test_every_network_has_a_twin_of_the_same_names_and_shapes(torch, name, options):
    """Without weights on either side: only what they are called, in which order, and their sizes."""
    with torch.device("meta"):
        theirs = {key: tuple(value.shape) for key, value in twin(name, **options).state_dict().items()}
    ours = models.build(name, **options).state_dict()
    assert theirs == {key: value.shape for key, value in ours.items()} and list(theirs) == list(ours)


@pytest.mark.parametrize("name, options, size", [
    ("preact_resnet18", {}, 32), ("preact_resnet164", {}, 8), ("resnet8", {"option": "C"}, 8),
    ("preact_resnet20", {"option": "C"}, 8)])
def test_other_blocks_and_stems(torch, name, options, size):
    """One pass of kinds of network that are not above; the proof table has all of them."""
    networks = parity.pair(name, options, (4, 3, size, size), "float64", seed=1)
    mine = parity.our_pass(networks.ours, networks.images, networks.labels)
    theirs = parity.their_pass(networks.theirs, torch.tensor(networks.images), networks.labels)
    assert norm_distance(mine[0], theirs[0]) < EXACT and abs(mine[1] - theirs[1]) < EXACT
    assert mine[2].keys() == theirs[2].keys() and "images" in mine[2]
    assert max(norm_distance(g, theirs[2][key]) for key, g in mine[2].items()) < EXACT


@pytest.mark.parametrize("name", ["vgg16", "resnet21", "plain2", "preact_resnet166"])
def test_a_name_without_a_twin(torch, name):
    with pytest.raises(ValueError, match=f"no network is called '{name}'"):
        twin(name)


def test_distances_see_a_change_of_one_number(torch):
    """One weight of 75,290 that is off by a millionth, or one running variance; other names; another shape."""
    for change, by in (("layer1.0.conv2.weight", 1e-6), ("layer3.0.bn2.running_var", 1e-3)):
        networks = parity.pair("resnet8", {}, (4, 3, 8, 8), "float64")
        with torch.no_grad():
            networks.theirs.state_dict()[change].view(-1)[3] += by
        found = parity.exact_distances(networks)
        seen = {what for what, distance in found.items() if distance > EXACT}
        assert seen == ({"statistics", "eval"} if "running" in change else set(found))
    a = {"a": np.ones(4), "b": np.arange(3.0)}
    assert parity.largest(a, a) == 0.0
    assert parity.largest(a, {**a, "b": np.array([0.0, 1.0, 4.0])}) == pytest.approx(2 / 17**0.5)
    assert parity.largest({**a, "b": np.array([0.0, np.nan, 2.0])}, a) == np.inf
    with pytest.raises(ValueError, match=r"names differ: \['c'\]"):
        parity.largest(a, {**a, "c": np.ones(1)})
    with pytest.raises(ValueError, match=r"shapes \(4,\) and \(2, 2\) differ"):
        parity.distance(a["a"], np.ones((2, 2)))


def test_float32_is_compared_with_the_same_weights_in_float64(torch, monkeypatch):
    """A float32 gradient that is off by a thousandth is seen, on either side."""
    right = parity.rounding("resnet8", {}, (4, 3, 8, 8), draws=1)
    assert max(right) < 1e-5
    for number, side in enumerate(("our_pass", "their_pass")):
        measured = getattr(parity, side)

        def off(model, images, labels, measured=measured):
            y, loss, gradients = measured(model, images, labels)
            return y, loss, {k: g * (1.001 if "32" in str(g.dtype) else 1.0) for k, g in gradients.items()}

        with monkeypatch.context() as patch:
            patch.setattr(parity, side, off)
            found = parity.rounding("resnet8", {}, (4, 3, 8, 8), draws=1)
        assert found[number] == pytest.approx(1e-3, rel=0.05) and found[1 - number] == right[1 - number]


def test_the_twins_take_nothing_from_our_models():
    from tinyres.analysis import twins

    assert "tinyres" not in "".join(line for line in inspect.getsource(twins).splitlines() if "import" in line)


def test_the_shift_is_that_of_all_batch_norms():
    shifted, usual = parity.network("resnet8", {}, 2, shift=1.0), parity.network("resnet8", {}, 2)
    for (name, p), q in zip(shifted.named_parameters(), usual.parameters(), strict=True):
        by = 1.0 if "bn" in name and "bias" in name else 0.0
        np.testing.assert_array_equal(p.numpy(), q.numpy() + np.float32(by), err_msg=name)
