"""Winograd's convolution: 3x3 with stride 1, at a quarter (or less than half) of the multiplications.

A tile of m x m outputs needs (m+2) x (m+2) inputs and m*m*9 products. Winograd's trick turns inputs and weights into
a basis in which the convolution is an element-wise product: (m+2)^2 products, 36 instead of 144 for m = 4, 16 instead
of 36 for m = 2 (Lavin and Gray 2016, "Fast algorithms for convolutional neural networks"). For a tile d of the image, a
kernel w, and a tile g of the output's gradient, with the small matrices B, G, A of m:

    forward          Y  = A^T [ (G w G^T) * (B^T d B) ] A               summed over input channels
    input gradient   the forward pass of g with the kernel turned by 180 degrees, its two channel axes exchanged
    weight gradient  dW = G^T [ sum over tiles (B^T d B) * (A g A^T) ] G

Over channels, each of the (m+2)^2 products is a matrix product. So:

    each thread, for each block of tiles that fits the second cache
        for each tile:  V[xi] = (B^T d B)[xi]            vectors of LANES channels; adds, and a few constants
        for each xi:    M[xi] = V[xi] @ U[xi]            U = G w G^T; tiles x C times C x K, in register tiles
        for each tile:  Y = A^T M A

B, G and A come from polynomials: tile and kernel are the coefficients of two, and their product is found from its
values at m + 1 points and at infinity. m = 2 takes the points 0, 1, -1; m = 4 takes 0, a, -a, b, -b. With the usual
a = 1, b = 2 the rounding errors are five times those of a direct convolution, as large numbers cancel; a = 5/8, b = 3/2
make it two and a half times (the least of all multiples of 1/16, measured; Barabasz et al. 2020, "Error analysis and
improving the accuracy of Winograd convolution", on why). A NaN or Inf in the image spreads over all outputs of the
tiles that see it, a few pixels further than the window.
"""

from functools import cache

import numpy as np

from ..layout import nchw, nhwc
from ..memory import empty
from .jit import compiled, inlined
from .simd import (
    LANES,
    ROWS,
    WIDTH,
    load,
    load_some,
    store,
    store_some,
    tile_add_product,
    tile_load,
    tile_store,
    tile_width,
    tile_zeros,
    zeros,
)
from .threads import one_blas_thread, scratch, slots, split

a, b = 5 / 8, 3 / 2  # m = 4's points; these and their squares are exact in float32
aa, bb, aabb, aa_bb, aaa, bbb = a * a, b * b, a * a * b * b, a * a + b * b, a**3, b**3
G = {
    2: np.array([[1, 0, 0], [1 / 2, 1 / 2, 1 / 2], [1 / 2, -1 / 2, 1 / 2], [0, 0, 1]]),
    4: np.array([[1 / aabb, 0, 0], *(np.array([1, p, p * p]) / (2 * p * p * (2 * p * p - aa_bb)) for p in (a, -a, b, -b)),
                 [0, 0, 1]]),
}
BLOCK_VALUES = 160_000  # of V and M in a block, together: 640 KB in float32


def conv2d(x, w, padding, m):
    """y (N, K, P, Q) for w (K, C, 3, 3), stride 1; padding (height, width) may be negative, and then crops."""
    images = nhwc(x)
    N, H, W, _ = images.shape
    y = empty((N, H + 2 * padding[0] - 2, W + 2 * padding[1] - 2, w.shape[0]), x.dtype)
    _convolve(images, nhwc(w).transpose(1, 2, 3, 0), padding, y, m)
    return nchw(y)


def conv2d_input_grad(g, w, x_shape, padding, m):
    """dx (N, C, H, W): the convolution of g with the kernel turned round."""
    N, C, H, W = x_shape
    dx = empty((N, H, W, C), g.dtype)
    _convolve(nhwc(g), nhwc(w)[:, ::-1, ::-1].transpose(1, 2, 0, 3), (2 - padding[0], 2 - padding[1]), dx, m)
    return nchw(dx)


