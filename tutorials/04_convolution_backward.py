# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# tinyres:
#   lesson: 4
#   title: "Convolution backward: col2im is the adjoint"
#   minutes: 90
#   seconds: 20
#   needs: [3]
#   objectives:
#     - derive the three gradients of a convolution as three products of matrices
#     - bring gradients of windows back to the image, and prove by one identity that it is right
#     - predict how many windows a pixel lies in, and see that number in the gradient
#     - say why a stride puts zeros between, and why nobody computes it that way
# ---

# %% [markdown]
# # Convolution backward: col2im is the adjoint
#
# Lesson 3 made a convolution out of two steps: lay out the windows, multiply. The backward pass undoes neither of
# them. It takes the **adjoint** of each: of the product, two products; of laying out, adding up.
#
# **Afterwards you can** derive dx, dw and db as products; write `col2im` and prove it right by one identity; predict
# the pattern that strides leave in a gradient; say why a stride puts zeros between.
#
# **Needs** lesson 3. The sum at a fork of lesson 1 returns here. **Takes** 90 minutes.
#
# The letters are those of lesson 3: N images, C and K input and output channels, H x W the image, P x Q the output,
# R x S the kernel.

# %%
import time

import matplotlib.pyplot as plt
import numpy as np
from threadpoolctl import threadpool_limits

import tinyres as tr
from tinyres import kernels, models
from tinyres.analysis.palette import COLORS, MARKERS
from tinyres.kernels.im2col import conv2d_input_grad, windows
from tinyres.stepper import example

tr.use_kernels("reference")
rng = np.random.default_rng(4)
print(f"kernel set: {kernels.current()}, plain NumPy, nothing to compile")

# %% [markdown]
# ## Before you read: two questions
#
# 1. Lay out the windows of an image x, then bring every element back to the pixel it was copied from, and add:
#    `col2im(im2col(x))`. Is that x again?
# 2. A convolution with a 3x3 kernel and stride 2. The gradient at its output is random, of the same size everywhere.
#    Is the gradient at its input of the same size everywhere, too?
#
# Write both answers down; the lesson measures both.
#
# ## Where we stand
#
# `im2col(x)` gives the windows, (N, P, Q, C, R, S), as a view. As a matrix they are X, a row for each output (n, p,
# q), a column for each weight (c, r, s). The weight as a matrix is W, K x (C R S). Then
#
# $$Y = X\,W^\top + \mathbf{1}\,b^\top.$$
#
# This is lesson 3's function, from the library, where the channels come last:


# %%
def im2col(x, kernel, stride=1, padding=0, dilation=1):
    """x (N, C, H, W), kernel (R, S) -> all windows as a view, (N, P, Q, C, R, S)."""
    steps = (stride, stride), (padding, padding), (dilation, dilation)
    return windows(x, kernel, *steps).transpose(0, 1, 2, 5, 3, 4)


def conv2d(x, w, b=0.0, stride=1, padding=0, dilation=1):
    """x (N, C, H, W), w (K, C, R, S), b (K,) -> y (N, K, P, Q)."""
    seen = im2col(x, w.shape[2:], stride, padding, dilation)
    N, P, Q, *_ = seen.shape
    Y = seen.reshape(N * P * Q, -1) @ w.reshape(len(w), -1).T + b
    return Y.reshape(N, P, Q, len(w)).transpose(0, 3, 1, 2)


numbers = example.conv()  # the numbers of lesson 3: an image of 3x3, a kernel of 2x2
x_small, w_small = numbers.leaves["x"].data, numbers.leaves["weight"].data
g_small = np.array(numbers.gradients["y"], float)
print("y:", conv2d(x_small, w_small).ravel(), " g:", g_small.ravel())

