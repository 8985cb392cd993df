# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# tinyres:
#   lesson: 2
#   title: Broadcasting is a transpose; gradient checks you can trust
#   minutes: 75
#   seconds: 10
#   needs: [1]
#   objectives:
#     - write the backward rule of any broadcast operand, and say why it is a sum
#     - test with two random vectors whether two linear maps are each other's transpose
#     - choose the step and the precision of a finite difference, and predict its error
#     - write a gradient check that no wrong rule passes by luck
# ---

# %% [markdown]
# # Broadcasting is a transpose; gradient checks you can trust
#
# A residual network adds a bias, scales a channel, subtracts a mean: in each of these a small array meets a large one,
# and NumPy copies it without a word. The copy is a fork, and a fork has a backward rule. This lesson derives it. Then
# it asks the question behind all rules of this course: how do we know that one is right?
#
# **Afterwards you can** write the backward rule of any broadcast operand; test whether two maps are each other's
# transpose; choose the step of a finite difference and say how large its error will be; write a gradient check that a
# wrong rule does not pass by luck.
#
# **Needs** [lesson 1](01_forks_and_order.py): a tensor that is used twice collects the sum of what its consumers bring.
# **Takes** 75 minutes.

# %%
import matplotlib.pyplot as plt
import numpy as np

import tinyres as tr
from tinyres import kernels
from tinyres.analysis.palette import COLORS, MARKERS

tr.use_kernels("reference")
print(f"kernel set: {kernels.current()}, plain NumPy, nothing to compile")
rng = np.random.default_rng(0)

# %% [markdown]
# ## Before you read: a question
#
# Someone writes the backward pass of a batch norm. It is one line: it returns zeros. A check against finite
# differences, in float64 and with a good step, passes. The error is no more than rounding.
#
# What is wrong with the check? Write down a guess. The answer is measured below, under "An upstream gradient of
# ones".

# %% [markdown]
# ## A bias is used once for each row
#
# Two samples of three features, and one bias for each feature:
#
# $$x = \begin{pmatrix} 1 & 2 & 4 \\ 8 & 16 & 32 \end{pmatrix} \qquad
# b = \begin{pmatrix} 1 & -1 & 2 \end{pmatrix} \qquad
# y = x + b \qquad
# g = \frac{\partial L}{\partial y} = \begin{pmatrix} 1 & 2 & 3 \\ 10 & 20 & 30 \end{pmatrix}$$
#
# The shapes are (2, 3) and (3,). They differ, so the addition cannot mean what it says. NumPy reads b as two rows:
#
# $$y = x + \begin{pmatrix} b_1 & b_2 & b_3 \\ b_1 & b_2 & b_3 \end{pmatrix}$$
#
# Now the addition is an ordinary one, whose rule hands g on unchanged. And each $b_j$ stands there twice: it is a value
# with two consumers.
#
# **Predict** the gradient of b: three numbers.

# %%
x = tr.tensor([[1, 2, 4], [8, 16, 32]], dtype="float64", requires_grad=True)
b = tr.tensor([1, -1, 2], dtype="float64", requires_grad=True)
g = np.array([[1.0, 2, 3], [10, 20, 30]])

(x + b).backward(g)
print("gradient of x:", *x.grad.numpy().tolist())
print("gradient of b:", b.grad.numpy())

# %% [markdown]
# By lesson 1, the gradient of $b_j$ is the sum of what its consumers bring: $g_{1j} + g_{2j}$. Not their mean: if $b_j$
# moves by 1, both of its copies move by 1.
#
# The same pass in the stepper. Go to the step `add` with `n`: one array comes in, two go out, and the one for b is
# "summed over dim 0".

# %%
V = tr.tensor(g, dtype="float64")
tr.step(lambda: (V * (x + b)).sum(), "A bias: x + b", names={"x": x, "b": b})

# %% [markdown]
# ## Expanding is a matrix
#
# Copying is linear: it copies a sum to the sum of the copies. So it is a matrix E. Its columns are what it makes of the
# unit vectors, and that is how we find it, whatever the shapes:

# %%
def expansion(shape, to):
    """The matrix E, (elements of `to`, elements of `shape`), of np.broadcast_to."""
    size = int(np.prod(shape))
    units = np.eye(size).reshape(size, *shape)
    return np.stack([np.broadcast_to(unit, to).ravel() for unit in units], axis=1)


