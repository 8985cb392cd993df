"""Winograd's convolution: 3x3 with stride 1, at a quarter (or less than half) of the multiplications.

A tile of m x m outputs needs (m+2) x (m+2) inputs and m*m*9 products. Winograd's trick turns inputs and weights into
a basis in which the convolution is an element-wise product: (m+2)^2 products, 36 instead of 144 for m = 4, 16 instead
of 36 for m = 2 (Lavin and Gray 2016, "Fast algorithms for convolutional neural networks"). For a tile d of the image, a
kernel w, and a tile g of the output's gradient, with the small matrices B, G, A of m:

    forward          Y  = A^T [ (G w G^T) * (B^T d B) ] A               summed over input channels
    input gradient   the forward pass of g with the kernel turned by 180 degrees, its two channel axes exchanged
    weight gradient  dW = G^T [ sum over tiles (B^T d B) * (A g A^T) ] G

Over channels, each of the (m+2)^2 products is a matrix product. So:

    each thread, for each block of strips; a strip is a row of tiles
        for each strip:  read it, with a border of zeros, into a window (window.py)
            for each tile:  V[xi] = (B^T d B)[xi]        vectors of LANES channels; adds, and a few constants
        for each xi:     M[xi] = V[xi] @ U[xi]           U = G w G^T; tiles x C times C x K, in register tiles
        for each strip:
            for each tile:  Y = A^T M A                  into a window, which is then written row by row

B, G and A come from polynomials: tile and kernel are the coefficients of two, and their product is found from its
values at m + 1 points and at infinity. m = 2 takes the points 0, 1, -1; m = 4 takes 0, a, -a, b, -b. With the usual
a = 1, b = 2 the rounding errors are more than four times those of a direct convolution, as large numbers cancel; with
a = 5/8, b = 3/2, exact in binary too, about twice (tutorials/fast_kernels.md measures both; Barabasz et al. 2020,
"Error analysis and improving the accuracy of Winograd convolution", on why).

A NaN or Inf in the image spreads over all outputs of the tiles that see it, a few pixels further than the window.
"""

from collections import namedtuple
from functools import cache, lru_cache
from itertools import accumulate

import numpy as np

from ..layout import nchw, nhwc
from ..memory import empty
from .jit import compiled, inlined
from .simd import (
    LANES,
    ROWS,
    WIDTH,
    grid_load,
    grid_store,
    on_both_sides,
    prefetch,
    tile_add_product,
    tile_load,
    tile_store,
    tile_width,
    tile_zeros,
)
from .threads import scratch, slots, split
from .window import read_window, write_window


def matrices(points):
    """B^T (n, n), G (n, 3), A^T (n - 2, n) for so many points and infinity, n of them (Lavin and Gray, appendix)."""
    p = np.array(points)
    others = [np.prod([x - y for y in p if y != x]) for x in p]
    through = [np.append(np.poly([y for y in p if y != x])[::-1], 0) for x in p]  # 0 at all other points
    B = np.array([*through, np.poly(p)[::-1]])
    G = np.vstack([np.array([p**0, p, p * p]).T / np.array(others)[:, None], [0, 0, 1]])
    A = np.array([[*p**i, float(i == len(p) - 2)] for i in range(len(p) - 1)])
    return B, G, A


B, G, A = {}, {}, {}
for _m, _points in ((2, (0, 1, -1)), (4, (0, 5 / 8, -5 / 8, 3 / 2, -3 / 2))):
    B[_m], G[_m], A[_m] = matrices(_points)

SUMS = 8  # so many threads may each have a sum of a weight's gradient, however large it is
BLOCK = 64  # tiles: enough to use each product of the weights often, few enough for the second cache


def conv2d(x, w, padding, m):
    """y (N, K, P, Q) for w (K, C, 3, 3), stride 1; padding (height, width) may be negative, and then crops."""
    (N, H, W, C), K = nhwc(x).shape, w.shape[0]
    y = empty((N, H + 2 * padding[0] - 2, W + 2 * padding[1] - 2, K), x.dtype)
    _convolve(nhwc(x), nhwc(w), Taps(0, C, 1, 9 * C), padding, y, m)
    return nchw(y)


def conv2d_input_grad(g, w, x_shape, padding, m, total=None):
    """dx (N, C, H, W): the convolution of g with the kernel turned round; added to `total`, if that is given."""
    N, C, H, W = x_shape
    dx = empty((N, H, W, C), g.dtype) if total is None else nhwc(total)
    turned = Taps(8 * C, -C, 9 * C, 1)
    _convolve(nhwc(g), nhwc(w), turned, (2 - padding[0], 2 - padding[1]), dx, m, total is not None)
    return nchw(dx)