# %% [markdown]
# ## Three products
#
# Let the loss be L, and $G_{i,k} = \partial L / \partial Y_{i,k}$ its gradient at the output, as a matrix like Y.
# Write $\langle A, B \rangle = \sum_{i,j} A_{i,j} B_{i,j}$. Move X, W and b by a little. Y moves by
#
# $$dY = dX\,W^\top + X\,dW^\top + \mathbf{1}\,db^\top,$$
#
# and the loss by $dL = \langle G, dY \rangle$. Each of the three parts says what one gradient is, once the little step
# stands alone on the right. Take the first, index by index:
#
# $$\langle G, dX\,W^\top \rangle = \sum_{i,k} G_{i,k} \sum_j dX_{i,j} W_{k,j}
# = \sum_{i,j} \Big( \sum_k G_{i,k} W_{k,j} \Big) dX_{i,j} = \langle G\,W, dX \rangle$$
#
# The other two go the same way, $\langle G, X\,dW^\top \rangle = \langle G^\top X, dW \rangle$ and
# $\langle G, \mathbf{1}\,db^\top \rangle = \langle G^\top \mathbf{1}, db \rangle$. So
#
# $$\frac{\partial L}{\partial X} = G\,W \qquad \frac{\partial L}{\partial W} = G^\top X \qquad
# \frac{\partial L}{\partial b} = G^\top \mathbf{1}.$$
#
# Shapes are a check: G is (N P Q) x K, W is K x (C R S), X is (N P Q) x (C R S). Each product fits in one way only.
#
# The one-line reading of the second: a weight is used at every output, so its gradient is a **sum over all outputs**
# of the output's gradient times the pixel that it met there. The bias met a 1.
#
# **Predict**, with the pencil. In the small example
#
# $$X = \begin{pmatrix} 1 & 2 & -1 & 1 \\ 2 & 0 & 1 & 2 \\ -1 & 1 & 0 & -2 \\ 1 & 2 & -2 & 1 \end{pmatrix} \qquad
# W = \begin{pmatrix} 1 & 0 & 2 & -1 \end{pmatrix} \qquad G = \begin{pmatrix} 1 \\ -1 \\ 2 \\ 1 \end{pmatrix}$$
#
# What is $G^\top X$? And the last row of $G\,W$?

# %%
X = im2col(x_small, (2, 2)).reshape(4, 4)
W, G = w_small.reshape(1, 4), g_small.reshape(4, 1)
print("dW:", G.T @ X)
print("db:", G.sum(0))
print("dX:", G @ W, sep="\n")
assert np.array_equal((G.T @ X).reshape(1, 1, 2, 2), numbers.gradients["weight"])

# %% [markdown]
# ## From the windows back to the image
#
# dX is the gradient at the laid-out windows. But the pixels were copied into them, and one pixel several times. That
# is the fork of lesson 1: a value that is used several times collects the **sum** of what its uses bring. So
#
# $$dx_{n,c,h,v} = \sum_{(p,r)} \; \sum_{(q,s)} dX_{(n,p,q),\,(c,r,s)}$$
#
# over all pairs (p, r) with $p \cdot \mathrm{stride} + r \cdot \mathrm{dilation} = h$ and all pairs (q, s) with
# $q \cdot \mathrm{stride} + s \cdot \mathrm{dilation} = v$. Rows and columns count in the padded image, of which the
# zeros are then cut off: they were no pixels.
#
# The same as a matrix. Laying out is linear: $\mathrm{im2col}(x) = A x$ with a matrix A of zeros and ones. Each row
# has a single 1, which says from where that element is copied (or none, if it is a zero of the padding). For every z
#
# $$\langle A x, z \rangle = \langle x, A^\top z \rangle,$$
#
# so that the gradient at x is $A^\top dX$. Nobody stores A. A function that computes $A^\top z$ is called `col2im`,
# and the equation above, with random x and z, is the test that it is right.
#
# **Predict.** For an image of 3x3 and a kernel of 2x2, A has 16 rows and 9 columns. How many ones stand in the column
# of the pixel in the middle? In that of a corner?

# %% mystnb={"image": {"alt": "The matrix A, 16 rows with a 1 each; its 9 column sums are 1 2 1, 2 4 2, 1 2 1."}}
units = np.eye(9).reshape(9, 1, 3, 3)  # nine images, each with a 1 in one pixel
A = im2col(units, (2, 2)).reshape(9, 16).T
figure, axes = plt.subplots(1, 2, figsize=(9, 4.6), layout="constrained",
                            width_ratios=(3, 2))
axes[0].imshow(A, cmap="Greys", vmax=1.3, aspect="auto")
axes[0].set(title="A: windows from pixels", xlabel="pixel", ylabel="(p, q)  (r, s)",
            xticks=range(9), yticks=range(16))