E = expansion((3,), (2, 3))
print("E =", str(E.astype(int)).replace("\n", "\n    "))
print("E b =", E @ b.data, " the copies of b, row after row")
print("E^T g =", E.T @ g.ravel(), " the gradient of b")

# %% [markdown]
# Each row of E has a single 1: every element of y holds a copy of exactly one $b_j$. A column may have many: they are
# the copies of that $b_j$. The transpose turns this round. Row j of $E^T$ **adds** what stands at the copies of
# $b_j$.
#
# The figure answers the question: which elements of g does each element of the gradient collect? Above, the elements of
# a (3, 4) array, each with the number of the element that it is a copy of. Below, the same as a matrix.

# %% mystnb={"image": {"alt": "A row, a column and one number, each expanded to (3, 4), and the matrices."}}
to = (3, 4)
figure, axes = plt.subplots(2, 3, figsize=(9, 5.6), layout="constrained")
for (above, below), shape in zip(axes.T, ((4,), (3, 1), (1, 1)), strict=True):
    size = int(np.prod(shape))
    source = np.broadcast_to(np.arange(size).reshape(shape), to)
    above.imshow(source, cmap="Blues", vmin=-1, vmax=6)
    for (row, column), number in np.ndenumerate(source):
        above.text(column, row, number, ha="center", va="center", fontsize=13)
    above.set(title=f"{shape} to {to}", xticks=[], yticks=[])
    below.imshow(expansion(shape, to), cmap="Blues", vmin=0, vmax=1.4)
    below.set(xticks=range(size), yticks=[0, 4, 8])
    below.set(xlabel="element of b", ylabel="element of y")
    below.set_xticks(np.arange(size + 1) - 0.5, minor=True)
    below.set_yticks(np.arange(13) - 0.5, minor=True)
    below.grid(which="minor", color="lightgrey", linewidth=0.6)
    below.tick_params(which="minor", length=0)
plt.close(figure)
figure

# %% [markdown]
# ## The adjoint identity
#
# Why the transpose, and not some other way to bring 12 numbers back to 4? Because of what a gradient is. Move b by a
# small $\delta$. Then y moves by $E\delta$, and the loss, to first order, by $\langle g, E\delta \rangle$, the sum of
# the products of their elements. The gradient of b, short db, is the array for which this is $\langle db, \delta
# \rangle$, whatever $\delta$ is. And
#
# $$\langle g, E\delta \rangle = \sum_i g_i \sum_j E_{ij}\, \delta_j
# = \sum_j \left( \sum_i E_{ij}\, g_i \right) \delta_j
# = \langle E^T g, \delta \rangle$$
#
# so $db = E^T g$. This holds for every linear map. **The backward rule of a linear map is its transpose.** A
# convolution is linear; so is padding, and a sum. Lesson 4 leans on nothing else.
#
# It is also a test that needs no matrix. Take any two arrays x and g, of the right shapes. If forward is A and
# backward is B, then $\langle A x, g \rangle$ and $\langle x, B g \rangle$ must be the same number. If B is not the
# transpose of A, random x and g will show it.
#
# **Predict.** Of the three candidates below, one is the transpose of expanding (3, 1) to (3, 4). By which factor is the
# mean off?

# %%
x_, g_ = rng.standard_normal((3, 1)), rng.standard_normal((3, 4))
left = np.sum(np.broadcast_to(x_, (3, 4)) * g_)
candidates = {"sum over axis 1": g_.sum(1, keepdims=True),
              "mean over axis 1": g_.mean(1, keepdims=True),
              "first column": g_[:, :1]}
print(f"<E x, g> = {left:.6f}")
for name, candidate in candidates.items():
    right = np.sum(x_ * candidate)
    print(f"{name:16}  <x, B g> = {right:.6f}   ratio {left / right:.6f}")

