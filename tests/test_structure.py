"""What residual blocks must satisfy by their structure, whatever the weights: the zero branch, the sum at the fork,
and equivariance."""

import numpy as np
import pytest

import tinyres as tr
from tinyres import models
from tinyres.models import blocks


def batch(*shape):
    return np.random.default_rng(shape).standard_normal(shape)


@pytest.mark.parametrize("block", [blocks.BasicBlock, blocks.Bottleneck])
def test_zero_branch_makes_a_post_activation_block_diag_x_positive(block):
    """relu(0 + x): the Jacobian is diag(x > 0), so any upstream gradient passes where x > 0 and nowhere else."""
    tr.manual_seed(0)
    layer = block(8, 8).double()
    layer.zero_branch_()
    x, g = tr.tensor(batch(4, 8, 5, 5), requires_grad=True), batch(5, 8, 5, 5)[:4]
    out = layer(x)
    out.backward(g)
    np.testing.assert_array_equal(out.numpy(), np.maximum(x.numpy(), 0))
    np.testing.assert_allclose(x.grad.numpy(), g * (x.numpy() > 0), rtol=0, atol=1e-14)


@pytest.mark.parametrize("block", [blocks.PreActBasicBlock, blocks.PreActBottleneck])
def test_zero_branch_makes_a_pre_activation_block_the_identity(block):
    tr.manual_seed(0)
    layer = block(8, 8).double()
    layer.zero_branch_()
    x, g = tr.tensor(batch(4, 8, 5, 5), requires_grad=True), batch(5, 8, 5, 5)[:4]
    out = layer(x)
    out.backward(g)
    np.testing.assert_array_equal(out.numpy(), x.numpy())
    np.testing.assert_array_equal(x.grad.numpy(), g)


def test_the_gradient_at_the_fork_is_the_shortcut_plus_the_branch():
    """The two routes measured apart, by cutting the other one, add up to the block's gradient."""
    tr.manual_seed(0)
    layer = blocks.PreActBasicBlock(8, 8).double()
    x, g = tr.tensor(batch(4, 8, 5, 5), requires_grad=True), batch(5, 8, 5, 5)[:4]
    (whole,) = tr.grad(layer(x), x, g)
    branch = layer.branch(layer.bn1(x, relu=True))
    (through_branch,) = tr.grad(branch, x, g)
    np.testing.assert_allclose(whole.numpy(), g + through_branch.numpy(), rtol=1e-12, atol=1e-14)
    assert np.linalg.norm(through_branch.numpy()) > 1e-3  # the branch does take part


@pytest.mark.parametrize("training", [True, False])
def test_permuting_the_batch_permutes_logits_and_input_gradients(training):
    tr.manual_seed(0)
    model = models.resnet20().double().train(training)
    x, g, order = batch(6, 3, 8, 8), batch(6, 10), np.array([3, 0, 5, 1, 4, 2])
    results = []
    for images, upstream in ((x, g), (x[order], g[order])):
        images = tr.tensor(images, requires_grad=True)
        out = model(images)
        out.backward(upstream)
        results.append((out.numpy(), images.grad.numpy()))
    for plain, permuted in zip(*results, strict=True):
        np.testing.assert_allclose(plain[order], permuted, rtol=1e-7, atol=1e-9)


def test_permuting_the_channels_inside_a_block_changes_nothing():
    """The hidden channels of a branch have no names: conv1's outputs, bn1 and conv2's inputs permuted alike."""
    tr.manual_seed(0)
    layer, x = blocks.BasicBlock(4, 4).double(), batch(4, 4, 6, 6)
    before, order = layer(x).numpy(), np.array([2, 0, 3, 1])
    state = layer.state_dict()
    for name in ("conv1.weight", "bn1.weight", "bn1.bias", "bn1.running_mean", "bn1.running_var"):
        state[name] = state[name][order]
    state["conv2.weight"] = state["conv2.weight"][:, order]
    layer.load_state_dict(state)
    np.testing.assert_allclose(layer(x).numpy(), before, rtol=1e-10, atol=1e-12)
