"""A residual block whose every gradient can be worked out on paper, and four smaller examples.

The block is y = x + W2 relu(W1 x) with 2x2 numbers: x has two features (rows) of two samples (columns). The loss
L = sum(V * y), elementwise, makes V the gradient at y. Rows of a matrix are separated by ";":

    x  = [-2  1; -1  2]    W1 = [-1  1; -1 -1]    W2 = [ 1  1; -1  0.5]    V  = [-1  2; -2  3]

    a  = W1 x      = [ 1  1;  3 -3]         dW1 = da x^T        = [-3 -3;  4  2]
    h  = relu(a)   = [ 1  1;  3  0]         da  = dh where a > 0 = [ 1 -1; -2  0]
    F  = W2 h      = [ 4  1;  0.5 -1]       dh  = W2^T dF       = [ 1 -1; -2  3.5]
    y  = x + F     = [ 2  2; -0.5  1]       dW2 = dF h^T        = [ 1 -3;  1 -6]
    L  = sum(V * y) = 6                     dF  = dy = V

The addition hands V to both of its inputs. At the fork, x, two contributions meet: V itself along the shortcut, and
W1^T da = [1 1; 3 -1] through the branch. Their sum is dx = [0 3; 1 2]. In one element they cancel: -1 + 1 = 0. The
shortcut's share of the sum is <V, dx> / <dx, dx> = 10/14 = 5/7, the branch's 2/7. The unit that is off, a = -3, stops
what would be the largest gradient of the branch, 3.5.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tinyres import nn, ops
from tinyres.models.blocks import Block
from tinyres.nn.options import float_dtype
from tinyres.tensor import Tensor

Numbers = Any  # a number, or nested lists of numbers

VALUES: dict[str, Numbers] = {
    "x": [[-2, 1], [-1, 2]],
    "W1": [[-1, 1], [-1, -1]],
    "W2": [[1, 1], [-1, 0.5]],
    "V": [[-1, 2], [-2, 3]],
    "a": [[1, 1], [3, -3]],
    "h": [[1, 1], [3, 0]],
    "F": [[4, 1], [0.5, -1]],
    "y": [[2, 2], [-0.5, 1]],
    "loss": 6,
}

GRADIENTS: dict[str, Numbers] = {
    "loss": 1,
    "y": [[-1, 2], [-2, 3]],
    "F": [[-1, 2], [-2, 3]],
    "W2": [[1, -3], [1, -6]],
    "h": [[1, -1], [-2, 3.5]],
    "a": [[1, -1], [-2, 0]],
    "W1": [[-3, -3], [4, 2]],
    "x along the shortcut": [[-1, 2], [-2, 3]],
    "x through the branch": [[1, 1], [3, -1]],
    "x": [[0, 3], [1, 2]],
}

IDENTITY_SHARE = 10 / 14

# A line per tensor, its elements row by row: what to calculate, and what it gives.
FORWARD_BY_HAND = {
    "a": "a = W1 x: -1·(-2) + 1·(-1) = 1; -1·1 + 1·2 = 1; -1·(-2) + (-1)·(-1) = 3; -1·1 + (-1)·2 = -3",
    "h": "h = relu(a): max(1, 0) = 1; max(1, 0) = 1; max(3, 0) = 3; max(-3, 0) = 0",
    "F": "F = W2 h: 1·1 + 1·3 = 4; 1·1 + 1·0 = 1; -1·1 + 0.5·3 = 0.5; -1·1 + 0.5·0 = -1",
    "y": "y = x + F: -2 + 4 = 2; 1 + 1 = 2; -1 + 0.5 = -0.5; 2 + (-1) = 1",
    "loss": "L = sum(V * y): -1·2 + 2·2 + (-2)·(-0.5) + 3·1 = 6",
}

BACKWARD_BY_HAND = {
    "y": "dy = V, as L is linear in y: 1·(-1) = -1; 1·2 = 2; 1·(-2) = -2; 1·3 = 3",
    "W2": "dW2 = dF h^T, dF = dy: -1·1 + 2·1 = 1; -1·3 + 2·0 = -3; -2·1 + 3·1 = 1; -2·3 + 3·0 = -6",
    "h": "dh = W2^T dF: 1·(-1) + (-1)·(-2) = 1; 1·2 + (-1)·3 = -1; 1·(-1) + 0.5·(-2) = -2; 1·2 + 0.5·3 = 3.5",
    "a": "da = dh where a > 0: 1·1 = 1; 1·(-1) = -1; 1·(-2) = -2; 0·3.5 = 0",
    "W1": "dW1 = da x^T: 1·(-2) + (-1)·1 = -3; 1·(-1) + (-1)·2 = -3; -2·(-2) + 0·1 = 4; -2·(-1) + 0·2 = 2",
    "x through the branch": "W1^T da: -1·1 + (-1)·(-2) = 1; -1·(-1) + (-1)·0 = 1; 1·1 + (-1)·(-2) = 3; "
                            "1·(-1) + (-1)·0 = -1",
    "x": "dx = V + W1^T da: -1 + 1 = 0; 2 + 1 = 3; -2 + 3 = 1; 3 + (-1) = 2",
}


class Product(nn.Module):
    """W x: a weight (K, C) and columns (C, N) -> (K, N). nn.Linear takes rows; these are columns, as on paper."""

    def __init__(self, weight: Tensor):
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        return ops.matmul(self.weight, x)


class HandWorkedBlock(Block):
    """x + W2 relu(W1 x): (2, 2) -> (2, 2), with the numbers of this file."""

    def __init__(self, dtype: Any = "float64"):
        super().__init__()
        self.W1, self.relu = Product(ops.tensor(VALUES["W1"], dtype)), nn.ReLU()
        self.W2, self.downsample = Product(ops.tensor(VALUES["W2"], dtype)), nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.W2(self.relu(self.W1(x)))

    def without_branch(self, x: Tensor) -> Tensor:
        return self.shortcut(x)

    def zero_branch_(self) -> None:
        nn.init.zeros_(self.W2.weight)


@dataclass(frozen=True)
class Example:
    """A loss that can be stepped through: calling it runs the forward pass, so tr.step(example) takes it as it is.

    title; notes: what to look at, a sentence each; leaves: the tensors that want a gradient; values, gradients: by
    hand, under names among which are those of the leaves; module: the layers that it uses, if any.
    """

    title: str
    notes: tuple[str, ...]
    run: Callable[[], Tensor]
    leaves: dict[str, Tensor]
    values: dict[str, Numbers]
    gradients: dict[str, Numbers]
    module: nn.Module | None = None

    def __call__(self) -> Tensor:
        return self.run()


def hand_worked(dtype: Any = "float64") -> Example:
    """The residual block of this file, with its weighted sum as the loss; every number is exact in either dtype.

    Raises TypeError for a dtype that is not float32 or float64.
    """
    block = HandWorkedBlock(_checked("hand_worked", dtype))
    x, V = _leaf(VALUES["x"], dtype), _constant(VALUES["V"], dtype)
    notes = (*FORWARD_BY_HAND.values(), *BACKWARD_BY_HAND.values(),
             "At the fork, x, the first element gets -1 along the shortcut and 1 through the branch, and they cancel.",
             "The shortcut's share is <V, dx> / <dx, dx> = 10/14 = 5/7, the branch's 2/7.")
    return Example("The hand-worked residual block: y = x + W2 relu(W1 x)", notes, lambda: (V * block(x)).sum(),
                   {"x": x, "W1": block.W1.weight, "W2": block.W2.weight}, VALUES, GRADIENTS, block)


def fork(dtype: Any = "float64") -> Example:
    """x + x * x, summed: x is used three times, and its gradient is 1 + x + x. Raises as hand_worked does."""
    x = _leaf([1, -0.5, 2, -1], _checked("fork", dtype))
    notes = ("x is used three times: once by the addition, which brings 1, and twice by the product, which brings x to "
             "each of its inputs: 1 + x + x = 1 + 2x.",
             "At x = -0.5 the three cancel: 1 - 0.5 - 0.5 = 0.")
    return Example("A fork without layers: y = x + x * x", notes, lambda: (x + x * x).sum(), {"x": x},
                   {"x": [1, -0.5, 2, -1], "y": [2, -0.25, 6, 0], "loss": 7.75},
                   {"x along the addition": [1, 1, 1, 1], "x through the product, once": [1, -0.5, 2, -1],
                    "x": [3, 0, 5, -1]})


def batchnorm(dtype: Any = "float64") -> Example:
    """Batch norm of one channel of four numbers, (4, 1): the gradient comes by three routes. Raises as hand_worked
    does. Ioffe and Szegedy 2015, "Batch normalization", section 3."""
    norm = nn.BatchNorm1d(1, eps=0.0, dtype=_checked("batchnorm", dtype))
    x, V = _leaf([[1], [3], [1], [3]], dtype), _constant([[5], [1], [-1], [-1]], dtype)
    notes = ("The mean is 2 and the variance 1 (eps is 0 here), so xhat = x - 2 = -1, 1, -1, 1.",
             "With the gradient g = 5, 1, -1, -1 at the output, dx is the sum of three routes:",
             "direct, g / sqrt(var): 5, 1, -1, -1;",
             "through the mean, -mean(g) = -4/4: -1, -1, -1, -1;",
             "through the variance, -xhat * mean(g * xhat) = -xhat * -4/4: -1, 1, -1, 1;",
             "dx = 3, 1, -3, -1. It sums to 0, and so does dx * xhat: shifting or scaling x changes nothing.")
    return Example("Batch norm by its parts: one channel, four numbers, three routes", notes,
                   lambda: (V * norm(x)).sum(), {"x": x, "weight": norm.weight, "bias": norm.bias},
                   {"x": [[1], [3], [1], [3]], "y": [[-1], [1], [-1], [1]], "loss": -4},
                   {"x direct": [[5], [1], [-1], [-1]], "x through the mean": [[-1], [-1], [-1], [-1]],
                    "x through the variance": [[-1], [1], [-1], [1]], "x": [[3], [1], [-3], [-1]],
                    "weight": [-4], "bias": [4]}, norm)


def conv(dtype: Any = "float64") -> Example:
    """A 3x3 image and a 2x2 kernel, (1, 1, 3, 3) -> (1, 1, 2, 2). Raises as hand_worked does."""
    layer = nn.Conv2d(1, 1, 2, bias=False, dtype=_checked("conv", dtype))
    layer.weight.data[...] = [[1, 0], [2, -1]]
    x, V = _leaf([[[[1, 2, 0], [-1, 1, 2], [0, -2, 1]]]], dtype), _constant([[[[1, -1], [2, 1]]]], dtype)
    notes = ("Each pixel's gradient is a sum over the windows that it lay in: a corner lay in one, the middle in four.",
             "The middle pixel: 1·(-1) + (-1)·2 + 2·0 + 1·1 = -2, the gradient at a window's output times the weight "
             "that stood on the pixel there.",
             "The weight's gradient is a sum over windows. The upper left weight: 1·1 + (-1)·2 + 2·(-1) + 1·1 = -2.")
    return Example("A convolution: a 3x3 image and a 2x2 kernel", notes, lambda: (V * layer(x)).sum(),
                   {"x": x, "weight": layer.weight},
                   {"x": [[[[1, 2, 0], [-1, 1, 2], [0, -2, 1]]]], "weight": [[[[1, 0], [2, -1]]]],
                    "y": [[[[-2, 2], [1, -4]]]], "loss": -6},
                   {"y": [[[[1, -1], [2, 1]]]], "x": [[[[1, -1, 0], [4, -2, 1], [4, 0, -1]]]],
                    "weight": [[[[-2, 6], [-4, -4]]]]}, layer)


def concat(dtype: Any = "float64") -> Example:
    """[x, x * x], (1, 2) -> (1, 4): a concatenation splits the gradient. Raises as hand_worked does."""
    x, V = _leaf([[1, -2]], _checked("concat", dtype)), _constant([[1, 2, 3, 1]], dtype)
    notes = ("An addition copies the gradient to its inputs; a concatenation splits it: 1, 2 goes to x, and 3, 1 to "
             "x * x.",
             "The product brings 3·1, 1·(-2) = 3, -2 to x, twice. With 1, 2 that is 7, -2.")
    return Example("A concatenation: y = [x, x * x]", notes, lambda: (V * ops.concat([x, x * x], 1)).sum(), {"x": x},
                   {"x": [[1, -2]], "y": [[1, -2, 1, 4]], "loss": 4},
                   {"y": [[1, 2, 3, 1]], "x along the concatenation": [[1, 2]],
                    "x through the product, once": [[3, -2]], "x": [[7, -2]]})


EXAMPLES: dict[str, Callable[..., Example]] = {"residual": hand_worked, "fork": fork, "batchnorm": batchnorm,
                                               "conv": conv, "concat": concat}


def example(name: str, dtype: Any = "float64") -> Example:
    """The example of that name, from EXAMPLES. Raises ValueError that suggests the nearest name, TypeError for a dtype
    that is not float32 or float64."""
    if name not in EXAMPLES:
        near = difflib.get_close_matches(str(name), EXAMPLES, 1)
        raise ValueError(f"example: no example is called {name!r}; "
                         + (f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(EXAMPLES)}"))
    return EXAMPLES[name](dtype)


def _checked(name: str, dtype: Any) -> Any:
    float_dtype(name, dtype)
    return dtype


def _leaf(numbers: Numbers, dtype: Any) -> Any:
    return ops.tensor(numbers, dtype, requires_grad=True)


def _constant(numbers: Numbers, dtype: Any) -> Any:
    return ops.tensor(numbers, dtype)
