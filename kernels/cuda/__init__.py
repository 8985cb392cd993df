"""The set "fast" for CuPy arrays, and the set "emulator" for NumPy arrays: the CUDA kernels of the .cu files here.

What is missing here, the reference does.
"""

from .augment import augment
from .conv import conv2d, conv2d_input_grad, conv2d_input_grad_add, conv2d_weight_grad
from .dropout import dropout
from .loss import softmax_cross_entropy, softmax_cross_entropy_grad
from .norm import add_bias, batch_norm_apply, batch_norm_grad_sums, batch_norm_input_grad, batch_norm_stats
from .optim import adam, sgd
from .pool import adaptive_max_pool2d, avg_pool2d, avg_pool2d_input_grad, gather_hw, max_pool2d, scatter_hw

__all__ = [
    "adam",
    "adaptive_max_pool2d",
    "add_bias",
    "augment",
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
    "max_pool2d",
    "scatter_hw",
    "sgd",
    "softmax_cross_entropy",
    "softmax_cross_entropy_grad",
]
