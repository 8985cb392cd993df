# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# tinyres:
#   lesson: 7
#   title: The residual block and the number a
#   minutes: 90            # of a learner
#   seconds: 60            # CPU time of the script on 2 cores; twice that fails
#   needs: [1]             # lessons before it
#   objectives:
#     - write the backward pass of y = x + a F(x), for x and for a, given the branch's own
#     - predict by how much activations and gradients grow over L blocks, and choose a for a depth
#     - tell which route through a block a scale must not touch, by measuring
#     - say which reading of a block is residual, and why a = 0 may be a good start
# ---

# %% [markdown]
# # The residual block and the number a
#
# A residual block is one line: $y = x + a\,F(x)$. Its backward pass is one line, too. In between stands a number, $a$,
# that many leave out. This lesson shows what it decides.
#
# **Afterwards you can**
#
# - write the backward pass of $y = x + a\,F(x)$, for $x$ and for $a$, given that of the branch $F$;
# - predict by how much activations and gradients grow over $L$ blocks, and choose $a$ for a depth;
# - tell by measuring which route through a block a scale must not touch;
# - say which reading of a block is residual, and why $a = 0$ may be a good start.
#
# **You need** [lesson 1](01_forks_and_order.py): a tensor used twice gets the sum of two contributions. **Time**: 90
# minutes.
#
# ## Two questions before you read
#
# Write your answers down. The lesson's own runs will give theirs.
#
# 1. Each of 50 blocks adds to its input a vector of the same length, in a direction that has nothing to do with it.
#    By how much longer is the last vector than the first: about 7 times, 50 times, or more than a million times?
# 2. You may halve one of the two routes in every block, the shortcut or the branch, and the other keeps its size. Does
#    it matter which?

# %%
import math
from functools import partial

import matplotlib.pyplot as plt
import numpy as np

import tinyres as tr
from tinyres import data, models, nn, optim
from tinyres.analysis import published
from tinyres.analysis.activation_growth import activation_growth
from tinyres.analysis.palette import COLORS, MARKERS
from tinyres.analysis.shattering import over_seeds
from tinyres.models.article_blocks import (
    FixedScale,
    FourStepBlock,
    ParallelBlock,
    Plan,
    ResidualStep,
    SeriesBlock,
    he_init_fan_in_,
)
from tinyres.stepper.example import VALUES

tr.use_kernels("reference")
print("kernel set: reference, plain NumPy")

digits = data.digits("train")
images, labels = digits.batch(len(digits))  # (1437, 1, 8, 8) and (1437,)
L = 50  # blocks, wherever nothing else is said


def panels(columns=1, height=3.6):
    """A figure of so many panels. Closed, as the cell that ends with it shows it."""
    size = 4.6 * columns + 1.2, height
    figure, axes = plt.subplots(1, columns, figsize=size, layout="constrained")
    plt.close(figure)
    return figure, axes


def band(ax, x, curves, i, middle, **style):
    """The middle of curves, (curves, points), in a band from the lowest to the highest."""
    low, high, color = curves.min(axis=0), curves.max(axis=0), COLORS[i]
    ax.fill_between(x, low, high, color=color, alpha=0.18, linewidth=0)
    ax.plot(x, middle(curves), marker=MARKERS[i], color=color, markersize=4.5, **style)
    ax.grid(alpha=0.3)


def typical(values):
    """The geometric mean over the first axis: the mean of what multiplies up."""
    return np.exp(np.log(values).mean(axis=0))


# %% [markdown]
# ## One block, forwards and backwards
#
# Take any branch $F$ whose value has the shape of $x$, and a number $a$:
#
# $$y = x + a\,F(x)$$
#
# The loss $\mathcal{L}$ depends on $x$ through $y$ only. Let $g$ be the gradient at $y$. Two things stand in front of
# a plus, so both get $g$ as it is: the $x$ on the left, and the product $a\,F(x)$.
#
# - **Along the shortcut** $x$ gets $g$. Nothing is calculated.
# - **Through the branch** the product hands on its other factor times $g$. To $F(x)$ that is $a\,g$; from there the
#   branch's own backward pass takes it to $x$: $J^\top (a\,g) = a\,J^\top g$, where $J$ is the matrix of the
#   derivatives of $F$ at $x$.
#
# $x$ was used twice, so it gets the sum. The number $a$ was used for every element of $F(x)$, so it gets the sum over
# all of them:
#
# $$g_x = g + a\,J^\top g \qquad\qquad g_a = \sum_i g_i\,F(x)_i = \langle g, F(x)\rangle$$
#
# Two remarks. First, $a$ scales everything that comes out of the branch's backward pass, the gradients of the branch's
# weights as well: for the same $g$, they are those of $a = 1$, times $a$. Second, no $a$ is in front of the first $g$.
# However deep the network, whatever its weights, one summand of the gradient at its input is $g$ itself.
#
# ### The block on paper
#
# Lesson 1 and the stepper share a block of two by two numbers, with $F(x) = W_2\,\mathrm{relu}(W_1 x)$ and $V$ the
# gradient at $y$:
#
# $$x = \begin{pmatrix} -2 & 1 \\ -1 & 2 \end{pmatrix} \quad
# W_1 = \begin{pmatrix} -1 & 1 \\ -1 & -1 \end{pmatrix} \quad
# W_2 = \begin{pmatrix} 1 & 1 \\ -1 & \frac{1}{2} \end{pmatrix} \quad
# V = \begin{pmatrix} -1 & 2 \\ -2 & 3 \end{pmatrix}$$
#
# There, with $a = 1$, the branch has the value $F(x)$ and brings $J^\top V$ to $x$:
#
# $$F(x) = \begin{pmatrix} 4 & 1 \\ \frac{1}{2} & -1 \end{pmatrix} \qquad
# J^\top V = \begin{pmatrix} 1 & 1 \\ 3 & -1 \end{pmatrix}$$
#
# **Predict.** Now $a = \frac{1}{2}$. Write down $y$, $g_x$ and $g_a$. In one element the branch no longer cancels
# what the shortcut brings: in which?

