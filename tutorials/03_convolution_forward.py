# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# tinyres:
#   lesson: 3
#   title: "Convolution forward: loops to im2col"
#   minutes: 75
#   seconds: 20
#   needs: []
#   objectives:
#     - compute the output size of a convolution, and say which rows of the image are never read
#     - lay out all windows of an image as a view, by strides alone, without copying a number
#     - write a convolution as one matrix product, equal to the loops
#     - say what that costs in bytes and in time, and what makes the cost small
# ---

# %% [markdown]
# # Convolution forward: loops to im2col
#
# A convolution is defined by seven nested loops. As they stand they are slow. The classic way out is to turn them into
# one product of two matrices. This lesson goes from the loops to the product, and loses nothing on the way.
#
# **Afterwards you can** compute the output size of a convolution and say what it leaves unread; lay out all windows of
# an image without copying; write the convolution as a matrix product; say what that costs.
#
# **Needs** NumPy: axes, `reshape`, slices. No other lesson. **Takes** 75 minutes.
#
# **The letters**, here and in the whole library: N images, C input channels, H rows and W columns; K output channels,
# P rows and Q columns; R rows and S columns of the kernel. Small letters count: n, c, h, v for a pixel, k, p, q for an
# output, r, s for a kernel position.

# %%
import time

import matplotlib.pyplot as plt
import numpy as np
from numpy.lib.stride_tricks import as_strided
from threadpoolctl import threadpool_limits

import tinyres as tr
from tinyres import kernels
from tinyres.analysis.palette import COLORS, MARKERS
from tinyres.stepper import example

tr.use_kernels("reference")
print(f"kernel set: {kernels.current()}, plain NumPy, nothing to compile")

# %% [markdown]
# ## Before you read: a question
#
# A 3x3 convolution as a matrix product first copies every pixel up to nine times, once for each window that it lies
# in. Then it multiplies. Take 8 images of 32x32 with 16 channels in and 16 out.
#
# 1. Which share of the time goes into the copying?
# 2. You may enlarge the kernel, the number of input channels C, or the number of output channels K. Which of the three
#    makes that share small?
#
# Write both answers down. The measurement comes further below, in *What it costs*.

# %% [markdown]
# ## The definition
#
# Each output value is a sum over channels and kernel positions:
#
# $$y_{n,k,p,q} = b_k + \sum_{c,r,s} w_{k,c,r,s}\; x_{n,c,h,v}$$
#
# Output (p, q) meets at kernel position (r, s) the pixel in row h and column v:
#
# $$h = p \cdot \mathrm{stride} - \mathrm{padding} + r \cdot \mathrm{dilation} \qquad
# v = q \cdot \mathrm{stride} - \mathrm{padding} + s \cdot \mathrm{dilation}$$
#
# A pixel outside the image counts as 0. The stride says how far the window moves from one output to the next, the
# padding how many zeros stand on each side, the dilation how far apart the kernel's positions lie. (A mathematician
# calls this a cross-correlation: a convolution would turn the kernel round. All frameworks compute this, and say
# convolution.)
#
# We pad first. Then h and v need no minus, and no pixel lies outside. Everything below works on the padded image. The
# bias b is one addition at the end, and the code leaves it out.


# %%
def pad(x, padding):
    """(N, C, H, W) -> (N, C, H + 2*padding, W + 2*padding), with zeros around.

    Without padding, x itself.
    """
    if padding == 0:
        return x
    return np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))


def conv2d_loops(x, w, stride=1, padding=0, dilation=1):
    """The definition, one multiply-add at a time.

    x: (N, C, H, W); w: (K, C, R, S) -> (N, K, P, Q).
    """
    x = pad(x, padding)
    (N, C, H, W), (K, _, R, S) = x.shape, w.shape
    # A window starts at every multiple of the stride, as long as it ends in the image.
    P = len(range(0, H - dilation * (R - 1), stride))
    Q = len(range(0, W - dilation * (S - 1), stride))
    y = np.zeros((N, K, P, Q))
    for n, k, p, q in np.ndindex(y.shape):
        for c, r, s in np.ndindex(C, R, S):
            h, v = p * stride + r * dilation, q * stride + s * dilation
            y[n, k, p, q] += w[k, c, r, s] * x[n, c, h, v]
    return y


