# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# tinyres:
#   lesson: 1
#   title: Forks and order
#   minutes: 60
#   seconds: 5
#   needs: []
#   objectives:
#     - derive that the gradient of a value used several times is the sum over its uses
#     - work out every gradient of a residual block on paper
#     - say why a node must wait until all of its consumers are done, and what it costs if it does not
#     - write a backward pass over any graph of ops, right and linear in its size
# ---

# %% [markdown]
# # Forks and order
#
# A residual block adds its input to what it computes from it: $y = x + f(x)$. So $x$ is used twice. This lesson is
# about what that does to the gradient. The answer has two halves, a **sum** and an **order**, and everything else in
# this library rests on them.
#
# **Afterwards you can** derive the gradient of a value with several uses; work out a residual block on paper; say why
# order matters and what a wrong one costs; write the backward pass of an autograd engine.
#
# **Needs** the chain rule of one variable, matrix products, Python. No other lesson. **Takes** 60 minutes.

# %%
import time

import matplotlib.pyplot as plt
import numpy as np

import tinyres as tr
from tinyres import kernels
from tinyres.analysis.palette import COLORS, MARKERS
from tinyres.stepper.example import GRADIENTS, VALUES, hand_worked

tr.use_kernels("reference")
print(f"kernel set: {kernels.current()}, plain NumPy, nothing to compile")

# %% [markdown]
# ## Before you read: three questions
#
# Twenty blocks stand in a row, each $x \mapsto x + 0.1\,x$. All numbers are single numbers. A backward pass starts with
# a gradient of 1 at the end.
#
# 1. What is the gradient at the very first $x$?
# 2. An engine has one mistake: where a second gradient arrives at a value, it replaces the first. What does that engine
#    say?
# 3. Another engine makes no mistake, but follows every route from the end to the beginning by itself. How often does it
#    apply a backward rule? How often would be enough?
#
# Write the answers down. You will measure all three.

# %% [markdown]
# ## A chain
#
# Let $y = f(x)$ be one step of a computation that ends in a number $L$, the loss. Write $g_y$ for the gradient of $L$
# at $y$. It has the shape of $y$, and it is defined by what a small change does: if $y$ moves by $\delta_y$, then $L$
# moves by
#
# $$\langle g_y, \delta_y \rangle = \sum_i (g_y)_i\, (\delta_y)_i$$
#
# up to terms of second order. Now move $x$ by $\delta$. Then $y$ moves by $J\delta$, where $J$ is the matrix of the
# derivatives $\partial y_i / \partial x_j$, and so $L$ moves by
#
# $$\langle g_y, J\delta \rangle = \langle J^\top g_y, \delta \rangle .$$
#
# This holds for every $\delta$, so the bracket on the right names the gradient of $x$:
#
# $$g_x = J^\top g_y .$$
#
# That is the whole chain rule. An op need not build $J$. It needs a **rule** that turns $g_y$ into $J^\top g_y$. For
# $y = \tanh(x)$ the matrix is diagonal, and the rule is a product element by element.
#
# An op with two inputs has two matrices, and its rule returns two gradients. We call them its **contributions**, for a
# reason that will be clear in a moment. For a product $y = W x$ of two matrices they are
#
# $$g_x = W^\top g_y, \qquad g_W = g_y\, x^\top .$$
#
# The first moves $x$: $\langle g_y, W\delta \rangle = \langle W^\top g_y, \delta \rangle$. The second moves $W$ by
# $\delta$, and $y$ by $\delta x$: $\langle g_y, \delta x \rangle = \sum_{ijk} (g_y)_{ik}\, \delta_{ij}\, x_{jk} =
# \langle g_y\, x^\top, \delta \rangle$.
#
# ## An engine on one screen
#
# A `Tensor` is an array that knows the op that made it. A `Function` is one op, applied once. It knows its inputs. So
# from the last tensor, the root, one can go back to everything it was made from. That is the graph. Nothing else is
# recorded.

# %%
class Tensor:
    """An array that knows its origin.

    data: the array; node: the Function that made it, None for a leaf, which was given from
    outside; grad: the gradient that a backward pass found, an array of the same shape.
    """

    def __init__(self, data, node=None):
        self.data = np.asarray(data, dtype="float64")
        self.node = node
        self.grad = None

    def __add__(self, other):
        return Add.apply(self, other)

    def __mul__(self, other):
        return Mul.apply(self, other)

    def __matmul__(self, other):
        return MatMul.apply(self, other)


class Function:
    """One op, applied once.

    A subclass writes forward(*arrays) -> array, and backward(g) -> one array per input.
    """

    calls = 0   # of any rule, by any engine of this lesson
    called = 0  # of this op's own rule

    @classmethod
    def apply(cls, *inputs):
        node = cls()
        node.inputs = inputs  # tensors; the same one may occur twice
        return Tensor(node.forward(*[x.data for x in inputs]), node)

    def rule(self, g):
        """g: the gradient of the output, of its shape -> a contribution for each input."""
        Function.calls += 1
        self.called += 1
        return self.backward(g)


