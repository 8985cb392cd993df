"""The hand-worked block and its smaller siblings: engine, finite differences and the numbers on paper agree exactly.

Each loss is linear in every single element of a leaf (or quadratic, where x meets itself), so a central difference with
a step of 1/4 has no error of its own, and all numbers are sums of powers of two: == is the test.
"""

import re

import numpy as np
import pytest

import tinyres as tr
from tinyres.stepper import example
from tinyres.stepper.example import BACKWARD_BY_HAND, EXAMPLES, FORWARD_BY_HAND, GRADIENTS, IDENTITY_SHARE, VALUES

DTYPES = ["float32", "float64"]
LINEAR = ["residual", "fork", "conv", "concat"]  # central differences of a batch norm have an error
V, X = np.array(VALUES["V"], float), np.array(VALUES["x"], float)
W1, W2 = np.array(VALUES["W1"], float), np.array(VALUES["W2"], float)


def equal(array, numbers):
    return np.array_equal(np.asarray(array), np.array(numbers))


def tensors_of(hand):
    """Every tensor of the hand-worked block by its name on paper, after a forward pass."""
    seen, block = {}, hand.module
    watched = {"a": block.W1, "h": block.relu, "F": block.W2, "y": block}
    handles = [module.register_forward_hook(lambda m, args, out, name=name: seen.__setitem__(name, out))
               for name, module in watched.items()]
    seen["loss"] = hand()
    for handle in handles:
        handle.remove()
    return seen | hand.leaves


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_engine_computes_the_values_on_paper(dtype):
    for name, tensor in tensors_of(example.hand_worked(dtype)).items():
        assert equal(tensor.numpy(), VALUES[name]), name
        assert tensor.dtype == dtype


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_engine_computes_the_gradients_on_paper(dtype):
    tensors = tensors_of(example.hand_worked(dtype))
    for tensor in tensors.values():
        tensor.retain_grad()
    tensors["loss"].backward()
    for name, tensor in tensors.items():
        assert equal(tensor.grad.numpy(), GRADIENTS[name]), name
        assert tensor.grad.dtype == dtype


@pytest.mark.parametrize("dtype", DTYPES)
def test_shortcut_and_branch_bring_to_the_fork_what_the_paper_says(dtype):
    hand = example.hand_worked(dtype)
    x, brought = hand.leaves["x"], {}
    with tr.unfused():
        for event in hand().backward_steps():
            for edge, g in zip(event.node.edges, event.contributions, strict=False):
                if edge is x:
                    brought[event.node.name] = g.copy()
    assert sorted(brought) == ["add", "matmul"]
    assert equal(brought["add"], GRADIENTS["x along the shortcut"])
    assert equal(brought["matmul"], GRADIENTS["x through the branch"])
    assert equal(brought["add"] + brought["matmul"], GRADIENTS["x"])


def test_numpy_agrees_with_the_table():
    a = W1 @ X
    h = np.maximum(a, 0)
    F = W2 @ h
    dh = W2.T @ V
    da = dh * (a > 0)
    for name, array in {"a": a, "h": h, "F": F, "y": X + F, "loss": (V * (X + F)).sum()}.items():
        assert equal(array, VALUES[name]), name
    found = {"y": V, "F": V, "W2": V @ h.T, "h": dh, "a": da, "W1": da @ X.T, "x along the shortcut": V,
             "x through the branch": W1.T @ da, "x": V + W1.T @ da, "loss": 1}
    assert set(found) == set(GRADIENTS)
    for name, array in found.items():
        assert equal(array, GRADIENTS[name]), name