# %% [markdown]
# **Predict.** Take a pencil. The image and the kernel are
#
# $$x = \begin{pmatrix} 1 & 2 & 0 \\ -1 & 1 & 2 \\ 0 & -2 & 1 \end{pmatrix} \qquad
# w = \begin{pmatrix} 1 & 0 \\ 2 & -1 \end{pmatrix}$$
#
# with stride 1 and no padding. How many numbers has y, and what are they? These numbers are the stepper's, too.

# %%
numbers = example.conv()
x_small = numbers.leaves["x"].data  # (1, 1, 3, 3)
w_small = numbers.leaves["weight"].data  # (1, 1, 2, 2)
y_small = conv2d_loops(x_small, w_small)
print(y_small[0, 0])
assert np.array_equal(y_small, numbers.values["y"])  # those worked out on paper

# %% [markdown]
# The upper left number: $1 \cdot 1 + 0 \cdot 2 + 2 \cdot (-1) + (-1) \cdot 1 = -2$.
#
# The loops are short, and slow. How slow is best said per multiply-add, of which there are N K P Q C R S:

# %%
start = time.thread_time()
y_loops = conv2d_loops(np.ones((1, 4, 12, 12)), np.ones((4, 4, 3, 3)), padding=1)
seconds, adds = time.thread_time() - start, y_loops.size * 4 * 3 * 3
ns_of_the_loops = 1e9 * seconds / adds
print(f"{adds:,} multiply-adds, {ns_of_the_loops:.0f} nanoseconds each")

# %% [markdown]
# ## The output size
#
# Look at one axis, of H pixels. Padded it has $H + 2 \cdot \mathrm{padding}$. A kernel of k positions, dilated, covers
# $e = \mathrm{dilation} \cdot (k - 1) + 1$ of them: k positions have k - 1 gaps between them.
#
# Windows start at 0, stride, 2 stride and so on. Window number p covers the pixels from $p \cdot \mathrm{stride}$ to
# $p \cdot \mathrm{stride} + e - 1$, and must end inside:
#
# $$p \cdot \mathrm{stride} + e - 1 \;\le\; H + 2\,\mathrm{padding} - 1
# \quad\Longleftrightarrow\quad p \;\le\; \frac{H + 2\,\mathrm{padding} - e}{\mathrm{stride}}$$
#
# The whole numbers p from 0 up to that bound are its floor and one more. The division need not come out even.
#
# ### Exercise 1
#
# Write it down as a function.


# %% nbgrader={"grade": false, "grade_id": "output_size", "locked": false, "schema_version": 3, "solution": true, "task": false}
def output_size(size, kernel, stride=1, padding=0, dilation=1):
    """How many windows fit along one axis.

    size: pixels of the image along it; kernel: positions of the kernel along it; all
    are integers, and the kernel fits into the padded image at least once. Returns an
    integer.
    """
    ### BEGIN SOLUTION
    extent = dilation * (kernel - 1) + 1
    return (size + 2 * padding - extent) // stride + 1
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "check-output_size", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
from tinyres.teach.checks import lesson_03

lesson_03.output_size(output_size)

# %% [markdown]
# ### What is left over
#
# **Predict.** A 3x3 kernel with stride 2 and padding 1, by which the blocks of a ResNet-18 halve their image. How many
# windows are there for 7 rows, and for 8? Is there a row that no window reads?

# %% mystnb={"image": {"alt": "Windows of a 3x3 kernel, stride 2, on 7 and 8 rows: of 8, the last padding is unread."}}
figure, axes = plt.subplots(1, 2, figsize=(10, 2.9), layout="constrained")
for axis, size in zip(axes, (7, 8), strict=True):
    count = output_size(size, 3, stride=2, padding=1)
    for cell in range(-1, size + 1):
        outside, read = not 0 <= cell < size, cell <= 2 * (count - 1) + 1
        axis.bar(cell, 0.8, 0.94, color="0.85" if outside else COLORS[5], edgecolor="0.3",
                 hatch="" if read else "///")
        axis.text(cell, 0.4, "0" if outside else str(cell), ha="center", va="center")
        if not read:
            axis.text(cell, -0.35, "never read", ha="center")
    for p in range(count):
        height = 1.2 + 0.4 * p
        axis.plot([2 * p - 1.4, 2 * p + 1.4], [height, height], COLORS[p % 6], linewidth=5)
        axis.text(2 * p + 1.55, height, f"p = {p}", va="center")
    exact = (size + 2 - 3) / 2 + 1
    axis.set_title(f"{size} rows: ({size} + 2 - 3)/2 + 1 = {exact:g}, so {count} windows")
    axis.set(xlim=(-1.8, 9.5), ylim=(-0.5, 3), xticks=[], yticks=[], frame_on=False)