# %% [markdown]
# The transpose of the transpose is the map itself. So the rule of a sum needs no work of its own: **a sum's gradient is
# expanded, an expansion's gradient is summed.** The library has the pair in `tinyres/ops/broadcast.py`, each one's
# `backward` being the other; all ops get their broadcasting there.
#
# ## Exercise: unbroadcast
#
# NumPy's rules, in full. Shapes are aligned at their **last** axis. Where the smaller one has no axis left, one of
# length 1 is put in front. An axis of length 1 is stretched to the other's length. Everything else must be equal. So an
# element can be copied along two kinds of axes: those that were added, and those that were stretched.
#
# Write the transpose, for all shapes. Then a rule for any op that broadcasts is: the rule without broadcasting, and
# `unbroadcast` for each input.

# %% nbgrader={"grade": false, "grade_id": "unbroadcast", "locked": false, "schema_version": 3, "solution": true, "task": false}
def unbroadcast(g, shape):
    """The gradient of an array of this shape that was broadcast to g's shape.

    g: an array of any shape to which `shape` broadcasts; it is not changed.
    shape: a tuple of ints, () for a number.
    Returns an array of exactly this shape, and of g's dtype.
    """
    ### BEGIN SOLUTION
    added = g.ndim - len(shape)
    copied = [axis for axis in range(g.ndim) if axis < added or shape[axis - added] == 1]
    return g.sum(axis=tuple(copied), keepdims=True).reshape(shape)
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "check-unbroadcast", "locked": true, "points": 4, "schema_version": 3, "solution": false, "task": false}
from tinyres.teach.checks import lesson_02

lesson_02.unbroadcast(unbroadcast)

# %% [markdown]
# Your function at work: a product $z = a \cdot w$ of a (4, 3) array and one factor for each row. Without broadcasting
# the rule is $da = g \cdot w$ and $dw = g \cdot a$, both of z's shape. The library's gradients beside it:

# %%
a = tr.tensor(rng.standard_normal((4, 3)), dtype="float64", requires_grad=True)
w = tr.tensor(rng.standard_normal((4, 1)), dtype="float64", requires_grad=True)
g_z = rng.standard_normal((4, 3))
(a * w).backward(g_z)
print("w, yours:  ", unbroadcast(g_z * a.data, w.shape).ravel())
print("w, tinyres:", w.grad.numpy().ravel())

# %% [markdown]
# ## How far can a difference be trusted?
#
# The adjoint identity tests linear maps only. For everything else there is the definition of the derivative, without
# the limit: move x by h to both sides, and see what f does. By Taylor's formula
#
# $$f(x \pm h) = f(x) \pm h f'(x) + \frac{h^2}{2} f''(x) \pm \frac{h^3}{6} f'''(x) + \ldots$$
#
# In the **central** difference the even terms cancel:
#
# $$\frac{f(x+h) - f(x-h)}{2h} = f'(x) + \frac{h^2}{6} f'''(x) + \ldots \qquad
# \frac{f(x+h) - f(x)}{h} = f'(x) + \frac{h}{2} f''(x) + \ldots$$
#
# Halve h, and the error of the central one is a quarter, of the **one-sided** one a half. So take a tiny h? But the
# machine rounds. With $\varepsilon$, the distance from 1 to the next number (2.2e-16 in float64, 1.2e-7 in float32),
# each value of f is off by up to $\frac{\varepsilon}{2} \left|f\right|$. Two of them are subtracted and divided by 2h:
# that error is up to $\frac{\varepsilon \left|f\right|}{2h}$, and grows as h gets smaller. Together:
#
# $$e(h) = \frac{h^2}{6} \left|f'''\right| + \frac{\varepsilon}{2h} \left|f\right|, \qquad
# e'(h) = \frac{h}{3} \left|f'''\right| - \frac{\varepsilon}{2h^2} \left|f\right| = 0 \quad \text{at} \quad
# h^3 = \frac{3}{2}\, \varepsilon \frac{\left|f\right|}{\left|f'''\right|}$$
#
# Where f and f''' are of one size, the best step is about $\varepsilon^{1/3}$, and the error there about
# $\varepsilon^{2/3}$: two thirds of the digits. For the one-sided difference the same calculation gives
# $\varepsilon^{1/2}$ for both: half of the digits.
#
# **Predict**, for the central difference: which step is best in float64, and in float32? How many digits are then
# right?

# %%
def central(f, x, h):
    return (f(x + h) - f(x - h)) / (2 * h)


def one_sided(f, x, h):
    return (f(x + h) - f(x)) / h


