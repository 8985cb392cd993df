# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# tinyres:
#   lesson: 5
#   title: "Batch norm: three routes and two modes"
#   minutes: 75
#   seconds: 20
#   needs: [1, 2]
#   objectives:
#     - derive the gradient of batch norm as the sum of three routes, and name what each of them removes
#     - say to which directions it is orthogonal, exactly and with eps
#     - write batch norm backward for images, with the gradients of gamma and beta
#     - keep running statistics, with the right momentum and the right variance, and say what changes in eval mode
# ---

# %% [markdown]
# # Batch norm: three routes and two modes
#
# In the ResNets of 2015 a batch norm follows every convolution. It is four lines of code. But it is the one layer in
# which the samples of a batch see each other, and so a value's gradient comes by three routes at once. Most wrong
# backward rules that people write are right on one or two of them.
#
# **Afterwards you can** derive the gradient as a sum of three routes and say what each of them removes; name the
# directions that it is orthogonal to; write the backward pass for images; keep running statistics, and say what is
# different in eval mode.
#
# **Needs** [lesson 1](01_forks_and_order.py), the sum over consumers, and [lesson 2](02_broadcasting_and_checks.py),
# the transpose of broadcasting and a check that can be trusted. **Takes** 75 minutes.
#
# **The letters.** A channel of N images with H rows and W columns has M = N H W values, which are all treated alike. So
# one channel with the values $x_1 \ldots x_M$ is enough to derive everything.

# %%
import textwrap

import matplotlib.pyplot as plt
import numpy as np

import tinyres as tr
from tinyres import kernels, nn
from tinyres.analysis.palette import COLORS, MARKERS
from tinyres.stepper.example import batchnorm

tr.use_kernels("reference")
print(f"kernel set: {kernels.current()}, plain NumPy, nothing to compile")
rng = np.random.default_rng(0)

# %% [markdown]
# ## Before you read: a question
#
# You add 1000 to every value of a channel. Or you multiply every value by 10. What happens to the output of batch norm?
#
# And, without any derivation: what does this say about the gradient with respect to x? Write both down.
#
# ## Forward
#
# $$\mu = \frac{1}{M} \sum_i x_i \qquad v = \frac{1}{M} \sum_i (x_i - \mu)^2 \qquad
# s = \frac{1}{\sqrt{v + \varepsilon}} \qquad \hat x{}_i = (x_i - \mu)\, s \qquad y_i = \gamma \hat x{}_i + \beta$$
#
# The small $\varepsilon$, 1e-5, is there against a division by 0. $\gamma$ and $\beta$ are learned, one of each for a
# channel. We shall work with four values, and $\varepsilon = 0$:
#
# $$x = (1, 3, 1, 3) \qquad \mu = 2 \qquad v = 1 \qquad \hat x = (-1, 1, -1, 1) \qquad
# g = \frac{\partial L}{\partial y} = (5, 1, -1, -1)$$
#
# ## Three routes
#
# Where does $x_j$ go? Into its own $\hat x{}_j$. Into the mean, and the mean into every $\hat x{}_i$. Into the
# variance, and the variance into every $\hat x{}_i$. Three consumers, so three contributions, to be added. Let $\gamma
# = 1$ for now.
#
# **Direct.** With $\mu$ and $v$ held, $\hat x{}_j$ has the slope s in $x_j$. This route brings
#
# $$s\, g_j$$
#
# **Through the mean.** Each $\hat x{}_i$ has the slope $-s$ in $\mu$, and $\mu$ has the slope $\frac{1}{M}$ in $x_j$:
#
# $$\frac{1}{M} \sum_i g_i \cdot (-s) = -s\, \mathrm{mean}(g)$$
#
# where mean(g) is the mean over the channel. It brings the same to all j.
#
# **Through the variance.** The slope of $s = (v + \varepsilon)^{-1/2}$ in v is $-\frac{1}{2} (v + \varepsilon)^{-3/2} =
# -\frac{1}{2} s^3$. So the loss has the slope
#
# $$\frac{\partial L}{\partial v} = \sum_i g_i\, (x_i - \mu) \cdot \left(-\frac{1}{2} s^3\right)
# = -\frac{1}{2} s^2 \sum_i g_i \hat x{}_i$$
#
# in v, and v has the slope $\frac{2}{M} (x_j - \mu) = \frac{2}{M s} \hat x{}_j$ in $x_j$. Together:
#
# $$-\frac{1}{2} s^2 \sum_i g_i \hat x{}_i \cdot \frac{2}{M s} \hat x{}_j
# = -s\, \hat x{}_j\; \mathrm{mean}(g\, \hat x)$$
#
# Is there a fourth route, from $x_j$ to the mean, and from there into the variance? There is, and it carries nothing: v
# has the slope $-\frac{2}{M} \sum_i (x_i - \mu)$ in $\mu$, and deviations from a mean sum to 0.
#
# The sum of the three is the gradient of $x_j$, for which we write $dx_j$:
#
# $$dx_j = s \left( g_j - \mathrm{mean}(g) - \hat x{}_j\; \mathrm{mean}(g\, \hat x) \right)$$
#
# **Predict.** Take a pencil: the three routes for the four values above, four numbers each, and their sum. Then run the
# cell. It does not use the formulas: the engine computes the gradient with routes cut out of its graph by `detach()`,
# and what a cut takes away is what the route brings.