# %%
x = tr.tensor(VALUES["x"], "float64", requires_grad=True)
W1 = tr.tensor(VALUES["W1"], "float64", requires_grad=True)
W2 = tr.tensor(VALUES["W2"], "float64", requires_grad=True)
V = tr.tensor(VALUES["V"], "float64")
a = tr.tensor(0.5, "float64", requires_grad=True)


def block_on_paper():
    branch = W2 @ tr.relu(W1 @ x)
    return (V * (x + a * branch)).sum()


block_on_paper().backward()
print("gradient at x\n", x.grad.numpy(), "\ngradient at a", a.grad.numpy())

# %% [markdown]
# With $a = 1$ the first element was $-1 + 1 = 0$. It is $-1 + \frac{1}{2} = -\frac{1}{2}$ now. And
# $g_a = -1\cdot 4 + 2\cdot 1 - 2\cdot\frac{1}{2} + 3\cdot(-1) = -6$: there is no $a$ in it, as $y$ is linear in $a$.
#
# **Step through it.** Press `n` for the next step, `f` for the fork, `p` to be asked before you are shown. At the fork
# look at the two shares. The shortcut's is above 1 here: the branch takes something away.

# %%
tr.step(block_on_paper, "the block on paper, with a = 1/2")

# %% [markdown]
# ## Exercise 1: the backward pass of a block
#
# `vjp` is the branch's backward pass: it takes a gradient at $F(x)$ and gives $J^\top$ times it. Write what the block
# adds to that. Leave the arrays that you are given as they are.

# %% nbgrader={"grade": false, "grade_id": "residual_backward", "locked": false, "schema_version": 3, "solution": true, "task": false}
def residual_backward(g, a, f, vjp):
    """The backward pass of y = x + a F(x).

    g: the gradient at y, of x's shape, say (N, C); a: a number; f: F(x), (N, C);
    vjp: the branch's backward pass, (N, C) -> (N, C), u -> J^T u. It walks the whole
    branch, so call it once.
    Returns dx, (N, C), and da, a number.
    """
    ### BEGIN SOLUTION
    dx = g + a * vjp(g)
    da = np.sum(g * f)
    return dx, da
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "check-residual_backward", "locked": true, "points": 4, "schema_version": 3, "solution": false, "task": false}
from tinyres.teach.checks import lesson_07

lesson_07.residual_backward(residual_backward)

# %% [markdown]
# One function is enough for a network of any depth. Here are 50 blocks $x + a\,W\,\mathrm{relu}(x)$: the forward pass
# keeps what the backward pass needs, and your function takes the gradient back, block by block. The engine goes
# through the same blocks for comparison.

# %%
tr.manual_seed(0)
deep = models.residual_mlp(depth=L, width=100, a=0.1).double()
start = tr.tensor(np.random.default_rng(0).standard_normal((32, 100)), requires_grad=True)
end = deep.layer1(start)
upstream = np.random.default_rng(1).standard_normal(end.shape)
by_engine = tr.grad(end, start, upstream)[0].numpy()

kept, h = [], start.numpy()
for block in deep.layer1:
    W, f = block.linear.weight.numpy(), block.linear(tr.relu(tr.Tensor(h))).numpy()
    kept.append((f, lambda u, W=W, active=h > 0: active * (u @ W)))
    h = h + block.a * f

g = upstream
for f, vjp in reversed(kept):
    g, _ = residual_backward(g, 0.1, f, vjp)
apart = np.abs(g - by_engine).max()
print(f"largest difference from the engine after {L} blocks: {apart:.1e}")

# %% [markdown]
# ## How much does a block add?
#
# The blocks are $y = x + a\,W\,\mathrm{relu}(x)$. $x$ has $C$ elements, and $W$ comes from He's initialisation: each
# of its $C^2$ numbers is drawn by itself, with mean 0 and variance $2/C$. Ask how long $y$ is, on average over $W$:
#
# $${\lVert y\rVert}^2 = {\lVert x\rVert}^2 + 2a\,\langle x, F\rangle + a^2\,{\lVert F\rVert}^2$$
#
# - **The middle term.** $\langle x, F\rangle$ is linear in $W$, and each number of $W$ has mean 0. So its mean is 0:
#   on average the branch stands at right angles to the shortcut.
# - **The last term.** One element of $F$ is $\sum_j W_{ij}\,\mathrm{relu}(x_j)$, a sum of independent numbers with mean
#   0, whose mean squares add up to $\frac{2}{C}\,{\lVert\mathrm{relu}(x)\rVert}^2$. There are $C$ such elements:
#   $\mathbb{E}\,{\lVert F\rVert}^2 = 2\,{\lVert\mathrm{relu}(x)\rVert}^2$.
#
# Let $s = \mathbb{E}\,{\lVert F\rVert}^2 / {\lVert x\rVert}^2$ be what the branch makes of the square of a length. Then
#
# $$\mathbb{E}\,{\lVert y\rVert}^2 = (1 + a^2 s)\,{\lVert x\rVert}^2, \qquad
# s = 2\,\frac{{\lVert\mathrm{relu}(x)\rVert}^2}{{\lVert x\rVert}^2}$$
#
# This is exact for every $x$. If half of ${\lVert x\rVert}^2$ is in elements above 0, ReLU keeps that half, and $s =
# 1$. That is what He's factor of 2 is for. Over $L$ blocks the factors multiply, and lengths, which are roots of
# squares, grow by
#
# $$(1 + a^2 s)^{L/2}$$
#
# **Backwards** the same happens. $J^\top g = D\,W^\top g$, where $D$ has a 1 for each positive element of $x$ and
# else 0. $W^\top g$ has the mean square $2\,{\lVert g\rVert}^2$, and $D$ keeps half of it. So gradients grow by the
# same factor, on their way from the last block to the first. (Here a little is left out: $D$ in later blocks depends on
# this block's $W$. It matters less the wider the network is.)
#
# First the claim about one block. Three vectors $x$ of 20 elements, each with 5,000 random $W$:

