"""Losses."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tinyres import kernels
from tinyres.kernels.layout import array_module
from tinyres.operands import arrays_of, check_devices, check_floats, check_tensors
from tinyres.ops.elementwise import mul, neg, raw, sub, where
from tinyres.ops.fused import Fused
from tinyres.ops.reduce import log_softmax, mean, sum
from tinyres.ops.shape import gather, permute, reshape


class CrossEntropy(Fused):
    """-log softmax(x)[label] per row, labels smoothed. Its gradient is softmax(x) minus the smoothed one-hot label."""

    fresh = True

    def forward(self, logits: Any, *, labels: Any, smoothing: float) -> Any:
        losses, log_probs = kernels.softmax_cross_entropy(logits, labels, smoothing)
        self.save(logits, log_probs)
        return losses

    def fused_backward(self, grad: Any) -> Any:
        _, log_probs = self.saved
        return kernels.softmax_cross_entropy_grad(grad, log_probs, self.params["labels"], self.params["smoothing"])

    @staticmethod
    def spec(logits: Any, *, labels: Any, smoothing: float) -> Any:
        log_probs = log_softmax(logits, 1)
        picked = reshape(gather(log_probs, 1, labels.reshape(-1, 1)), (-1,))
        return neg(picked * (1.0 - smoothing) + mean(log_probs, 1) * smoothing)


def cross_entropy(logits: Any, labels: Any, label_smoothing: float = 0.0, reduction: str = "mean") -> Any:
    """Softmax cross-entropy. logits: (N, K) or (N, K, ...) floats; labels: (N,) or (N, ...) integers from 0 to K-1, or
    class probabilities of the logits' shape -> one number, or with reduction="none" one per label.

    label_smoothing: the share of the target spread evenly over all classes (Szegedy et al. 2016). Raises ValueError for
    shapes that do not fit, labels outside 0..K-1, or no labels at all; TypeError for labels that are not integers. The
    values of labels on a GPU are not looked at, which would wait for it: there a label outside 0..K-1 makes the loss
    NaN. Labels on the host move to the logits.
    """
    check_tensors("cross_entropy", logits=logits)
    if logits.ndim < 2 or min(logits.shape) < 1:
        fix = "the logits come first, then the labels" if logits.ndim < 2 else "leave out empty batches"
        raise ValueError(f"cross_entropy: expected logits (N, K) or (N, K, ...), not empty, got {tuple(logits.shape)}; "
                         f"{fix}")
    check_floats("cross_entropy", logits=logits)
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"cross_entropy: label_smoothing must lie between 0 and 1, got {label_smoothing}")
    K, xp = logits.shape[1], array_module(raw(logits))
    if xp is np:
        check_devices("cross_entropy", logits, labels)
    target = raw(labels) if hasattr(raw(labels), "strides") else np.asarray(labels)
    spatial = (logits.shape[0], *logits.shape[2:])
    if target.dtype.kind == "f" and target.shape == logits.shape:
        _check_probabilities(target)
        target = xp.asarray(target)
        soft = target * (1 - label_smoothing) + label_smoothing / K
        losses = neg(sum(mul(log_softmax(logits, 1), soft.astype(raw(logits).dtype)), 1))
        return _reduce("cross_entropy", losses, reduction)
    if target.dtype.kind not in "iu":
        raise TypeError(f"cross_entropy: labels must be integers (or probabilities of shape {tuple(logits.shape)}), "
                        f"got {target.dtype} {tuple(target.shape)}; use labels.astype('int64')")
    if target.shape != spatial:
        fix = "give one label a sample"
        if target.shape == logits.shape:
            fix = "these look one-hot: use labels.argmax(1), or astype('float32') for probabilities"
        elif target.shape == (*spatial, 1):
            fix = "this is a column: use labels[:, 0]"
        raise ValueError(f"cross_entropy: logits {tuple(logits.shape)} need labels of shape {spatial}, got "
                         f"{tuple(target.shape)}; {fix}")
    if array_module(target) is np and (int(target.min()) < 0 or int(target.max()) >= K):
        raise ValueError(f"cross_entropy: labels must lie in 0..{K - 1} for {K} classes, got {int(target.min())} to "
                         f"{int(target.max())}; check num_classes")
    if logits.ndim > 2:
        logits = reshape(permute(logits, (0, *range(2, logits.ndim), 1)), (-1, K))
    target = xp.asarray(target.reshape(-1).astype("int64", copy=False))
    losses = CrossEntropy.apply(logits, labels=target, smoothing=float(label_smoothing))
    return _reduce("cross_entropy", reshape(losses, spatial), reduction)


def _check_probabilities(target: Any) -> None:
    """Raise ValueError unless the classes' shares are at least 0 and add up to 1, but for rounding. On a GPU, where a
    look at values would wait for it, they are taken as they are."""
    if array_module(target) is not np:
        return
    least, off = float(target.min()), float(abs(target.sum(1, dtype="float64") - 1).max())
    if not (least >= 0 and off < 1e-3):
        raise ValueError(f"cross_entropy: labels of the logits' shape {tuple(target.shape)} are class probabilities, "
                         f"which must not be negative and add up to 1 over dim 1, got a smallest of {least:.4g} and a "
                         f"sum that is off by {off:.4g}; divide by the sum, or give integer labels")


def nll_loss(log_probs: Any, labels: Any, reduction: str = "mean") -> Any:
    """Minus the log-probability of each label: log_probs (N, K), labels (N,) integers."""
    check_tensors("nll_loss", log_probs=log_probs, labels=labels)
    target = raw(labels)
    if log_probs.ndim != 2 or target.shape != log_probs.shape[:1] or target.dtype.kind not in "iu":
        raise ValueError(f"nll_loss: expected log_probs (N, K) and integer labels (N,), got {tuple(log_probs.shape)} "
                         f"and {target.dtype} {tuple(target.shape)}; use labels.astype('int64')")
    check_devices("nll_loss", log_probs, target)
    known = (target >= 0) & (target < log_probs.shape[1])
    if array_module(target) is np and not known.all():
        raise ValueError(f"nll_loss: labels must lie in 0..{log_probs.shape[1] - 1}, got {int(target.min())} to "
                         f"{int(target.max())}; check num_classes")
    losses = neg(reshape(gather(log_probs, 1, target.reshape(-1, 1)), (-1,)))
    losses = losses if array_module(target) is np else where(known, losses, math.nan)  # as in cross_entropy
    return _reduce("nll_loss", losses, reduction)


def mse_loss(x: Any, y: Any, reduction: str = "mean") -> Any:
    """The mean of (x - y)**2. Raises ValueError unless the shapes are equal: broadcasting here is usually a mistake."""
    check_tensors("mse_loss", first=x, second=y)
    if tuple(x.shape) != tuple(y.shape):
        raise ValueError(f"mse_loss: shapes {tuple(x.shape)} and {tuple(y.shape)} must be equal; reshape one of them")
    arrays_of("mse_loss", (x, y))
    difference = sub(x, y)
    return _reduce("mse_loss", mul(difference, difference), reduction)


def _reduce(op: str, losses: Any, reduction: str) -> Any:
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"{op}: reduction must be 'mean', 'sum' or 'none', got {reduction!r}")
    return losses if reduction == "none" else mean(losses) if reduction == "mean" else sum(losses)
