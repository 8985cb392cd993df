"""The check of lesson 1: a backward pass over any graph of ops.

The graphs are made here, and their ops keep a diary. So an answer is judged by what it did, not only by what came out.
Small graphs come first, each for one way to be wrong; then random ones, whose gradients are finite differences.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tinyres.stepper.example import GRADIENTS, VALUES
from tinyres.teach import Misconception, seed
from tinyres.teach.checks.graphs import Array, Graph

Backward = Callable[[Any], Any]

GRAPHS = 200
DEPTH = 3000  # ops in a row, three times as many as Python lets functions call themselves


def backward(answer: Backward) -> None:
    """Check a function backward(root). Raises Misconception with what it did wrong; prints a line if it is right."""
    _chain(answer)
    _fork(answer)
    _twice_the_same(answer)
    _order(answer)
    _twice_and_once_more(answer)
    _count(answer)
    _second_pass(answer)
    _depth(answer)
    calls = _random_graphs(answer)
    print(f"backward: right on {GRAPHS} random graphs, {calls:,} calls of rules, one for each op")


def _run(answer: Backward, graph: Graph, what: str) -> None:
    try:
        answer(graph.root)
    except RecursionError:
        raise Misconception("recursion", f"{what[0].upper()}{what[1:]}: the stack overflowed. A function that calls "
                            "itself for each op can go about a thousand ops deep, and networks are deeper. Keep a list "
                            "of what is to be done, and loop over it.") from None
    for call in graph.diary:
        for array, copy in zip(call.arrays, call.copies, strict=True):
            if not np.array_equal(array, copy, equal_nan=True):
                raise Misconception("writes-into-a-shared-array", f"On {what}: an array that was given to the rule of "
                                    f"{call.node.op}, or that it returned, was {_show(copy)} then and is "
                                    f"{_show(array)} now. An addition hands one and the same array to both of its "
                                    "inputs; who adds to it in place changes the other's gradient, too. Which of your "
                                    "lines changes an array, instead of making a new one?")


def _chain(answer: Backward) -> None:
    graph = Graph({"x": [1, -2]}, [("y", "triple", "x"), ("L", "sum", "y")])
    what = "the chain L = sum(3 x) with x = [1, -2]"
    _run(answer, graph, what)
    found = graph.grad("x")
    if graph.root.grad is None and not graph.diary:
        raise Misconception("sets-nothing", f"On {what}: no rule was called, and the root has no gradient. The walk "
                            "begins at the root, whose own gradient is known before anything is calculated.")
    if found is None and graph.grad("y") is None:
        raise Misconception("stops-early", f"On {what}: {len(graph.diary)} of 2 rules were called, and x has no "
                            "gradient. Under which condition does your walk end?")
    if found is not None and np.array_equal(found, [-9, -9]):
        raise Misconception("starts-with-the-value", f"On {what}: the gradient of x is [-9, -9], expected [3, 3]. That "
                            "is 3 times the loss, -3. The walk starts with the derivative of the loss by the loss, "
                            "not with its value.")
    if found is not None and not np.any(found):
        raise Misconception("starts-with-nothing", f"On {what}: the gradient of x is {_show(found)}, expected [3, 3]. "
                            "All rules are linear: from 0 they make 0. What is the derivative of the loss by itself?")
    if graph.grad("y") is None or graph.root.grad is None:
        raise Misconception("leaves-only", f"On {what}: x has a gradient, and y = 3 x or the loss has none. The "
                            "exercise asks for .grad of every tensor on the way: look at where you set it.")
    _equal(graph, "x", [3, 3], what)
    _equal(graph, "y", [1, 1], what)
    for inputs in ("y w", "w y"):  # a leaf beside the chain must not end the walk
        graph = Graph({"x": [1, -2], "w": [5, 4]}, [("y", "triple", "x"), ("z", "mul", inputs), ("L", "sum", "z")])
        what = f"L = sum({inputs.replace(' ', ' * ')}), y = 3 x"
        _run(answer, graph, what)
        _all_called(graph, what)


def _fork(answer: Backward) -> None:
    """The block on paper: at x, V along the shortcut meets what comes through the branch."""
    graph = _block()
    what = "the block on paper, y = x + W2 relu(W1 x)"
    _run(answer, graph, what)
    right, found = np.array(GRADIENTS["x"], float), graph.grad("x")
    shortcut = np.array(GRADIENTS["x along the shortcut"], float)
    branch = np.array(GRADIENTS["x through the branch"], float)
    seen = f"On {what}: the gradient of x is {_show(found)}, expected {_show(right)}. "
    _all_called(graph, what)
    for tag, wrong, text in (
        ("overwrites", branch, "That is what the branch brings, alone. It came after the shortcut's contribution and "
         "took its place. x has two uses: what becomes of the first contribution when the second arrives?"),
        ("keeps-the-first", shortcut, "That is what the shortcut brings, alone. The branch came later, when x had a "
         "gradient already, and was ignored. That a tensor has a gradient does not mean that it has all of it."),
        ("averages", (shortcut + branch) / 2, "That is half of the sum of both contributions. A gradient is not shared "
         "out among uses: move x by a little, and both routes change the loss, each by its whole amount."),
        ("multiplies", shortcut * branch, "That is the product of both contributions. Derivatives are multiplied along "
         "a route; where two routes meet, their effects on the loss are added."),
    ):
        if found is not None and np.shape(found) == wrong.shape and np.allclose(found, wrong):
            raise Misconception(tag, seen + text)
    for name in graph.reached():
        _equal(graph, name, graph.numerical(name) if name not in GRADIENTS else GRADIENTS[name], what)


def _twice_the_same(answer: Backward) -> None:
    graph = Graph({"x": [3, -1]}, [("y", "mul", "x x"), ("L", "sum", "y")])
    what = "L = sum(x * x) with x = [3, -1]"
    _run(answer, graph, what)
    found = graph.grad("x")
    if found is None or np.array_equal(found, [3, -1]):
        raise Misconception("same-input-once", f"On {what}: the gradient of x is {_show(found)}, expected [6, -2]. The "
                            "rule returned two contributions, [3, -1] each, and x stands twice among the inputs: two "
                            "uses of one tensor. Do you go by tensors, where you should go by uses?")
    _equal(graph, "x", [6, -2], what)


def _twice_and_once_more(answer: Backward) -> None:
    """a * a and another use of a: three uses by two ops, which is where counting by ops goes wrong."""
    for inputs in ("y f", "f y"):
        graph = Graph({"x": [1, -2]}, [("a", "double", "x"), ("y", "mul", "a a"), ("e", "triple", "a"),
                                       ("f", "triple", "e"), ("z", "add", inputs), ("L", "sum", "z")])
        what = f"a = 2 x, L = sum({'a * a + 9 a' if inputs == 'y f' else '9 a + a * a'}), with x = [1, -2]"
        _run(answer, graph, what)
        found, calls = graph.grad("x"), graph.calls("a")
        if not calls:
            raise Misconception("same-input-once", f"On {what}: the rule of a = 2 x was never called, so x has no "
                                "gradient. a * a uses a twice. Is each use counted, and is each one ticked off?")
        if not np.allclose(found, [26, 2]):
            raise Misconception("same-input-once", f"On {what}: the gradient of x is {_show(found)}, expected [26, 2]. "
                                f"The rule of a = 2 x was called with {', then '.join(map(_show, calls))}, but a's "
                                "gradient is [13, 1]. a has three uses, two of them by one op. Do you count ops where "
                                "you tick off uses?")


ORDERS = (
    ("y = a + 3 a", "add", "a f", ()),
    ("y = 3 a + a", "add", "f a", ()),
    ("y = a + 3 sin(2 a)", "add", "a f", ("double", "sin")),
    ("y = 3 sin(2 a) + a", "add", "f a", ("double", "sin")),
)


def _order(answer: Backward) -> None:
    """A fork in the middle: a = 2 x has two uses, and its rule must wait for both."""
    for text, join, inputs, before in ORDERS:
        ops, last = [("a", "double", "x")], "a"
        for i, op in enumerate(before):
            ops.append((f"f{i}", op, last))
            last = f"f{i}"
        ops += [("f", "triple", last), ("y", join, inputs), ("L", "sum", "y")]
        graph = Graph({"x": [0.0]}, ops)
        what = f"a = 2 x, {text}, L = sum(y), with x = [0]"
        _run(answer, graph, what)
        whole, found, calls = graph.numerical("a"), graph.grad("x"), graph.calls("a")
        if found is not None and np.allclose(found, 2 * whole):
            continue
        if len(calls) > 1:
            raise Misconception("handed-on-again", f"On {what}: the gradient of x is {_show(found)}, expected "
                                f"{_show(2 * whole)}. The rule of a = 2 x was called {len(calls)} times, with "
                                f"{', then '.join(map(_show, calls))}; a's gradient is {_show(whole)} in all. What a "
                                "had when it was first visited has been handed on more than once.")
        if calls and not np.allclose(calls[0], whole):
            raise Misconception("handed-on-too-early", f"On {what}: the gradient of x is {_show(found)}, expected "
                                f"{_show(2 * whole)}. The rule of a = 2 x was called with {_show(calls[0])}, but a's "
                                f"gradient is {_show(whole)}: one of its two uses had not contributed yet, and what it "
                                "brought later got no further than a. When may a tensor be visited?")
        _equal(graph, "x", 2 * whole, what)


def _count(answer: Backward) -> None:
    """Ten blocks x + w x in a row: 20 rules, or 2^11 - 2."""
    n = 10
    graph = _row_of_blocks(n)
    what = f"{n} blocks x + 0.1 x in a row"
    _run(answer, graph, what)
    _equal(graph, "x0", 1.1**n, what)
    if len(graph.diary) == 2 ** (n + 1) - 2:
        raise Misconception("once-per-path", f"On {what}: every gradient is right, but rules were called "
                            f"{len(graph.diary):,} times, and there are {2 * n} ops. Each block doubles the number of "
                            "routes, and you follow each by itself: 54 blocks would outlive us. Let a tensor collect "
                            "what comes to it, before it hands anything on.")
    _once_each(graph, what)


def _second_pass(answer: Backward) -> None:
    graph = _block()
    what = "the block on paper, y = x + W2 relu(W1 x), backward called twice"
    _run(answer, graph, what)
    first, calls = np.array(graph.grad("x")), len(graph.diary)
    graph.diary.clear()
    _run(answer, graph, what)
    if not graph.diary:
        raise Misconception("keeps-the-last-pass", f"On {what}: the first pass called {calls} rules, the second none. "
                            "Something that you noted in the first pass, on tensors or outside of the function, keeps "
                            "the second from walking.")
    if not np.allclose(graph.grad("x"), first):
        raise Misconception("keeps-the-last-pass", f"On {what}: the gradient of x is {_show(first)} after the first "
                            f"pass and {_show(graph.grad('x'))} after the second. What lay in .grad from the pass "
                            "before was added to, and handed on again. What must hold when a pass begins?")
    _once_each(graph, what)


def _depth(answer: Backward) -> None:
    ops = [(f"x{i + 1}", "double" if i == 0 else "sin", f"x{i}") for i in range(DEPTH)]
    graph = Graph({"x0": 0.0}, ops)
    what = f"a chain of {DEPTH:,} ops"
    _run(answer, graph, what)
    _equal(graph, "x0", 2.0, what)
    _once_each(graph, what)


def _random_graphs(answer: Backward) -> int:
    """GRAPHS of them against finite differences; returns how many rules were called."""
    rng, calls = np.random.default_rng([seed(), 1]), 0
    for number in range(GRAPHS):
        graph = _random(rng)
        what = f"random graph {number}, {_recipe(graph)}"
        _run(answer, graph, what)
        for name in graph.reached():
            _equal(graph, name, graph.numerical(name), what)
        _once_each(graph, what)
        calls += len(graph.diary)
    return calls


def _random(rng: np.random.Generator) -> Graph:
    """Two or three leaves of two elements, up to nine ops, and their sum. Not every value leads to the root."""
    names = ["x", "w", "v"][: rng.integers(2, 4)]
    leaves = {name: rng.uniform(-1, 1, 2) for name in names}
    ops = []
    for i in range(rng.integers(4, 10)):
        op = str(rng.choice(["add", "add", "sub", "mul", "tanh", "sin", "double"]))
        one = op in ("tanh", "sin", "double")
        ops.append((f"t{i}", op, " ".join(str(name) for name in rng.choice(names[-4:], 1 if one else 2))))
        names.append(f"t{i}")
    return Graph(leaves, [*ops, ("L", "sum", names[-1])])


def _block() -> Graph:
    leaves = {name: VALUES[name] for name in ("x", "W1", "W2", "V")}
    return Graph(leaves, [("a", "matmul", "W1 x"), ("h", "relu", "a"), ("F", "matmul", "W2 h"), ("y", "add", "x F"),
                          ("Vy", "mul", "V y"), ("L", "sum", "Vy")])


def _row_of_blocks(n: int) -> Graph:
    ops = []
    for i in range(n):
        ops += [(f"f{i}", "mul", f"w x{i}"), (f"x{i + 1}", "add", f"x{i} f{i}")]
    return Graph({"x0": 1.0, "w": 0.1}, ops)


def _equal(graph: Graph, name: str, right: Array, what: str) -> None:
    found, right = graph.grad(name), np.asarray(right, dtype=float)
    if found is None:
        raise Misconception("stops-early", f"On {what}: {name} has no gradient, expected {_show(right)}. The loss was "
                            "made from it: on which way does your walk fail to come there?")
    if np.shape(found) != right.shape:
        raise Misconception("wrong-shape", f"On {what}: the gradient of {name} has the shape {np.shape(found)}, "
                            f"expected {right.shape}, that of the tensor.")
    if not np.allclose(found, right, rtol=1e-5, atol=1e-6):
        calls = graph.calls(name) if graph.values[name].node else []
        seen = f" Its rule was called with {', then '.join(map(_show, calls))}." if calls else ""
        raise Misconception("wrong-gradient", f"On {what}: the gradient of {name} is {_show(found)}, expected "
                            f"{_show(right)}.{seen} Work this graph out on paper: what comes to {name}, and when?")


def _all_called(graph: Graph, what: str) -> None:
    missed = [name for name in graph.reached() if graph.values[name].node is not None and not graph.calls(name)]
    if missed:
        raise Misconception("stops-early", f"On {what}: the rules that lead back from {', '.join(missed)} were never "
                            f"called; {len(graph.diary)} of {len(graph.ops)} were. A leaf is the end of one route, not "
                            "of the walk; and a tensor that waits must be visited some day.")


def _once_each(graph: Graph, what: str) -> None:
    for name in graph.reached():
        times = len(graph.calls(name))
        if graph.values[name].node is not None and times != 1:
            raise Misconception("not-once", f"On {what}: the rule that leads back from {name} was called {times} times "
                                "in one pass, expected once.")


def _recipe(graph: Graph) -> str:
    return ", ".join(f"{name} = {op}({', '.join(names.split())})" for name, op, names in graph.ops)


def _show(array: Any) -> str:
    """An array as a learner would write it down."""
    if array is None:
        return "None"
    rounded = np.round(np.asarray(array, dtype=float), 4) + 0.0  # no -0
    return np.array2string(rounded, separator=", ", formatter={"float_kind": lambda number: f"{number:g}"}).replace(
        "\n", "")