def conv2d_weight_grad(x, g, padding, m):
    """dw (K, C, 3, 3): each thread sums its tiles in the basis of U; the sums are added, then turned back."""
    images, gradient = nhwc(x), nhwc(g)
    (N, P, Q, K), C, n = gradient.shape, images.shape[3], m + 2
    tiles_h, tiles_w = -(-P // m), -(-Q // m)
    padded_C, padded_K = -(-C // LANES) * LANES, -(-K // LANES) * LANES
    cost = gradient.size * C * 9 / 300
    count = N * tiles_h * tiles_w
    block = _block(n, padded_C + padded_K, count)
    sums = np.zeros((slots(count, cost), n * n * C * padded_K), x.dtype)

    def run(slot, start, stop):
        V, M, small = _work(n, block, padded_C, padded_K, x.dtype)
        weight_tiles(images.reshape(-1), images.shape, gradient.reshape(-1), gradient.shape, padding, m, tiles_h,
                     tiles_w, start, stop, block, V, M, small, sums[slot])

    split(count, run, cost)
    for other in sums[1:]:
        sums[0] += other
    with one_blas_thread():
        dw = _weight_basis(m, x.dtype).T @ sums[0].reshape(n * n, -1)
    dw = dw.reshape(3, 3, C, padded_K)[..., :K].transpose(3, 0, 1, 2)
    return nchw(np.ascontiguousarray(dw))


def _convolve(source, weights, padding, out, m):
    """out = source * weights, all channels last: (N, H, W, C) and (3, 3, C, K)."""
    (N, P, Q, K), C, n = out.shape, source.shape[3], m + 2
    tiles_h, tiles_w = -(-P // m), -(-Q // m)
    padded_C, padded_K = -(-C // LANES) * LANES, -(-K // LANES) * LANES
    U = transformed(weights, m)
    count = N * tiles_h * tiles_w
    block = _block(n, padded_C + padded_K, count)

    def run(slot, start, stop):
        V, M, small = _work(n, block, padded_C, padded_K, out.dtype)
        convolve_tiles(source.reshape(-1), source.shape, U, out.reshape(-1), out.shape, padding, m, tiles_h, tiles_w,
                       start, stop, block, V, M, small)

    split(count, run, out.size * C * 9 / 300)


def _work(n, block, padded_C, padded_K, dtype):
    """The thread's V, M and the place for a tile between its two transforms."""
    ends = np.cumsum([n * n * (block * padded_C + LANES), n * n * (block * padded_K + LANES), 4 * n * n * LANES])
    return np.split(scratch((ends[-1],), dtype), ends[:-1])


def _block(n, channels, count):
    """Tiles of a block: a multiple of ROWS."""
    return max(ROWS, min(BLOCK_VALUES // (n * n * channels), 96, count) // ROWS * ROWS)


def transformed(weights, m):
    """(3, 3, C, K) -> U = G w G^T, flat: (xi, panels of WIDTH outputs, or LANES in the last, C, panel)."""
    C, K = weights.shape[2:]
    padded = -(-K // LANES) * LANES
    panels = np.zeros((9, C * padded), weights.dtype)
    for first in range(0, padded, WIDTH):
        width = min(WIDTH, padded - first)
        panel = panels[:, C * first : C * (first + width)].reshape(9, C, width)
        panel[..., : min(width, K - first)] = weights.reshape(9, C, K)[..., first : first + width]
    with one_blas_thread():
        return (_weight_basis(m, weights.dtype) @ panels).reshape(-1)


@cache
def _weight_basis(m, dtype):
    """w (9,) -> U ((m+2)^2,): U = G w G^T as one matrix."""
    return np.kron(G[m], G[m]).astype(dtype)


# ---- compiled: blocks of tiles ----


@compiled
def convolve_tiles(x, x_shape, U, y, y_shape, padding, m, tiles_h, tiles_w, start, stop, block, V, M, small):
    (_, H, W, C), (_, P, Q, K), n = x_shape, y_shape, m + 2
    padded_C, padded_K = (C + LANES - 1) // LANES * LANES, (K + LANES - 1) // LANES * LANES
    V_step, M_step = block * padded_C + LANES, block * padded_K + LANES  # not a power of two: other lines of the cache
    for first in range(start, stop, block):
        tiles = min(block, stop - first)
        for t in range(tiles):
            image, rest = divmod(first + t, tiles_h * tiles_w)
            ty, tx = divmod(rest, tiles_w)
            input_tile(x, image, ty * m - padding[0], tx * m - padding[1], H, W, C, m, V, t * padded_C, V_step, small)
        for xi in range(n * n):
            for k in range(0, padded_K, WIDTH):
                u = (xi * padded_K + k) * C
                if padded_K - k > LANES:
                    _products(tile_zeros(y, ROWS, 2), tile_zeros(y, 4, 2), tile_zeros(y, 1, 2), tiles, V, xi * V_step,
                              padded_C, C, U, u, M, xi * M_step + k, padded_K)
                else:
                    _products(tile_zeros(y, ROWS, 1), tile_zeros(y, 4, 1), tile_zeros(y, 1, 1), tiles, V, xi * V_step,
                              padded_C, C, U, u, M, xi * M_step + k, padded_K)
        for t in range(tiles):
            image, rest = divmod(first + t, tiles_h * tiles_w)
            ty, tx = divmod(rest, tiles_w)
            output_tile(M, t * padded_K, M_step, image, ty * m, tx * m, P, Q, K, m, y, small)


@compiled
def weight_tiles(x, x_shape, g, g_shape, padding, m, tiles_h, tiles_w, start, stop, block, V, M, small, sums):
    (_, H, W, C), (_, P, Q, K), n = x_shape, g_shape, m + 2
    padded_C, padded_K = (C + LANES - 1) // LANES * LANES, (K + LANES - 1) // LANES * LANES
    V_step, M_step = block * padded_C + LANES, block * padded_K + LANES
    for first in range(start, stop, block):
        tiles = min(block, stop - first)
        for t in range(tiles):
            image, rest = divmod(first + t, tiles_h * tiles_w)
            ty, tx = divmod(rest, tiles_w)
            input_tile(x, image, ty * m - padding[0], tx * m - padding[1], H, W, C, m, V, t * padded_C, V_step, small)
            gradient_tile(g, image, ty * m, tx * m, P, Q, K, m, M, t * padded_K, M_step, small)
        for xi in range(n * n):
            for k in range(0, padded_K, WIDTH):
                s = xi * C * padded_K + k
                if padded_K - k > LANES:
                    _sums(tile_zeros(g, ROWS, 2), tile_zeros(g, 4, 2), tile_zeros(g, 1, 2), C, V, xi * V_step, padded_C,
                          tiles, M, xi * M_step + k, padded_K, sums, s)
                else:
                    _sums(tile_zeros(g, ROWS, 1), tile_zeros(g, 4, 1), tile_zeros(g, 1, 1), C, V, xi * V_step, padded_C,
                          tiles, M, xi * M_step + k, padded_K, sums, s)


@inlined
def _products(large, medium, small, tiles, A, a, A_step, C, B, b, M, o, M_step):
    """M[t] = A[t] @ B for one panel: ROWS tiles of the image at a time, then 4, then single ones."""
    t = 0
    while t < tiles:
        left = tiles - t
        if left >= ROWS and (ROWS != 6 or left != 8):
            _product(large, A, a + t * A_step, A_step, C, B, b, M, o + t * M_step, M_step)
            t += ROWS
        elif left >= 4:
            _product(medium, A, a + t * A_step, A_step, C, B, b, M, o + t * M_step, M_step)
            t += 4
        else:
            _product(small, A, a + t * A_step, A_step, C, B, b, M, o + t * M_step, M_step)
            t += 1


@inlined
def _product(tile, A, a, A_step, C, B, b, M, o, M_step):
    width = tile_width(tile)
    for c in range(C):
        tile = tile_add_product(tile, A, a + c, A_step, B, b)
        b += width
    tile_store(tile, M, o, M_step, width)


@inlined
def _sums(large, medium, small, C, A, a, A_step, tiles, B, b, B_step, S, s):
    """S[c] += sum over tiles t of A[t, c] * B[t], for one panel: ROWS channels at a time, then 4, then single ones."""
    c = 0
    while c < C:
        left = C - c
        if left >= ROWS and (ROWS != 6 or left != 8):
            _sum(large, A, a + c, A_step, tiles, B, b, B_step, S, s + c * B_step)
            c += ROWS
        elif left >= 4:
            _sum(medium, A, a + c, A_step, tiles, B, b, B_step, S, s + c * B_step)
            c += 4
        else:
            _sum(small, A, a + c, A_step, tiles, B, b, B_step, S, s + c * B_step)
            c += 1


@inlined
def _sum(tile, A, a, A_step, tiles, B, b, B_step, S, s):
    tile = tile_load(tile, S, s, B_step, tile_width(tile))
    for _ in range(tiles):
        tile = tile_add_product(tile, A, a, 1, B, b)
        a += A_step
        b += B_step
    tile_store(tile, S, s, B_step, tile_width(tile))


# ---- compiled: the transforms, separable: along one axis, then along the other ----


@compiled
def input_tile(x, image, top, left, H, W, C, m, V, v, V_step, small):
    """V[xi, v:] = (B^T d B)[xi] for the tile d whose corner is (top, left), zero beyond the edges."""
    n = m + 2
    corner = ((image * H + top) * W + left) * C
    inside = 0 <= top and top + n <= H and 0 <= left and left + n <= W
    for c in range(0, C, LANES):
        if inside and c + LANES <= C:
            for j in range(n):
                _input_1d(m, x, corner + j * C + c, W * C, small, j * LANES, n * LANES)
        else:
            for i in range(n):
                for j in range(n):
                    pixel = zeros(x)
                    if 0 <= top + i < H and 0 <= left + j < W:
                        pixel = load_some(x, corner + (i * W + j) * C + c, C - c)
                    store(small, (n * n + i * n + j) * LANES, pixel)
            for j in range(n):
                _input_1d(m, small, (n * n + j) * LANES, n * LANES, small, j * LANES, n * LANES)
        for i in range(n):
            _input_1d(m, small, i * n * LANES, LANES, V, i * n * V_step + v + c, V_step)


@compiled
def output_tile(M, v, M_step, image, top, left, P, Q, K, m, y, small):
    """y at the tile with the corner (top, left) = A^T M A; what lies beyond the edges is not written."""
    n = m + 2
    corner = ((image * P + top) * Q + left) * K
    inside = top + m <= P and left + m <= Q
    for k in range(0, K, LANES):
        for j in range(n):
            _output_1d(m, M, j * M_step + v + k, n * M_step, small, j * LANES, n * LANES)
        if inside and k + LANES <= K:
            for i in range(m):
                _output_1d(m, small, i * n * LANES, LANES, y, corner + i * Q * K + k, K)
            continue
        for i in range(min(m, P - top)):
            _output_1d(m, small, i * n * LANES, LANES, small, n * n * LANES, LANES)
            for j in range(min(m, Q - left)):
                store_some(y, corner + (i * Q + j) * K + k, load(small, (n * n + j) * LANES), K - k)


@compiled
def gradient_tile(g, image, top, left, P, Q, K, m, M, v, M_step, small):
    """M[xi, v:] = (A g A^T)[xi] for the m x m tile of g with the corner (top, left), zero beyond the edges."""
    n = m + 2
    corner = ((image * P + top) * Q + left) * K
    inside = top + m <= P and left + m <= Q
    for k in range(0, K, LANES):
        if inside and k + LANES <= K:
            for j in range(m):
                _gradient_1d(m, g, corner + j * K + k, Q * K, small, j * LANES, m * LANES)
        else:
            for i in range(m):
                for j in range(m):
                    pixel = zeros(g)
                    if top + i < P and left + j < Q:
                        pixel = load_some(g, corner + (i * Q + j) * K + k, K - k)
                    store(small, (n * n + i * m + j) * LANES, pixel)
            for j in range(m):
                _gradient_1d(m, small, (n * n + j) * LANES, m * LANES, small, j * LANES, m * LANES)
        for i in range(n):
            _gradient_1d(m, small, i * m * LANES, LANES, M, i * n * M_step + v + k, M_step)


@inlined
def _input_1d(m, source, i, step, target, o, out_step):
    """B^T times m + 2 vectors."""
    d0, d1, d2, d3 = load(source, i), load(source, i + step), load(source, i + 2 * step), load(source, i + 3 * step)
    if m == 2:
        store(target, o, d0 - d2)
        store(target, o + out_step, d1 + d2)
        store(target, o + 2 * out_step, d2 - d1)
        store(target, o + 3 * out_step, d1 - d3)
        return
    d4, d5 = load(source, i + 4 * step), load(source, i + 5 * step)
    p, q, r, t = d4 - bb * d2, a * d3 - (a * bb) * d1, d4 - aa * d2, b * d3 - (b * aa) * d1
    store(target, o, aabb * d0 - aa_bb * d2 + d4)
    store(target, o + out_step, p + q)
    store(target, o + 2 * out_step, p - q)
    store(target, o + 3 * out_step, r + t)
    store(target, o + 4 * out_step, r - t)
    store(target, o + 5 * out_step, aabb * d1 - aa_bb * d3 + d5)


@inlined
def _output_1d(m, source, i, step, target, o, out_step):
    """A^T times m + 2 vectors: m vectors."""
    d0, d1, d2, d3 = load(source, i), load(source, i + step), load(source, i + 2 * step), load(source, i + 3 * step)
    if m == 2:
        store(target, o, d0 + d1 + d2)
        store(target, o + out_step, d1 - d2 - d3)
        return
    d4, d5 = load(source, i + 4 * step), load(source, i + 5 * step)
    p, q, r, t = d1 + d2, d1 - d2, d3 + d4, d3 - d4
    store(target, o, d0 + p + r)
    store(target, o + out_step, a * q + b * t)
    store(target, o + 2 * out_step, aa * p + bb * r)
    store(target, o + 3 * out_step, aaa * q + bbb * t + d5)


@inlined
def _gradient_1d(m, source, i, step, target, o, out_step):
    """A times m vectors: m + 2 vectors."""
    d0, d1 = load(source, i), load(source, i + step)
    if m == 2:
        store(target, o, d0)
        store(target, o + out_step, d0 + d1)
        store(target, o + 2 * out_step, d0 - d1)
        store(target, o + 3 * out_step, zeros(source) - d1)
        return
    d2, d3 = load(source, i + 2 * step), load(source, i + 3 * step)
    p, q, u, v = d0 + aa * d2, a * d1 + aaa * d3, d0 + bb * d2, b * d1 + bbb * d3
    store(target, o, d0)
    store(target, o + out_step, p + q)
    store(target, o + 2 * out_step, p - q)
    store(target, o + 3 * out_step, u + v)
    store(target, o + 4 * out_step, u - v)
    store(target, o + 5 * out_step, d3)
