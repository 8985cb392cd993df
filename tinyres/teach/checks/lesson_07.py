"""Lesson 7: the backward pass of y = x + a F(x), the a that a depth allows, and the route that no scale may touch.

The oracles are finite differences, a loop over blocks, and routes that are known beforehand.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from tinyres.stepper.example import VALUES
from tinyres.teach import seed
from tinyres.teach.misconception import Misconception

Route = Callable[[np.ndarray], np.ndarray]  # what arrives at y -> what comes to x of it

# --- residual_backward ------------------------------------------------------------------------------------------------


class Branch:
    """A branch F at a point x, any shape: its value f, and the vjp, u -> J^T u, which counts its calls."""

    def __init__(self, F: Callable[[np.ndarray], np.ndarray], x: np.ndarray, vjp: Route):
        self.F, self.x, self.f, self.rule, self.calls = F, x, F(x), vjp, 0

    def vjp(self, u: Any) -> np.ndarray:
        self.calls += 1
        if np.shape(u) != self.x.shape:
            raise Misconception("vjp-of-another-shape", f"vjp was called with an array of shape {np.shape(u)}, and F "
                                f"maps {self.x.shape} to {self.x.shape}. It takes a gradient at F(x), whole.")
        return self.rule(np.asarray(u))


def on_paper() -> tuple[np.ndarray, Branch]:
    """The block of the stepper's example: V, and W2 relu(W1 x), whose sums are all exact."""
    x, W1, W2, V = (np.array(VALUES[name], float) for name in ("x", "W1", "W2", "V"))
    return V, Branch(lambda x: W2 @ np.maximum(W1 @ x, 0), x, lambda u: W1.T @ ((W1 @ x > 0) * (W2.T @ u)))


def smooth(rng: np.random.Generator) -> tuple[np.ndarray, Branch]:
    """tanh(x A) B with (N, C) from 1 x 2 to 4 x 5, and a gradient at its output."""
    N, C = rng.integers(1, 5), rng.integers(2, 6)
    A, B, x, g = (rng.standard_normal(shape) for shape in ((C, C), (C, C), (N, C), (N, C)))
    return g, Branch(lambda x: np.tanh(x @ A) @ B, x, lambda u: ((u @ B.T) * (1 - np.tanh(x @ A)**2)) @ A.T)


def by_moving(a: float, g: np.ndarray, branch: Branch) -> tuple[np.ndarray, float]:
    """Finite differences of <g, x + a F(x)>: with respect to each element of x, and to a."""
    def loss(x: np.ndarray, a: float) -> float:
        return float(np.vdot(g, x + a * branch.F(x)))

    h, dx = 1e-5, np.empty_like(branch.x)
    for index in np.ndindex(*dx.shape):
        up, down = branch.x.copy(), branch.x.copy()
        up[index] += h
        down[index] -= h
        dx[index] = (loss(up, a) - loss(down, a)) / (2 * h)
    return dx, (loss(branch.x, a + h) - loss(branch.x, a - h)) / (2 * h)


def residual_backward(answer: Callable[..., Any]) -> None:
    """Check residual_backward(g, a, f, vjp) -> dx, da on the block on paper and on 50 random ones.

    Raises Misconception.
    """
    rng = np.random.default_rng((seed(), 71))
    cases = [(0.5, *on_paper(), "on the block on paper, with a = 0.5")]
    for i in range(50):
        a = float(rng.choice([-1, 1]) * rng.uniform(0.2, 0.8))
        cases.append((a, *smooth(rng), f"on random block {i + 1}, with a = {a:.3g}"))
    for a, g, branch, where in cases:
        _residual_case(answer, a, g, branch, where)
    print(f"residual_backward: right on the block on paper and {len(cases) - 1} random ones, by finite differences")