# %%
rng = np.random.default_rng(0)
for number in range(3):
    one = rng.standard_normal(20)
    many = rng.standard_normal((5000, 20, 20)) * math.sqrt(2 / 20)
    made = one + many @ np.maximum(one, 0)  # a = 1
    s = 2 * np.square(np.maximum(one, 0)).sum() / np.square(one).sum()
    mean = np.square(made).sum(axis=1).mean() / np.square(one).sum()
    print(f"x number {number + 1}: 1 + s = {1 + s:.3f}; mean of |y|^2 / |x|^2 {mean:.3f}")

# %% [markdown]
# **Predict.** For $L = 50$ and $s = 1$: what is the growth for $a = 1$? For $a = 0.1$? For $a = 1/\sqrt{50}$?

# %%
def lengths(model, batch=32):
    """One pass, forwards and backwards: the norms of what leaves the stem and each block,
    and of the gradients there; (2, blocks + 1)."""
    states = [model.stem(tr.Tensor(images[:batch].reshape(batch, -1)))]
    for block in model.layer1:
        states.append(block(states[-1]))
    for state in states:
        state.retain_grad()
    g = np.random.default_rng(0).standard_normal(states[-1].shape)
    states[-1].backward(g.astype("float32"))
    return np.array([[norm(h) for h in states], [norm(h.grad) for h in states]])


def norm(tensor):
    return np.linalg.norm(tensor.data.astype("float64"))


def over(seeds, make):
    """lengths() of make()'s networks, one a seed: (seeds, 2, blocks + 1)."""
    found = []
    for seed in range(seeds):
        tr.manual_seed(seed)
        found.append(lengths(make()))
    return np.array(found)


SCALES = {"a = 1": 1.0, "a = 1/sqrt(50)": 1 / math.sqrt(50), "a = 0.1": 0.1}
measured = {}
for name, scale in SCALES.items():
    found = over(20, partial(models.residual_mlp, depth=L, width=100, a=scale))
    measured[name] = found[:, 0] / found[:, 0, :1], found[:, 1] / found[:, 1, -1:]

print("50 blocks of width 100, 20 seeds: times longer at the end than at the start\n")
print(f"{'':14} {'theory':>8}   {'activations':30}  gradients, last to first")
for name, scale in SCALES.items():
    line = f"{name:14} {(1 + scale**2)**(L / 2):8.3g} "
    for values in (measured[name][0][:, -1], measured[name][1][:, 0]):
        spread = f"({values.min():.3g} to {values.max():.3g})"
        line += f"  {typical(values):8.3g} {spread:22}"
    print(line.rstrip())

# %% [markdown]
# That answers the first question. Adding a vector of equal length at right angles makes $\sqrt{2}$ times as long, and
# 50 such steps make $2^{25}$, 34 million: the branch grows along with its input. "7 times", $\sqrt{51}$, is what one
# gets if the branch does *not* grow along, and that is what batch norm inside the branch does.
#
# How does it look along the network?

# %% mystnb={"image": {"alt": "Length against block: a = 1 grows to 3e7, the smaller a stay near 1, both directions"}}
figure, axes = panels(2)
blocks = np.arange(L + 1)
for i, (name, scale) in enumerate(SCALES.items()):
    theory = (1 + scale**2) ** (blocks / 2)
    for ax, values, line in zip(axes, measured[name], (theory, theory[::-1]), strict=True):
        band(ax, blocks, values, i, typical, markevery=5, linestyle="none", label=name)
        ax.plot(blocks, line, "-", color=COLORS[i], linewidth=1, label=None if i else "theory")
axes[0].set(yscale="log", xlabel="after block", title="activations, / the first")
axes[0].set_ylabel("times longer")
axes[1].set(yscale="log", xlabel="after block", title="gradients, / the last")
axes[1].legend(fontsize=8)
figure.suptitle("Do 20 networks follow the theory? (bands: lowest to highest)")
figure

# %% [markdown]
# The two small $a$ lie close together at this scale; the table tells them apart.
#
# ### Why is the typical network below the theory?
#
# For $a = 1$ the typical growth of the activations lies below $2^{25}$. The theory is about the mean of a square, and a
# mean is pulled up by the few networks that grow most. The growth is a product of 50 random factors; its logarithm is
# a sum, and it is the *logarithm* that scatters alike to both sides. The narrower the network, the more each factor
# scatters, so the lower the typical one lies. **Predict**: what changes with a width of 400?

# %%
wide = over(6, partial(models.residual_mlp, depth=L, width=400))
print(f"theory {2**25:.3g}")
growths = {100: measured["a = 1"][0][:, -1], 400: wide[:, 0, -1] / wide[:, 0, 0]}
for width, growth in growths.items():
    square = np.sqrt((growth**2).mean())
    print(f"width {width}: typical {typical(growth):.3g}, root of the mean square {square:.3g}",
          f"highest / lowest {growth.max() / growth.min():.2g}", sep=", ")

tr.manual_seed(0)
instrument = activation_growth(models.residual_mlp(depth=L, width=100), images[:32])
above = measured["a = 1"][0][0, -1]
print(f"seed 0 by the library's instrument: {instrument.growth:.6g}, above: {above:.6g}")

# %% [markdown]
# With a width of 400 the highest and the lowest lie much closer together, and the typical network close to the theory.
# On which side of it, six seeds cannot say.
#
# ### Where does it end?
#
# float32 holds numbers up to about $2^{128}$. **Predict** the block at which a network with $a = 1$ overflows.

# %%
tr.manual_seed(0)
with tr.no_grad(), np.errstate(over="ignore", invalid="ignore"):
    h = tr.randn((32, 100))
    number = 0
    while np.isfinite(h.data).all():
        h, number = models.mlp.MLPBlock(models.mlp.hidden_linear(100))(h), number + 1
