"""Convolution without a column matrix: each block of outputs stays in registers until all its products are added.

The three functions are one loop nest, seen from its three factors (kernels/reference.py). With a tile of ROWS pixels by
two vectors of channels (simd.py), for an output row of one image:

    for panel of output channels                            weights of the panel: contiguous, in the first cache
        for chunk of taps that fits there
            for output row p
                for ROWS pixels q                           the tile: ROWS x 2 vectors, in registers
                    for tap (r, s), channel c               one value of each pixel, two vectors of weights:
                        tile += x[pixels] (outer) w[panel]  ROWS*2 multiply-adds for ROWS + 2 loads

Cost: N*P*Q*K * R*S*C/G multiply-adds. To and from memory go image, output and weights once; im2col's columns, R*S times
the image, are never made. Where the window hangs over the edge, the image is first copied into a scratch with a border
of zeros, so that the inner loop asks nothing; neighbouring taps then lie side by side and are run through as one.

What a kernel must know of geometry is a list of taps: at which place (ty, tx), counted from that of the output pixel,
a tap reads. So one compiled loop does forward and input gradient, for any stride, padding, dilation and groups:

    forward          y[p, q]            reads x at (p*stride + ty, ...),   ty = r*dilation - padding
    input gradient   dx[i*stride + a]   reads g at (i + ty, ...),          ty = (a + padding - r*dilation) / stride

The input pixels fall into stride x stride phases (a, b); a phase has those taps for which the division is whole, and is
a convolution of its own with stride 1. No zeros are inserted, and each input pixel is written once.
"""

from collections import namedtuple
from functools import lru_cache

import numpy as np

from ..layout import nchw, nhwc
from ..memory import empty
from ..reference import conv_output_size
from .jit import compiled, inlined
from .simd import LANES, ROWS, WIDTH, tile_add_product, tile_load, tile_store, tile_width, tile_zeros
from .threads import scratch, slots, split
from .window import read_window

SUMS = 8  # so many threads may each have a sum of a weight's gradient, however large it is
LEAST_PIXELS = 64  # that a weight's gradient is summed over before it goes back to memory
WINDOW_VALUES = 2**17  # of an image with its border that are read at a time: what fits the second cache
PANEL_VALUES = 4096  # of the weights that are used at a time: half of a first cache of 32 KiB, in float32

# What a pass over the taps needs, all in plain integers. Source rows and pixels step by (stride_h, stride_w) from one
# output to the next; the output's lie at out_h + p*out_step_h of an image of out_H rows, and so on; with `add` the sums
# are added to what is there.
Pass = namedtuple("Pass", "G P Q stride_h stride_w top left height width length inside "
                          "out_h out_w out_step_h out_step_w add")

# Of a pass with c input and k output channels a group: a tap's weight for channels (i, j) of group g lies at
# g*group_step + tap + i*c_step + j*k_step.
Weights = namedtuple("Weights", "G c k group_step c_step k_step")