# %%
def normalise(x, eps, cut=""):
    """xhat of a Tensor (M,); nothing flows back along the routes that `cut` names."""
    mean = x.mean()
    var = ((x - mean) * (x - mean)).mean()
    mean = mean.detach() if "mean" in cut else mean
    var = var.detach() if "variance" in cut else var
    return (x - mean) / tr.sqrt(var + eps)


def gradient(x, g, eps, cut=""):
    t = tr.Tensor(x, requires_grad=True)
    normalise(t, eps, cut).backward(g)
    return t.grad.numpy()


def three_routes(x, g, eps):
    """What comes directly, through the mean, through the variance: three arrays (M,)."""
    direct = gradient(x, g, eps, "mean, variance")
    through_mean = gradient(x, g, eps, "variance") - direct
    through_variance = gradient(x, g, eps, "mean") - direct
    return direct, through_mean, through_variance


NAMES = ("direct", "through the mean", "through the variance")
x4, g4 = np.array([1.0, 3, 1, 3]), np.array([5.0, 1, -1, -1])
routes = three_routes(x4, g4, eps=0.0)
for name, route in zip(NAMES, routes, strict=True):
    print(f"{name:21}", *(f"{value + 0.0:5.1f}" for value in route))
print("sum of the three     ", *(f"{value:5.1f}" for value in sum(routes)))
print("the whole gradient   ", *(f"{value:5.1f}" for value in gradient(x4, g4, eps=0.0)))

# %% [markdown]
# The same in the stepper. Press `v` for the ops, then `n` until the last step, x. It has four consumers, not three: the
# square in the variance is a product of $x - \mu$ with itself, and each factor brings half of that route. On the way
# you see the fourth route end: at the two `sub` of the
# variance, what goes on to the mean is 0.

# %%
tr.step(batchnorm())

# %% [markdown]
# What do the two routes do that are not the direct one? The left figure stacks the arrows for each of the four values:
# each starts where the one before ends, and the sum is dx. The right one shows the same three arrows in the plane
# of two directions, $1 = (1, 1, 1, 1)$ and $\hat x$.

# %% mystnb={"image": {"alt": "Three arrows for each of four values, ending at 3, 1, -3, -1; in the plane, at 0."}}
def arrows(axes, points, width):
    for color, start, end in zip(COLORS, points, points[1:], strict=False):
        if not np.allclose(start, end):
            style = {"color": color, "linewidth": width, "shrinkA": 0, "shrinkB": 0}
            axes.annotate("", end, start,
                          arrowprops={"arrowstyle": "-|>", "mutation_scale": 15, **style})


figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 4), layout="constrained")
totals = np.cumsum([np.zeros(4), *routes], axis=0)
for j in range(4):
    places = j + np.array([0, 0, 0.17, 0.34])
    arrows(left, list(zip(places, totals[:, j], strict=True)), 2.5)
    left.plot(j + 0.34, totals[-1, j], "o", color="black", markersize=8, zorder=3)