print(f"the first overflow is in block {number}; 2^(L/2) reaches 2^128 at L = 256")

# %% [markdown]
# ## The a that a depth allows
#
# Set $s = 1$. As $1 + t \le e^t$, with $t = a^2$,
#
# $$(1 + a^2)^{L/2} \le e^{a^2 L/2}$$
#
# What counts is $a^2 L$. If $a$ is a constant, even a small one, depth wins in the end: $a = 0.1$ is harmless for 50
# blocks, and makes 145 times as much over 1,000. If $a = 1/\sqrt{L}$ then $a^2 L = 1$, and lengths grow by less than
# $\sqrt{e} = 1.65$, **whatever the depth**. Szegedy et al. (2016) found 0.1 to 0.3 by trying: $1/\sqrt{L}$ is 0.1 for
# 100 blocks, and 0.3 for 11.
#
# ## Exercise 2: a scale for a depth
#
# $L$ blocks are to make a vector `growth` times as long, in the theory above. Solve for $a$, exactly.

# %% nbgrader={"grade": false, "grade_id": "scale_for_depth", "locked": false, "schema_version": 3, "solution": true, "task": false}
def scale_for_depth(depth, growth, s=1.0):
    """The a > 0 with which `depth` blocks x + a F(x) make a vector `growth` times longer.

    depth: a positive int; growth: a number above 1, of lengths, not of their squares;
    s: what a branch makes of the square of a length, |F(x)|^2 / |x|^2, on average.
    Returns a number.
    """
    ### BEGIN SOLUTION
    factor = growth ** (2 / depth)  # of the square, in one block
    return math.sqrt((factor - 1) / s)
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "check-scale_for_depth", "locked": true, "points": 3, "schema_version": 3, "solution": false, "task": false}
from tinyres.teach.checks import lesson_07

lesson_07.scale_for_depth(scale_for_depth)

# %% [markdown]
# Does it hold for networks? Yours is drawn for a growth of 2, beside a constant $a$ and $1/\sqrt{L}$. **Predict** the
# shapes of the four lines before you look.

# %% mystnb={"image": {"alt": "Growth against depth: constant a rises without end, a = 1/sqrt(L) and yours stay flat"}}
def growth_of(depth, scale, seeds=3):
    """By how much `depth` blocks of width 100 make a batch longer: one number a seed."""
    found = []
    for seed in range(seeds):
        tr.manual_seed(seed)
        model = models.residual_mlp(depth=depth, width=100, a=scale)
        with tr.no_grad():
            before = model.stem(tr.Tensor(images[:32].reshape(32, -1)))
            found.append(norm(model.layer1(before)) / norm(before))
    return np.array(found)


figure, ax = panels()
depths = np.array([1, 2, 5, 10, 20, 50, 100, 200])
rules = {
    "a = 0.3": lambda depth: 0.3,
    "a = 0.1": lambda depth: 0.1,
    "a = 1/sqrt(L)": lambda depth: depth**-0.5,
    "yours, for a growth of 2": lambda depth: scale_for_depth(depth, 2.0),
}
for i, (name, rule) in enumerate(rules.items()):
    chosen = np.array([float(rule(int(depth))) for depth in depths])
    found = np.array([growth_of(int(depth), float(scale))
                      for depth, scale in zip(depths, chosen, strict=True)])
    band(ax, depths, found.T, i, typical, linestyle="none", label=name)
    ax.plot(depths, (1 + chosen**2) ** (depths / 2), "-", color=COLORS[i], linewidth=1)
ax.set(xscale="log", yscale="log", xlabel="blocks L", ylabel="times longer",
       title="Which a bounds the growth at every depth?\n(3 seeds; lines: theory)")
ax.legend(fontsize=8)
figure

# %% [markdown]
# ## Size is not all: does the gradient shatter?
#
# A gradient is useful if it holds for more than one point. Take a network of one number $x$ and look at $dy/dx$ along
# a line of inputs. If neighbours have similar gradients, the series is smooth; if a gradient says nothing about the
# point next door, the series is noise: it has *shattered* (Balduzzi et al. 2017). The measure is the autocorrelation:
# 1 for equal neighbours, 0 for noise.
#
# **Predict.** Four networks of 50 blocks: plain; residual with $a = 1$; with $a = 1/\sqrt{50}$; with $a = 0.1$. In
# which does the gradient still resemble itself five points further?

# %%
def on_a_line(make, seeds=10):
    """Autocorrelation of dy/dx at 256 points from -2 to 2: (seeds, lags 0 to 20)."""
    ends = np.array([-2.0], "float32"), np.array([2.0], "float32")
    found = over_seeds(make, range(seeds), *ends, points=256)
    return np.array([one.autocorrelation for one in found])


sizes = {"num_classes": 1, "in_features": 1, "depth": L, "width": 100}
shattered = {"plain": on_a_line(partial(models.plain_mlp, **sizes))}
for name, scale in SCALES.items():
    shattered[name] = on_a_line(partial(models.residual_mlp, **sizes, a=scale))
print("autocorrelation at lag 5, mean of 10 seeds, lowest to highest\n")
for name, found in shattered.items():
    lag = found[:, 5]
    print(f"{name:14} {lag.mean():.2f}   {lag.min():.2f} to {lag.max():.2f}")

# %% mystnb={"image": {"alt": "Autocorrelation against lag: high for small a, much lower for plain and for a = 1"}}
figure, ax = panels()
ax.axhspan(-1.96 / 16, 1.96 / 16, color="0.88", label="white noise (95 %)")
for i, (name, found) in enumerate(shattered.items()):
    half = np.quantile(found, (0.25, 0.5, 0.75), axis=0)
    band(ax, range(21), half, i, lambda quantiles: quantiles[1], label=name)
ax.set(xlabel="lag in points (of 256)", ylabel="autocorrelation of dy/dx",
       ylim=(-0.2, 1.02), xticks=range(0, 21, 5),
       title="Do skips alone keep the gradient whole?\n(10 seeds: median, middle half)")