def _residual_case(answer: Callable[..., Any], a: float, g: np.ndarray, branch: Branch, where: str) -> None:
    given, kept = g.copy(), branch.f.copy()
    found = answer(given, a, kept, branch.vjp)
    if not isinstance(found, (tuple, list)) or len(found) != 2:
        raise Misconception("not-two-gradients", f"residual_backward gave {type(found).__name__}, expected the pair "
                            "(dx, da): the loss depends on x and on a.")
    if not np.array_equal(given, g) or not np.array_equal(kept, branch.f):
        what = "g" if not np.array_equal(given, g) else "f"
        raise Misconception("argument-overwritten", f"{where[0].upper()}{where[1:]}, {what} is another array after the "
                            f"call: {_numbers(g if what == 'g' else branch.f)} has become "
                            f"{_numbers(given if what == 'g' else kept)}. Others still need it: the shortcut hands on "
                            "the very array that arrived. Which of your lines writes instead of making a new array?")
    dx, da = found
    if da is None or dx is None:
        raise Misconception("not-two-gradients", f"residual_backward gave {'da' if da is None else 'dx'} = None, "
                            "expected an array and a number: the loss depends on x and on a.")
    if np.shape(dx) != g.shape:
        raise Misconception("dx-of-another-shape", f"{where[0].upper()}{where[1:]}, dx has shape {np.shape(dx)}, "
                            f"expected that of x, {g.shape}.")
    true_dx, true_da = by_moving(a, g, branch)
    if not np.allclose(dx, true_dx, rtol=1e-6, atol=1e-7):
        tag, meaning = _dx_means(np.asarray(dx), true_dx, a, g, branch)
        raise Misconception(tag, f"{where[0].upper()}{where[1:]}, g is {_numbers(g)} and your dx {_numbers(dx)}; "
                            f"moving the elements of x one at a time gives {_numbers(true_dx)}. {meaning}")
    if np.shape(da) not in ((), (1,)):
        raise Misconception("da-not-summed", f"{where[0].upper()}{where[1:]}, da has shape {np.shape(da)}. a is one "
                            "number that was used for every element of F(x): what becomes of contributions to one "
                            "number?")
    value = float(np.reshape(da, -1)[0])
    if not math.isclose(value, true_da, rel_tol=1e-6, abs_tol=1e-7):
        tag, meaning = _da_means(value, true_da, a, g, np.asarray(dx), branch)
        raise Misconception(tag, f"{where[0].upper()}{where[1:]}, your da is {value:.6g}; moving a by a little gives "
                            f"{true_da:.6g}. {meaning}")
    if branch.calls != 1:
        raise Misconception("branch-walked-again", f"vjp was called {branch.calls} times for one block. Each call "
                            "walks the whole branch; with n blocks inside each other that makes "
                            f"{max(branch.calls, 2)}^n. One call has all that is needed.")


def _dx_means(dx: np.ndarray, true: np.ndarray, a: float, g: np.ndarray, branch: Branch) -> tuple[str, str]:
    """The misconception that gives this dx, as a tag and in words."""
    brought = true - g  # by the branch, as finite differences have it
    known = [
        (brought, "shortcut-forgotten", "Yours is what comes through the branch alone. x was used twice: what did its "
         "other use bring?"),
        (g, "branch-forgotten", "Yours is what comes along the shortcut alone. Where does the branch's part come in?"),
        (g + brought / a, "scale-forgotten", "Yours is right for a = 1: the forward pass multiplied F(x) by a. Which "
         "factor does a product hand on to its other factor?"),
        (g + brought * a, "scaled-twice", "The branch's part was multiplied by a twice. It passed a once on its way to "
         "y."),
        (a * g + brought, "scale-on-the-shortcut", "Both parts were multiplied by a. Read y = x + a F(x) again: what "
         "stands in front of the first x?"),
        (a * g + brought / a, "scale-on-the-wrong-route", "The shortcut's part was multiplied by a, and the branch's "
         "was not."),
        (g * (1 + a * branch.rule(np.ones_like(g))), "jacobian-as-numbers", "Yours multiplies g element by element by "
         "the column sums of J. Each element of F(x) depends on several of x: J is a matrix, and vjp(u) is J^T u for "
         "the very u that arrives."),
    ]
    for candidate, tag, meaning in known:
        if np.allclose(dx, candidate, rtol=1e-5, atol=1e-6):
            return tag, meaning
    return "dx-wrong", "Write down the two ways from x to y, and what each of them hands back."


def _da_means(da: float, true: float, a: float, g: np.ndarray, dx: np.ndarray, branch: Branch) -> tuple[str, str]:
    """The misconception that gives this da, as a tag and in words."""
    known = [
        (true * a, "scale-in-its-own-gradient", "Yours has a factor of a in it. y is linear in a: how can its "
         "derivative depend on a?"),
        (true / g.size, "mean-for-sum", "Yours is the mean over elements. Contributions of several uses add up."),
        (float(g.sum()), "branch-output-forgotten", "Yours is the sum of g. By how much does one element of y change "
         "if a does?"),
        (float(branch.f.sum()), "upstream-forgotten", "Yours is the sum of F(x). That is what sum(y) changes by; the "
         "loss weighs the elements of y by g."),
        (float(np.vdot(dx, branch.f)), "gradient-of-another-place", "Yours is a product with dx. a met F(x) at the "
         "addition: which gradient arrives there?"),
        (0.0, "scale-not-learned", "Yours is 0: then a could never be learned."),
    ]
    for candidate, tag, meaning in known:
        if math.isclose(da, candidate, rel_tol=1e-5, abs_tol=1e-6):
            return tag, meaning
    return "da-wrong", "By how much does each element of y change if a does, and how much does the loss care?"


def _numbers(array: Any) -> str:
    return np.array2string(np.asarray(array), precision=4, suppress_small=True, separator=", ").replace("\n", "")