left.axhline(0, color="grey", linewidth=0.8)
left.set(xticks=range(4), xticklabels=["$x_1$", "$x_2$", "$x_3$", "$x_4$"],
         xlim=(-0.4, 3.7), ylim=(-3.6, 5.4), ylabel="gradient",
         title="Three arrows, whose sum is the gradient")
unit = np.stack([np.ones(4), np.array([-1.0, 1, -1, 1])]) / 2  # 1 and xhat, of length 1
arrows(right, (totals @ unit.T).tolist(), 3)
right.plot(0, 0, "o", color="black", markersize=8, zorder=3)
right.axhline(0, color="grey", linewidth=0.8)
right.axvline(0, color="grey", linewidth=0.8)
right.set(xlim=(-1, 3), ylim=(-3, 1), aspect="equal", xlabel="along 1",
          ylabel="along xhat", title="What is left in these two directions?")
for color, name in zip(COLORS, NAMES, strict=False):
    left.plot([], [], color=color, linewidth=2.5, label=name)
left.plot([], [], "o", color="black", label="sum")
left.legend()
plt.close(figure)
figure

# %% [markdown]
# The route through the mean takes away the part along 1, the route through the variance the part along $\hat x$. What
# is orthogonal to both stays as it was. **The backward pass of batch norm is a projection**, times s.
#
# ## Orthogonal, up to eps
#
# This is the answer to the question at the beginning. Adding a constant to a channel changes nothing, since the mean
# takes it out again. So the loss has no slope in the direction 1. Multiplying by 10 changes nothing, since the
# deviation takes it out again; nor does stretching around the mean, so there is no slope in the direction of $x - \mu$,
# which is that of $\hat x$.
#
# Is that exact? The first is. As $\sum_i \hat x{}_i = 0$,
#
# $$\langle dx, 1 \rangle = s \left( \sum_i g_i - M\, \mathrm{mean}(g)
# - \mathrm{mean}(g\, \hat x) \sum_i \hat x{}_i \right) = 0$$
#
# The second is not, because of $\varepsilon$. As $\sum_i \hat x{}_i^2 = M \frac{v}{v + \varepsilon}$, which is a little
# less than M,
#
# $$\langle dx, \hat x \rangle = s \left( \langle g, \hat x \rangle - \mathrm{mean}(g\, \hat x) \cdot
# M \frac{v}{v + \varepsilon} \right) = s\, \langle g, \hat x \rangle\, \frac{\varepsilon}{v + \varepsilon}$$
#
# **Predict.** With v = 1, which share of the part along $\hat x$ is left at $\varepsilon = 10^{-5}$? And in a channel
# whose values hardly differ, v = 1e-5?

# %%
x64 = rng.standard_normal(64)
x64 = (x64 - x64.mean()) / x64.std()  # v = 1
g64 = rng.standard_normal(64)


def shares(x, g, eps):
    """What is left of the direct route's part along xhat, and along 1."""
    dx, direct = gradient(x, g, eps), gradient(x, g, eps, "mean, variance")
    xhat = x - x.mean()
    return np.sum(dx * xhat) / np.sum(direct * xhat), abs(np.sum(dx) / np.sum(direct))


scales = 10.0 ** np.arange(-8, 3)
left_over, along_one = np.array([shares(x64, g64, eps) for eps in scales]).T
theory = scales / (1 + scales)
print("eps      along xhat: measured   eps / (v + eps)   along 1")
for row in zip(scales, left_over, theory, along_one, strict=True):
    print("{:.0e}         {:.6e}      {:.6e}     {:.0e}".format(*row))
print(f"v = 1e-5, eps = 1e-5: {shares(x64 * 1e-5**0.5, g64, 1e-5)[0]:.3f}")

# %% mystnb={"image": {"alt": "The share along xhat lies on the line eps / (v + eps); along 1 only rounding is left."}}
figure, axes = plt.subplots(figsize=(7.5, 3.6), layout="constrained")
axes.loglog(scales, theory, color=COLORS[0], label="eps / (v + eps)")
axes.loglog(scales, left_over, MARKERS[0], color=COLORS[0], label="measured along xhat")
axes.loglog(scales, np.maximum(along_one, 1e-18), MARKERS[1], color=COLORS[1],
            label="measured along 1")