def test_the_block_teaches_what_it_should():
    dx, along, through = (np.array(GRADIENTS[k]) for k in ("x", "x along the shortcut", "x through the branch"))
    assert (np.array(VALUES["a"]) < 0).sum() == 1            # one unit is off,
    assert np.array(GRADIENTS["h"])[1, 1] == 3.5             # and stops a gradient that is not zero
    assert not np.array_equal(along, through)
    assert np.argwhere(dx == 0).tolist() == [[0, 0]] and along[0, 0] == -through[0, 0] != 0  # one element cancels
    assert np.isclose((along * dx).sum() / (dx * dx).sum(), IDENTITY_SHARE, rtol=1e-15)
    for wrong in (W1 @ (V @ np.array(VALUES["h"]).T), V @ np.array(VALUES["a"]).T, np.array(VALUES["h"]).T @ V):
        assert not equal(wrong, GRADIENTS["W2"])             # a forgotten transpose, mask or order shows
    for matrix in (X, W1, W2, V, dx):
        assert not np.array_equal(matrix, matrix.T)


@pytest.mark.parametrize("lines, table", [(FORWARD_BY_HAND, VALUES), (BACKWARD_BY_HAND, GRADIENTS)])
def test_every_sum_that_is_written_out_is_right(lines, table):
    for name, line in lines.items():
        sums = re.split(r";\s*", line.split(": ", 1)[1])
        results = []
        for written in sums:
            terms, result = written.split(" = ")
            assert re.fullmatch(r"[-+·., 0-9max()]+", terms)
            assert eval(terms.replace("·", "*")) == float(result), written
            results.append(float(result))
        assert results == np.array(table[name], float).ravel().tolist(), name


def test_the_docstring_has_the_same_numbers():
    found = re.findall(r"(\w+) += (?:[^\n=;]*= )?\[([^\]]*)\]", example.__doc__)
    text = dict(found)
    assert {"x", "W1", "W2", "V", "a", "h", "F", "y"} <= set(text)
    for name in ("x", "W1", "W2", "V", "a", "h", "F", "y"):
        assert [float(n) for n in text[name].replace(";", " ").split()] == np.array(VALUES[name]).ravel().tolist(), name
    for name, words in {"W1": "dW1 = da x^T", "a": "da  = dh where a > 0", "h": "dh  = W2^T dF",
                        "W2": "dW2 = dF h^T"}.items():
        numbers = re.search(re.escape(words) + r" *= \[([^\]]*)\]", example.__doc__).group(1)
        assert [float(n) for n in numbers.replace(";", " ").split()] == np.array(GRADIENTS[name]).ravel().tolist()
    assert "dx = [0 3; 1 2]" in example.__doc__ and "W1^T da = [1 1; 3 -1]" in example.__doc__


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", EXAMPLES)
def test_every_example_has_the_values_and_gradients_that_it_claims(name, dtype):
    given = example.example(name, dtype)
    loss = given()
    assert loss.shape == () and loss.dtype == dtype and loss.numpy() == given.values["loss"]
    loss.backward()
    for leaf, tensor in given.leaves.items():
        assert equal(tensor.grad.numpy(), given.gradients[leaf]), leaf
        if leaf in given.values:
            assert equal(tensor.numpy(), given.values[leaf])
    assert given.title and all(note.strip() for note in given.notes)
    assert np.isclose(given().numpy(), given.values["loss"])  # it can be run again


@pytest.mark.parametrize("name", EXAMPLES)
def test_unfused_gives_the_same_numbers(name):
    given = example.example(name)
    with tr.unfused():
        given().backward()
    for leaf, tensor in given.leaves.items():
        assert equal(tensor.grad.numpy(), given.gradients[leaf]), leaf


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", LINEAR)
def test_finite_differences_are_exact(name, dtype):
    given = example.example(name, dtype)
    for leaf, tensor in given.leaves.items():
        numeric = np.empty(tensor.shape, dtype)
        for index in np.ndindex(tensor.shape):
            kept, ends = tensor.data[index], []
            for step in (0.25, -0.25):
                tensor.data[index] = kept + step
                ends.append(given().item())
            tensor.data[index] = kept
            numeric[index] = (ends[0] - ends[1]) / 0.5
        assert equal(numeric, given.gradients[leaf]), leaf