plt.close(figure)
figure

# %% [markdown]
# Seven and eight rows both give four. With eight, the last window ends on row 7, and the zero behind it is never
# read. Without padding it can be pixels of the image that nobody reads. Their gradient is exactly 0, as lesson 4
# shows.
#
# So the output size does not tell the input size. With stride t, up to t input sizes have the same output. A layer
# that goes the other way, a transposed convolution, must be told which of them is meant (`output_padding`).

# %% [markdown]
# > **Check the claim.** The article that this library grew out of calls the output size "an integer multiple", as if
# > the division always came out even. It need not: the formula has a floor. How often does it?

# %%
even = total = 0
for size in range(8, 65):
    for kernel in (1, 2, 3, 5, 7):
        for stride in (2, 3):
            for padding in (0, 1, 2, 3):
                if size + 2 * padding >= kernel:
                    even += (size + 2 * padding - kernel) % stride == 0
                    total += 1
print(f"the division comes out even in {even} of {total} geometries, {even / total:.0%}")
for size in (32, 16, 224, 56):
    exact, count = (size + 2 - 3) / 2 + 1, output_size(size, 3, stride=2, padding=1)
    print(f"a ResNet's 3x3, stride 2, padding 1 on {size:3} rows: {exact:6} -> {count}")

# %% [markdown]
# The ResNet's own downsampling is not among them, for any even size: every ResNet relies on the floor.

# %% [markdown]
# > **Check the claim.** "Kernel sizes 1, 2, ..., p": in the article this numbers the layers of a block; it cannot
# > be meant as their sizes. With stride 1 an output is as large as its input if $2\,\mathrm{padding} =
# > \mathrm{dilation}\,(k - 1)$. An even k with dilation 1 has no such padding.