ax.legend(fontsize=8)
figure

# %% [markdown]
# > **The paper says** that skips slow shattering down, and that a small scale on the branch (or batch norm, which works
# > like one) all but ends it. **We see** the second clearly: with a small $a$ the gradient resembles itself far along
# > the line, in every seed. The first is less sure: $a = 1$ lies above plain on average, but the seeds differ so much
# > that single networks lie the other way round; ten do not settle it. **Why**: with $a = 1$ the branches together are
# > $2^{25}$ times as large as the pure shortcut. What arrives at the input is nearly all from long paths, as in a plain
# > network.
#
# ## Which route may be scaled?
#
# Give the shortcut a number, too. He et al. (2016) call it $\lambda$:
#
# $$y = \lambda\,x + a\,F(x) \qquad\qquad g_x = \lambda\,g + a\,J^\top g$$
#
# The pure shortcut route through $L$ blocks now carries $\lambda^L g$. For $\lambda = 0.9$ and 50 blocks that is 0.5 %
# of $g$; for $\lambda = 0.5$ it is $10^{-15}$, less than a float32 can add to 1. And lengths grow by
# $(\lambda^2 + a^2)^{L/2}$, with $s = 1$.
#
# So one can choose $\lambda = \frac{1}{2}$ and $a = \sqrt{3}/2 = 0.87$: on average, squares of lengths neither grow nor
# shrink. **Predict**: is such a network as good as one with $\lambda = 1$ and $a = 1/\sqrt{L}$, whose sizes grow by
# 1.6?

# %%
class TwoScales(nn.Module):
    """lam x + a W relu(x); (N, C) -> (N, C)."""

    def __init__(self, lam, a, width):
        super().__init__()
        self.lam, self.a, self.linear = lam, a, models.mlp.hidden_linear(width)

    def forward(self, x):
        return self.lam * x + self.a * self.linear(tr.relu(x))


def two_scales(lam, a, num_classes=10, in_features=64, depth=L, width=100):
    """A network of such blocks between a first and a last layer, as residual_mlp is."""
    made = [TwoScales(lam, a, width) for _ in range(depth)]
    return models.mlp.MLP(made, width, num_classes, in_features)


PAIRS = {
    "1, 1/sqrt(50)": (1.0, 1 / math.sqrt(50)),
    "0.9, 1/sqrt(50)": (0.9, 1 / math.sqrt(50)),
    "0.5, 1": (0.5, 1.0),
    "0.5, 0.87": (0.5, math.sqrt(0.75)),
}
print("50 blocks lam x + a F(x); growth of 12 seeds; what the pure shortcut carries;")
print("autocorrelation at lag 5, of 5 seeds\n")
print(f"{'lam, a':16} {'theory':>7}   {'growth':24} {'shortcut':>8}   lag 5")
for name, (lam, scale) in PAIRS.items():
    found = over(12, partial(two_scales, lam, scale))
    lag = on_a_line(partial(two_scales, lam, scale, **sizes), 5)[:, 5]
    growth = found[:, 0, -1] / found[:, 0, 0]
    spread = f"{typical(growth):.2g} ({growth.min():.2g} to {growth.max():.2g})"
    theory = (lam**2 + scale**2) ** (L / 2)
    print(f"{name:16} {theory:7.2g}   {spread:24} {lam**L:8.1e}   {lag.mean():.2f} "
          f"({lag.min():.2f} to {lag.max():.2f})")

# %% [markdown]
# In the last row sizes neither explode nor vanish (single networks scatter, as narrow ones do), and yet its gradients
# shatter as those of the plain network do. In its sizes little is wrong; what is missing is the route. The second row
# is the opposite: its sizes shrink to a hundredth, and its gradients are whole, as $a / \lambda$ is small. That answers
# the second question. A scale belongs on the branch, where the routes multiply out from $I + a J$; on the shortcut it
# makes $\lambda^L$.
#
# (A $\lambda$ that is close enough to 1 does no harm: $\lambda = \sqrt{1 - 1/L}$ still leaves $e^{-1/2} = 61\,\%$ after
# $L$ blocks, however many. What breaks training is a constant below 1 in a deep network.)
#
# The numbers of the paper, for ResNet-110 on CIFAR-10:

# %%
for number in published.find(paper="He et al. 2016", table="Table 1"):
    if "shortcut x" in number.what or "identity shortcut" in number.what:
        which, failed = number.what.split(", ", 1)[1], isinstance(number.value, str)
        value = number.value if failed else f"{number.value} {number.unit}"
        print(f"{which:30} {value:14} ({number.note.split(';')[0]})")

# %% [markdown]
# ## Exercise 3: find the branch that the scale must not touch
#
# Drawings do not always say which route is the shortcut, and names lie. A route is given by what it does to a gradient,
# as a function $g \mapsto$ what comes to $x$. Find the one that hands every gradient on unchanged, if there is one. How
# many upstream gradients do you need, and of what kind?

# %% nbgrader={"grade": false, "grade_id": "find_the_branch", "locked": false, "schema_version": 3, "solution": true, "task": false}
def find_the_branch(routes, shape):
    """The name of the route that is an identity, up to rounding; None if none is.

    routes: a dict, name -> function that takes what arrives at y and gives what this route
    brings to x of it, both arrays of the shape given.
    """
    ### BEGIN SOLUTION
    probe = np.random.default_rng(0).standard_normal(shape)
    for name, route in routes.items():
        if np.allclose(route(probe), probe):
            return name
    return None
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "check-find_the_branch", "locked": true, "points": 3, "schema_version": 3, "solution": false, "task": false}
from tinyres.teach.checks import lesson_07

lesson_07.find_the_branch(find_the_branch)