def worst_errors(difference, dtype, steps):
    """The largest relative error of the slope of exp at 1,025 points, for each step."""
    points = np.linspace(0, 1, 1025).astype(dtype)  # multiples of 2^-10, and the steps
    slope = np.exp(points.astype("float64"))        # are powers of 2: x + h is exact
    found = [difference(np.exp, points, dtype(h)) for h in steps]
    return np.array([np.max(np.abs(slopes / slope - 1)) for slopes in found])


STEPS = {np.float32: 2.0 ** -np.arange(1, 21), np.float64: 2.0 ** -np.arange(1, 41)}
errors = {(difference, dtype): worst_errors(difference, dtype, steps)
          for dtype, steps in STEPS.items() for difference in (one_sided, central)}
print("difference  dtype    best step: measured  theory  error there: measured  theory")
for (difference, dtype), error in errors.items():
    eps, power = np.finfo(dtype).eps, 1 / 3 if difference is central else 1 / 2
    best = STEPS[dtype][error.argmin()]
    print(f"{difference.__name__:10}  {dtype.__name__} {best:19.1e} {eps**power:8.1e}"
          f" {error.min():21.1e} {eps ** (1 - power):8.1e}")

# %% mystnb={"image": {"alt": "Error against step: four Vs, lowest at the steps that theory gives."}}
figure, axes = plt.subplots(figsize=(8.5, 4.4), layout="constrained")
for number, ((difference, dtype), error) in enumerate(errors.items()):
    axes.loglog(STEPS[dtype], error, color=COLORS[number], marker=MARKERS[number],
                markersize=4, label=f"{difference.__name__}, {dtype.__name__}")
    theory = np.finfo(dtype).eps ** (1 / 3 if difference is central else 1 / 2)
    axes.axvline(theory, color=COLORS[number], linestyle=":")
axes.set(xlabel="step h (dotted: the best one by theory)", ylim=(1e-12, 3),
         ylabel="largest relative error of the slope",
         title="Where is the bottom of the V, and how deep is it?")
axes.grid(alpha=0.3)
axes.legend(loc="lower left", bbox_to_anchor=(0, 0.06))
plt.close(figure)
figure

# %% [markdown]
# The right arms are Taylor's: slope 2 for central differences, slope 1 for one-sided ones. The left arms are the
# machine's: slope -1. (The worst of many points makes them smooth; one point alone would show ragged arms.)
#
# Read off what it means for checks. In float32 no step gives more than four or five digits, and a rule that is wrong in
# the fifth cannot be found. In float64, central, with h = 1e-5, ten digits are right. **Check in float64**, even if the
# network runs in float32. The rule is the same.

# %% [markdown]
# ## A kink
#
# Taylor's formula wants a smooth f. A ReLU has a kink at 0. Where x lies within h of it, one end of the difference is
# on the flat side and the other on the steep side:
#
# $$\frac{\mathrm{relu}(x+h) - \mathrm{relu}(x-h)}{2h} = \frac{x + h - 0}{2h} = \frac{1}{2} + \frac{x}{2h}
# \qquad \text{for } -h \le x \le h$$
#
# That is neither 0 nor 1, and a smaller step does not change it: it only makes the zone narrower. How often does it
# happen? ResNet-20 applies n = 188,416 ReLUs to each image of 32x32. If their inputs are standard normal and each
# moves by h, then $n \cdot 2h / \sqrt{2\pi}$ of them switch: the width of the zone, times the density at 0.
#
# **Predict.** With h = 1e-5, in one image: none, one or two, or hundreds?

# %%
def relu(x):
    return np.maximum(x, 0)


# layers, channels, rows and columns of the three stages
n = 7 * 16 * 32 * 32 + 6 * 32 * 16 * 16 + 6 * 64 * 8 * 8
inputs = rng.standard_normal(n)
print(f"n = {n:,}")
for h in (1e-2, 1e-3, 1e-4, 1e-5, 1e-6):
    switched, expected = np.sum(np.abs(inputs) < h), n * 2 * h / np.sqrt(2 * np.pi)
    print(f"h = {h:.0e}: {switched:5,} ReLUs switch, {expected:6.1f} expected")

# %% mystnb={"image": {"alt": "The measured slope of a ReLU rises in a straight line from 0 at x = -h to 1 at x = h."}}
figure, axes = plt.subplots(figsize=(7, 3.2), layout="constrained")
near = np.linspace(-3, 3, 121)
axes.plot(near, central(relu, near * 1e-5, 1e-5), color=COLORS[0],
          label="central difference, h = 1e-5")
