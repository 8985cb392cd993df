"""The set "fast" for NumPy arrays: compiled with Numba. What is missing here, the reference does."""

from .conv import conv2d, conv2d_input_grad, conv2d_input_grad_add, conv2d_weight_grad
from .norm import batch_norm_apply, batch_norm_grad_sums, batch_norm_input_grad, batch_norm_stats

__all__ = [
    "batch_norm_apply",
    "batch_norm_grad_sums",
    "batch_norm_input_grad",
    "batch_norm_stats",
    "conv2d",
    "conv2d_input_grad",
    "conv2d_input_grad_add",
    "conv2d_weight_grad",
]