# %% [markdown]
# ## The article's block, in three readings
#
# The article that this library grew out of describes a block with a left branch $L$, a few convolutions with ReLU, and
# a right branch $R$, one 1x1 convolution, scaled by $a = 0.1$. Its formula and its description in steps do not agree,
# and there are three ways to read it:
#
# - **parallel**, the formula: $y = L(x) + a\,R(x)$
# - **series**: $u = L(x)$, then $y = u + a\,R(u)$
# - **four-step**: $u = x + L(x)$, then $y = u + a\,R(u)$
#
# Multiply out what comes back to $x$. With $J_L$ and $J_R$ for the derivatives of $L$ and $R$, the three gradients are
#
# $$J_L^\top g + a\,J_R^\top g \qquad\quad J_L^\top g + a\,J_L^\top J_R^\top g \qquad\quad
# g + J_L^\top g + a\,J_R^\top g + a\,J_L^\top J_R^\top g$$
#
# ($J_R$ is taken where $R$ is, at $x$ or at $u$.) **Predict** what `find_the_branch` says to each.

# %%
def vjp_of(function, at):
    """g -> J^T g of a function of one Tensor at the array `at`, by the engine."""
    leaf = tr.tensor(at, requires_grad=True)
    out = function(leaf)
    return lambda g: tr.grad(out, leaf, g, retain_graph=True)[0].numpy()


def along(*parts):
    """The route along these parts, from x to y. A gradient takes the last one first."""
    def route(g):
        for part in reversed(parts):
            g = part(g)
        return g
    return route


def routes_of(block, x):
    """All routes through one of the three blocks, from what leaves it back to x."""
    if isinstance(block, ParallelBlock):
        return {"L": vjp_of(block.branch, x), "aR": vjp_of(block.downsample, x)}
    first, second = block
    u = first(tr.Tensor(x)).numpy()
    beside, right = vjp_of(second.downsample, u), vjp_of(second.branch, u)
    if isinstance(block, SeriesBlock):
        left = vjp_of(first, x)
        return {"L": along(left, beside), "L and aR": along(left, right)}
    past, left = vjp_of(first.downsample, x), vjp_of(first.branch, x)
    return {"past both": along(past, beside), "L": along(left, beside),
            "aR": along(past, right), "L and aR": along(left, right)}


def one_of(array, **known):
    """The name of the array that this one equals; "zero" for zeros."""
    equal = [name for name, other in known.items() if np.array_equal(array, other)]
    return equal[0] if equal else "something else" if array.any() else "zero"


READINGS = {"parallel": ParallelBlock, "series": SeriesBlock, "four-step": FourStepBlock}
where = np.random.default_rng(0).standard_normal((2, 8, 6, 6))
g = np.random.default_rng(1).standard_normal((2, 8, 6, 6))
for name, reading in READINGS.items():
    tr.manual_seed(0)
    block = reading(8, 8, 1, Plan(filters=8)).double()
    he_init_fan_in_(block)
    routes = routes_of(block, where)
    brought = {route: vjp(g) for route, vjp in routes.items()}
    apart = np.abs(sum(brought.values()) - vjp_of(block, where)(g)).max()
    parts = [f"{route} {np.linalg.norm(part) / np.linalg.norm(g):.2f}"
             for route, part in brought.items()]
    print(f"{name}: of |g| come along", ", ".join(parts))
    print(f"    sum of the routes against the engine's gradient: {apart:.0e}")
    print(f"    the identity: {find_the_branch(routes, g.shape)}")
    for parameter in block.parameters():
        nn.init.zeros_(parameter)
    out, back = block(tr.Tensor(where)).numpy(), vjp_of(block, where)(g)
    print(f"    all weights 0: y is {one_of(out, x=where)}, the gradient {one_of(back, g=g)}")

# %% [markdown]
# Only the four-step reading has the identity in it. In the other two, what a block passes on shrinks with its
# weights, to nothing where they are 0.
#
# **Predict** what depth makes of it: stack 1, 2, 4, 8, 16 of them. The left panel shows the gradient that reaches the
# first block. The right one shows what remains of it if the weights of all $L$ are set to 0: that is what comes along
# the routes past $L$. A fourth block is drawn beside them, $x + a\,L(x)$ with $a = 1/\sqrt{n}$: the conv stack as the
# residual, and the scale on it.

# %% mystnb={"image": {"alt": "Gradient at the first block: four-step grows with depth, past L parallel vanishes."}}
def stack(name, n):
    """n blocks (N, 8, H, W) -> (N, 8, H, W), and their left branches."""
    plan = Plan(filters=8)
    if name in READINGS:
        made = [READINGS[name](8, 8, 1, plan) for _ in range(n)]
        left = {"parallel": lambda block: block.branch, "series": lambda block: block[0],
                "four-step": lambda block: block[0].branch}[name]
        return nn.Sequential(*made), [left(block) for block in made]
    branches = [plan.left(8, 8, 1) for _ in range(n)]
    scaled = [nn.Sequential(branch, FixedScale(n**-0.5)) for branch in branches]
    return nn.Sequential(*map(ResidualStep, scaled)), branches


def reaching(name, n, seed):
    """The gradient's norm at the first block beside the last's: as it is, and without L."""
    tr.manual_seed(seed)
    model, branches = stack(name, n)
    he_init_fan_in_(model)
    x, g = np.random.default_rng(seed).standard_normal((2, 2, 8, 8, 8)).astype("float32")
    found = [np.linalg.norm(vjp_of(model, x)(g)) / np.linalg.norm(g)]
    for branch in branches:
        for parameter in branch.parameters():
            nn.init.zeros_(parameter)
    return [*found, np.linalg.norm(vjp_of(model, x)(g)) / np.linalg.norm(g)]


counts = [1, 2, 4, 8, 16]
figure, axes = panels(2)
at_end = []
for i, name in enumerate((*READINGS, "x + L(x)/sqrt(n)")):
    found = np.array([[reaching(name, n, seed) for n in counts] for seed in range(4)])
    for ax, values in zip(axes, np.moveaxis(found, 2, 0), strict=True):
        if values.any():
            band(ax, counts, values, i, typical, label=name)
        else:
            ax.plot([], color=COLORS[i], marker=MARKERS[i], label=f"{name}: exactly 0")
    at_end.append(f"{name} {found[:, -1, 1].mean():.2g}")