def conv2d(x, w, stride, padding, dilation, groups):
    """y (N, K, P, Q), each block of it summed in registers."""
    K, C, R, S = w.shape
    P, Q = conv_output_size(x.shape, (R, S), stride, padding, dilation)
    y = empty((x.shape[0], P, Q, K), x.dtype)
    weights = Weights(groups, C, K // groups, w.size // groups, 1, R * S * C)
    _correlate(nhwc(x), nhwc(w), weights, _taps(w.shape, padding, dilation), stride, y, (0, 0), (1, 1))
    return nchw(y)


def conv2d_input_grad(g, w, x_shape, stride, padding, dilation, groups, total=None):
    """dx (N, C, H, W), phase by phase; added to `total` and returned in it, if that is given."""
    (N, C, H, W), (K, c, R, S) = x_shape, w.shape
    weights = Weights(groups, K // groups, c, w.size // groups, R * S * c, 1)
    phases = {(a, b): tuple((tap, (a - ty) // stride[0], (b - tx) // stride[1])
                            for tap, ty, tx in _taps(w.shape, padding, dilation)
                            if (a - ty) % stride[0] == 0 and (b - tx) % stride[1] == 0)
              for a, b in np.ndindex(min(stride[0], H), min(stride[1], W))}
    dx = empty((N, H, W, C), g.dtype) if total is None else nhwc(total)
    if total is None and not all(phases.values()):
        dx[...] = 0
    for phase, taps in phases.items():
        if taps:
            _correlate(nhwc(g), nhwc(w), weights, taps, (1, 1), dx, phase, stride, total is not None)
    return nchw(dx)


def conv2d_weight_grad(x, g, w_shape, stride, padding, dilation, groups):
    """dw (K, C/G, R, S): each thread sums over its images, then the sums are added in the order of the threads."""
    K, C, R, S = w_shape
    images, gradient = nhwc(x), nhwc(g)
    N, P, Q, _ = gradient.shape
    taps = _taps(w_shape, padding, dilation)
    at, offsets, order = _plan(images.shape[1:], (P, Q), groups, taps, stride, (0, 0), (1, 1), copy=True)
    pitch = -(-at.length // LANES) * LANES
    cost = gradient.size * C * R * S / 100
    most = max(SUMS, (x.size + g.size) // (K * len(offsets) * pitch))
    ranges = slots(N * P, cost, most)
    sums = np.zeros((ranges, groups, K // groups, len(offsets), pitch), x.dtype)
    rows = min(P, max(-(-LEAST_PIXELS // Q), PANEL_VALUES // (Q * max(C * groups * stride[0] * stride[1], K))))
    together = max(1, LEAST_PIXELS // (P * Q))

    def run(slot, start, stop):
        window = scratch((together, _window_values(at, images.shape[3], rows)), x.dtype)
        weight_sums(images.reshape(-1), *images.shape[1:], window, offsets, gradient.reshape(-1), start, stop, rows,
                    together, K, pitch, sums[slot].reshape(-1), at)

    split(N * P, run, cost, most)
    for other in sums[1:]:
        sums[0] += other
    runs = sums[0][..., : at.length].reshape(groups, K // groups, R * S, C)
    dw = empty((K, R, S, C), x.dtype)
    dw.reshape(groups, K // groups, R * S, C)[:, :, order] = runs
    return nchw(dw)


# ---- the pieces ----


def _taps(w_shape, padding, dilation):
    """(where its weights begin, ty, tx) of each tap of the forward pass."""
    _, c, R, S = w_shape
    return tuple(((r * S + s) * c, r * dilation[0] - padding[0], s * dilation[1] - padding[1])
                 for r in range(R) for s in range(S))


def _correlate(source, w, weights, taps, stride, out, at, step, add=False):
    """out[n, at + step*(p, q)] = sum over the taps of source[n, stride*(p, q) + tap] @ w[tap], or += with add."""
    P, Q = (-(-(out.shape[1 + i] - at[i]) // step[i]) for i in range(2))
    plan, offsets, order = _plan(source.shape[1:], (P, Q), weights.G, taps, stride, at, step)
    plan = plan._replace(add=add)
    vectors = weights.G * -(-weights.k // LANES)
    panels = empty((vectors * len(taps) * weights.c * LANES,), w.dtype)
    places = np.array([taps[i][0] for i in order])
    split(vectors, lambda slot, start, stop: pack(w.reshape(-1), weights, places, panels, start, stop), panels.size)
    chunk = max(1, PANEL_VALUES // (plan.length * WIDTH))
    rows = P if plan.inside else min(P, max(1, WINDOW_VALUES // (stride[0] * plan.width * source.shape[3])))

    def run(slot, start, stop):
        window = scratch((_window_values(plan, source.shape[3], rows),), source.dtype)
        correlate(source.reshape(-1), *source.shape[1:], window, offsets, panels, start, stop, chunk, rows,
                  out.reshape(-1), *out.shape[1:], plan)

    split(source.shape[0] * P, run, source.shape[0] * P * Q * places.size * weights.G * weights.c * weights.k / 100)


@lru_cache(maxsize=512)
def _plan(source_shape, output, groups, taps, stride, at, step, copy=False):
    """The Pass, where each run of taps begins in the window, and in which order the taps are taken.

    Taps that are neighbours in the window make one run, if all runs then have the same length.
    """
    H, W, C = source_shape
    (P, Q), c = output, C // groups
    top, left = min(ty for _, ty, _ in taps), min(tx for _, _, tx in taps)
    bottom, right = max(ty for _, ty, _ in taps), max(tx for _, _, tx in taps)
    last_row, last_column = (P - 1) * stride[0] + bottom, (Q - 1) * stride[1] + right
    inside = not copy and top >= 0 and left >= 0 and last_row < H and last_column < W
    width = W if inside else last_column - left + 1
    places = [((ty - top) * width + tx - left) * C for _, ty, tx in taps]
    order = sorted(range(len(taps)), key=places.__getitem__)
    begins = [i for i in range(len(order)) if i == 0 or places[order[i]] != places[order[i - 1]] + c]
    taps_in_run = {b - a for a, b in zip(begins, [*begins[1:], len(order)], strict=True)}
    if len(taps_in_run) > 1:
        begins, taps_in_run = list(range(len(order))), {1}
    offsets = np.array([places[order[i]] for i in begins], np.int64)
    plan = Pass(groups, P, Q, stride[0], stride[1], top, left, bottom - top, width, taps_in_run.pop() * c, inside,
                at[0], at[1], step[0], step[1], False)
    return plan, offsets, order


def _window_values(at, channels, rows):
    """How much scratch the source rows below `rows` output rows need; vectors may read beyond the end."""
    return 0 if at.inside else ((rows - 1) * at.stride_h + at.height + 1) * at.width * channels + WIDTH


# ---- compiled ----


@compiled
def pack(w, at, taps, panels, start, stop):
    """panels[group, panel, tap, c, k] for vectors start..stop of output channels, those of all groups counted together.

    A panel has WIDTH of them, a group's last maybe LANES; channels that only fill up a vector get 0.
    """
    vectors = (at.k + LANES - 1) // LANES
    total = taps.size * at.c
    for number in range(start, stop):
        group, vector = divmod(number, vectors)
        k = vector * LANES
        panel = k // WIDTH * WIDTH
        width = min(WIDTH, vectors * LANES - panel)
        target = (group * vectors * LANES + panel) * total + k - panel
        for tap in taps:
            for c in range(at.c):
                place = group * at.group_step + tap + c * at.c_step + k * at.k_step
                for lane in range(LANES):
                    panels[target + lane] = w[place + lane * at.k_step] if k + lane < at.k else 0
                target += width


@compiled
def correlate(source, H, W, C, window, offsets, panels, start, stop, chunk, rows, out, out_H, out_W, K, at):
    """Output rows start..stop of all images, counted together, `rows` at a time; see the loop nest on top."""
    row = start
    while row < stop:
        n, p = divmod(row, at.P)
        count = min(min(stop - row, at.P - p), rows)
        if at.inside:
            values, base, pitch = source, ((n * H + p * at.stride_h + at.top) * W + at.left) * C, W * C
        else:
            read_window(source, n, H, W, C, p * at.stride_h + at.top, at.left,
                        (count - 1) * at.stride_h + at.height + 1, at.width, window, C)
            values, base, pitch = window, 0, at.width * C
        c, k = C // at.G, K // at.G
        for group in range(at.G):
            panel, first_channel = 0, 0
            total = offsets.size * at.length
            group_panels = group * total * ((k + LANES - 1) // LANES * LANES)
            while first_channel < k:
                valid = min(k - first_channel, WIDTH)
                wide = valid > LANES
                lanes = WIDTH if wide else LANES
                for first in range(0, offsets.size, chunk):
                    last = min(first + chunk, offsets.size)
                    weights = group_panels + panel + first * at.length * lanes
                    for i in range(count):
                        a = base + i * at.stride_h * pitch + group * c
                        o = ((n * out_H + at.out_h + (p + i) * at.out_step_h) * out_W + at.out_w) * K
                        o += group * k + first_channel
                        old = at.add or first > 0
                        if wide:
                            _row(tile_zeros(out, ROWS, 2), tile_zeros(out, 4, 2), tile_zeros(out, 1, 2), at.Q, values,
                                 a, at.stride_w * C, offsets, first, last, at.length, panels, weights, out, o,
                                 at.out_step_w * K, valid, old)
                        else:
                            _row(tile_zeros(out, ROWS, 1), tile_zeros(out, 4, 1), tile_zeros(out, 1, 1), at.Q, values,
                                 a, at.stride_w * C, offsets, first, last, at.length, panels, weights, out, o,
                                 at.out_step_w * K, valid, old)
                panel += total * lanes
                first_channel += lanes
        row += count


@inlined
def _row(large, medium, small, pixels, A, a, step, offsets, first, last, length, B, b, C, c, out_step, valid, old):
    """One output row for one panel: ROWS pixels at a time, then 4, then single ones."""
    while pixels > 0:
        if pixels >= ROWS and (ROWS != 6 or pixels != 8):  # 4 + 4 rather than 6 + 1 + 1
            _pixels(large, A, a, step, offsets, first, last, length, B, b, C, c, out_step, valid, old)
            done = ROWS
        elif pixels >= 4:
            _pixels(medium, A, a, step, offsets, first, last, length, B, b, C, c, out_step, valid, old)
            done = 4
        else:
            _pixels(small, A, a, step, offsets, first, last, length, B, b, C, c, out_step, valid, old)
            done = 1
        pixels, a, c = pixels - done, a + done * step, c + done * out_step


@inlined
def _pixels(tile, A, a, step, offsets, first, last, length, B, b, C, c, out_step, valid, old):
    """A tile of outputs: the sum over runs first..last of taps, added to what is there if `old`."""
    if old:
        tile = tile_load(tile, C, c, out_step, valid)
    width = tile_width(tile)
    for run in range(first, last):
        place = a + offsets[run]
        for k in range(length):
            tile = tile_add_product(tile, A, place + k, step, B, b)
            b += width
    tile_store(tile, C, c, out_step, valid)


@compiled
def weight_sums(source, H, W, C, windows, offsets, g, start, stop, rows, together, K, pitch, sums, at):
    """sums[group, k, run, i] += over output pixels of g[pixel, k] * window[pixel, run, i].

    `rows` rows are taken at a time, and of small images, if these are all, so many images `together`.
    """
    row, c, k = start, C // at.G, K // at.G
    while row < stop:
        n, p = divmod(row, at.P)
        count = min(min(stop - row, at.P - p), rows)
        images = min(together, (stop - row) // at.P) if count == at.P else 1
        for i in range(images):
            read_window(source, n + i, H, W, C, p * at.stride_h + at.top, at.left,
                        (count - 1) * at.stride_h + at.height + 1, at.width, windows[i], C)
        row_pitch = at.stride_h * at.width * C
        for group in range(at.G):
            for run in range(offsets.size):
                a = offsets[run] + group * c
                for first in range(0, at.length, WIDTH):
                    wide = at.length - first > LANES
                    b = row * at.Q * K + group * k
                    s = (group * k * offsets.size + run) * pitch + first
                    if wide:
                        _outputs(tile_zeros(g, ROWS, 2), tile_zeros(g, 4, 2), tile_zeros(g, 1, 2), k, g, b, K, images,
                                 count, at.Q, windows, a + first, row_pitch, at.stride_w * C, sums, s,
                                 offsets.size * pitch)
                    else:
                        _outputs(tile_zeros(g, ROWS, 1), tile_zeros(g, 4, 1), tile_zeros(g, 1, 1), k, g, b, K, images,
                                 count, at.Q, windows, a + first, row_pitch, at.stride_w * C, sums, s,
                                 offsets.size * pitch)
        row += images * count


@inlined
def _outputs(large, medium, small, k, g, b, K, images, count, Q, X, a, row_pitch, step, sums, s, sums_step):
    """ROWS output channels at a time, then 4, then single ones."""
    i = 0
    while i < k:
        left = k - i
        if left >= ROWS and (ROWS != 6 or left != 8):
            _reduce(large, g, b + i, K, images, count, Q, X, a, row_pitch, step, sums, s + i * sums_step,
                    sums_step)
            i += ROWS
        elif left >= 4:
            _reduce(medium, g, b + i, K, images, count, Q, X, a, row_pitch, step, sums, s + i * sums_step,
                    sums_step)
            i += 4
        else:
            _reduce(small, g, b + i, K, images, count, Q, X, a, row_pitch, step, sums, s + i * sums_step,
                    sums_step)
            i += 1


@inlined
def _reduce(tile, g, b, K, images, count, Q, X, a, row_pitch, step, sums, s, sums_step):
    tile = tile_load(tile, sums, s, sums_step, tile_width(tile))
    for i in range(images):
        window = X[i]
        for p in range(count):
            x = a + p * row_pitch
            for _ in range(Q):
                tile = tile_add_product(tile, g, b, 1, window, x)
                b += K
                x += step
    tile_store(tile, sums, s, sums_step, tile_width(tile))