def conv2d_weight_grad(x, g, padding, m):
    """dw (K, C, 3, 3): each thread sums its tiles in the basis of U; the sums are added, then turned back."""
    images, gradient = nhwc(x), nhwc(g)
    K, C = gradient.shape[3], images.shape[3]
    cut = _cut(gradient.shape, C, m)
    cost = gradient.size * C * 9 / 300
    most = max(SUMS, (x.size + g.size) // (cut.n**2 * cut.S_step))
    sums = empty((slots(cut.strips, cost, most), cut.n**2 * cut.S_step), x.dtype)
    if not cut.strips:
        sums[...] = 0

    def run(slot, start, stop):
        weight_tiles(images.reshape(-1), images.shape, gradient.reshape(-1), gradient.shape, padding, cut, start, stop,
                     *_work(cut, x.dtype), sums[slot])

    split(cut.strips, run, cost, most)
    dw = empty((K, 3, 3, C), x.dtype)
    split(K, lambda slot, start, stop: weights_of(sums, C, _basis(m, x.dtype), cut, dw.reshape(-1), start, stop),
          sums.size / 4)
    return nchw(dw)


# Where the value of a tap for input channel c and output channel k of a convolution lies in the memory of the weights:
# at first + tap*step + c*c_step + k*k_step.
Taps = namedtuple("Taps", "first step c_step k_step")


def _convolve(source, w, taps, padding, out, m, add=False):
    """out = [out, if add] + source convolved with w, whose nine `taps` lie as described; images channels last."""
    C, K, dtype = source.shape[3], out.shape[3], out.dtype
    cut = _cut(out.shape, C, m)
    U = empty((cut.n**2 * cut.U_step,), dtype)
    split(cut.K // LANES, lambda slot, start, stop: weight_products(
        w.reshape(-1), taps, C, K, _basis(m, dtype), cut, U, scratch((9 * LANES,), dtype), start, stop), U.size / 4)

    def run(slot, start, stop):
        convolve_tiles(source.reshape(-1), source.shape, U, out.reshape(-1), out.shape, padding, cut, start, stop,
                       *_work(cut, dtype), add)

    split(cut.strips, run, out.size * C * 9 / 300)


# How images are cut: into `strips`, each a row of `tiles` tiles, of which a block has `block`; C and K are the channels
# filled up to whole vectors. From one product of a tile to the next it is V_step, M_step, U_step or S_step values in V,
# M, U and the sums: no powers of two, or all would fall into the same few lines of the cache.
Cut = namedtuple("Cut", "m n tiles strips strips_of_image block C K V_step M_step U_step S_step")