class Add(Function):
    def forward(self, a, b):
        return a + b

    def backward(self, g):
        return g, g  # J is the identity for both: the very same array goes to both


class Mul(Function):
    def forward(self, a, b):
        self.a, self.b = a, b
        return a * b

    def backward(self, g):
        return g * self.b, g * self.a


class MatMul(Function):
    def forward(self, a, b):
        self.a, self.b = a, b
        return a @ b

    def backward(self, g):
        return g @ self.b.T, self.a.T @ g


class Relu(Function):
    def forward(self, a):
        self.on = a > 0
        return a * self.on

    def backward(self, g):
        return (g * self.on,)


class Tanh(Function):
    def forward(self, a):
        self.y = np.tanh(a)
        return self.y

    def backward(self, g):
        return (g * (1 - self.y**2),)


class Sum(Function):
    def forward(self, a):
        self.shape = a.shape
        return a.sum()

    def backward(self, g):
        return (np.full(self.shape, g),)


# %% [markdown]
# One thing is missing: the walk from the root back to the leaves, which calls the rules. The rest of the lesson is
# about this walk. For a chain it is easily written. Take what is waiting, call its rule, and give the result to the
# input:

# %%
def overwriting(root):
    """A backward pass for chains. root: a Tensor of one element."""
    root.grad = np.ones_like(root.data)  # dL/dL = 1
    todo = [root]
    while todo:
        tensor = todo.pop()
        if tensor.node is not None:
            for x, g in zip(tensor.node.inputs, tensor.node.rule(tensor.grad), strict=True):
                x.grad = g
                if x not in todo:
                    todo.append(x)


# %% [markdown]
# To judge an engine we need something that knows no engine. Move one number a little up and a little down, and see what
# the loss does. (How small a step, and how far one may trust this, is lesson 2.)

# %%
def numerical(loss, x, step=1e-6):
    """Central differences. loss(array) -> number; x: an array -> its gradient."""
    gradient = np.zeros_like(x)
    for i in np.ndindex(x.shape):
        up, down = x.copy(), x.copy()
        up[i] += step
        down[i] -= step
        gradient[i] = (loss(up) - loss(down)) / (2 * step)
    return gradient


def chain(x):
    return Sum.apply(Tanh.apply(Tensor([[1.0, -2.0], [0.5, 1.0]]) @ x))


x = Tensor([[0.3, -0.1], [0.2, 0.4]])
overwriting(chain(x))
difference = np.abs(x.grad - numerical(lambda a: chain(Tensor(a)).data, x.data)).max()
print(f"three ops: engine and finite differences differ by at most {difference:.1e}")

# %% [markdown]
# ## A residual block on paper
#
# This block recurs in the library's tests, in its stepper and here. The numbers are small enough for a pencil. $x$
# has two features (rows) of two samples (columns). The block is $y = x + W_2\,\mathrm{relu}(W_1 x)$, and the loss is
# $L = \sum V \odot y$, element by element, so that $g_y = V$.
#
# $$x = \begin{pmatrix} -2 & 1 \\ -1 & 2 \end{pmatrix} \quad
# W_1 = \begin{pmatrix} -1 & 1 \\ -1 & -1 \end{pmatrix} \quad
# W_2 = \begin{pmatrix} 1 & 1 \\ -1 & \tfrac{1}{2} \end{pmatrix} \quad
# V = \begin{pmatrix} -1 & 2 \\ -2 & 3 \end{pmatrix}$$
#
# Forwards:
#
# $$a = W_1 x = \begin{pmatrix} 1 & 1 \\ 3 & -3 \end{pmatrix} \quad
# h = \mathrm{relu}(a) = \begin{pmatrix} 1 & 1 \\ 3 & 0 \end{pmatrix}$$
#
# $$F = W_2 h = \begin{pmatrix} 4 & 1 \\ \tfrac{1}{2} & -1 \end{pmatrix} \quad
# y = x + F = \begin{pmatrix} 2 & 2 \\ -\tfrac{1}{2} & 1 \end{pmatrix} \quad L = 6$$
#
# Backwards, along the branch, it is a chain:
#
# 1. The addition hands $V$ to both of its inputs: $g_F = V$, and $V$ goes along the shortcut as well.
# 2. The second product: $g_h = W_2^\top V = \begin{pmatrix} 1 & -1 \\ -2 & \tfrac{7}{2} \end{pmatrix}$.
# 3. The ReLU lets through what belongs to a positive $a$: $g_a = \begin{pmatrix} 1 & -1 \\ -2 & 0 \end{pmatrix}$.
# 4. The first product brings to $x$: $W_1^\top g_a = \begin{pmatrix} 1 & 1 \\ 3 & -1 \end{pmatrix}$.
#
# Each product brings a gradient to its weight, too:
#
# $$g_{W_2} = g_F\, h^\top = \begin{pmatrix} 1 & -3 \\ 1 & -6 \end{pmatrix} \qquad
# g_{W_1} = g_a\, x^\top = \begin{pmatrix} -3 & -3 \\ 4 & 2 \end{pmatrix}$$
#
# **Predict.** Two gradients have come to $x$ now: $V$ along the shortcut, and $W_1^\top g_a$ through the branch. What
# is the gradient of $x$? Write down four numbers. Then let the engine for chains say what it thinks.