for ax, title in zip(axes, ("all of it", "what comes past L"), strict=True):
    ax.set(xscale="log", yscale="log", xlabel="blocks n", title=title)
    ax.set_xticks(counts, counts)
    ax.minorticks_off()
    ax.legend(fontsize=8)
axes[0].set_ylabel("gradient at the first block / g")
print("past L, 16 blocks:", "; ".join(at_end))
figure.suptitle("Which reading has a route that depth does not cut? (4 seeds)")
figure

# %% [markdown]
# > **Check the claim 2.** *The article calls the 1x1 convolution on the right "residual learning" and scales it:
# > Y = X + a F(X).* In He et al. (2015) the stack of convolutions is the residual $F$, and the other route is the
# > identity, or a projection, and only where shapes change. In the parallel reading $R$ stands where the shortcut
# > should, so the article's $a = 0.1$ scales the one route that must not be scaled: $n$ blocks leave $0.1^n$ of it,
# > times what $R$ makes of it. Residual scaling (Szegedy et al. 2016, 0.1 to 0.3) scales $F$.
#
# > **Check the claim 3.** *Formula and steps describe the same block.* They do not. The parallel reading has routes
# > $L$ and $a R$, the series reading $L$ and $L$ then $a R$; no route is an identity. The four-step reading is two
# > residual blocks in He's sense, one after the other. But its $L$ has no scale, so its gradient grows with depth as
# > with $a = 1$, and the small $a$ stands at the branch that needs it least. As trained networks the three are compared
# > by `tinyres claims run article-readings`.
#
# ## Starting from a = 0
#
# If $a = 0$ a block is the identity, $y = x$, and a network of any depth passes activations and gradients unchanged.
# No size can explode or vanish at the start. But does it learn? From the first section:
#
# $$g_a = \langle g, F(x)\rangle \qquad\qquad g_W = a \cdot (\ldots)$$
#
# With $a = 0$ the branch's weights get no gradient, but **$a$ does**. If $a$ is learned, it leaves 0 in the first step,
# and from the second step on the branch learns, too. If $a$ is a constant 0, the branch never learns.
#
# Three ways to start at 0, each with something that leaves it:
#
# - **ReZero** (Bachlechner et al. 2021) and **SkipInit** (De and Smith 2020): $a$ is learned, from 0 on. SkipInit drops
#   batch norm.
# - **Fixup** (Zhang et al. 2019): the branch's last layer starts at 0, so $F(x) = 0$; $a$ is learned, from 1 on. No
#   norm.
# - **Zero gamma**, usual in ResNets: the last batch norm's scale starts at 0.
#
# **Predict** for each which parameters of the branch get a gradient in the first step.

# %%
BLOCKS = {
    "ReZero": models.joins.ReZeroBasicBlock(8, 8),
    "SkipInit": models.joins.SkipInitBlock(8, 8),
    "Fixup": models.fixup.FixupBasicBlock(8, 8),
    "zero gamma": models.blocks.BasicBlock(8, 8),
}
BLOCKS["Fixup"].zero_branch_()
BLOCKS["zero gamma"].zero_branch_()
positive = tr.tensor(np.abs(where).astype("float32"))  # a ReLU after the addition leaves it as it is
for name, block in BLOCKS.items():
    optimizer = optim.SGD(block.parameters(), lr=0.01)
    for step in (1, 2):
        optimizer.zero_grad()
        out = block(positive)
        away = np.abs(out.data - positive.data).max()
        (out * tr.tensor(g.astype("float32"))).sum().backward()
        moving = [key for key, parameter in block.named_parameters()
                  if parameter.grad is not None and parameter.grad.data.any()]
        print(f"{name:10} step {step}: |y - x| at most {away:.2g}; {len(moving)} of "
              f"{len(list(block.parameters()))} get a gradient"
              + (f": {', '.join(moving)}" if step == 1 else ""))
        optimizer.step()

# %% [markdown]
# ## Does it train?
#
# Fifty blocks of width 64 without any norm, on 1,437 handwritten digits; 50 steps of SGD with 96 digits each, learning
# rate 0.01, momentum 0.9, three seeds. **Predict the order** before you run it: which of the seven ends with the lowest
# loss, which two hardly learn, and which does not even survive the first steps?

# %%
DEEP = {"depth": L, "width": 64}
NETWORKS = {
    "plain, 5 layers": lambda: models.plain_mlp(depth=5, width=64),
    "plain": lambda: models.plain_mlp(**DEEP),
    "a = 1": lambda: models.residual_mlp(**DEEP, a=1.0),
    "a = 1/sqrt(50)": lambda: models.residual_mlp(**DEEP, a=1 / math.sqrt(L)),
    "lam = 0.5, a = 0.87": lambda: two_scales(0.5, math.sqrt(0.75), **DEEP),
    "a = 0, fixed": lambda: models.residual_mlp(**DEEP, a=0.0),
    "a = 0, learned": lambda: models.rezero_mlp(**DEEP),
}