axes.plot([-3, 0, 0, 3], [0, 0, 1, 1], color=COLORS[1], linestyle="--",
          label="the rule: 1 where x > 0, else 0")
axes.set(xlabel="x / h", ylabel="slope of relu at x",
         title="What does a difference measure at a kink?")
axes.grid(alpha=0.3)
axes.legend()
plt.close(figure)
figure

# %% [markdown]
# A right rule fails there, and that is worse than it sounds: whoever sees checks fail now and then learns to raise the
# tolerance. A check must notice a kink instead. `tr.gradcheck` notes which side every ReLU took at both ends, and if
# they differ it draws another direction. For a single number that sits on the kink there is no other, and it says so:

# %%
print(tr.gradcheck(tr.relu, np.array([-1.0, 0.0, 2.0])))

# %% [markdown]
# ## An upstream gradient of ones
#
# A check needs a number to differentiate. If f gives an array y, people take the sum of y. That is the upstream
# gradient $g = 1$ everywhere. It looks harmless.
#
# Take batch norm over N samples, $y_{ij} = (x_{ij} - \mu_j) / \sigma_j$. Every channel is centred, whatever x is:
#
# $$\sum_i y_{ij} = \frac{1}{\sigma_j} \left( \sum_i x_{ij} - N \mu_j \right) = 0$$
#
# The loss is **constant**. Its gradient is 0, truly. A rule that returns zeros is right about this loss, and so is
# every rule with a missing part that happens to give 0 at g = 1. A softmax, whose rows sum to 1, is as blind.
#
# Ones hide another mistake: a rule that forgets g altogether and returns the bare derivative. With g = 1 the product is
# the derivative.
#
# Below are six rules. The wrong batch norms come out of the engine: `detach()` cuts the route through the mean or
# through the variance out of the graph, so that nothing flows back along it.
#
# **Predict** which of the wrong rules pass with g = 1.

# %%
def normalise(x, cut=""):
    """Batch norm of a Tensor (N, C); `cut` names routes that no gradient takes."""
    mean, var = x.mean(0), ((x - x.mean(0)) * (x - x.mean(0))).mean(0)
    mean = mean.detach() if "mean" in cut else mean
    var = var.detach() if "variance" in cut else var
    return (x - mean) / tr.sqrt(var + 1e-5)


def rule_with(cut):
    """The backward rule of normalise without those routes: (g, x) -> gradient of x."""
    def backward(g, x):
        t = tr.Tensor(x, requires_grad=True)
        normalise(t, cut).backward(g)
        return t.grad.numpy()
    return backward


def norm(x):
    return normalise(tr.Tensor(x)).data


RULES = {
    "batch norm: right": (norm, rule_with("")),
    "batch norm: no route through the variance": (norm, rule_with("variance")),
    "batch norm: no route through the mean": (norm, rule_with("mean")),
    "batch norm: zeros": (norm, lambda g, x: np.zeros_like(x)),
    "exp: right": (np.exp, lambda g, x: g * np.exp(x)),
    "exp: forgets g": (np.exp, lambda g, x: np.exp(x)),
}

# %% [markdown]
# To compare, we need not move the elements one by one. Move all of them at once, along a random direction u. The change
# of the loss is $\langle g, J u \rangle$, which a difference measures, and the rule claims $\langle dx, u \rangle$
# with $dx = J^T g$. Two evaluations of f check the whole array, be it a whole network: this is the adjoint
# identity again, for the Jacobian J.

# %%
def along(f, g, x, u, h=1e-5):
    """<g, J u> by a central difference."""
    return np.sum(g * (f(x + h * u) - f(x - h * u))) / (2 * h)


x_, u_ = rng.standard_normal((16, 3)), rng.standard_normal((16, 3))
print("                                           g = 1:             g at random:")
print("rule                                       claim   measured   claim   measured")
for name, (f, rule) in RULES.items():
    row = f"{name:41}"
    for g_ in (np.ones((16, 3)), rng.standard_normal((16, 3))):
        claim, measured = np.sum(rule(g_, x_) * u_), along(f, g_, x_, u_)
        row += f"{round(claim, 3) + 0.0:8.3f} {round(measured, 3) + 0.0:8.3f} "
        row += "    " if abs(claim - measured) < 1e-6 else " !  "
    print(row)