axes[0].set_yticklabels([f"({p}, {q})  ({r}, {s})"
                         for p, q, r, s in np.ndindex(2, 2, 2, 2)])
counts = A.sum(0).reshape(3, 3)
axes[1].imshow(counts, cmap="Blues", vmin=0, vmax=8)
for (h, v), count in np.ndenumerate(counts):
    axes[1].text(v, h, f"{count:g}", ha="center", va="center")
axes[1].set(title="ones in each pixel's column", xlabel="v", ylabel="h",
            xticks=range(3), yticks=range(3))
plt.close(figure)
figure

# %% [markdown]
# ### A trap of NumPy
#
# Who adds with arrays as indices should know this. **Predict** both lines.

# %%
total = np.zeros(3)
total[[0, 0, 1]] += 1
print("total[[0, 0, 1]] += 1       gives", total)
total = np.zeros(3)
np.add.at(total, [0, 0, 1], 1)
print("np.add.at(total, [0, 0, 1]) gives", total)

# %% [markdown]
# `total[index] += 1` reads all the elements, adds, and writes all back: an element that is named twice is written
# twice, with the same number. Where pixels repeat, that is an assignment in disguise. `np.add.at` adds properly, and
# slowly. There is a better way: **within one kernel position (r, s) no pixel is met twice**, because two different
# windows lie at two different places. So R S steps, each an addition to a slice, are safe.
#
# ### Exercise 1


# %% nbgrader={"grade": false, "grade_id": "col2im", "locked": false, "schema_version": 3, "solution": true, "task": false}
def col2im(columns, x_shape, stride=1, padding=0, dilation=1):
    """The adjoint of im2col: brings each element back to its pixel, and adds.

    columns: (N, P, Q, C, R, S), of any float dtype; x_shape: (N, C, H, W). Returns an
    array of shape x_shape and of the dtype of columns. What comes to the zeros of the
    padding is dropped. Rows and columns that no window reads get 0.
    """
    ### BEGIN SOLUTION
    (N, C, H, W), (_, P, Q, _, R, S) = x_shape, columns.shape
    padded = np.zeros((N, C, H + 2 * padding, W + 2 * padding), columns.dtype)
    for r, s in np.ndindex(R, S):
        h, v = r * dilation, s * dilation
        rows = slice(h, h + (P - 1) * stride + 1, stride)
        cols = slice(v, v + (Q - 1) * stride + 1, stride)
        padded[:, :, rows, cols] += columns[..., r, s].transpose(0, 3, 1, 2)
    return padded[:, :, padding : padding + H, padding : padding + W]
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "check-col2im", "locked": true, "points": 4, "schema_version": 3, "solution": false, "task": false}
from tinyres.teach.checks import lesson_04

lesson_04.col2im(col2im)

# %% [markdown]
# The small example on paper: the pixel in the middle, 1, lay in four windows. From dX it collects
# $-1 \cdot 1 + 2 \cdot (-1) + 0 \cdot 2 + 1 \cdot 1$: the gradient at each window's output times the weight that stood
# on the pixel there. **Predict** the sum.

# %%
dx_small = col2im((G @ W).reshape(1, 2, 2, 1, 2, 2), x_small.shape)
print(dx_small[0, 0])
assert np.array_equal(dx_small, numbers.gradients["x"])

# %% [markdown]
# Now step through it. Click into the page, press `n` until you are at `Conv2d`, and look at the element that is worked
# out; then at "kept": both x and the weight are needed, each for the gradient of the other.

# %%
tr.step(numbers)

# %% [markdown]
# ### The identity, and the first question
#
# On random shapes: by how much do $\langle \mathrm{im2col}(x), y \rangle$ and $\langle x, \mathrm{col2im}(y) \rangle$
# differ, relative to the norms? And is `col2im(im2col(x))` x again?