# %%
def block(x):
    """The block of this section with its loss. x: (2, 2) -> a Tensor of one element."""
    W1, W2, V = (Tensor(VALUES[name]) for name in ("W1", "W2", "V"))
    return Sum.apply(V * (x + W2 @ Relu.apply(W1 @ x)))


x = Tensor(VALUES["x"])
loss = block(x)
overwriting(loss)
print("loss", loss.data)
print("the engine for chains:", x.grad.tolist())
right = numerical(lambda a: block(Tensor(a)).data, x.data)
print("finite differences:   ", right.round(6).tolist())

# %% [markdown]
# They disagree. The engine's answer is step 4: what came through the branch. It arrived last and replaced what the
# shortcut had brought. Nothing failed, no message, and the numbers look like a gradient.
#
# ## The fork
#
# What should happen where a value is used twice? Do not guess; derive it. Give every consumer a copy of its own:
#
# $$u_1 = x, \quad u_2 = x, \quad \ldots, \quad u_k = x .$$
#
# Now each $u_i$ has one consumer, and the chain rule gives its gradient $g_i$. Move $x$ by $\delta$. Every copy moves
# by the same $\delta$, so the loss moves by
#
# $$\langle g_1, \delta \rangle + \langle g_2, \delta \rangle + \ldots + \langle g_k, \delta \rangle
# = \langle g_1 + g_2 + \ldots + g_k,\; \delta \rangle .$$
#
# And again, this holds for every $\delta$:
#
# $$g_x = g_1 + g_2 + \ldots + g_k .$$
#
# **The gradient of a value is the sum of the contributions of its consumers.** Not their mean: nothing is shared out.
# Not the last: no consumer is special. The forward pass *copies* a value to its consumers, and the backward pass
# *adds*. The two belong together as $A$ and $A^\top$ do: copying is the matrix of identities on top of each other,
# and its transpose is the same matrix lying on its side, which adds. (At an addition it is the other way round: the
# forward pass adds, the backward pass copies.)
#
# For a block $y = x + f(x)$ there are two consumers. The addition is one: for it $J$ is the identity, and it brings
# $g_y$ itself. The branch is the other, and brings $J^\top g_y$, with $J$ the derivative of $f$:
#
# $$g_x = g_y + J^\top g_y .$$
#
# The first term is the reason why residual networks are what they are. Whatever the branch does, the gradient that
# arrived at the block goes on to the block before, unchanged, as one of the two terms.
#
# The derivation can be run as it stands. Two leaves hold the same numbers, one for each consumer. Then nothing is used
# twice, and the engine for chains is right. We add by hand what it finds:

# %%
along_shortcut, through_branch = Tensor(VALUES["x"]), Tensor(VALUES["x"])
W1, W2, V = (Tensor(VALUES[name]) for name in ("W1", "W2", "V"))
overwriting(Sum.apply(V * (along_shortcut + W2 @ Relu.apply(W1 @ through_branch))))
print("the weights, W2 and W1:", W2.grad.tolist(), W1.grad.tolist())
total = along_shortcut.grad + through_branch.grad
print("along the shortcut:", along_shortcut.grad.tolist())
print("through the branch:", through_branch.grad.tolist())
print("their sum:         ", total.tolist(), "= what finite differences say")
for name, array in (("x", total), ("W2", W2.grad), ("W1", W1.grad)):
    assert (array == GRADIENTS[name]).all()  # worked out on paper, in tinyres/stepper/example.py

# %% [markdown]
# In the first element the two cancel: $-1 + 1 = 0$. Remember it; we come back to it.
#
# ## The order
#
# So let the engine add instead of replace. One line changes:

# %%
def adding_at_once(root):
    """The same walk, but what arrives is added to what is there."""
    root.grad = np.ones_like(root.data)
    todo = [root]
    while todo:
        tensor = todo.pop()
        if tensor.node is not None:
            for x, g in zip(tensor.node.inputs, tensor.node.rule(tensor.grad), strict=True):
                x.grad = g if x.grad is None else x.grad + g
                if x not in todo:
                    todo.append(x)


def row_of_blocks(x, w, n, shortcut_first=True):
    """n blocks in a row, each x + w x, or written the other way round, w x + x."""
    for _ in range(n):
        x = x + w * x if shortcut_first else w * x + x
    return x


def gradient_at_the_beginning(engine, n, shortcut_first=True):
    x = Tensor(1.0)
    engine(row_of_blocks(x, Tensor(0.1), n, shortcut_first))
    return float(x.grad)