axes.axvline(1e-5, color="grey", linestyle=":", label="the usual eps, 1e-5")
axes.set(xlabel="eps, for v = 1", ylabel="share that is left", ylim=(3e-19, 30),
         title="How much of the two directions is left?")
axes.grid(alpha=0.3)
axes.legend(loc="center right")
plt.close(figure)
figure

# %% [markdown]
# At v = 1 a hundred-thousandth is left. Where v is as small as eps, half is left: a nearly constant channel is not
# normalised, and can feel its scale. (Lesson 2 has the other side of the coin: with g = 1 everywhere nothing is left at
# all, and a check with such a g sees nothing.)
#
# ## gamma, beta and images
#
# $y = \gamma \hat x + \beta$ is a product and a sum of arrays of different shapes. By lesson 2, what was broadcast is
# summed:
#
# $$d\beta = \sum_i g_i \qquad d\gamma = \sum_i g_i \hat x{}_i$$
#
# and what arrives at $\hat x$ is $\gamma g$. Put it in the place of g in the rule above. In images (N, C, H, W) all of
# this happens in each of the C channels, over the axes N, H and W.
#
# ## Exercise: batch norm backward

# %% nbgrader={"grade": false, "grade_id": "batch_norm_backward", "locked": false, "schema_version": 3, "solution": true, "task": false}
def batch_norm_backward(g, x, gamma, eps):
    """The gradients (dx, dgamma, dbeta) of y = gamma * xhat + beta in training mode.

    g, x: (N, C, H, W), neither is changed; gamma: (C,); eps: added to the variance,
    below the root.
    Returns dx (N, C, H, W), dgamma (C,), dbeta (C,).
    """
    ### BEGIN SOLUTION
    channel = (0, 2, 3)
    mean, var = x.mean(channel, keepdims=True), x.var(channel, keepdims=True)
    istd = 1 / np.sqrt(var + eps)
    xhat = (x - mean) * istd
    dgamma, dbeta = (g * xhat).sum(channel), g.sum(channel)
    gx = gamma[:, None, None] * g
    mean_g = gx.mean(channel, keepdims=True)
    mean_gxhat = (gx * xhat).mean(channel, keepdims=True)
    return istd * (gx - mean_g - xhat * mean_gxhat), dgamma, dbeta
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "check-batch_norm_backward", "locked": true, "points": 6, "schema_version": 3, "solution": false, "task": false}
from tinyres.teach.checks import lesson_05

lesson_05.batch_norm_backward(batch_norm_backward)

# %% [markdown]
# Yours beside the library's, on a batch of images. The library needs two passes over the memory, one for the two sums
# of a channel and one for dx (`tinyres/ops/norm.py`); the rule is the same.

# %%
images, g_images = rng.standard_normal((16, 3, 8, 8)), rng.standard_normal((16, 3, 8, 8))
x = tr.Tensor(images, requires_grad=True)
gamma, beta = (tr.Tensor(rng.standard_normal(3), requires_grad=True) for _ in range(2))
tr.batch_norm(x, weight=gamma, bias=beta, training=True).backward(g_images)
yours = batch_norm_backward(g_images, images, gamma.data, 1e-5)
for name, mine, t in zip(("dx", "dgamma", "dbeta"), yours, (x, gamma, beta), strict=True):
    print(f"{name:6} largest difference {np.max(np.abs(mine - t.grad.numpy())):.1e}")

# %% [markdown]
# ## Two modes
#
# In training an image's output depends on the other images of its batch. When the network is used, that would be
# absurd: whether a picture shows a cat must not depend on the pictures next to it. So there are two modes. In **eval
# mode** the layer takes statistics that it gathered during training, the *running* ones.
#
# **Predict.** One image, in two batches, in both modes: by how much does its output differ between the batches?