# %%
worst = 0.0
for _ in range(50):
    N, C, H, W_, R, S = (int(rng.integers(low, 9)) for low in (1, 1, 5, 5, 1, 1))
    R, S = min(R, H), min(S, W_)
    stride, padding = int(rng.integers(1, 4)), int(rng.integers(0, 3))
    x = rng.standard_normal((N, C, H, W_))
    laid_out = im2col(x, (R, S), stride, padding)
    y = rng.standard_normal(laid_out.shape)
    left, right = np.vdot(laid_out, y), np.vdot(x, col2im(y, x.shape, stride, padding))
    worst = max(worst, abs(left - right) / (np.linalg.norm(laid_out) * np.linalg.norm(y)))
print(f"<im2col(x), y> = <x, col2im(y)> to {worst:.1e}")
x = rng.standard_normal((1, 1, 5, 5))
print("col2im(im2col(x)) / x:")
print((col2im(im2col(x, (3, 3)), x.shape) / x)[0, 0])

# %% [markdown]
# No: it is x times the number of windows that each pixel lies in. In the matrix's words, $A^\top A$ is diagonal, as
# each row of A has only one 1, and on its diagonal stand the counts. The adjoint is not the inverse. The gradient
# asks for the adjoint.

# %% [markdown]
# ## Overlap
#
# `col2im` of ones counts, for each pixel, in how many windows it lies. **Predict** for an image of 8x8: (a) kernel 3,
# stride 1, no padding: the corner, the middle. (b) The same with padding 1. (c) Kernel 3, stride 2, padding 1, which
# halves. (d) Kernel 2, stride 3.

# %% mystnb={"image": {"alt": "Counts on 8x8 pixels. Stride 1: up to 9, fewer at the edge. Stride 2: 1, 2, 4 in turn."}}
CASES = ((3, 1, 0), (3, 1, 1), (3, 2, 1), (2, 3, 0))
figure, axes = plt.subplots(2, 2, figsize=(8.4, 8.6), layout="constrained")
for axis, (kernel, stride, padding) in zip(axes.flat, CASES, strict=True):
    ones = np.ones_like(im2col(np.ones((1, 1, 8, 8)), (kernel, kernel), stride, padding))
    counts = col2im(ones, (1, 1, 8, 8), stride, padding)[0, 0]
    axis.imshow(counts, cmap="Blues", vmin=0, vmax=16)
    for (h, v), count in np.ndenumerate(counts):
        axis.text(v, h, f"{count:g}", ha="center", va="center")
    axis.set(title=f"kernel {kernel}, stride {stride}, padding {padding}", xticks=[], yticks=[])
plt.close(figure)
figure

# %% [markdown]
# With stride 1 a pixel in the middle lies in R S windows, one at the edge in fewer, and padding makes up for a part.
# With stride 2 and kernel 3 the counts alternate 1, 2 along each axis, and their products 1, 2, 4 make a chequered
# pattern. (The last row and column break it: 8 is even, and the window that would be their second does not fit.) With a
# stride larger than the kernel there are pixels that nobody reads: count 0, gradient 0.
#
# **The second question.** Let the numbers of g and of the weights be independent, with mean 0. Then dx is a sum of K
# times count terms, each with a weight and a gradient of its own, so that variances add, and the variance of dx is
# **proportional to the count**: 1 to 2 to 4. Measure it, with the library's own backward pass.

# %%
squares = np.zeros((8, 8))
x = tr.tensor(np.zeros((64, 16, 8, 8)), requires_grad=True)
for _ in range(20):
    w = tr.tensor(rng.standard_normal((16, 16, 3, 3)) / 12)
    y = tr.conv2d(x, w, stride=2, padding=1)
    x.grad = None
    y.backward(tr.tensor(rng.standard_normal(y.shape)))
    squares += (x.grad.data**2).mean((0, 1)) / 20
ones = np.ones_like(im2col(np.ones((1, 1, 8, 8)), (3, 3), 2, 1))
counts = col2im(ones, (1, 1, 8, 8), 2, 1)[0, 0]
base = squares[counts == 1].mean()
for count in (1, 2, 4):
    variance = squares[counts == count].mean() / base
    print(f"pixels with count {count}: variance {variance:.2f} times that of count 1")

# %% [markdown]
# So the 3x3 with stride 2 by which a ResNet halves passes a chequered gradient on, as long as its weights are random.
# Odena, Dumoulin and Olah (2016, *Deconvolution and checkerboard artifacts*) found the same pattern in images made by
# transposed convolutions, which are this sum used forward. Their remedy is a kernel that the stride divides: with
# kernel 4 and stride 2 every pixel in the middle lies in 4 windows.

