"""The curvature of the loss: the largest and the most negative eigenvalues of its Hessian, without forming it.

Lanczos (1950) needs nothing of a matrix but its product with a vector, and tr.hvp gives that by two backward passes
(Pearlmutter 1994). m products give a tridiagonal m x m matrix T = Q^T H Q whose eigenvalues (Ritz values) approach the
ends of H's spectrum first: Ghorbani, Krishnan & Xiao 2019, "An investigation into neural net optimization via Hessian
eigenvalue density", section 2; Yao et al. 2020, "PyHessian". In floating point the q_i lose their orthogonality as soon
as one eigenvalue has converged, and copies of it appear; so each new vector is made orthogonal to all others, twice
(full reorthogonalisation). It costs m^2 n operations and the memory of m vectors of n float64 numbers.

How far a pair (theta, v) is from an eigenpair is known: |H v - theta v| = beta_m |last component of T's eigenvector|,
and a symmetric matrix has an eigenvalue within this distance of theta. Rounding adds about eps |H|.

The kinks of ReLU are no trouble: the loss is smooth on either side of them, weights lie on one with probability zero,
and hvp takes no step that could cross one. What it gives is the Hessian of the piece where the weights are. The loss of
a ReLU network is curved in spite of straight pieces, since layers multiply one another and cross-entropy is curved.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tinyres import autograd, ops
from tinyres.analysis.figure import new_figure, write_png
from tinyres.analysis.palette import COLORS, MARKERS
from tinyres.analysis.untouched import arrays, host, untouched
from tinyres.files import PathLike
from tinyres.kernels import layout
from tinyres.nn import Module
from tinyres.state import enable_grad
from tinyres.tensor import Tensor

EPS = float(np.finfo(np.float64).eps)
Product = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True, eq=False)
class Eigenpairs:
    """What Lanczos found: values, the largest first; residuals, |A v - value v|; vectors (k, n), one a row.

    history: for each product so far the k Ritz values there were then, NaN for those still to come.
    """

    values: np.ndarray
    residuals: np.ndarray
    vectors: np.ndarray
    history: np.ndarray
    products: int
    converged: bool


def lanczos(product: Product, n: int, top: int, bottom: int = 0, iterations: int = 100, tolerance: float = 1e-6,
            seed: int = 0) -> Eigenpairs:
    """The `top` largest and `bottom` smallest eigenvalues of a symmetric matrix given by its product with (n,) float64.

    It ends when each residual is at most `tolerance` times the largest |value|, or after so many iterations (then
    `converged` is False). One random start shows an eigenvalue once, however many eigenvectors it has. Where the space
    of the products is exhausted it goes on from a new random vector, to the last iteration, which finds the others.
    Raises ValueError for more eigenvalues than n or than iterations, or a product that is not finite.
    """
    k = top + bottom
    if top < 0 or bottom < 0 or not 1 <= k <= min(n, iterations):
        raise ValueError(f"lanczos: {top} largest and {bottom} smallest eigenvalues, expected 1 to "
                         f"{min(n, iterations)} together: the matrix has {n}, and {iterations} iterations give so many "
                         "at most")
    rng = np.random.Generator(np.random.Philox(seed))
    most = min(iterations, n)
    Q = np.empty((most, n))
    diagonal, beside, history = np.zeros(most), np.zeros(most), []
    q, beta, scale, again = _unit(rng.standard_normal(n)), 0.0, 0.0, False
    for m in range(most):
        Q[m] = q
        w = product(q)
        if not np.isfinite(w).all():
            raise ValueError("lanczos: the product is NaN or infinite, so there are no eigenvalues to find: the loss "
                             "overflows at these weights")
        diagonal[m] = w @ q
        for _ in range(2):  # once is not enough where cancellation is large (Kahan's "twice is enough")
            w = w - Q[:m + 1].T @ (Q[:m + 1] @ w)
        beta = float(np.linalg.norm(w))
        values, vectors = np.linalg.eigh(_tridiagonal(diagonal, beside, m + 1))
        scale = max(scale, float(np.abs(values).max()))
        exhausted = beta <= 1e-12 * max(scale, 1e-300)
        again = again or exhausted
        if exhausted:
            beta = 0.0
        chosen = [*range(m, m - top, -1), *range(bottom - 1, -1, -1)]
        history.append([float(values[i]) if 0 <= i <= m and m + 1 >= k else np.nan for i in chosen])
        if m + 1 >= k:
            residuals = beta * np.abs(vectors[-1, chosen]) + EPS * np.abs(values).max()
            done = bool((residuals <= tolerance * np.abs(values).max()).all()) and not (again and m + 1 < most)
            if done or m + 1 == most:
                pairs = vectors[:, chosen].T @ Q[:m + 1]
                return Eigenpairs(values[chosen], residuals, pairs, np.array(history), m + 1, done or m + 1 == n)
        beside[m] = beta
        q = w / beta if not exhausted else _apart(rng, Q[:m + 1])
    raise AssertionError("the last iteration returns")


def _tridiagonal(diagonal: np.ndarray, beside: np.ndarray, m: int) -> np.ndarray:
    return np.diag(diagonal[:m]) + np.diag(beside[:m - 1], 1) + np.diag(beside[:m - 1], -1)


def _unit(v: Any) -> np.ndarray:
    return v / np.linalg.norm(v)


def _apart(rng: np.random.Generator, Q: np.ndarray) -> np.ndarray:
    """A random unit vector that is orthogonal to every row of Q."""
    v = rng.standard_normal(Q.shape[1])
    for _ in range(2):
        v = v - Q.T @ (Q @ v)
    return _unit(v)


class HessianProduct:
    """The Hessian of a network's mean cross-entropy, as a product with vectors of all trained parameters.

    It is that of a float64 copy, taken when this is made, in eval mode or with `training` in training mode (batch
    norm's batch statistics; the gradient passes through them). `n` counts the parameters' numbers. With `batch` the
    images are read in parts of so many, which training mode, where images depend on one another, does not allow.
    """

    def __init__(self, network: Module, images: Any, labels: Any, training: bool = False, batch: int | None = None):
        images, self.labels = arrays("hessian", images, labels)
        if training and batch is not None and batch < len(images):
            raise ValueError(f"hessian: batch is {batch} for {len(images)} images, but in training mode batch norm "
                             "needs them together: leave batch out, or give fewer images")
        self.network, self.training = copy.deepcopy(network).double(), training
        self.images = images.astype(np.float64) if images.dtype.kind == "f" else images
        self.batch = batch or len(images)
        self.names = [name for name, p in self.network.named_parameters() if p.requires_grad]
        trained = dict(self.network.named_parameters())
        self.parameters = [trained[name] for name in self.names]
        if not self.parameters:
            raise ValueError(f"hessian: {type(network).__name__} has no parameter that requires a gradient, so its "
                             "loss has no curvature: unfreeze it by requires_grad_()")
        self.sizes = [p.data.size for p in self.parameters]
        self.n = sum(self.sizes)

    def __call__(self, vector: np.ndarray) -> np.ndarray:
        """The Hessian times (n,) float64."""
        total, parts, N = np.zeros(self.n), self.split(vector), len(self.labels)
        with untouched(self.network, self.training), enable_grad():
            for start in range(0, N, self.batch):
                y = self.labels[start:start + self.batch]
                loss = ops.cross_entropy(self.network(Tensor(self.images[start:start + self.batch])), y)
                found = autograd.hvp(loss, self.parameters, parts)
                total += np.concatenate([host(h.data).ravel() for h in found]) * (len(y) / N)
        return total

    def split(self, vector: np.ndarray) -> list[Any]:
        """(n,) -> an array for each parameter, of its shape, memory order and device."""
        places = np.cumsum(self.sizes)[:-1]
        found = []
        for piece, p in zip(np.split(vector, places), self.parameters, strict=True):
            piece = layout.array_module(p.data).asarray(piece.reshape(p.shape))
            found.append(layout.channels_last(piece) if piece.ndim == 4 else piece)
        return found


@dataclass(frozen=True, eq=False)
class HessianSpectrum:
    """The extreme eigenvalues of the Hessian: `values`, the `top` largest first, then the others, down to the smallest.

    residuals: |H v - value v|, an eigenvalue's distance at most; history: the values after 1, 2, ... products;
    converged: whether every residual is below the tolerance times the largest |value|.
    """

    values: list[float]
    residuals: list[float]
    top: int
    history: list[list[float]]
    products: int
    converged: bool
    parameters: int
    images: int
    training: bool
    seed: int
    vectors: list[dict[str, Any]] = field(repr=False)

    def as_dict(self) -> dict[str, Any]:
        """Everything but the eigenvectors, as JSON can hold it: null for values still to come."""
        found = {name: value for name, value in vars(self).items() if name != "vectors"}
        found["history"] = [[v if v == v else None for v in row] for row in self.history]
        return found

    def __str__(self) -> str:
        lines = [f"{value: .6g}  +- {error:.1e}"
                 for value, error in zip(self.values, self.residuals, strict=True)]
        end = "converged" if self.converged else "NOT converged: allow more iterations"
        return "\n".join([*lines, f"{end} after {self.products} products, {self.parameters:,} parameters"])


def hessian_eigenvalues(network: Module, images: Any, labels: Any, k: int = 5, negative: int = 1,
                        iterations: int = 100, tolerance: float = 1e-4, training: bool = False,
                        batch: int | None = None, seed: int = 0) -> HessianSpectrum:
    """The k largest and the `negative` smallest eigenvalues of the mean cross-entropy's Hessian, with eigenvectors.

    images: (N, C, H, W); labels: (N,). The smallest ones are the most negative, at a minimum about 0. Eigenvectors are
    mappings from parameters' names to arrays, as loss_surface takes them for directions; as all of a symmetric matrix
    they have norm 1 and a sign that means nothing. Computed in float64, on a copy; the network is not touched.

    Raises ValueError for no images, no trained parameters, more eigenvalues than there can be, or a loss that
    overflows.
    """
    product = HessianProduct(network, images, labels, training, batch)
    found = lanczos(product, product.n, k, negative, min(iterations, product.n), tolerance, seed)
    vectors = [dict(zip(product.names, product.split(v), strict=True)) for v in found.vectors]
    return HessianSpectrum(found.values.tolist(), found.residuals.tolist(), k, found.history.tolist(), found.products,
                           found.converged, product.n, len(product.labels), training, seed, vectors)


# --- the figure -------------------------------------------------------------------------------------------------------


def draw(result: HessianSpectrum, path: PathLike, title: str = "") -> None:
    """Draw the eigenvalues, with their residuals, and how they converged as a PNG."""
    from matplotlib.ticker import MaxNLocator

    figure = new_figure(9.2, 3.7)
    left, right = figure.subplots(1, 2, width_ratios=[1, 1.3])
    groups = [("largest", range(result.top), 0), ("smallest", range(result.top, len(result.values)), 1)]
    history = np.array(result.history, dtype=np.float64)
    steps = np.arange(1, len(history) + 1)
    for name, chosen, kind in groups:
        places = [i + 1 for i in chosen]
        if not places:
            continue
        values, errors = [result.values[i] for i in chosen], [result.residuals[i] for i in chosen]
        left.bar(places, values, color=COLORS[kind], width=0.7, yerr=errors, capsize=3, label=name)
        for i in chosen:
            right.plot(steps, history[:, i], color=COLORS[kind], linewidth=1.2, marker=MARKERS[kind], markersize=2.5,
                       label=name if i == chosen[0] else None)
    ends = [value + (error if value >= 0 else -error)
            for value, error in zip(result.values, result.residuals, strict=True)]
    spread = max(map(abs, ends)) or 1.0
    for place, (value, end) in enumerate(zip(result.values, ends, strict=True), 1):
        left.annotate(f"{value:.2g}", (place, end), (0, 3 if value >= 0 else -3), textcoords="offset points",
                      ha="center", va="bottom" if value >= 0 else "top", fontsize=8)
    left.set_ylim(min(0.0, *ends) - 0.12 * spread, max(0.0, *ends) + 0.12 * spread)
    left.axhline(0, color="black", linewidth=0.8)
    left.set_xticks(range(1, len(result.values) + 1))
    left.set_xlabel("eigenvalue, by size")
    left.set_ylabel("eigenvalue of the loss's Hessian")
    right.set_yscale("symlog", linthresh=10.0 ** max(round(math.log10(spread)) - 3, -12))  # a tick of its own
    right.axhline(0, color="black", linewidth=0.8)
    right.set_xlabel("products with the Hessian")
    right.set_ylabel("estimate so far")
    right.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in (left, right):
        axes.grid(alpha=0.3, axis="y")
        axes.legend(fontsize=8)
    heading = f"{title + ': ' if title else ''}how sharply does the loss curve?"
    state = "converged" if result.converged else "not converged"
    figure.suptitle(f"{heading} ({result.parameters:,} parameters, {result.images:,} images, {state})", fontsize=11,
                    parse_math=False)
    write_png(figure, path)