print("! where the check finds the rule wrong")

# %% [markdown]
# With ones, three of the four wrong rules pass. That is the answer to the question at the beginning: the outputs
# were summed. With random numbers all four are found.
#
# **Draw the upstream gradient at random.** Then a mistake that shows at this x at all stays unseen only if it happens
# to be orthogonal to what was drawn, and the probability of that is 0.

# %% [markdown]
# ## How close is close?
#
# Now there are two numbers, a claimed and n measured. When are they equal?
#
# An absolute tolerance is wrong: a gradient of 1e-7 with the wrong sign is off by 2e-7. So relate the error to the
# gradient, $\left|a - n\right| \le 10^{-6} \left|n\right|$. But then a gradient that is truly 0 fails, since n is not 0
# but what rounding leaves. The sum of a softmax is such a case:

# %%
def softmax_sum(x):
    e = np.exp(x)
    return (e / e.sum(1, keepdims=True)).sum(1)


g_ = rng.standard_normal(16)
n = along(softmax_sum, g_, x_, u_)
noise = np.finfo(float).eps * np.linalg.norm(g_) * np.linalg.norm(softmax_sum(x_)) / 1e-5
print(f"claimed 0, measured {n:.1e}: relative error 1")
print(f"what rounding can do to the difference, eps ||g|| ||y|| / h: {noise:.1e}")

# %% [markdown]
# So allow both: $\left|a - n\right| \le 10^{-6} \left|n\right| + 10\, \varepsilon\, \|g\|\, \|y\| / h$. The second
# term is the left arm of the V, and it is nothing that we choose: it follows from the step and the size of f. (It is
# twice the bound that we found, and ten times that, because f rounds more than once.)
#
# The last trap is NumPy's. `np.allclose` broadcasts. A gradient of shape (1, 3) is "close" to one of shape (3,), and an
# optimizer that subtracts it turns the bias into a (1, 3) array. Compare shapes first.
#
# ## Exercise: a check that catches
#
# Write `check`. It gets three wrong rules and three right ones, and must tell them apart. The wrong: a batch norm
# without one of its routes; a bias whose gradient has the wrong shape; a small tanh (its values are about 1e-4) that is
# off by half a percent in its last column. The right: a batch norm; a ReLU, given as float32; the sum of a softmax. It
# cannot tell them apart by name: a check knows forward, backward and x, and nothing else.

# %% nbgrader={"grade": false, "grade_id": "check", "locked": false, "schema_version": 3, "solution": true, "task": false}
def check(forward, backward, x):
    """Is `backward` the rule of `forward` at x? True or False.

    forward(x) -> y, of any shape; backward(g, x) -> the gradient of x, for an
    upstream gradient g of y's shape. x: float32 or float64, of any shape, at least
    0.01 away from every kink.
    """
    ### BEGIN SOLUTION
    x, h = x.astype("float64"), 1e-5
    y = forward(x)
    g = np.random.default_rng(2).standard_normal(y.shape)
    claimed = backward(g, x)
    if claimed.shape != x.shape:
        return False
    measured = np.zeros(x.shape)
    for index in np.ndindex(x.shape):
        step = np.zeros(x.shape)
        step[index] = h
        measured[index] = np.sum(g * (forward(x + step) - forward(x - step))) / (2 * h)
    noise = 10 * np.finfo(float).eps * np.linalg.norm(g) * np.linalg.norm(y) / h
    error = np.linalg.norm(claimed - measured)
    return bool(error <= 1e-6 * np.linalg.norm(measured) + noise)
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "check-check", "locked": true, "points": 6, "schema_version": 3, "solution": false, "task": false}
from tinyres.teach.checks import lesson_02

lesson_02.check(check)

# %% [markdown]
# And what your check says of the six rules above:

# %%
for name, (f, rule) in RULES.items():
    print(f"{name:42} {'passes' if check(f, rule, x_) else 'is caught'}")

# %% [markdown]
# From here on, whatever you derive, you can check. The library's own check is `tr.gradcheck(model, x)`; it is this one,
# with kinks noticed, directions for networks of a million numbers, and a verdict in words.