# %% [markdown]
# ## A stride puts zeros between
#
# There is a second way to dx, without columns. Take one axis, one channel, dilation 1, stride t and padding $\pi$:
#
# $$y_p = \sum_r w_r\,x_{p t + r - \pi} \qquad \Rightarrow \qquad
# dx_h = \sum_{p,\,r:\; p t + r - \pi = h} w_r\,g_p$$
#
# For each r at most one p fits, and only if $h + \pi - r$ is a multiple of t. To be rid of the condition, let u be g
# with t - 1 zeros between its elements: $u_{p t} = g_p$, and 0 everywhere else. Then u says by itself where nothing
# comes:
#
# $$dx_h = \sum_r w_r\,u_{h + \pi - r}$$
#
# Count r backwards, $r = R - 1 - r'$:
#
# $$dx_h = \sum_{r'} w_{R - 1 - r'}\;u_{h + r' - (R - 1 - \pi)}$$
#
# Compare with the first formula. This is a convolution of u with stride 1, padding $R - 1 - \pi$, and the **kernel
# turned round**. In two dimensions it is turned along both axes, and C and K change places. If rows were left over
# (lesson 3), u gets as many zeros at its end.


# %%
def stretched(g, stride, more):
    """g with stride - 1 zeros between, and so many more rows and columns of zeros."""
    (N, K, P, Q), (rows, cols) = g.shape, more
    height, width = (P - 1) * stride + 1, (Q - 1) * stride + 1
    wide = np.zeros((N, K, height + rows, width + cols), g.dtype)
    wide[:, :, :height:stride, :width:stride] = g
    return wide


def dx_by_convolution(g, w, x_shape, stride, padding):
    """dx as a convolution of the stretched g; for square kernels, padding below R."""
    R = w.shape[2]
    more = [(size + 2 * padding - R) % stride for size in x_shape[2:]]
    turned = w[:, :, ::-1, ::-1].transpose(1, 0, 2, 3)
    return conv2d(stretched(g, stride, more), turned, padding=R - 1 - padding)


def dx_by_columns(g, w, x_shape, stride, padding):
    """dx as col2im(G W), by the library."""
    steps = (stride, stride), (padding, padding), (1, 1)
    return conv2d_input_grad(g, w, x_shape, *steps, groups=1)


# %% [markdown]
# **Predict.** An image of 6x6, kernel 3, stride 2, padding 1. How large is g? How many rows of zeros come between, and
# how many are left over?

# %% mystnb={"image": {"alt": "g of 3x3; g with zeros between and one more row, 6x6; dx of 6x6, the same both ways."}}
g = rng.integers(1, 9, (1, 1, 3, 3)).astype(float)
w = np.array([[[[1.0, 0, 2], [0, 1, 0], [1, 1, 0]]]])
ways = [way(g, w, (1, 1, 6, 6), 2, 1) for way in (dx_by_convolution, dx_by_columns)]
figure, axes = plt.subplots(1, 4, figsize=(10, 3), layout="constrained",
                            width_ratios=(3, 6, 3, 6))
pictures = {"g": g, "g with zeros between": stretched(g, 2, (1, 1)),
            "turned kernel": w[..., ::-1, ::-1], "dx, both ways": ways[0]}
for axis, (title, picture) in zip(axes, pictures.items(), strict=True):
    axis.imshow(picture[0, 0], cmap="Blues", vmin=0, vmax=2 * picture.max())
    for (h, v), value in np.ndenumerate(picture[0, 0]):
        axis.text(v, h, f"{value:g}", ha="center", va="center")
    axis.set(title=title, xticks=[], yticks=[])
plt.close(figure)
print("largest difference of the two ways:", np.abs(ways[0] - ways[1]).max())
figure

# %% [markdown]
# **The paper says:** Dumoulin and Visin (2016, *A guide to convolution arithmetic for deep learning*, chapter 4)
# explain the transposed convolution in this way, and add that it is not how one should compute it: many
# multiplications are with zeros. How many? Without the zeros there are N K C R S multiply-adds for each of P Q
# outputs, with them for each of H W pixels: the square of the stride times as many. **Predict** the times for strides
# 1, 2 and 4.


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