# --- scale_for_depth --------------------------------------------------------------------------------------------------


def grown(factor: float, depth: int) -> float:
    """sqrt of `factor` multiplied `depth` times: what size becomes if each block multiplies its square by `factor`."""
    square = 1.0
    for _ in range(depth):
        square *= factor
    return math.sqrt(square)


def scale_for_depth(answer: Callable[..., Any]) -> None:
    """Check scale_for_depth(depth, growth, s) -> a on 44 triples and on random networks. Raises Misconception."""
    rng = np.random.default_rng((seed(), 72))
    cases = [(3, 4.0, 1.0), (50, 2.0, 1.0), (50, math.exp(0.5), 1.0), (10, 3.0, 2.0)]
    cases += [(int(rng.integers(1, 200)), float(rng.uniform(1.05, 20)), float(rng.uniform(0.3, 3))) for _ in range(40)]
    for depth, growth, s in cases:
        a = answer(depth, growth, s)
        if not isinstance(a, (int, float, np.number, np.ndarray)) or np.shape(a) or not math.isfinite(a) or a <= 0:
            raise Misconception("not-a-scale", f"scale_for_depth({depth}, {growth:.4g}, {s:.4g}) gave {a!r}, expected "
                                "one positive number: a growth above 1 needs a branch.")
        reached = grown(1 + float(a)**2 * s, depth)
        if not math.isclose(reached, growth, rel_tol=1e-6):
            tag, meaning = _scale_means(float(a), depth, growth, s)
            raise Misconception(tag, f"{depth} blocks were to make a vector {growth:.4g} times as long, with s = "
                                f"{s:.4g}. With your a = {a:.4g}, multiplying |x|^2 by 1 + a^2 s block by block makes "
                                f"it {reached:.4g} times as long. {meaning}")
    sizes = [_measured(float(answer(20, 2.0, 1.0)), 20, 300, rng) for _ in range(6)]
    print(f"scale_for_depth: right for {len(cases)} triples; where 2 was asked for, 6 random networks grew by "
          f"{min(sizes):.3g} to {max(sizes):.3g}")


def _measured(a: float, depth: int, width: int, rng: np.random.Generator) -> float:
    x = rng.standard_normal((32, width))
    before = np.linalg.norm(x)
    for _ in range(depth):
        x = x + a * np.maximum(x, 0) @ (rng.standard_normal((width, width)) * math.sqrt(2 / width))
    return float(np.linalg.norm(x) / before)


def _scale_means(a: float, depth: int, growth: float, s: float) -> tuple[str, str]:
    """The misconception that gives this a, as a tag and in words."""
    known = [
        (grown((1 + a * math.sqrt(s))**2, depth), growth, "lengths-add", "Yours adds the lengths of x and of the "
         "branch. They would add if both pointed the same way; at right angles it is their squares that do."),
        (grown(1 + a * a * s, depth)**2, growth, "square-for-length", "With yours it is the square that grows by the "
         "growth asked for. Asked for is that of the length."),
        (grown(1 + a * s, depth), growth, "a-squared", "With yours for a^2 it would be right: is there a root left to "
         "take?"),
        (grown(1 + a * a, depth), growth, "s-ignored", "Yours is right for s = 1. Here |F(x)|^2 is s |x|^2."),
        (grown(1 + a * a / s, depth), growth, "s-upside-down", "With 1/s for s it would be right. Must a branch that "
         "is larger be scaled by more or by less?"),
        (depth * a * a * s / 2, math.log(growth), "first-order", "Yours takes ln(1 + t) for t. That is close where a "
         "is small, but the equation can be solved exactly."),
        (grown(1 + a * a * s, 1), growth, "depth-ignored", "With yours one block alone grows by that much."),
        (a * a * depth, 1.0, "always-one-over-root-depth", "Yours is 1/sqrt(depth), which keeps the growth below "
         "sqrt(e), but does not give the growth that is asked for."),
    ]
    for value, expected, tag, meaning in known:
        if math.isclose(value, expected, rel_tol=1e-5):
            return tag, meaning
    return "scale-wrong", "Write |x|^2 after L blocks as a product, set it to growth^2 |x|^2, and solve for a."


# --- find_the_branch --------------------------------------------------------------------------------------------------

SHAPE = (3, 4)


