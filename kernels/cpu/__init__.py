"""The set "fast" for NumPy arrays: compiled with Numba. What is missing here, the reference does."""

from .bias import add_bias
from .conv import conv2d, conv2d_input_grad, conv2d_input_grad_add, conv2d_weight_grad
from .dropout import dropout
from .norm import batch_norm_apply, batch_norm_grad_sums, batch_norm_input_grad, batch_norm_stats
from .optim import adam, sgd
from .pool import (
    adaptive_max_pool2d,
    avg_pool2d,
    avg_pool2d_input_grad,
    gather_hw,
    max_pool2d,
    scatter_hw,
)
from .sums import inner, moments

__all__ = [
    "adam",
    "adaptive_max_pool2d",
    "add_bias",
    "avg_pool2d",
    "avg_pool2d_input_grad",
    "batch_norm_apply",
    "batch_norm_grad_sums",
    "batch_norm_input_grad",
    "batch_norm_stats",
    "conv2d",
    "conv2d_input_grad",
    "conv2d_input_grad_add",
    "conv2d_weight_grad",
    "dropout",
    "gather_hw",
    "inner",
    "max_pool2d",
    "moments",
    "scatter_hw",
    "sgd",
]