x = Tensor(VALUES["x"])
adding_at_once(block(x))
print("the block:", x.grad.tolist())

# %% [markdown]
# That is right. **Predict:** is it right for two blocks in a row, each $x + 0.1\,x$? By the chain rule each block
# multiplies by $1.1$, so the answer must be $1.1^2 = 1.21$. And would it matter if the block were written as
# $0.1\,x + x$?

# %%
print("blocks   right    x + 0.1 x    0.1 x + x")
for n in (1, 2, 3, 4):
    first = gradient_at_the_beginning(adding_at_once, n, shortcut_first=True)
    second = gradient_at_the_beginning(adding_at_once, n, shortcut_first=False)
    print(f"{n:6}   {1.1**n:.4f}   {first:.4f}       {second:.4f}")

# %% [markdown]
# The same function, two ways to write it, two gradients. Written as $x + 0.1\,x$ we were lucky. In the other column,
# the tensor between the blocks was visited when only the shortcut had brought something. It handed on a sum **that
# was not finished**. Later the branch arrived, the tensor was visited again, and handed on the whole sum: the
# shortcut's part for the second time.
#
# There are two cures.
#
# **One visit for each path.** A rule is linear: $J^\top(g_1 + g_2) = J^\top g_1 + J^\top g_2$. So one may hand on each
# arrival by itself and forget it. Then no sum is ever handed on, and the order does not matter.

# %%
def by_paths(root):
    """Follow every contribution to the leaves by itself: a sum over paths."""
    todo = [(root, np.ones_like(root.data))]
    while todo:
        tensor, g = todo.pop()
        tensor.grad = g if tensor.grad is None else tensor.grad + g
        if tensor.node is not None:
            todo.extend(zip(tensor.node.inputs, tensor.node.rule(g), strict=True))


print("x + 0.1 x, four blocks:", round(gradient_at_the_beginning(by_paths, 4, True), 4))
print("0.1 x + x, four blocks:", round(gradient_at_the_beginning(by_paths, 4, False), 4))

# %% [markdown]
# It is right. Several published engines work like this, mostly as a function that calls itself. Count what it costs.
# Let $C(n)$ be the number of rules called for $n$ blocks. The last block's addition and its product are called once.
# Then the tensor in front of that block is visited twice, once by the shortcut and once by the branch, and each time
# all that lies before is done again:
#
# $$C(n) = 2 + 2\,C(n-1), \quad C(0) = 0, \quad \text{so} \quad C(n) = 2^{n+1} - 2 .$$
#
# Each block doubles the number of paths; $n$ blocks have $2^n$. (That a residual network *is* a sum over $2^n$ paths is
# worth knowing for its own sake. It is lesson 8. As a way to compute it is hopeless.)
#
# **One visit for each tensor, when its sum is complete.** Visit a tensor only when *all* of its consumers have been
# visited. An order of the graph in which everyone comes after all of its consumers is called a **topological order**.
# A graph without cycles always has one: from any tensor that was not visited yet, go to a consumer that was not
# visited yet, and on. There are no cycles, so this ends, at a tensor whose consumers are all done. It can come next.
# In this order every rule is called once, with the whole gradient. For $n$ blocks that is $2n$ rules.
#
# The library walks like this. It can be watched, as its backward pass is a sequence of events: a node is *ready* when
# its sum is complete, and *done* when its rule has been called.

# %%
x = tr.tensor(1.0, "float64", requires_grad=True)
w = tr.tensor(0.1, "float64", requires_grad=True)
y = w * x + x
z = w * y + y
names = {z.node: "z = w y + y", z.node.edges[0]: "w y",
         y.node: "y = w x + x", y.node.edges[0]: "w x", x: "x", w: "w"}
for event in z.backward_steps():
    if event.kind == "ready":
        print(f"ready: {names[event.node]:12} with the gradient {event.grad:.2f}")

# %% [markdown]
# $y$ comes after $w y$, although the addition that made $z$ knows $y$, too, and could have gone there at once: $y$ has
# two consumers, and only one of them was done.
#
# Both cures, for four blocks. Circles are the tensors between the blocks, squares the branches. **Predict** the numbers
# in the upper row before you look: how often does each tensor get something?

# %% tags=["hide-input"] mystnb={"image": {"alt": "Four blocks, twice. Above: visits 16, 8, 4, 2, 1 and 8, 4, 2, 1. Below: each place once."}}
depth = 4
tensors, branches, w = [Tensor(1.0)], [], Tensor(0.1)
their_tensors, their_branches = [tr.tensor(1.0, "float64", requires_grad=True)], []
for _ in range(depth):
    branches.append(w * tensors[-1])
    tensors.append(tensors[-1] + branches[-1])
    their_branches.append(their_tensors[-1] * 0.1)
    their_tensors.append(their_tensors[-1] + their_branches[-1])
by_paths(tensors[-1])
visits = [branch.node.called for branch in branches], [2 * branches[0].node.called] + [
    tensor.node.called for tensor in tensors[1:]]