# %% [markdown]
# ## The book says, we see
#
# Press, Teukolsky, Vetterling and Flannery (*Numerical Recipes*, section 5.7) give the step of the central difference
# as $h \sim \varepsilon^{1/3} x_c$, with the scale $x_c = (f / f''')^{1/3}$ over which f changes, and add that x itself
# is often taken for $x_c$ if nothing else is known. **We see** the exponent. And we see what the scale is worth: below,
# the slope of $\sin \omega x$ near x = 1, for a slow and for a fast sine. There $x_c$ is about $1/\omega$.

# %%
points, steps = 1 + np.arange(1025) / 2.0**12, STEPS[np.float64]  # in [1, 1.25]
print("omega   best step: measured   eps^(1/3) x_c   error: there   with x for x_c")
for omega in (1.0, 30.0):
    slopes = [central(lambda x, w=omega: np.sin(w * x), points, h) for h in steps]
    error = [np.max(np.abs(slope / omega - np.cos(omega * points))) for slope in slopes]
    by_theory = np.finfo(float).eps ** (1 / 3)
    with_x = error[np.argmin(np.abs(np.log(steps / by_theory)))]  # the nearest step to it
    print(f"{omega:5.0f} {steps[np.argmin(error)]:21.1e} {by_theory / omega:15.1e}"
          f" {min(error):14.0e} {with_x:16.0e}")

# %% [markdown]
# With the right scale both reach the same error, relative to the slope. With x for $x_c$ the fast one does not: its
# step is 30 times too large, and its error about $30^2$ times as large. **Why it differs:** as x + h is exact here,
# the error does not depend on how large x is, but on how fast f bends. Large weights make a network bend fast, and
# then 1e-5 is too large a step.

# %% [markdown]
# ## Three questions
#
# **1.** x of shape (5, 1) and w of shape (1, 7) are multiplied. Over which axes is the gradient of each summed, and how
# many elements of g does each element of it collect?
#
# <details><summary>Answer</summary>
#
# The product has shape (5, 7). x was stretched along axis 1: its gradient is the sum over axis 1, of 7 elements each,
# and has shape (5, 1). w was stretched along axis 0: 5 elements each, shape (1, 7). Before the sum, each is multiplied
# by the other factor.
#
# </details>
#
# **2.** `y = x.mean(axis=0)` for x of shape (N, C). Without a pencil: what is its backward rule?
#
# <details><summary>Answer</summary>
#
# A mean is a sum, divided by N. The transpose of a sum is an expansion, and a factor is its own transpose: the gradient
# is g / N, expanded to (N, C). That is lesson 5's route through the mean.
#
# </details>
#
# **3.** f is smooth at x. A check in float64 with h = 1e-5 gives a relative error of 0.03 %. With h = 1e-4 it is the
# same, and with h = 1e-6, too. Is the rule right?
#
# <details><summary>Answer</summary>
#
# No. The error of a difference depends on the step: by a factor of 100 on the right arm of the V, by 10 on the left
# one. An error that does not depend on it is not the difference's. (At a kink it might be.) Changing h is the cheapest
# way to tell a wrong rule from a bad measurement.
#
# </details>

# %% [markdown]
# ## For the teacher
#
# **Time.** 10 minutes to the first step in the stepper, 15 for matrix and identity, 15 for `unbroadcast`, 20 for
# differences, kinks and ones, 15 for `check`. If time is short, leave out the kink, and the book.
#
# **Common wrong answers** (all in `tutorials/wrong_answers/lesson_02.py`, each with the message that it gets): the mean
# for the sum ("one bias, so the average"): ask what the loss does when the bias moves. Shapes aligned at the left,
# which square arrays hide: hand out non-square ones. The axis dropped, so that (2, 1) becomes (2,): let them add it to
# a (2, 1) array and look at the shape. In `check`: an upstream gradient of ones, float32, a tolerance of a few percent,
# an absolute one, allclose across shapes.
#
# **To discuss.** The identity is worth more than its use here: it defines the transpose where nobody would write a
# matrix down. Ask for the transpose of a cumulative sum, of a reversal, of a pad, and have each tested with two random
# vectors. A good question for the fast: which wrong rules would pass a check along *one fixed* direction, and why is a
# random one different?