def losses(make, seed, steps=50, batch=96):
    """The training loss at each step, NaN from where it is no longer finite."""
    tr.manual_seed(seed)
    model = make()
    optimizer = optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    order = np.random.default_rng(seed)
    curve = np.full(steps, np.nan)
    for step in range(steps):
        chosen = order.choice(len(images), batch, replace=False)
        with np.errstate(over="ignore", invalid="ignore"):
            loss = tr.cross_entropy(model(tr.Tensor(images[chosen])), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if not np.isfinite(loss.data):
            break
        curve[step] = loss.data
    return curve


curves = {name: np.array([losses(make, seed) for seed in range(3)])
          for name, make in NETWORKS.items()}
print("loss over the last 10 of 50 steps, lowest to highest of 3 seeds; guessing: 2.30\n")
for name, found in curves.items():
    last, steps = found[:, -10:].mean(axis=1), np.isfinite(found).sum(axis=1)
    size = sum(parameter.data.size for parameter in NETWORKS[name]().parameters())
    said = f"{last.min():.2f} to {last.max():.2f}"
    if np.isnan(last).any():
        said = f"loss or weights overflow; finite losses: {', '.join(map(str, steps))}"
    print(f"{name:20} {size:7,} parameters   {said}")

# %% mystnb={"image": {"alt": "Training loss: a = 1/sqrt(50) falls first, plain and lam = 0.5 hardly fall."}}
figure, ax = panels(1, 4.0)
mean = partial(np.mean, axis=0)
shown = [name for name in NETWORKS if name != "a = 1"]
for i, name in enumerate(shown):
    smooth = np.apply_along_axis(np.convolve, 1, curves[name], np.ones(5) / 5, "valid")
    steps = np.arange(smooth.shape[1]) + 3
    band(ax, steps, smooth, i, mean, markevery=(i, 8), label=name)
ax.axhline(math.log(10), color="0.5", linewidth=1, linestyle=":")
ax.set(xlabel="step", ylabel="training loss", ylim=(0, 2.6),
       title="Which of them learn? (3 seeds, mean of 5 steps)")
ax.legend(fontsize=8, loc="lower left")
figure

# %% [markdown]
# The network with $\lambda = 0.5$ has activations of the right size, and a shortcut in every block. It hardly
# learns more than the plain one: what it lacks is the unscaled route.
#
# > **Check the claim 1.** *Residual networks are a way to compress models for mobile devices.* Look at the
# > parameters: a residual block has as many as its plain twin. Nothing is compressed. What He et al. (2015) set out to
# > cure is *degradation*: more layers should not raise the **training** error, and in plain networks they do. The plain
# > network of 5 layers trains here, the plain one of 50 does not, and the residual one of 50 does.
#
# > **The papers say / we see / why it differs.** *He et al. (2016)*: with $\lambda = 0.5$ and branch 1, ResNet-110
# > fails; with 0.5 and 0.5 it loses nearly 6 points. *We see* the same mechanism after 50 blocks, without batch norm.
# > *Difference*: ours has no norm and is trained for 50 steps, so it compares how they start, not where they end. With
# > batch norm in the branch a single block is less fragile: over 15 blocks `tinyres claims run shortcut-scaling` finds
# > no such gap. *Szegedy et al. (2016)*: scale the branch by 0.1 to 0.3. *We see* that what it must be depends on the
# > depth: $1/\sqrt{L}$ is 0.14 here. *Bachlechner et al. (2021)*: from $a = 0$ deep networks train faster. *We see*
# > that they train, but more slowly than with $1/\sqrt{L}$ in these 50 steps, as $a$ has to leave 0 first.

# %% [markdown]
# ## Three questions
#
# **1.** A block reads $y = x + W\,\mathrm{relu}(x)$ ($a = 1$), and its input comes out of a ReLU: no element is
# negative. What is $s$, and by how much does this block make its input longer?
#
# <details><summary>Answer</summary>
#
# ReLU changes nothing then, ${\lVert\mathrm{relu}(x)\rVert}^2 = {\lVert x\rVert}^2$, so $s = 2$. One block makes a
# vector $\sqrt{1 + 2} = 1.73$ times as long instead of $\sqrt{2} = 1.41$. He's factor of 2 makes up for a half that is
# not lost here.
#
# </details>
#
# **2.** The gradient of a loss with respect to $a$ is $-6$ in the block on paper, with $a = \frac{1}{2}$. Somebody
# changes $a$ to 0.1. What is $g_a$ now, and which other gradients of the block change?
#
# <details><summary>Answer</summary>
#
# Still $-6$, as $V$ is the same for every $y$ there: $g_a = \langle V, F(x)\rangle$ has no $a$ in it. Those of $W_1$
# and $W_2$ become a fifth of what they were, and of the gradient at $x$ the branch's part does. The shortcut's part
# stays.
#
# </details>
#
# **3.** Your network has $y = 0.5\,(x + F(x))$ in each of 30 blocks, so that activations keep their size. What is wrong
# with it, and what would you write instead?
#
# <details><summary>Answer</summary>
#
# The factor scales both routes, the shortcut as well: of what arrives at the last block $0.5^{30} = 10^{-9}$ comes to
# the first along the pure shortcut. Write $y = x + a\,F(x)$ with $a = 1/\sqrt{30} = 0.18$. (Lengths would shrink, too:
# $\lambda^2 + a^2 = 0.5$, with $s = 1$.)
#
# </details>

# %% [markdown]
# ## For the teacher
#
# - **Time**: first two questions 5 minutes, block on paper and stepper 20, exercise 1 15, growth 20, exercise 2 10,
#   shattering 5, exercise 3 and readings 15. Without exercises 2 and 3, shattering and readings it fits into 60.
# - **Before the run**, let everyone write down the answers to the two questions. The tempting one is 7 times: that
#   is right for branches that do not grow with their input. It is the best way into the role of batch norm.
# - **Common wrong answers.** Exercise 1: $a$ in front of both parts ("a scales the block"); $a$ missing backwards ("a
#   constant only matters forwards"); `g += ...`, which is right in its numbers and wrong for whoever holds the same
#   array; $a$ in its own gradient. Exercise 2: lengths added instead of squares; no root; $s$ left out. Exercise 3:
#   trusting the name, the size, or a gradient of ones.
# - **If somebody asks** why the middle term's mean is 0 for every $x$ although $F$ depends on $x$: the mean is over
#   $W$, with $x$ held. In the next block $x$ depends on earlier $W$, but not on the one that is drawn there.
# - **What this does not show**: final accuracies. For those see the cards `residual-scale`, `shortcut-scaling` and
#   `article-readings` of `tinyres claims`.
#
# **Next**: lesson 8 multiplies out $(I + a J_1)\cdots(I + a J_L)$ and asks how long the paths are that carry the
# gradient.
