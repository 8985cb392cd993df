"""A convolution with all that follows it in a network whose batch norms were folded: bias, addition and ReLU."""

from __future__ import annotations

from typing import Any

from tinyres import kernels
from tinyres.kernels.layout import array_module, elementwise
from tinyres.ops.conv import Conv2d, conv2d
from tinyres.ops.elementwise import relu as relu_of
from tinyres.ops.fused import Fused
from tinyres.ops.shape import channels_last, reshape
from tinyres.state import state
from tinyres.tensor import Tensor

Pair = tuple[int, int]


class ConvBias(Fused):
    """y = x * w + bias [+ residual] [then ReLU].

    With g' the gradient before the ReLU, dx and dw are the convolution's two adjoints of g' (ops/conv.py), dbias is the
    sum of g' over images and pixels, and the residual receives g' itself.
    """

    fresh = True
    optional = True

    def forward(self, x: Any, w: Any, bias: Any, residual: Any, *, relu: bool, **geometry: Any) -> Any:
        y = kernels.conv2d(x, w, **geometry)
        if residual is not None and residual.shape != y.shape:
            raise ValueError(f"conv_bias: cannot add {tuple(residual.shape)} to {tuple(y.shape)}: where a block "
                             "changes the shape, its shortcut must change it too (zero padding or a 1x1 convolution, "
                             "same stride)")
        y = kernels.add_bias(y, bias, residual, relu)
        self.save(x, w, bias, residual, y if relu else None)
        self.geometry = geometry
        return y

    def fused_backward(self, grad: Any) -> Any:
        x, w, _, _, y = self.saved
        g = grad if y is None else elementwise(array_module(grad).where, y <= 0, grad.dtype.type(0), grad)
        return (kernels.conv2d_input_grad(g, w, x.shape, **self.geometry) if self.needs[0] else None,
                kernels.conv2d_weight_grad(x, g, w.shape, **self.geometry) if self.needs[1] else None,
                g.sum((0, 2, 3)), g)

    @staticmethod
    def spec(x: Any, w: Any, bias: Any, residual: Any, *, relu: bool, **geometry: Any) -> Any:
        y = Conv2d.apply(x, w, **geometry) + reshape(bias, (1, -1, 1, 1))
        y = y if residual is None else y + residual
        return relu_of(y) if relu else y


def conv_bias(x: Any, weight: Any, bias: Any, stride: Pair, padding: Pair, dilation: Pair, groups: int,
              add: Any = None, relu: bool = False) -> Any:
    """[relu](conv2d(x, weight) + bias [+ add]) as one op; the geometry in pairs of ints, checked before.

    x: Tensor (N, C, H, W); weight: (K, C/groups, R, S); bias: (K,); add: (N, K, P, Q), the shortcut of a residual
    block. Raises what conv2d raises, and ValueError where `add` has another shape than the convolution's output.
    """
    if not _fits(x, weight, padding, dilation, groups):
        conv2d(x, weight, bias, stride, padding, dilation, groups)  # says what is wrong
    run = ConvBias.apply if state.choices is None else ConvBias.spec  # whose relu asks for its choice
    return run(channels_last(x), channels_last(weight), bias, None if add is None else channels_last(add), relu=relu,
               stride=stride, padding=padding, dilation=dilation, groups=groups)


def _fits(x: Any, weight: Any, padding: Pair, dilation: Pair, groups: int) -> bool:
    """Whether x is what this convolution takes: conv2d's checks in short, as a folded network is there to be fast."""
    if not isinstance(x, Tensor) or x.ndim != 4 or x.dtype != weight.dtype:
        return False
    (N, C, H, W), (_, c, R, S) = x.shape, weight.shape
    return bool(N > 0 and C == c * groups and H + 2 * padding[0] > dilation[0] * (R - 1)
                and W + 2 * padding[1] > dilation[1] * (S - 1))