ready = [event.node for event in their_tensors[-1].backward_steps() if event.kind == "ready"]
order = [[1 + ready.index(t.edge) for t in some] for some in (their_branches, their_tensors)]

figure, rows = plt.subplots(2, 1, figsize=(9, 4.6), layout="constrained")
for axes, numbers, title in zip(rows, (visits, order), ("one visit per path: how often each is visited",
                                "one visit per tensor: the place of its only visit"), strict=True):
    for k in range(depth):
        axes.annotate("", (k, 0), (k + 1, 0), arrowprops={"arrowstyle": "->", "shrinkA": 16, "shrinkB": 16})
        for start, end in (((k + 1, 0), (k + 0.5, 0.8)), ((k + 0.5, 0.8), (k, 0))):
            axes.annotate("", end, start, arrowprops={"arrowstyle": "->", "shrinkA": 16, "shrinkB": 16,
                                                      "color": COLORS[1]})
        axes.text(k + 0.5, 0.8, numbers[0][k], ha="center", va="center", fontsize=12,
                  bbox={"boxstyle": "square,pad=0.5", "facecolor": "white", "edgecolor": COLORS[1]})
    for k in range(depth + 1):
        axes.text(k, 0, numbers[1][k], ha="center", va="center", fontsize=12,
                  bbox={"boxstyle": "circle,pad=0.4", "facecolor": "white", "edgecolor": COLORS[0]})
        axes.text(k, -0.62, f"$x_{k}$", ha="center")
    axes.set(xlim=(-0.3, depth + 0.3), ylim=(-0.75, 1.15), title=title)
    axes.axis("off")
plt.close(figure)
figure

# %% [markdown]
# The backward pass goes from right to left, along the arrows.
#
# ## Three engines side by side
#
# Now the answers to the three questions. Each engine gets $n$ blocks $x + 0.1\,x$. We count rules by a counter and look
# at the clock.

# %%
def library(n):
    """The library's walk over these blocks: (gradient at the beginning, rules called)."""
    x = tr.tensor(1.0, "float64", requires_grad=True)
    w = tr.tensor(0.1, "float64", requires_grad=True)
    y, calls = x, 0
    for _ in range(n):
        y = y + w * y
    for event in y.backward_steps(retain_graph=False):
        calls += event.kind == "done"
    return float(x.grad.numpy()), calls


def measured(engine, n):
    """An engine of this lesson: (gradient at the beginning, rules called)."""
    Function.calls = 0
    return gradient_at_the_beginning(engine, n), Function.calls


blocks = [1, 2, 4, 6, 8, 10, 12, 14]
results = {"overwriting": [measured(overwriting, n) for n in blocks]}
start = time.perf_counter()
results["one visit per path"] = [measured(by_paths, n) for n in blocks]
seconds = time.perf_counter() - start
results["one visit per tensor (the library)"] = [library(n) for n in blocks]

print("            overwriting           one visit per path    one visit per tensor")
print("blocks      gradient    rules     gradient    rules     gradient    rules")
for i, n in enumerate(blocks):
    print(f"{n:6}", *(f"{row[i][0]:13.4g}{row[i][1]:9,}" for row in results.values()))
for i, n in enumerate(blocks):
    assert results["one visit per path"][i][1] == 2 ** (n + 1) - 2
    assert results["one visit per tensor (the library)"][i][1] == 2 * n
per_rule = seconds / sum(calls for _, calls in results["one visit per path"])
years = (2**55 - 2) * per_rule / (3600 * 24 * 365)
print(f"""
20 blocks, question 1: the gradient is {library(20)[0]:.4f}
           question 2: overwriting says {measured(overwriting, 20)[0]:.1e}
           question 3: path by path {2**21 - 2:,} rules, by the formula that held above;
                       enough are {library(20)[1]}
54 blocks, as ResNet-110 has: path by path, at {per_rule * 1e6:.1f} microseconds a rule,
           {years:,.0f} years""")

# %% tags=["hide-input"] mystnb={"image": {"alt": "Rules against blocks: one engine doubles per block. Gradients: overwriting falls as 0.1^n."}}
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
styles = ({"linestyle": ":", "markersize": 11, "markerfacecolor": "none"}, {"linestyle": "--", "markersize": 7},
          {"linestyle": "-", "markersize": 5})
for (name, rows), color, marker, style in zip(results.items(), (COLORS[1], COLORS[2], COLORS[0]), MARKERS, styles,
                                              strict=False):
    left.plot(blocks, [calls for _, calls in rows], marker=marker, color=color, label=name, **style)
    right.plot(blocks, [gradient for gradient, _ in rows], marker=marker, color=color, label=name, **style)
left.set_title("How many rules does it call?")
right.set_title("Which gradient comes to the beginning?")
for axes in (left, right):
    axes.set_yscale("log")
    axes.set_xticks(blocks)
    axes.set_xlabel("blocks in a row, each x + 0.1 x")
    axes.grid(alpha=0.3)