# %%
layer = nn.BatchNorm2d(3)
image = rng.standard_normal((1, 3, 8, 8))
crowds = [spread * rng.standard_normal((15, 3, 8, 8)) for spread in (1, 3)]
batches = [tr.tensor(np.concatenate([image, crowd]), dtype="float32") for crowd in crowds]
for mode in (layer.train, layer.eval):
    mode()
    one, other = (layer(batch).numpy()[0] for batch in batches)
    print(f"{mode.__name__:5} mode: it differs by up to {np.max(np.abs(one - other)):.3f};",
          "running variance", layer.running_var.numpy().round(3))

# %% [markdown]
# Training mode did something else: it moved the running statistics, towards both batches. Eval mode left them alone.
#
# In eval mode mean and variance are constants, so two of the routes are gone. What remains is a factor and a shift for
# each channel:
#
# $$y = \gamma s\, x + (\beta - \gamma s\, \mu) \qquad dx = \gamma s\, g$$
#
# This is why a batch norm can be folded into the convolution before it once training is over, and why the rule with the
# direct route alone is right in eval mode and wrong in training. And one value a channel has no spread: a batch of one
# image of 1x1 cannot be normalised. The layer says so.

# %%
layer.train()
try:
    layer(tr.Tensor(np.ones((1, 3, 1, 1), "float32")))
except ValueError as error:
    print(textwrap.fill(str(error), 85))

# %% [markdown]
# ## Running statistics: momentum
#
# After each batch of training
#
# $$\text{running} \leftarrow (1 - m) \cdot \text{running} + m \cdot \text{batch}$$
#
# They start at mean 0 and variance 1. In PyTorch and here m, the **momentum**, is 0.1: the share of the *new* batch. In
# Keras it is 0.99: the share of the *old* value. The same word, the opposite meaning; whoever carries a 0.99 over
# forgets almost everything with every batch.
#
# What is a good share? From a start that is wrong by 1, after t batches $(1 - m)^t$ is left: a small m is slow. And the
# noise of the batches' means, which have the deviation $\sigma / \sqrt{M}$, comes through with the factor
# $\sqrt{m / (2 - m)}$: the k-th last batch has the share $m (1 - m)^k$, and the squares of these shares add up to
# $m^2 / (1 - (1 - m)^2) = m / (2 - m)$. A large m is noisy.
#
# **Predict.** m = 0.1, true mean 5, start 0: after how many batches is the running mean within 1 %?

# %%
def running_means(batches, m):
    """The running mean after each of the batches (M,), by the library."""
    mean, var, path = np.zeros(1), np.ones(1), []
    for batch in batches:
        tr.batch_norm(tr.Tensor(batch[:, None]), mean, var, training=True, momentum=m)
        path.append(mean[0])
    return np.array(path)


SHARES, M = (0.01, 0.1, 0.9), 32
quiet = np.tile(np.linspace(3, 7, M), (500, 1))  # the same batch again and again
noisy = rng.normal(5, 2, (4000, M))
print("share m   batches to 1 %: measured, theory    noise: measured, theory")
for m in SHARES:
    error = np.abs(running_means(quiet, m) / 5 - 1)
    first = 1 + np.argmax(error <= 0.01 + 1e-9)  # m = 0.9 gives 0.01 up to rounding
    by_theory = np.ceil(np.log(0.01) / np.log(1 - m)), 2 / M**0.5 * (m / (2 - m)) ** 0.5
    spread = running_means(noisy, m)[1000:].std()
    print(f"{m:7} {first:26} {by_theory[0]:7.0f} {spread:18.3f} {by_theory[1]:7.3f}")

# %% mystnb={"image": {"alt": "Running mean: m = 0.9 jumps and stays noisy, 0.1 arrives, 0.01 is slow."}}
figure, axes = plt.subplots(figsize=(8.5, 3.6), layout="constrained")
for number, m in enumerate(SHARES):
    axes.plot(range(1, 121), running_means(noisy[:120], m), color=COLORS[number],
              marker=MARKERS[number], markevery=10, label=f"m = {m}")
axes.axhline(5, color="black", linestyle="--", linewidth=1, label="true mean")
axes.set(xlabel="batches", ylabel="running mean",
         title="Which share should the new batch have?")
axes.grid(alpha=0.3)
axes.legend()
plt.close(figure)
figure