def test_finite_differences_of_the_batch_norm_agree():
    given = example.batchnorm()
    for leaf, tensor in given.leaves.items():
        for index in np.ndindex(tensor.shape):
            kept, ends = tensor.data[index], []
            for step in (1e-5, -1e-5):
                tensor.data[index] = kept + step
                ends.append(given().item())
            tensor.data[index] = kept
            claimed = np.array(given.gradients[leaf], float)[index]
            assert (ends[0] - ends[1]) / 2e-5 == pytest.approx(claimed, abs=1e-7), (leaf, index)


def arrivals(given, leaf="x"):
    """What comes to a leaf, as (op, array) in order, in the unfused graph."""
    found = []
    with tr.unfused():
        for event in given().backward_steps():
            for edge, g in zip(event.node.edges, event.contributions, strict=False):
                if edge is given.leaves[leaf]:
                    found.append((event.node.name, g.copy()))
    return found


def test_three_routes_lead_through_a_batch_norm():
    given = example.batchnorm()
    mean = sum(g for name, g in arrivals(given) if name != "sub")
    subs = [g for name, g in arrivals(given) if name == "sub"]
    assert equal(mean, given.gradients["x through the mean"])
    direct = [g for g in subs if equal(g, given.gradients["x direct"])]
    assert len(direct) == 1
    variance = sum(subs) - direct[0]
    assert equal(variance, given.gradients["x through the variance"])
    assert equal(direct[0] + mean + variance, given.gradients["x"])


def test_a_fork_and_a_concatenation_get_what_their_consumers_bring():
    fork = example.fork()
    brought = arrivals(fork)
    assert sorted(name for name, _ in brought) == ["add", "mul", "mul"]
    for name, g in brought:
        assert equal(g, fork.gradients["x along the addition" if name == "add" else "x through the product, once"])
    joined = example.concat()
    brought = arrivals(joined)
    assert sorted(name for name, _ in brought) == ["concat", "mul", "mul"]
    for name, g in brought:
        key = "x along the concatenation" if name == "concat" else "x through the product, once"
        assert equal(g, joined.gradients[key])


def test_the_convolution_by_loops():
    given = example.conv()
    x, w, V = (np.array(numbers, float)[0, 0] for numbers in
               (given.values["x"], given.values["weight"], given.gradients["y"]))
    y, dx, dw = np.zeros((2, 2)), np.zeros((3, 3)), np.zeros((2, 2))
    for p, q, r, s in np.ndindex(2, 2, 2, 2):
        y[p, q] += x[p + r, q + s] * w[r, s]
        dx[p + r, q + s] += V[p, q] * w[r, s]
        dw[r, s] += V[p, q] * x[p + r, q + s]
    assert equal(y, given.values["y"][0][0])
    assert equal(dx, given.gradients["x"][0][0]) and equal(dw, given.gradients["weight"][0][0])


def test_sums_in_the_notes_are_right():
    sums = [found for name in EXAMPLES for note in example.example(name).notes
            for found in re.findall(r"((?:[-()\d.]+·[-()\d.]+ \+ )+[-()\d.]+·[-()\d.]+) = (-?[\d.]*\d)", note)]
    assert len(sums) > 20
    for terms, result in sums:
        assert eval(terms.replace("·", "*")) == float(result), terms


def test_examples_do_not_share_tensors():
    first, second = example.hand_worked(), example.hand_worked()
    first.leaves["x"].data[...] = 0
    first.leaves["W1"].data[...] = 0
    assert second().numpy() == VALUES["loss"]
    assert example.hand_worked()().numpy() == VALUES["loss"]


def test_an_unknown_example_suggests_the_nearest():
    with pytest.raises(ValueError, match="no example is called 'residul'; did you mean 'residual'"):
        example.example("residul")
    with pytest.raises(ValueError, match="choose from residual, fork, batchnorm, conv, concat"):
        example.example("zzz")


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_needs_a_float_dtype(name):
    with pytest.raises(TypeError, match="got dtype int64: use 'float32' or 'float64'"):
        example.example(name, "int64")


def test_the_block_without_its_branch_is_its_shortcut():
    block = example.HandWorkedBlock()
    x = tr.tensor(VALUES["x"], "float64")
    assert block.without_branch(x) is x
    block.zero_branch_()
    assert equal(block(x).numpy(), VALUES["x"])