def find_the_branch(answer: Callable[..., Any]) -> None:
    """Check find_the_branch(routes, shape) -> name or None on routes of which it is known what they are.

    Raises Misconception.
    """
    rng = np.random.default_rng((seed(), 73))
    n = math.prod(SHAPE)
    one, two = (rng.standard_normal((n, n)) / math.sqrt(n) for _ in range(2))
    small, large = _matrix(0.1 * one), _matrix(30 * two)
    mask = (np.arange(n) < n // 2).reshape(SHAPE)
    there = [  # the name of the identity, the routes, what it means if nothing was found
        ("shortcut", {"branch": small, "shortcut": lambda g: g}, "by-position"),
        ("u", {"v": large, "u": lambda g: g, "w": small}, "by-name"),
        ("R", {"L": small, "R": lambda g: g.copy()}, "same-array"),
        ("down", {"up": large, "down": lambda g: (3.0 * g) / 3.0}, "same-array"),
    ]
    for name, routes, tag in there:
        _must_find(answer, name, routes, tag)
    nowhere: list[tuple[dict[str, Route], str, str, str]] = [  # routes, the decoy, its tag, what is wrong with it
        ({"F": small, "G": large}, "", "", ""),
        ({"F": small, "R": lambda g: 0.1 * g}, "R", "direction-only", "R hands on a tenth of what arrives. Fifty such "
         "blocks leave 1e-50 of it: the direction is right, but the number in front is a scale on the shortcut."),
        ({"F": small, "R": lambda g: -g}, "R", "norm-only", "R turns every sign around. The norm stays, the gradient "
         "is the opposite."),
        ({"F": small, "R": lambda g: g * mask}, "R", "one-element", "R lets half of the elements pass and stops the "
         "others, as a ReLU behind the addition does. One element cannot tell you of the rest."),
        ({"F": small, "R": _running_mean}, "R", "ones-only", "R gives the mean of all elements so far, and a gradient "
         "of ones is all that it hands on unchanged. Which upstream gradient tells an identity from everything else?"),
        ({"F": small, "R": lambda g: np.roll(g.reshape(-1), 1).reshape(g.shape)}, "R", "sum-only", "R moves every "
         "element to its neighbour's place. Sum and norm stay, the gradient comes to the wrong element."),
    ]
    for routes, decoy, tag, meaning in nowhere:
        found = _named(answer, routes)
        if found is not None and found == decoy:
            raise Misconception(tag, f"No route of {', '.join(routes)} is an identity, and the answer was {found!r}. "
                                + meaning)
        if found is not None:
            raise Misconception("always-names-one", f"No route of {', '.join(routes)} hands the gradient on "
                                f"unchanged, and the answer was {found!r}. The one that comes nearest is still a "
                                "branch: then the answer is None.")
    print(f"find_the_branch: right on {len(there)} blocks with an identity and on {len(nowhere)} without one")


def _matrix(matrix: np.ndarray) -> Route:
    return lambda g: (matrix @ g.reshape(-1)).reshape(g.shape)


def _running_mean(g: np.ndarray) -> np.ndarray:
    flat = g.reshape(-1)
    return (np.cumsum(flat) / np.arange(1, len(flat) + 1)).reshape(g.shape)


def _named(answer: Callable[..., Any], routes: dict[str, Route]) -> Any:
    """What is answered for these routes: one of their names or None."""
    try:
        found = answer(dict(routes), SHAPE)
    except KeyError as error:
        raise Misconception("by-name", f"The routes are called {', '.join(routes)}, and one called {error} was looked "
                            "for. What a route is called says nothing about what it hands on.") from error
    if found is not None and found not in routes:
        raise Misconception("by-name", f"The routes are called {', '.join(routes)}, and the answer was {found!r}. "
                            "What a route is called says nothing about what it hands on.")
    return found


def _must_find(answer: Callable[..., Any], name: str, routes: dict[str, Route], tag: str) -> None:
    found = _named(answer, routes)
    if found == name:
        return
    if found is None:
        meanings = {
            "by-position": "It is the one that gives back what it gets, whatever that is.",
            "by-name": "Its name is not one that you looked for: what does a route do with a gradient?",
            "same-array": "It makes an array of its own with the same numbers, up to rounding. An identity is a matter "
                          "of values, not of where they are kept.",
        }
        raise Misconception("none-found" if tag == "by-position" else tag, f"Of the routes {', '.join(routes)} the "
                            f"identity is {name!r}, and the answer was None. {meanings[tag]}")
    turned = dict(reversed(routes.items()))
    if _named(answer, turned) != found:
        raise Misconception("by-position", f"Of the routes {', '.join(routes)} the identity is {name!r}. The answer "
                            f"was {found!r}, and another one when the same routes came in another order.")
    sizes = {key: float(np.linalg.norm(route(np.ones(SHAPE)))) for key, route in routes.items()}
    listed = ", ".join(f"{key} {size:.3g}" for key, size in sizes.items())
    raise Misconception("by-size", f"Of the routes {', '.join(routes)} the identity is {name!r}, and the answer was "
                        f"{found!r}. For a gradient of norm {math.sqrt(math.prod(SHAPE)):.3g} they hand on {listed}: "
                        "how much comes through a route does not say that it is unchanged.")
