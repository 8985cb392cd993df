"""Array arithmetic: one meaning, given by reference.py, and several ways to compute it, the kernel sets.

The functions here take and return arrays (NumPy or CuPy), float32 or float64, with the shapes that the letters name:
N batch, C and K input and output channels, H W and P Q input and output height and width, R S kernel height and width,
G groups. Images and weights are logical (N, C, H, W) and (K, C/G, R, S), channels-last in memory (see layout.py).
stride, padding and dilation are (height, width) pairs of ints. Nothing is checked here: the ops above do that.

A kernel set is a module with some of these functions; what it lacks, reference.py does.

    set         on NumPy arrays                                   on CuPy arrays
    reference   plain NumPy: the specification                    the same in CuPy
    loops       convolution as nested Python loops                reference
    im2col      convolution as one matrix product                 the same, by a CUDA kernel and cuBLAS
    fast        compiled with Numba, on all processors (default)  CUDA kernels (default)
    emulator    the same CUDA kernels, run on the processor       reference
"""

import difflib
from functools import cache
from importlib import import_module

from . import layout, reference

SETS = {
    ("numpy", "reference"): "reference",
    ("numpy", "loops"): "loops",
    ("numpy", "im2col"): "im2col",
    ("numpy", "fast"): "cpu",
    ("numpy", "emulator"): "cuda",
    ("cupy", "reference"): "reference",
    ("cupy", "im2col"): "cuda.im2col",
    ("cupy", "fast"): "cuda",
}
_current = "fast"


@cache
def _kernel_set(library, current):
    """The module of a kernel set. Kept: asking Python for a module takes 2 microseconds, some 200 times a step."""
    return import_module("." + SETS.get((library, current), "reference"), __name__)


def _kernel(name, array):
    """The function called `name` for this kind of array in the current set; the reference's where the set has none."""
    module = _kernel_set(layout.array_module(array).__name__, _current)
    return getattr(module, name, None) or getattr(reference, name)


class use_kernels:
    """Chooses the kernel set: `use_kernels("loops")` from here on, `with use_kernels("loops"):` for the block.

    Raises ValueError for a name that no set has.
    """

    def __init__(self, name):
        global _current
        known = sorted({known for _, known in SETS})
        if name not in known:
            near = difflib.get_close_matches(str(name), known, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"use_kernels: there is no kernel set {name!r}: choose one of {', '.join(known)}{hint}")
        self.previous, _current = _current, name

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        global _current
        _current = self.previous


def current():
    """The name of the current kernel set."""
    return _current


# ---- convolution ----


def conv2d(x, w, stride, padding, dilation, groups):
    """x (N,C,H,W), w (K,C/G,R,S) -> y (N,K,P,Q), the cross-correlation that deep learning calls convolution."""
    return _kernel("conv2d", x)(x, w, stride, padding, dilation, groups)


def conv2d_input_grad(g, w, x_shape, stride, padding, dilation, groups):
    """g (N,K,P,Q), w (K,C/G,R,S) -> dx (N,C,H,W): adjoint of conv2d in x."""
    return _kernel("conv2d_input_grad", g)(g, w, x_shape, stride, padding, dilation, groups)


def conv2d_input_grad_add(total, g, w, stride, padding, dilation, groups):
    """total (N,C,H,W) += conv2d_input_grad of g and w."""
    return _kernel("conv2d_input_grad_add", g)(total, g, w, stride, padding, dilation, groups)


def conv2d_weight_grad(x, g, w_shape, stride, padding, dilation, groups):
    """x (N,C,H,W), g (N,K,P,Q) -> dw (K,C/G,R,S): adjoint of conv2d in w."""
    return _kernel("conv2d_weight_grad", x)(x, g, w_shape, stride, padding, dilation, groups)


# ---- pooling ----


def max_pool2d(x, kernel, stride, padding, dilation, output):
    """x (N,C,H,W) -> y, index (N,C,P,Q): maximum of each window and its int64 position h*W+w; output = (P, Q)."""
    return _kernel("max_pool2d", x)(x, kernel, stride, padding, dilation, output)


def adaptive_max_pool2d(x, output):
    """x (N,C,H,W) -> y, index (N,C,P,Q): maximum over a P x Q grid of windows that covers the image."""
    return _kernel("adaptive_max_pool2d", x)(x, output)


def gather_hw(x, index):
    """x (N,C,H,W), index (N,C,P,Q) -> y (N,C,P,Q): each channel's values at the flat positions h*W+w."""
    return _kernel("gather_hw", x)(x, index)


def scatter_hw(g, index, x_shape):
    """g, index (N,C,P,Q) -> dx (N,C,H,W): adjoint of gather_hw, adds where positions repeat."""
    return _kernel("scatter_hw", g)(g, index, x_shape)