left.set_ylabel("rules called")
right.set_ylabel("gradient at the first x")
left.legend(fontsize=9)
plt.close(figure)
figure

# %% [markdown]
# Look at the right-hand plot. The overwriting engine keeps only what comes through the branches, $0.1^n$. It computes a
# residual network and trains a plain one: the gradient vanishes as if the shortcuts were not there. A check of a chain
# would never find this, and neither would a look at the loss, which is right.
#
# ## Step through it
#
# The block on paper, as the library's own backward pass. Go to the fork with `f`. There the sum grows: 0, then what the
# shortcut brings, then the branch. Press `p` to be asked before you are shown.

# %%
tr.step(hand_worked())

# %% [markdown]
# ## Exercise: `backward`
#
# Write the walk that calls every rule once, with the whole gradient. It must work on any graph of ops: values with many
# uses, an op that uses the same tensor twice ($x \cdot x$), long routes beside short ones, thousands of ops in a row.
#
# You need no more than `tensor.node`, `tensor.grad`, `node.inputs` and `node.rule(g)`. Before you type, answer for
# yourself: *how will a tensor know that its sum is complete?*
#
# <details><summary>A hint</summary>
#
# A tensor's sum is complete when as many contributions have arrived as it has uses. Who can know how many uses there
# are, before the first rule is called?
#
# </details>
#
# <details><summary>A second hint</summary>
#
# Go over the graph twice. The first time, call no rule; only write down what you will want to know the second time.
#
# </details>

# %% nbgrader={"grade": false, "grade_id": "backward", "locked": false, "schema_version": 3, "solution": true, "task": false}
def backward(root):
    """Set .grad of every tensor that root was made from, and of root itself.

    root: a Tensor of one element, whose gradient is 1. The gradient of any other tensor, an
    array of its shape, is the sum of the contributions of all its uses. Each node's rule is
    called once. A second call starts afresh and finds the same. No array that was given to
    a rule, or came from one, may be changed: an addition hands one array to two tensors. A
    graph may be thousands of ops deep, so loop, do not recurse.
    """
    ### BEGIN SOLUTION
    uses, found = {root: 0}, [root]
    for t in found:  # it grows while we go over it
        t.grad = None
        for source in t.node.inputs if t.node is not None else ():
            if source not in uses:
                uses[source] = 0
                found.append(source)
            uses[source] += 1  # x * x counts twice
    root.grad = np.ones(root.data.shape)
    complete = [root]
    while complete:
        t = complete.pop()
        if t.node is None:
            continue
        for source, part in zip(t.node.inputs, t.node.rule(t.grad), strict=True):
            # never +=, which writes into the array
            source.grad = part if source.grad is None else source.grad + part
            uses[source] -= 1
            if uses[source] == 0:
                complete.append(source)
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "check-backward", "locked": true, "points": 4, "schema_version": 3, "solution": false, "task": false}
from tinyres.teach.checks import lesson_01

lesson_01.backward(backward)

# %% [markdown]
# Your engine in the three places where the others failed:

# %%
x = Tensor(VALUES["x"])
backward(block(x))
print("the block on paper:", x.grad.tolist())
for n in (20, 54, 1000):
    gradient, calls = measured(backward, n)
    print(f"{n:5} blocks: gradient {gradient:.6g}, right is {1.1**n:.6g}; {calls:,} rules")
print("0.1 x + x:", round(gradient_at_the_beginning(backward, 4, shortcut_first=False), 4))

# %% [markdown]
# ## What you have built, and what the library adds
#
# With `backward` the engine is complete. The library's is the same engine, grown. Open `tinyres/tensor.py` and find:
#
# | here | in the library | why it grew |
# | --- | --- | --- |
# | `Tensor.data`, `.grad`, `.node` | the same | |
# | `Function.apply`, `forward`, `backward` | the same | `backward` is written with ops: it has a derivative itself |
# | `node.inputs`, tensors | `node.edges`, their nodes | a tensor that nobody needs can go, its node must stay |
# | `self.a, self.b = a, b` | `self.save(a, b)` | what is kept can be listed, counted, checked for changes, and freed |
# | `rule` | `contributions` | it checks shapes, and leaves out inputs that want no gradient |
# | counting uses, then visiting | `graph.topological_order` | the same two passes (Kahn 1962) |
# | `x.grad + g`, a new array | `_contribute` | it adds in place, where the array is the walk's own |
# | the loop | `walk`, a generator of events | stepper, hooks and instruments watch the one walk |
#
# ## Traps of the field
#
# What you have written avoids most of the mistakes that small engines are known for. Two remain that no backward pass
# can avoid, as they happen before it begins.
#
# **The graph is cut.** An op computes on `.data` and wraps the result in a new tensor. The forward pass is right. The
# backward pass finds no way into the branch, and of $g_y + J^\top g_y$ only the first term is left. Small
# engines are known to do this in batch norm and in pooling.