x_shape, w = (16, 32, 32, 32), rng.standard_normal((32, 32, 3, 3)).astype("float32")
WAYS = {"with zeros between": dx_by_convolution, "by columns": dx_by_columns}
STRIDES = (1, 2, 4)
measured = {name: [] for name in WAYS}
for stride in STRIDES:
    size = (32 + 2 - 3) // stride + 1
    g = rng.standard_normal((16, 32, size, size)).astype("float32")
    arguments = g, w, x_shape, stride, 1
    for name, way in WAYS.items():
        measured[name].append(milliseconds(lambda way=way, these=arguments: way(*these)))
    zeros, columns = (times[-1] for times in measured.values())
    print(f"stride {stride}: with zeros {zeros:.1f} ms, by columns {columns:.1f} ms, "
          f"{zeros / columns:.1f} to 1; multiply-adds {(32 / size) ** 2:.0f} to 1")

# %% mystnb={"image": {"alt": "Time of dx against the stride: by columns it falls, with zeros between it hardly does."}}
figure, axis = plt.subplots(figsize=(6, 3.2), layout="constrained")
for i, (name, times) in enumerate(measured.items()):
    axis.plot(STRIDES, times, COLORS[i], marker=MARKERS[i], label=name)
axis.set(xlabel="stride", ylabel="ms", xticks=STRIDES,
         title="Does a larger stride make dx cheaper?")
axis.set_ylim(bottom=0)
axis.legend()
plt.close(figure)
figure

# %% [markdown]
# **We see** it: with zeros between, a larger stride saves hardly anything. **Why it differs** from the count:
# the count is of multiplications. Both ways also move memory. The first copies columns that are mostly zeros, the
# second adds columns up, one kernel position after the other, with the channels innermost, which is quicker. At stride
# 1 there are no zeros, and only that difference remains.
#
# Both ways are right. The zeros explain; `col2im` computes.

# %% [markdown]
# ## The whole backward pass
#
# ### Exercise 2
#
# Put the pieces together. `g` comes as (N, K, P, Q); G has a row for each (n, p, q). Mind the order of the axes: a
# reshape counts on, it does not move them.


# %% nbgrader={"grade": false, "grade_id": "conv2d_backward", "locked": false, "schema_version": 3, "solution": true, "task": false}
def conv2d_backward(g, x, w, stride=1, padding=0, dilation=1):
    """The three gradients of y = conv2d(x, w, b).

    g: (N, K, P, Q), the gradient at y; x: (N, C, H, W); w: (K, C, R, S). Returns dx, dw,
    db, of the shapes of x and w and (K,). Changes none of its arguments.
    """
    ### BEGIN SOLUTION
    K = len(w)
    seen = im2col(x, w.shape[2:], stride, padding, dilation)
    X, G = seen.reshape(-1, w[0].size), g.transpose(0, 2, 3, 1).reshape(-1, K)
    dw = (G.T @ X).reshape(w.shape)
    dX = (G @ w.reshape(K, -1)).reshape(seen.shape)
    return col2im(dX, x.shape, stride, padding, dilation), dw, G.sum(0)
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "check-conv2d_backward", "locked": true, "points": 4, "schema_version": 3, "solution": false, "task": false}
from tinyres.teach.checks import lesson_04

lesson_04.conv2d_backward(conv2d_backward)

# %% [markdown]
# ### The largest step is the best
#
# The check moved each element by 1, not by $10^{-5}$. **Predict** how the error of a finite difference depends on the
# step, for a convolution.

# %%
x, w = rng.standard_normal((2, 3, 6, 6)), rng.standard_normal((4, 3, 3, 3))
y = conv2d(x, w, stride=2, padding=1)
g = rng.standard_normal(y.shape)
dx, dw, db = conv2d_backward(g, x, w, stride=2, padding=1)
direction = rng.standard_normal(x.shape)
for step in (1.0, 1e-3, 1e-6, 1e-9):
    moved = conv2d(x + step * direction, w, stride=2, padding=1)
    slope = np.vdot(g, moved - y) / step
    error = abs(slope / np.vdot(dx, direction) - 1)
    print(f"step {step:g}: relative error {error:.1e}")