def avg_pool2d(x, kernel, stride, padding, output, count_include_pad):
    """x (N,C,H,W) -> y (N,C,P,Q): mean of each window, over the padding too if count_include_pad; output = (P, Q)."""
    return _kernel("avg_pool2d", x)(x, kernel, stride, padding, output, count_include_pad)


def avg_pool2d_input_grad(g, x_shape, kernel, stride, padding, count_include_pad):
    """g (N,C,P,Q) -> dx (N,C,H,W): adjoint of avg_pool2d."""
    return _kernel("avg_pool2d_input_grad", g)(g, x_shape, kernel, stride, padding, count_include_pad)


# ---- batch norm: x, y, g, residual are (N,C) or (N,C,...) ----


def batch_norm_stats(x):
    """x -> mean, biased variance of each channel, float64 (C,)."""
    return _kernel("batch_norm_stats", x)(x)


def batch_norm_apply(x, scale, shift, residual, relu):
    """x, scale and shift (C,), residual or None -> y = x*scale + shift [+ residual], through a ReLU if relu."""
    return _kernel("batch_norm_apply", x)(x, scale, shift, residual, relu)


def add_bias(y, bias, residual, relu):
    """y, bias (C,), residual or None -> y + bias [+ residual], through a ReLU if relu; may be in y's memory."""
    return _kernel("add_bias", y)(y, bias, residual, relu)


def batch_norm_grad_sums(g, x, mean, y):
    """-> sum g', sum g'*(x - mean), float64 (C,); g' = g where not y <= 0, else 0; y None: g' = g."""
    return _kernel("batch_norm_grad_sums", g)(g, x, mean, y)


def batch_norm_input_grad(g, x, a, b, d, y, residual):
    """a, b, d (C,) -> dx = a*g' + b*x + d, and dres = g' if residual else None (g itself if y is None)."""
    return _kernel("batch_norm_input_grad", g)(g, x, a, b, d, y, residual)


# ---- augmentation ----


def augment(images, index, factor, offset, key, crop=None, flip=None, cutout=None):
    """images (N,C,H,W) as stored, index (B,) int64 -> x (B,C,H,W) float32 = factor * pixel + offset; both (C,) float32.

    Before that, as asked for: crop (stream, padding): each image is moved by up to `padding` pixels, zeros come in;
    flip (stream): it is mirrored or not; cutout (stream, size, fill): a square of it becomes fill (C,), of the images'
    dtype. Their random words are those of the image in a stream of the key (seed, epoch), see philox.py.
    """
    return _kernel("augment", images)(images, index, factor, offset, key, crop, flip, cutout)


# ---- dropout ----


def dropout(x, p, key):
    """x of any shape -> x*m of that shape, 4-D channels-last, else in C order; m is 0 with probability p, else 1/(1-p).

    m depends on p, on the key, an int below 2^64, and on the position in y's memory: the same call is its own adjoint.
    """
    return _kernel("dropout", x)(x, p, key)


# ---- loss: a label that is not in 0..K-1 makes its row NaN ----


def softmax_cross_entropy(logits, labels, smoothing):
    """logits (N,K), int64 labels (N,) -> losses (N,), log_probs (N,K); smoothing spreads that share of the target."""
    return _kernel("softmax_cross_entropy", logits)(logits, labels, smoothing)


def softmax_cross_entropy_grad(g, log_probs, labels, smoothing):
    """g (N,), log_probs (N,K) -> dlogits (N,K) for the losses' upstream gradients g."""
    return _kernel("softmax_cross_entropy_grad", g)(g, log_probs, labels, smoothing)


# ---- optimizers: lists with an entry for each parameter p, its gradient g and its state; p and state change in place.
# ---- The arrays of a parameter have one shape and dtype, all arrays are of one library; there is at least one.


def sgd(parameters, gradients, velocities, lr, momentum, weight_decay, nesterov):
    """g' = g + weight_decay p; v = momentum v + g'; p -= lr v, or lr (g' + momentum v) if nesterov; v may be None."""
    return _kernel("sgd", parameters[0])(parameters, gradients, velocities, lr, momentum, weight_decay, nesterov)


def adam(parameters, gradients, means, squares, steps, lr, betas, eps, weight_decay, shrink):
    """Step number `step` (from 1) of Adam; weight_decay is added to the gradient, shrink is a factor of p."""
    kernel = _kernel("adam", parameters[0])
    return kernel(parameters, gradients, means, squares, steps, lr, betas, eps, weight_decay, shrink)


# ---- what is told of an array in a few numbers: Python's, not arrays ----


def moments(x):
    """x, a vector of floats -> its sum, its sum of squares, in float64, and how many elements are 0."""
    return _kernel("moments", x)(x)


def inner(x, y):
    """x, y, vectors of one length -> <x, y>, summed in float64."""
    return _kernel("inner", x)(x, y)