# %%
x = Tensor(VALUES["x"])
W1, W2, V = (Tensor(VALUES[name]) for name in ("W1", "W2", "V"))
h = Tensor(np.maximum((W1 @ x).data, 0))  # the cut: a leaf, where Relu.apply belongs
loss = Sum.apply(V * (x + W2 @ h))
by_paths(loss)
print("loss", loss.data, "as it should be")
print("gradient of x ", x.grad.tolist(), "is V alone; right is", GRADIENTS["x"])
print("gradient of W1", W1.grad)

# %% [markdown]
# In a residual network this is hard to see: the shortcut still carries a gradient to every block, and the loss can
# fall. Only the cut branch's first weights never move. The library names them at the first step of an optimizer, and
# on request it names the op:

# %%
tr.manual_seed(0)
weight = tr.randn((2, 2), dtype="float64", requires_grad=True)
inputs = tr.randn((3, 2), dtype="float64", requires_grad=True)


def with_a_cut():
    h = tr.tanh(inputs @ weight).detach()
    return (inputs + h).sum()


answer = tr.why(weight, with_a_cut)
print(answer.partition(" (called at")[0])  # what follows is the file and the line

# %% [markdown]
# **The weight is made anew in every forward pass.** Then each pass gives a gradient to a tensor that nobody holds,
# and the optimizer holds one that no pass has seen. A convolution that wraps its reshaped kernel in a new
# tensor, in its forward pass, does this. A leaf must be the same object in every pass.
#
# The others are in the exercise's check: a walk that calls itself runs out of stack; sums that stay from the pass
# before are handed on again; `+=` writes into an array that an addition gave to two tensors, and so into the gradient
# of someone else.
#
# ## Check the claim
#
# > **The source article says** that sharing weights makes deep residual networks small. It means that a convolution
# > uses the same weights at every position. That is sharing over *positions*, which every convolution has. Sharing
# > over *depth*, one set of weights for several blocks, is another thing. Both are forks: a weight with many uses.
# > The rule for it is the one above, the sum over uses, and lesson 11 counts what it saves.
#
# Two blocks with one weight, beside the same two blocks with a weight each of the same value:

# %%
def two_blocks(first, second):
    h = inputs + tr.tanh(inputs @ first)
    return (h + tr.tanh(h @ second)).sum()


shared, *copies = [tr.tensor(weight.numpy(), requires_grad=True) for _ in range(3)]
two_blocks(shared, shared).backward()
two_blocks(*copies).backward()
parts = [copy.grad.numpy() for copy in copies]
print("use in the first block: ", parts[0].round(4).tolist())
print("use in the second block:", parts[1].round(4).tolist())
print("shared:                 ", shared.grad.numpy().round(4).tolist())
print("shared and sum differ by at most", np.abs(sum(parts) - shared.grad.numpy()).max())

# %% [markdown]
# ## The paper says, we see
#
# **The paper says** (He et al. 2016, "Identity mappings in deep residual networks", equation 5 and below): between any
# two blocks $l < L$ the gradient is
#
# $$g_l = g_L + \Big(\frac{\partial}{\partial x_l} \sum_{i=l}^{L-1} f_i(x_i)\Big)^\top g_L .$$
#
# The first term passes through no weight at all. The whole is unlikely to be zero for a mini-batch, as the second
# term would have to be $-g_L$ for every sample.
#
# **Predict.** In our block on paper one element of four cancelled. Take 8 blocks of width 16 and a batch of 64 samples,
# with random weights. In what share of the elements does the second term work *against* the first? Does the gradient of
# a single element ever get close to 0? Of the batch?

# %%
def gradients_at_both_ends(seed, depth=8, width=16, samples=64):
    """Random blocks x + W2 relu(W1 x), weights of deviation 1 / sqrt(width).

    Returns g_0, g_L, and how many additions handed on the very array that came to them.
    """
    rng = np.random.default_rng(seed)
    x = tr.tensor(rng.standard_normal((samples, width)), "float64", requires_grad=True)
    y = x
    for _ in range(depth):
        weights = rng.standard_normal((2, width, width)) / np.sqrt(width)
        W1, W2 = (tr.tensor(array, "float64") for array in weights)
        y = y + tr.relu(y @ W1) @ W2
    last, unchanged = rng.standard_normal((samples, width)), 0
    for event in y.backward_steps(last, retain_graph=False):
        if event.kind == "done" and event.node.name == "add":
            unchanged += event.contributions[0] is event.grad
    return x.grad.numpy(), last, unchanged


seeds, depth = 50, 8
against, elements, samples, batches, unchanged = [], [], [], [], 0
for seed in range(seeds):
    g0, gL, count = gradients_at_both_ends(seed, depth)
    unchanged += count
    against.append(((g0 - gL) * gL < 0).mean())
    elements.append(np.abs(g0 / gL).min())
    samples.append((np.linalg.norm(g0, axis=1) / np.linalg.norm(gL, axis=1)).min())
    batches.append(np.linalg.norm(g0) / np.linalg.norm(gL))