# %% [markdown]
# A convolution is linear in x, and in w, so a difference is exact whatever its step. What remains is rounding, which
# is divided by the step: the larger the step, the better. (Lesson 2 has the other half of this picture.)
#
# ### Against the library

# %%
for name in ("loops", "im2col", "reference"):
    with tr.use_kernels(name):
        leaves = [tr.tensor(a, requires_grad=True) for a in (x, w, np.zeros(4))]
        tr.conv2d(*leaves, stride=2, padding=1).backward(tr.tensor(g))
    gaps = [np.abs(leaf.grad.data - own).max()
            for leaf, own in zip(leaves, (dx, dw, db), strict=True)]
    print(f"kernel set {name:9}: dx, dw, db differ from yours by at most {max(gaps):.1e}")

# %% [markdown]
# In `kernels/loops.py` all three functions walk over the same connections: forward sends input times weight to the
# output, backward sends the output's gradient times the number at the other end. In `kernels/reference.py` the three
# are one product for each kernel position, seen from its three factors. In `kernels/im2col.py` they are what you
# wrote.

# %% [markdown]
# > **Check the claim.** "Weight sharing keeps deep residual networks small." Two things share that name. In *every*
# > convolution the positions of the image share one set of weights: that is why dw is a sum over all outputs. Sharing
# > over depth, one set of weights for several blocks, is something else, and few networks do it.

# %%
each_use = np.einsum("nkpq,npqcrs->npqkcrs", g, im2col(x, (3, 3), 2, 1))
gap, uses = np.abs(each_use.sum((0, 1, 2)) - dw).max(), each_use.shape[:3]
print(f"N, P, Q = {uses}: {np.prod(uses)} uses of each weight, their sum is dw to {gap:.0e}")
shared = 16 * 16 * 3 * 3
print(f"3x3, 16 to 16 channels: {shared:,} weights; were none shared over 32x32 positions: "
      f"{32 * 32 * shared:,}")
for name, model in (("resnet20", models.resnet20(option="A")),
                    ("the same, sharing over depth", models.shared_resnet20())):
    print(f"{name}: {sum(p.data.size for p in model.parameters()):,} parameters")

# %% [markdown]
# Sharing over positions saves a factor of a thousand here, and a plain network has it just as well. It is no merit of
# residual networks. Sharing over depth saves what it can, and is the subject of lesson 11.

# %% [markdown]
# ## Three questions
#
# **1.** A 5x5 kernel, stride 1, no padding, on an image of 9x9. Of how many terms is the gradient of the pixel in the
# middle a sum, with K output channels? And of the corner?
#
# <details><summary>Answer</summary>
#
# The middle lies in all 25 windows, so 25 K terms. The corner lies in one window, K terms.
#
# </details>
#
# **2.** The backward pass needs X for dw. Forward, X was made already. Should it be kept?
#
# <details><summary>Answer</summary>
#
# It has up to R S times the memory of x, nine times for 3x3, in every layer at once. x is kept, and X is laid out
# again when it is needed. The library keeps x and w, and nothing else.
#
# </details>
#
# **3.** Somebody's dx is right for stride 1, and wrong for stride 2 on even sizes only. What may have been forgotten?
#
# <details><summary>Answer</summary>
#
# With kernel 3 and padding 1 the division comes out even for odd sizes only. For even sizes a row is left over. Who
# works out the size of dx from the number of outputs gets one row too few, or puts the crop in the wrong place.
#
# </details>

# %% [markdown]
# > **For the teacher.** 25 minutes for the three products (insist on the index form of the first; the other two are
# > the class's), 25 for col2im, 15 for overlap, 15 for the zeros, 10 for the rest. The key sentence is "adjoint, not
# > inverse": whoever divides by the counts believes the opposite, and has often met a library's `fold` that way.
# > Common wrong answers: assigning for adding (also by `+=` with repeated indices, which looks right); the crop
# > forgotten, or cut at the corner; r and s exchanged; the turned kernel in the wrong way of the two; `g.reshape(-1,
# > K)` without moving the axis, which has the right shape and the wrong numbers; a division by N, which belongs to
# > the loss. Integers as data make all of this visible on paper.