# %%
for kernels_of_block in ([1, 2, 3, 4], [1, 3, 5, 7]):
    sizes = [32]
    for kernel in kernels_of_block:
        sizes.append(output_size(sizes[-1], kernel, padding=kernel // 2))
    print(f"kernels {kernels_of_block}, padding k//2: sizes {' -> '.join(map(str, sizes))}")

# %% [markdown]
# A branch that ends with another size than it began cannot be added to its shortcut.
#
# > **Check the claim.** In the article the right branch keeps the shape of its input. Then the block fails as soon as
# > the left branch has stride 2. Stride and channels of both must agree.

# %%
x = tr.tensor(np.ones((1, 4, 32, 32)))
left = tr.conv2d(x, tr.tensor(np.ones((8, 4, 3, 3))), stride=2, padding=1)
try:
    left + x
except ValueError as error:
    print("ValueError:", str(error).partition(": counted")[0])
right = tr.conv2d(x, tr.tensor(np.ones((8, 4, 1, 1))), stride=2)
print("a 1x1 convolution with stride 2 on the right:", (left + right).shape)
sizes = range(1, 300)
agree = sum(output_size(size, 3, stride=2, padding=1) == output_size(size, 1, stride=2)
            for size in sizes)
print(f"the two agree on {agree} of the {len(sizes)} sizes from {sizes[0]} to {sizes[-1]}")

# %% [markdown]
# That they always agree is no luck: $\lfloor (H + 2 - 3)/2 \rfloor + 1$ and $\lfloor (H - 1)/2 \rfloor + 1$ are the
# same. So a 1x1 convolution with stride 2 is the projection that fits beside a 3x3 with stride 2 and padding 1.

# %% [markdown]
# ## Windows as a view
#
# An array is a block of memory and, for each axis, a **stride**: by how many bytes the address grows when that index
# grows by one. (The same word as the convolution's; here with the axis in front.) With $a_N, a_C, a_H, a_W$ for the
# strides of the padded image, pixel (n, c, h, v) lies at
#
# $$\mathrm{address} = \mathrm{start} + n\,a_N + c\,a_C + h\,a_H + v\,a_W.$$
#
# A window is made of pixels with $h = p \cdot \mathrm{stride} + r \cdot \mathrm{dilation}$, and v likewise. Put that in
# and sort by index:
#
# $$h\,a_H + v\,a_W = p\,(\mathrm{stride}\;a_H) + q\,(\mathrm{stride}\;a_W) + r\,(\mathrm{dilation}\;a_H)
# + s\,(\mathrm{dilation}\;a_W)$$
#
# With $n\,a_N$ and $c\,a_C$ the address is again a sum of index times constant, now over six indices. So there is an
# array with the six axes (N, P, Q, C, R, S) in the *same memory*. Its strides are the six constants. Two of its axes
# run over the rows of the image, two over its columns, and one pixel appears in it up to R S times. Nothing is copied.
# `numpy.lib.stride_tricks.as_strided(x, shape, strides)` makes such an array.
#
# **Predict.** An image of 4x4, a kernel of 2x2, stride 1. Number the pixels 0 to 15 in the order of memory. Below is a
# table: a row for each output (p, q), a column for each kernel position (r, s), in it the number of the pixel. What
# stands in its first row? By how much does a number grow to the right, and by how much downwards?

# %% mystnb={"image": {"alt": "Which of 16 pixels each of 9 windows reads at each of 4 kernel positions."}}
pixel_numbers = np.arange(16).reshape(4, 4)
table = as_strided(pixel_numbers, (3, 3, 2, 2), 2 * pixel_numbers.strides).reshape(9, 4)
figure, axes = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
for axis, values in zip(axes, (pixel_numbers, table), strict=True):
    axis.imshow(values, cmap="Blues", vmin=-2, vmax=40, aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        axis.text(column, row, str(value), ha="center", va="center",
                  weight="bold" if value == 5 else "normal",
                  bbox={"facecolor": "white", "edgecolor": "black"} if value == 5 else None)
axes[0].set_title("the image: 16 numbers")
axes[1].set_title("its windows: 36 entries, the same 16 numbers")
axes[0].set(xticks=range(4), yticks=range(4), xlabel="v", ylabel="h")
axes[1].set(xticks=range(4), yticks=range(9), xlabel="(r, s)", ylabel="(p, q)")
axes[1].set_xticklabels([f"({r}, {s})" for r, s in np.ndindex(2, 2)])
axes[1].set_yticklabels([f"({p}, {q})" for p, q in np.ndindex(3, 3)])
plt.close(figure)
figure

# %% [markdown]
# One to the right in the image is 1 further in memory, one down is 4. So s and q move by 1, r and p by 4. Pixel 5,
# framed, lies in four windows, each time at another kernel position. Remember it: in the backward pass its
# gradient will be a sum of four.
#
# Two warnings. `as_strided` believes you: with a wrong shape or stride it reads foreign memory. (The check looks at
# your strides before it reads a number.) And whoever writes into such a view changes a pixel in all its windows at
# once: views of this kind are for reading.
#
# ### Exercise 2
#
# Write `im2col`. Use `pad` from above and your `output_size`; either `as_strided` with the six strides, or
# `sliding_window_view` and slices. The result must be a view: of x itself where there is no padding, else of the
# padded image.


# %% nbgrader={"grade": false, "grade_id": "im2col", "locked": false, "schema_version": 3, "solution": true, "task": false}
def im2col(x, kernel, stride=1, padding=0, dilation=1):
    """All windows of the images, as a view.

    x: (N, C, H, W); kernel: (R, S); stride, padding, dilation: integers, the same
    vertically and horizontally. Returns (N, P, Q, C, R, S): element (n, p, q, c, r, s)
    is the pixel of the padded x that output (n, p, q) meets at position (r, s) of
    channel c. No element is copied, except by the padding.
    """
    ### BEGIN SOLUTION
    (N, C, H, W), (R, S) = x.shape, kernel
    P = output_size(H, R, stride, padding, dilation)
    Q = output_size(W, S, stride, padding, dilation)
    padded = pad(x, padding)
    aN, aC, aH, aW = padded.strides
    strides = (aN, stride * aH, stride * aW, aC, dilation * aH, dilation * aW)
    return as_strided(padded, (N, P, Q, C, R, S), strides, writeable=False)
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "check-im2col", "locked": true, "points": 4, "schema_version": 3, "solution": false, "task": false}
from tinyres.teach.checks import lesson_03

lesson_03.im2col(im2col)

# %% [markdown]
# ## One product
#
# Let output (n, p, q) be row number i, and (c, r, s) column number j. Then the sum of the definition is
#
# $$Y_{i,k} = \sum_j X_{i,j}\,W_{k,j} + b_k \qquad\text{that is}\qquad Y = X\,W^\top + \mathbf{1}\,b^\top$$
#
# with X of shape (N P Q) x (C R S), a row for each output pixel, and W of shape K x (C R S), a row for each filter.
# The columns of both are counted in the same order: c, r, s. Therefore the axes of `im2col` are in this order, and
# the weight needs no more than a `reshape`.
#
# Only now something is copied: a matrix has one stride for its rows and one for its columns, and the six axes of the
# view do not fit into two. `reshape` notices this, and copies.


# %%
def conv2d(x, w, stride=1, padding=0, dilation=1):
    """The product: x (N, C, H, W), w (K, C, R, S) -> y (N, K, P, Q)."""
    windows = im2col(x, w.shape[2:], stride, padding, dilation)
    N, P, Q, *_ = windows.shape
    K = len(w)
    X = windows.reshape(N * P * Q, -1)  # this copies
    Y = X @ w.reshape(K, -1).T  # (N*P*Q, K)
    return Y.reshape(N, P, Q, K).transpose(0, 3, 1, 2)


print("X, a row for each output of the small example:")
print(im2col(x_small, (2, 2)).reshape(4, 4))
print("W:", w_small.reshape(1, 4))
print("y by the product:", conv2d(x_small, w_small).ravel())
print("y by the loops:  ", y_small.ravel())

# %% [markdown]
# **Predict.** On 50 random geometries, with strides, padding and dilation up to 3, odd sizes and kernels that are not
# square: how far apart are loops and product? Exactly 0, about $10^{-15}$, or about $10^{-7}$?

# %%
rng = np.random.default_rng(3)
largest, tried = 0.0, 0
while tried < 50:
    N, C, H, W, K, R, S = (int(rng.integers(1, top + 1)) for top in (2, 3, 7, 7, 3, 3, 3))
    stride, padding, dilation = (int(rng.integers(low, 4)) for low in (1, 0, 1))
    if min(H, W) + 2 * padding <= dilation * (max(R, S) - 1):
        continue  # the kernel is larger than the padded image
    x, w = rng.standard_normal((N, C, H, W)), rng.standard_normal((K, C, R, S))
    product = conv2d(x, w, stride, padding, dilation)
    difference = np.abs(product - conv2d_loops(x, w, stride, padding, dilation)).max()
    largest, tried = max(largest, float(difference)), tried + 1
print(f"{tried} geometries, largest difference {largest:.1e}")

# %% [markdown]
# Not 0, although it is the same sum: the loops add its terms in another order than the product does, and each addition
# rounds. Not $10^{-7}$, which is float32.
#
# The library computes the same, four ways. Choose one, and nothing but the speed changes:

# %%
x, w = rng.standard_normal((2, 3, 9, 9)), rng.standard_normal((4, 3, 3, 3))
own = conv2d(x, w, stride=2, padding=1)
for name in ("loops", "im2col", "reference"):
    with tr.use_kernels(name):
        theirs = tr.conv2d(tr.tensor(x), tr.tensor(w), stride=2, padding=1).data
    print(f"kernel set {name:9}: at most {np.abs(theirs - own).max():.1e} from yours")

# %% [markdown]
# Read them: `kernels/loops.py`, `kernels/im2col.py`, `kernels/reference.py`. The fourth, `fast`, is compiled by
# Numba. One thing is different there: the channels lie innermost in memory, (N, H, W, C), so that what is copied
# together also lies together.
#
# ## A step in the stepper
#
# The small example, in the stepper. Click into the page, press `d` to go *forward*, then `n` for the next step. At
# `Conv2d` it shows y and the rule $y = x * W$. Then `d` again: what you see there is the subject of lesson 4. Which
# numbers of the forward pass does it keep for it? (See "kept".)

# %%
tr.step(numbers)

# %% [markdown]
# ## What it costs
#
# Let us count. The image has N C H W numbers. X has N P Q C R S: if P = H and Q = W, R S times as many. Each of
# its numbers is copied once, and is then multiplied K times, once for each filter:
#
# $$\frac{\text{multiply-adds}}{\text{numbers copied}} = \frac{N P Q\,C R S\,K}{N P Q\,C R S} = K.$$
#
# Neither the kernel's size nor C is left. Now look at your two answers, and measure. Times are processor time of
# one thread, the least of five, so that other programs disturb little.


# %%
def milliseconds(work):
    """The least processor time of five runs, one thread."""
    times = []
    with threadpool_limits(1):
        for _ in range(5):
            start = time.thread_time()
            work()
            times.append(time.thread_time() - start)
    return 1e3 * min(times)


def cost(N=8, C=16, K=16, size=32, kernel=3):
    """Milliseconds of the copy and of the product, bytes of the image and of X."""
    x = rng.standard_normal((N, C, size, size)).astype("float32")
    W = rng.standard_normal((K, C * kernel * kernel)).astype("float32")
    windows = im2col(x, (kernel, kernel), padding=kernel // 2)

    def copy():
        return windows.reshape(-1, C * kernel * kernel)

    X = copy()
    return milliseconds(copy), milliseconds(lambda: X @ W.T), x.nbytes, X.nbytes


SWEEPS = {"kernel": (1, 2, 3, 5, 7), "C": (4, 8, 16, 32, 64), "K": (4, 16, 64, 256)}
measured = {name: [cost(**{name: value}) for value in values]
            for name, values in SWEEPS.items()}
copy, product, *_ = measured["kernel"][2]
print(f"k = 3, C = K = 16: copying {copy:.2f} ms, multiplying {product:.2f} ms: "
      f"the copying takes {copy / (copy + product):.0%}")
for name, values in SWEEPS.items():
    shares = [f"{copy / (copy + product):.0%}" for copy, product, *_ in measured[name]]
    print(f"its share for {name} = {', '.join(map(str, values))}: {', '.join(shares)}")

# %% mystnb={"image": {"alt": "Time of copy and product against k, C and K; bytes of X and of the image against k."}}
figure, axes = plt.subplots(2, 2, figsize=(9, 6.4), layout="constrained")
labels = ("kernel size k", "input channels C", "output channels K", "kernel size k")
times = [ms for rows in measured.values() for row in rows for ms in row[:2]]
least, most = min(times), max(times)
for axis, label, (name, values) in zip(axes.flat, labels, SWEEPS.items(), strict=False):
    for i, curve in enumerate(("copying", "multiplying")):
        axis.plot(values, [row[i] for row in measured[name]], COLORS[i], marker=MARKERS[i],
                  label=curve)
    axis.set(xscale="log", yscale="log", ylim=(least / 2, most * 8), ylabel="ms",
             title=f"time against {label}")
    axis.set_xticks(values, map(str, values))
    axis.set_yticks((0.1, 1, 10), ("0.1", "1", "10"))
    axis.minorticks_off()
    axis.legend(loc="upper left")
axis, sizes = axes[1, 1], SWEEPS["kernel"]
for i, curve in ((3, "X"), (2, "image")):
    axis.plot(sizes, [row[i] / 2**20 for row in measured["kernel"]], COLORS[i],
              marker=MARKERS[i], label=curve)
axis.set(title="memory against kernel size k", ylabel="MiB", xticks=sizes)
axis.legend()
for axis, label in zip(axes.flat, labels, strict=True):
    axis.set_xlabel(label)
plt.close(figure)
figure

# %% [markdown]
# The question was: what makes the copying matter little? Only the third panel has an answer, K. There the copying
# stays as it is, and the product grows beside it. In the first two, both grow.
#
# The count is not the whole truth, as the shares show. A larger kernel is copied a little more cheaply per number, as
# each row of a window is a longer run of neighbours in memory. And k = 1 is cheap: X is no larger than the
# image, and its rows are the pixels, one each, in another order of memory.
#
# **Predict.** The first stage of a ResNet-20 on CIFAR: a batch of 128, 16 channels, 32x32, float32. How many
# megabytes has the image, and how many has X?

# %%
image = np.ones((128, 16, 32, 32), np.float32)
X = im2col(image, (3, 3), padding=1).reshape(-1, 16 * 3 * 3)
print(f"image {image.nbytes / 1e6:.1f} MB, X {X.nbytes / 1e6:.1f} MB, "
      f"{X.nbytes / image.nbytes:g} times as much")
del X

# %% [markdown]
# ## The paper says, we see, why it differs
#
# Chellapilla, Puri and Simard (2006), *High performance convolutional neural networks for document processing*,
# brought this product into convolutional networks. **The paper says:** 2.4 to 3.0 times faster than loops.

# %%
print(f"loops in Python: {ns_of_the_loops:.0f} ns a multiply-add")
for channels in (16, 128):
    x = rng.standard_normal((8, channels, 32, 32)).astype("float32")
    w = rng.standard_normal((channels, channels, 3, 3)).astype("float32")
    one = milliseconds(lambda x=x, w=w: conv2d(x, w, padding=1))
    nine = milliseconds(lambda x=x, w=w: tr.conv2d(x, w, padding=1))
    adds = x.size * w.size / channels
    print(f"{channels} channels")
    for way, ms in (("one product", one), ("a product for each of 9 positions", nine)):
        nanoseconds = 1e6 * ms / adds
        faster = ns_of_the_loops / nanoseconds
        print(f"  {way}: {nanoseconds:.3f} ns, {faster:,.0f} times as fast")
    print(f"  the first takes {one / nine:.1f} times as long as the second")

# %% [markdown]
# **We see** thousands. **Why it differs:** their loops were compiled, ours go through Python's interpreter, which
# spends hundreds of nanoseconds on each step. A fairer opponent is the second way, the library's reference: it
# multiplies by BLAS, too, but one kernel position after the other, without X. Compare the last lines of both blocks:
# with 16 channels, where our copying takes most of the time, X pays least; with 128 the two come closer, as the count
# of K multiply-adds a copied number says. So it is not the columns that make a convolution fast. It is
# handing the arithmetic, in large pieces, to a library that knows the machine.

# %% [markdown]
# ## Three questions
#
# **1.** An image of 224 rows, a kernel of 7, stride 2, padding 3. How many rows has the output?
#
# <details><summary>Answer</summary>
#
# (224 + 6 - 7)/2 = 111.5, its floor is 111, and one more: 112. The floor is needed again.
#
# </details>
#
# **2.** `im2col` gives a view. Why is `im2col(...).reshape(N*P*Q, C*R*S)` none, but for special cases? Name one.
#
# <details><summary>Answer</summary>
#
# To be a view, the joined axes (c, r, s) would need a single stride, and (n, p, q) one, too. From one s to the next the
# address grows by $a_W$ (dilation 1), from the last s of a kernel row to the first of the next row by $a_H - (S - 1)\,
# a_W$. These are the same only if $a_H = S\,a_W$: the kernel is as wide as the padded image. A special case is one
# window for the whole image: P = Q = 1, R = H, S = W, no padding. Then X is x itself, laid out as N rows.
#
# </details>
#
# **3.** You double the number of images, of input channels, and of output channels. By how much grow X, the time of
# the copy and the multiply-adds?
#
# <details><summary>Answer</summary>
#
# X and the copy by 4 (images and input channels), the multiply-adds by 8.
#
# </details>

# %% [markdown]
# > **For the teacher.** 15 minutes for definition and hand example, 20 for the output size, 25 for the view, 15 for
# > the cost. Draw the table of addresses on the board and let the class find the six strides; who has them has the
# > lesson. Common wrong answers: `output_size` without the last + 1, with the padding counted once, with dilation
# > times k instead of k - 1, by `/` instead of `//`; `im2col` with stride and dilation exchanged, with r and s
# > exchanged (found only where kernel or image are not square), with strides in elements instead of bytes or calculated
# > from the shape, as a copy. Who copies has the right numbers and has missed the point: ask how many bytes the array
# > would take for the batch of 128. The times depend on the machine; which curves rise and which stay flat should not.
