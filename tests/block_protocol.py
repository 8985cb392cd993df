"""What every residual block promises (models/blocks.py, Block), asked of one block in float64."""

import numpy as np

import tinyres as tr
from tinyres import nn
from tinyres.tensor import Tensor


def classes_of(module, base=nn.Module):
    """The modules (or blocks) that a file of the package defines."""
    return {c for c in vars(module).values()
            if isinstance(c, type) and issubclass(c, base) and c.__module__ == module.__name__}


def moved(model, seed=1):
    """The model in float64 with parameters that are nothing special: scales not 1, shifts and scalars not 0."""
    rng = np.random.default_rng(seed)
    for p in model.double().parameters():
        p.data = np.asarray(p.data + 0.1 * rng.standard_normal(p.shape) * (np.abs(p.data).max() or 1.0))
    return model


def keeps_the_protocol(block, x):
    """One call of the shortcut a forward, on the block's own input; without_branch is forward with a zero branch."""
    moved(block)
    asked = []
    handle = block.shortcut.register_forward_hook(lambda module, args, result: asked.append((args, result)))
    leaf = Tensor(x)
    y = block(leaf)
    assert len(asked) == 1 and len(asked[0][0]) == 1 and asked[0][0][0] is leaf, "one shortcut, and the fork is x"
    assert asked[0][1].shape == y.shape and y.dtype == np.float64
    with tr.no_grad():
        expected = block.without_branch(leaf).numpy()
    assert len(asked) == 2, "without_branch takes the same way"
    handle.remove()
    assert np.abs(y.numpy() - expected).max() > 1e-3, "the branch counts"
    block.zero_branch_()
    for name, p in block.named_parameters():
        if name.endswith("bn2.bias"):  # the shift behind the zero scale: 0 in a fresh block
            nn.init.zeros_(p)
    assert np.array_equal(block(leaf).numpy(), expected)