# %% [markdown]
# ## Running statistics: the right variance
#
# A batch's variance is taken around the batch's own mean, which lies closer to its values than the true mean does. So
# it comes out too small on average. By how much? Let the values be independent, $m_0$ their true mean and $\sigma^2$
# their true variance. Then, as $\sum_i (x_i - m_0) = M (\mu - m_0)$,
#
# $$v = \frac{1}{M} \sum_i (x_i - \mu)^2 = \frac{1}{M} \sum_i (x_i - m_0)^2 - (\mu - m_0)^2$$
#
# The first term is $\sigma^2$ on average. The second is the variance of a mean of M values, $\sigma^2 / M$:
#
# $$E[v] = \sigma^2 - \frac{\sigma^2}{M} = \frac{M - 1}{M}\, \sigma^2$$
#
# To estimate $\sigma^2$, multiply by $\frac{M}{M - 1}$. This is **Bessel's correction**. Training normalises by v as it
# is: then the batch has variance 1, but for eps. The *running* variance is an estimate for images to come, and gets the
# correction.
#
# **Predict** the average of v for batches of M = 2 with $\sigma = 1$.

# %%
print("   M    average of v   (M - 1) / M   corrected")
for M in (2, 4, 8, 32, 1024):
    v = rng.standard_normal((1_000_000 // M, M)).var(axis=1)
    print(f"{M:4} {v.mean():15.4f} {(M - 1) / M:13.4f} {v.mean() * M / (M - 1):11.4f}")

# %% [markdown]
# M counts all values of a channel, not the images: N H W. (Neighbouring pixels are alike, not independent. The mean of
# M of them scatters by more than $\sigma^2 / M$, and the correction is then too small.) For ResNet-20 with 128 images
# of 32x32 it is 131,072 in the first stage and 8,192 in the last, and the correction hardly matters. For a few images
# of 1x1, behind the last pooling, it does.
#
# ## Exercise: running statistics

# %% nbgrader={"grade": false, "grade_id": "running_update", "locked": false, "schema_version": 3, "solution": true, "task": false}
def running_update(running_mean, running_var, x, momentum):
    """The running statistics after one more batch of training.

    running_mean, running_var: (C,), not changed; x: (N, C, H, W); momentum: the share
    of the new batch, 0 to 1. Returns the new running mean (C,) and the new running
    variance (C,), an unbiased estimate.
    """
    ### BEGIN SOLUTION
    channel = (0, 2, 3)
    count = x.size // x.shape[1]
    mean, var = x.mean(channel), x.var(channel) * count / (count - 1)
    keep = 1 - momentum
    return keep * running_mean + momentum * mean, keep * running_var + momentum * var
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "check-running_update", "locked": true, "points": 4, "schema_version": 3, "solution": false, "task": false}
from tinyres.teach.checks import lesson_05

lesson_05.running_update(running_update)

# %% [markdown]
# ## The paper says, we see
#
# **Ioffe and Szegedy (2015)** give the backward pass in section 3. Their slope in $\mu$ has a second term, the fourth
# route from above: $\frac{\partial L}{\partial v} \cdot \frac{1}{M} \sum_i -2 (x_i - \mu)$. **We see** that it is
# rounding.
#
# They say (section 3.3) that a layer's scale does not matter, $\mathrm{BN}((a W) u) = \mathrm{BN}(W u)$, and so
# learning is safe from weights that grow. **We see** it hold for large a, and fail for small ones:

# %%
def forward(x, eps):
    return (x - x.mean()) / np.sqrt(x.var() + eps)


print(f"the term that is always 0: {np.mean(-2 * (x64 + 3 - np.mean(x64 + 3))):.0e}")
print("a        largest |BN(a x) - BN(x)|    by theory")
for a in (100.0, 1.0, 0.1, 0.01, 0.001):
    change = np.max(np.abs(forward(a * x64, 1e-5) - forward(x64, 1e-5)))
    theory = np.max(np.abs(x64)) * abs((1 + 1e-5 / a**2) ** -0.5 - (1 + 1e-5) ** -0.5)
    print(f"{a:<8} {change:25.2e}    {theory:9.2e}")

# %% [markdown]
# **Why it differs.** The statement is about $\varepsilon = 0$. With it, $\hat x$ has the factor $(1 + \varepsilon /
# (a^2 v))^{-1/2}$, which is 1 as long as $a^2 v$ is much larger than eps. A channel whose weights have decayed to a
# thousandth is one whose scale matters again.
#
# For inference the paper averages the statistics of many batches once training is over, the variance corrected by
# M / (M - 1) (algorithm 2). PyTorch and this library keep a moving average while they train. The paper's belongs to the
# final weights exactly. The moving one still holds a little of the weights of the last 1 / m batches or so; it costs
# nothing extra.
#
# ## Check the claim
#
# The source article's blocks write `out += identity` and use in-place ReLUs. **That is safe only because batch norm's
# backward pass does not need its output.** Look at the rule: it needs x, $\mu$ and s, and $\hat x$ can be made from
# these. So the output may be overwritten. Where a ReLU comes before the addition (one of the orders that He et al. 2016
# tried), the ReLU's backward needs its own output, to see where it was positive:

# %%
images = tr.tensor(rng.standard_normal((4, 3, 5, 5)), dtype="float32", requires_grad=True)
norm = nn.BatchNorm2d(3)

out = norm(images)  # BN, then += identity, then ReLU in place: the usual order
out += images
tr.relu_(out).sum().backward()
print("BN, +=, ReLU in place: fine")

out = tr.relu(norm(images))  # ReLU before the addition
out += images
try:
    out.sum().backward()
except RuntimeError as error:
    print(textwrap.fill(f"BN, ReLU, +=: {error}", 85))

# %% [markdown]
# An engine that does not watch its arrays gives a wrong gradient here, without a word. This one keeps a version number
# of each array that it has to keep.
#
# ## Three questions
#
# **1.** A convolution with a bias is followed by a batch norm in training mode. What is the gradient of that bias?
#
# <details><summary>Answer</summary>
#
# It is 0. The bias adds the same number to every value of a channel, and its gradient is the sum of dx over the
# channel: $\langle dx, 1 \rangle = 0$, for every eps. So convolutions before a batch norm have no bias.
#
# </details>
#
# **2.** M = 2. The channel's values are a and b, with a > b and eps = 0. What is the gradient of x?
#
# <details><summary>Answer</summary>
#
# It is 0: the two values always become 1 and -1, whatever they are. In the words of this lesson: two dimensions, and
# the gradient is orthogonal to two directions. So no layer before a batch norm with M = 2 learns anything, a gradient
# check there compares 0 with 0, and the one of this lesson takes M of 8 and more.
#
# </details>
#
# **3.** A network reaches 95 % in training mode on its own training images, and 10 % on the same images in eval mode.
# What would you look at first?
#
# <details><summary>Answer</summary>
#
# The running statistics. With a momentum of 0.99 read as the share of the new batch they are those of the last batch;
# with 0.001, or after a few batches only, they are still close to 0 and 1, where they started. The weights are fine:
# the accuracy in training mode says so.
#
# </details>
#
# ## For the teacher
#
# **Time.** 25 minutes to the figure of the arrows, of which 10 are pencil work on (1, 3, 1, 3); 10 for the identity; 15
# for the first exercise; 15 for the two modes; 10 for the second exercise. If time is short, leave out the figure with
# eps and the paper.
#
# **Common wrong answers** (all in `tutorials/wrong_answers/lesson_05.py`, each with the message that it gets): mean and
# variance as constants; one of the two routes missing; sums where means belong ("shared, so it is a sum": it is, but
# each value moved the mean by 1/M only); gamma forgotten on the way to x; means over axis 0 only, which is right for
# (N, C) and wrong for images; x for xhat. In the second exercise: momentum the other way round, the biased variance,
# Bessel's correction for N images instead of M values, and the correction applied to the old value again.
#
# **To discuss.** Layer norm and group norm are the same rule over other axes: which lines of the exercise change, and
# what happens to the two modes? A good question for the fast: the gradient of the weights before a batch norm is
# orthogonal to the weights (question 1, for the scale). What does gradient descent then do to their length?
# (Without weight decay it can only grow, by Pythagoras.)