@lru_cache(maxsize=512)
def _cut(y_shape, C, m):
    (N, P, Q, K), n = y_shape, m + 2
    full_C, full_K = -(-C // LANES) * LANES, -(-K // LANES) * LANES
    height, tiles = -(-P // m), -(-Q // m)
    block = max(1, min(BLOCK, N * height * tiles) // tiles)
    return Cut(m, n, tiles, N * height, height, block, full_C, full_K, block * tiles * full_C + LANES,
               block * tiles * full_K + LANES, C * full_K + LANES, full_C * K + LANES)


def _work(cut, dtype):
    """A thread's memory: V, M, and strips of the image and of the output.

    Nothing is cleared: what lies in channels that only fill up a vector is computed with, and never written.
    """
    sizes = (cut.n**2 * cut.V_step, cut.n**2 * cut.M_step, cut.n * (cut.tiles * cut.m + 2) * cut.C,
             cut.m * cut.tiles * cut.m * cut.K)
    memory = scratch((sum(sizes),), dtype)
    return [memory[end - size : end] for size, end in zip(sizes, accumulate(sizes), strict=True)]


@cache
def _basis(m, dtype):
    """The matrix ((m+2)^2, 9), flat, that maps the taps to U = G w G^T."""
    return np.kron(G[m], G[m]).astype(dtype).reshape(-1)


# ---- compiled: weights ----


@compiled
def weight_products(w, taps, C, K, basis, at, U, vectors, start, stop):
    """U[xi, panel, c, k] for vectors start..stop of output channels; a panel has WIDTH of them, the last maybe LANES.

    The taps of a vector are gathered first, and are 0 for channels that only fill it up.
    """
    for number in range(start, stop):
        k = number * LANES
        panel = k // WIDTH * WIDTH
        width = min(WIDTH, at.K - panel)
        for c in range(C):
            for tap in range(9):
                place = taps.first + tap * taps.step + c * taps.c_step + k * taps.k_step
                for lane in range(LANES):
                    vectors[tap * LANES + lane] = w[place + lane * taps.k_step] if k + lane < K else 0
            for xi in range(0, basis.size // 9, 4):
                tile = tile_zeros(U, 4, 1)
                for tap in range(9):
                    tile = tile_add_product(tile, basis, xi * 9 + tap, 9, vectors, tap * LANES)
                tile_store(tile, U, xi * at.U_step + panel * C + c * width + k - panel, at.U_step, LANES)


@compiled
def weights_of(sums, C, basis, at, dw, start, stop):
    """dw[k, tap, c] for output channels start..stop: the threads' sums[xi, k, c], added and turned back."""
    for k in range(start, stop):
        for c in range(0, C, LANES):
            tile = tile_zeros(dw, 9, 1)
            for slot in range(len(sums)):
                for xi in range(basis.size // 9):
                    tile = tile_add_product(tile, basis, xi * 9, 1, sums[slot], xi * at.S_step + k * at.C + c)
            tile_store(tile, dw, k * 9 * C + c, C, min(C - c, LANES))


# ---- compiled: blocks of tiles ----


@compiled
def convolve_tiles(x, x_shape, U, y, y_shape, padding, at, start, stop, V, M, strip, out, add):
    """Strips start..stop of all images, counted together."""
    (_, H, W, C), (_, P, Q, K) = x_shape, y_shape
    for first in range(start, stop, at.block):
        strips = min(at.block, stop - first)
        _input_strips(x, H, W, C, padding, at, first, strips, V, strip)
        tiles = strips * at.tiles
        for xi in range(at.n * at.n):
            _fetch(x, H * W * C, W * C, at, first + at.block, xi)
            for k in range(0, at.K, WIDTH):
                u = xi * at.U_step + k * C
                if at.K - k > LANES:
                    _products(tile_zeros(y, ROWS, 2), tile_zeros(y, 4, 2), tile_zeros(y, 1, 2), tiles, V,
                              xi * at.V_step, at.C, C, U, u, M, xi * at.M_step + k, at.K)
                else:
                    _products(tile_zeros(y, ROWS, 1), tile_zeros(y, 4, 1), tile_zeros(y, 1, 1), tiles, V,
                              xi * at.V_step, at.C, C, U, u, M, xi * at.M_step + k, at.K)
        for s in range(strips):
            n, row = divmod(first + s, at.strips_of_image)
            for t in range(at.tiles):
                output_tile(M, (s * at.tiles + t) * at.K, at, out, t * at.m * at.K)
            write_window(out, at.K, at.tiles * at.m, y, n, P, Q, K, row * at.m, at.m, add)


@compiled
def weight_tiles(x, x_shape, g, g_shape, padding, at, start, stop, V, M, strip, out, sums):
    """sums[xi, k, c] = the sum of M[xi, tile, k] * V[xi, tile, c] over the tiles of strips start..stop."""
    (_, H, W, C), (_, P, Q, K) = x_shape, g_shape
    for first in range(start, stop, at.block):
        strips = min(at.block, stop - first)
        _input_strips(x, H, W, C, padding, at, first, strips, V, strip)
        for s in range(strips):
            n, row = divmod(first + s, at.strips_of_image)
            read_window(g, n, P, Q, K, row * at.m, 0, at.m, at.tiles * at.m, out, at.K)
            for t in range(at.tiles):
                gradient_tile(out, t * at.m * at.K, at, M, (s * at.tiles + t) * at.K)
        tiles, old = strips * at.tiles, first > start
        for xi in range(at.n * at.n):
            _fetch(x, H * W * C, W * C, at, first + at.block, xi)
            _fetch(g, P * Q * K, Q * K, at, first + at.block, xi)
            for c in range(0, at.C, WIDTH):
                s = xi * at.S_step + c
                if at.C - c > LANES:
                    _sums(tile_zeros(g, ROWS, 2), tile_zeros(g, 4, 2), tile_zeros(g, 1, 2), K, M, xi * at.M_step, at.K,
                          tiles, V, xi * at.V_step + c, at.C, sums, s, old)
                else:
                    _sums(tile_zeros(g, ROWS, 1), tile_zeros(g, 4, 1), tile_zeros(g, 1, 1), K, M, xi * at.M_step, at.K,
                          tiles, V, xi * at.V_step + c, at.C, sums, s, old)


@inlined
def _fetch(images, image, row, at, first, xi):
    """Ask for a share, number xi of (m+2)^2, of the block of strips that begins with strip `first`.

    image, row: values in each. So the next block comes from memory while the products of this one are computed.
    """
    n, number = divmod(first, at.strips_of_image)
    share = at.block * at.m * row // (at.n * at.n) + 1
    begin = n * image + number * at.m * row + xi * share
    for i in range(begin, begin + share, 64 // images.itemsize):
        prefetch(images, i)


@compiled
def _input_strips(x, H, W, C, padding, at, first, strips, V, strip):
    """V of all tiles of so many strips."""
    width = at.tiles * at.m + 2
    for s in range(strips):
        n, row = divmod(first + s, at.strips_of_image)
        read_window(x, n, H, W, C, row * at.m - padding[0], -padding[1], at.n, width, strip, at.C)
        for t in range(at.tiles):
            input_tile(strip, t * at.m * at.C, width * at.C, at, V, (s * at.tiles + t) * at.C)


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
def _sums(large, medium, small, K, A, a, A_step, tiles, B, b, B_step, S, s, old):
    """S[k] = [S[k] if old] + sum over tiles t of A[t, k] * B[t], for one panel: ROWS of K at a time, then 4, then 1."""
    k = 0
    while k < K:
        left = K - k
        if left >= ROWS and (ROWS != 6 or left != 8):
            _sum(large, A, a + k, A_step, tiles, B, b, B_step, S, s + k * B_step, old)
            k += ROWS
        elif left >= 4:
            _sum(medium, A, a + k, A_step, tiles, B, b, B_step, S, s + k * B_step, old)
            k += 4
        else:
            _sum(small, A, a + k, A_step, tiles, B, b, B_step, S, s + k * B_step, old)
            k += 1


@inlined
def _sum(tile, A, a, A_step, tiles, B, b, B_step, S, s, old):
    if old:
        tile = tile_load(tile, S, s, B_step, tile_width(tile))
    for _ in range(tiles):
        tile = tile_add_product(tile, A, a, 1, B, b)
        a += A_step
        b += B_step
    tile_store(tile, S, s, B_step, tile_width(tile))


# ---- compiled: the transforms ----

input_2, input_4 = on_both_sides(B[2]), on_both_sides(B[4])
output_2, output_4 = on_both_sides(A[2]), on_both_sides(A[4])
gradient_2, gradient_4 = on_both_sides(A[2].T), on_both_sides(A[4].T)


@compiled
def input_tile(strip, d, row, at, V, v):
    """V[xi, v:] = (B^T d B)[xi] for the tile at strip[d:], whose rows lie `row` values apart."""
    for c in range(0, at.C, LANES):
        if at.m == 4:
            grid_store(input_4(grid_load(strip, d + c, row, at.C, 6, 6)), V, v + c, 6 * at.V_step, at.V_step)
        else:
            grid_store(input_2(grid_load(strip, d + c, row, at.C, 4, 4)), V, v + c, 4 * at.V_step, at.V_step)


@compiled
def output_tile(M, v, at, out, o):
    """The tile at out[o:] = A^T M A."""
    row = at.tiles * at.m * at.K
    for k in range(0, at.K, LANES):
        if at.m == 4:
            grid_store(output_4(grid_load(M, v + k, 6 * at.M_step, at.M_step, 6, 6)), out, o + k, row, at.K)
        else:
            grid_store(output_2(grid_load(M, v + k, 4 * at.M_step, at.M_step, 4, 4)), out, o + k, row, at.K)


@compiled
def gradient_tile(strip, d, at, M, v):
    """M[xi, v:] = (A g A^T)[xi] for the tile g at strip[d:]."""
    row = at.tiles * at.m * at.K
    for k in range(0, at.K, LANES):
        if at.m == 4:
            grid_store(gradient_4(grid_load(strip, d + k, row, at.K, 4, 4)), M, v + k, 6 * at.M_step, at.M_step)
        else:
            grid_store(gradient_2(grid_load(strip, d + k, row, at.K, 2, 2)), M, v + k, 4 * at.M_step, at.M_step)