print(f"{seeds} seeds: {unchanged} of {seeds * depth} additions handed on the very array they got")
print(f"against the first term: {100 * np.mean(against):.1f} % of the elements "
      f"(from {100 * min(against):.1f} to {100 * max(against):.1f})")
print(f"smallest |g_0| / |g_L|: of an element {min(elements):.1e}, "
      f"of a sample {min(samples):.2f}, of a batch {min(batches):.2f}")

# %% tags=["hide-input"] mystnb={"image": {"alt": "The smallest ratio of each of 50 seeds: of elements near 0, of samples about 1, of batches 3."}}
figure, axes = plt.subplots(figsize=(7.5, 3.2), layout="constrained")
rows = {"one element": elements, "one sample (16 elements)": samples, "the batch (1,024 elements)": batches}
for place, (values, marker) in enumerate(zip(rows.values(), MARKERS, strict=False)):
    axes.scatter(values, np.full(len(values), place), marker=marker, color=COLORS[place], alpha=0.6)
axes.axvline(1, color="black", linewidth=0.8, linestyle=":")
axes.set_yticks(range(len(rows)), rows)
axes.set_ylim(len(rows) - 0.5, -0.5)
axes.set_xscale("log")
axes.set_xlabel("|gradient at the input| / |gradient at the output|: the smallest of each seed")
axes.set_title("How small can the sum of the two terms become?")
axes.grid(alpha=0.3)
plt.close(figure)
figure

# %% [markdown]
# **We see** both. The first term is there in every block, and not only equal: it is the very same array. For single
# elements the sum does come close to zero, and about as often as not the branches work against it. For a sample it
# shrinks little, for a batch not at all.
#
# **Why it differs.** It does not, if one reads closely: the paper speaks of a batch. A first term protects the whole,
# not each number. What a random second term does to the size of the whole is another matter: it makes it grow with
# every block. That is lesson 7.
#
# ## Quiz
#
# **1.** $y = x \cdot x + x$, at $x = 3$, and the gradient of $y$ is 2. How many contributions come to $x$, and what is
# their sum?
#
# <details><summary>Answer</summary>
#
# Three: the product uses $x$ twice and brings $2 \cdot 3 = 6$ each time, the addition brings 2. The sum is 14. As a
# check: $2\,(2x + 1) = 14$.
#
# </details>
#
# **2.** In ten blocks $x + W_2\,\mathrm{relu}(W_1 x)$ all $W_2$ are zero. Which gradient comes to the input? Do the
# weights get one?
#
# <details><summary>Answer</summary>
#
# The input gets what came to the output, unchanged: each branch brings $W_1^\top(\ldots W_2^\top g) = 0$, and only the
# shortcut's term is left. $W_2$ gets $g\,h^\top$, which is not zero, so it can leave zero in the first step. $W_1$ gets
# nothing before that.
#
# </details>
#
# **3.** To save the first pass, someone counts uses during the forward pass: each op adds 1 to its inputs. He also
# prints the mean of an activation, computed by an op, which the loss does not contain. What happens in the backward
# pass?
#
# <details><summary>Answer</summary>
#
# The activation waits for a consumer that the root does not lead to. Its count never comes to zero, it is never
# visited, and nothing from which it was made is ever complete: weights and blocks before it get a part of their
# gradient, or none. Uses must be counted from the root.
#
# </details>
#
# <details><summary><b>For the teacher</b></summary>
#
# *Timing.* Questions 5 minutes; chain and engine 10; block on paper 10, on real paper; fork 5; order 10; stepper 5;
# exercise 15, for some 25. The rest can be read at home. If time is short, leave out everything behind the exercise.
#
# *The two ideas are to be kept apart.* The sum is about one tensor, the order is about the graph. Most wrong answers to
# the exercise have one and lack the other. The check says which.
#
# | what the check says | what the learner thinks |
# | --- | --- |
# | `overwrites`, `keeps-the-first` | a value has one gradient, so one of the two must be it |
# | `averages` | the gradient is shared out among the uses |
# | `multiplies` | along a path derivatives are multiplied, so at a fork, too |
# | `same-input-once` | uses are tensors; but $x \cdot x$ is two uses of one tensor |
# | `handed-on-too-early`, `handed-on-again` | adding is enough, order does not matter |
# | `once-per-path` | right, and not counted what it costs |
# | `writes-into-a-shared-array` | `a += b` and `a = a + b` are the same |
# | `keeps-the-last-pass` | gradients start at nothing by themselves |
# | `recursion` | graphs are small |
# | `starts-with-the-value`, `starts-with-nothing`, `sets-nothing`, `wrong-shape` | how a pass begins: not thought of |
# | `stops-early`, `leaves-only` | how a pass ends, and what it leaves: not thought of |
#
# *A good question at the end:* where else in this lesson is something and its transpose? (Copy and sum; sum and copy;
# a concatenation and a split come in lesson 10.)
#
# </details>
