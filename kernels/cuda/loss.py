"""Softmax cross-entropy and its gradient: see loss.cu."""

import numpy as np

from ..layout import array_module, rows
from .launch import blocks, empty, launch, type_name

ROWS = 8  # of a block: a warp each


def softmax_cross_entropy(logits, labels, smoothing):
    """losses (N,) and log_probs (N, K); NaN for a row whose label is not in 0..K-1."""
    (N, K), logits = logits.shape, rows(logits)
    losses, log_probs = empty(logits, (N,)), empty(logits, (N, K))
    launch(f"softmax_cross_entropy<{type_name(logits)}>", (blocks(N, ROWS),), (32 * ROWS,), logits, _labels(labels),
           losses, log_probs, np.uint32(N), np.uint32(K), np.float64(smoothing))
    return losses, log_probs


def softmax_cross_entropy_grad(g, log_probs, labels, smoothing):
    """dlogits (N, K); the row of a label that is not in 0..K-1 is NaN."""
    (N, K), xp = log_probs.shape, array_module(log_probs)
    log_probs, dlogits = rows(log_probs), empty(log_probs, (N, K))
    launch(f"softmax_cross_entropy_grad<{type_name(log_probs)}>", (blocks(N * K, 256),), (256,),
           xp.ascontiguousarray(g), log_probs, _labels(labels), dlogits, np.uint32(N), np.uint32(K),
           np.float64(smoothing))
    return dlogits


def _labels(labels):
    """As the kernels read them: int64, contiguous. The array itself where it is that."""
    return array_module(labels).ascontiguousarray(labels, dtype=np.int64)
