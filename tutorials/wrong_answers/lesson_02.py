"""Wrong answers to the exercises of lesson 2, each with the misconception that its check must name."""

from tinyres.teach.misconception import WrongAnswer


def _check(body: str, setup: str = "") -> str:
    """A gradient check as learners write it, element by element; `body` is what it does with `measured`."""
    return f'''def check(forward, backward, x, h=1e-5, tolerance=1e-6):
    x = x.astype("float64")
    g = np.random.default_rng(0).standard_normal(forward(x).shape)
    {setup or "pass"}
    claimed = backward(g, x)
    if claimed.shape != x.shape:
        return False
    measured = np.zeros(x.shape)
    for index in np.ndindex(x.shape):
        step = np.zeros_like(x)
        step[index] = h
        measured[index] = np.sum(g * (forward(x + step) - forward(x - step))) / (2 * h)
{body}
'''


CLOSE = "    return bool(np.allclose(claimed, measured, rtol=tolerance, atol=1e-9))"
RIGHT = _check(CLOSE)


def _instead(old: str, new: str) -> str:
    assert old in RIGHT
    return RIGHT.replace(old, new)


WRONG: list[WrongAnswer] = [
    WrongAnswer("unbroadcast", "added-axes-kept", "only an axis of length 1 is stretched", '''
def unbroadcast(g, shape):
    added = g.ndim - len(shape)
    for axis, size in enumerate(shape):
        if size == 1:
            g = g.sum(axis=added + axis, keepdims=True)
    return g
'''),
    WrongAnswer("unbroadcast", "stretched-axes-kept", "only the axes in front are new; a length of 1 fits anyway", '''
def unbroadcast(g, shape):
    while g.ndim > len(shape):
        g = g.sum(axis=0)
    return g.copy()
'''),
    WrongAnswer("unbroadcast", "dropped-axis", "a sum over an axis is a sum, with or without the axis", '''
def unbroadcast(g, shape):
    while g.ndim > len(shape):
        g = g.sum(axis=0)
    axes = tuple(axis for axis, size in enumerate(shape) if size == 1)
    return g.sum(axis=axes)
'''),
    WrongAnswer("unbroadcast", "aligned-left", "shapes are compared from their first axis on", '''
def unbroadcast(g, shape):
    padded = tuple(shape) + (1,) * (g.ndim - len(shape))
    axes = tuple(axis for axis, size in enumerate(padded) if size == 1)
    return g.sum(axis=axes).reshape(shape)
'''),
    WrongAnswer("unbroadcast", "mean-for-sum", "one number, so the average of what its copies got", '''
def unbroadcast(g, shape):
    added = g.ndim - len(shape)
    axes = tuple(axis for axis in range(g.ndim) if axis < added or shape[axis - added] == 1)
    return g.mean(axis=axes).reshape(shape)
'''),
    WrongAnswer("unbroadcast", "one-copy", "all copies are the same, so one of them will do", '''
def unbroadcast(g, shape):
    while g.ndim > len(shape):
        g = g[0]
    for axis, size in enumerate(shape):
        if size == 1:
            g = g.take([0], axis=axis)
    return g.copy()
'''),
    WrongAnswer("unbroadcast", "sums-everything", "if the shapes differ, the gradient is the sum", '''
def unbroadcast(g, shape):
    return g.copy() if g.shape == tuple(shape) else g.sum()
'''),
    WrongAnswer("unbroadcast", "some-axes-only", "one axis was broadcast, the first that differs", '''
def unbroadcast(g, shape):
    added = g.ndim - len(shape)
    for axis in range(g.ndim):
        size = 1 if axis < added else shape[axis - added]
        if size != g.shape[axis]:
            return g.sum(axis=axis, keepdims=axis >= added)
    return g.copy()
'''),
    WrongAnswer("unbroadcast", "changes-g", "the array can be used for adding up, nobody needs it afterwards", '''
def unbroadcast(g, shape):
    added = g.ndim - len(shape)
    for axis in range(g.ndim):
        if axis < added or shape[axis - added] == 1:
            for i in range(1, g.shape[axis]):
                g.swapaxes(0, axis)[0] += g.swapaxes(0, axis)[i]
            g = g.take([0], axis=axis)
    return g.reshape(shape)
'''),
    WrongAnswer("check", "upstream-of-ones", "the sum of the outputs is as good a loss as any",
                _instead("np.random.default_rng(0).standard_normal(forward(x).shape)", "np.ones(forward(x).shape)")),
    WrongAnswer("check", "float32", "the dtype that the network runs in is the one to check",
                _instead('x = x.astype("float64")', "x = x.copy()")),
    WrongAnswer("check", "loose-tolerance", "differences are approximations, so a few percent are fine",
                _instead("rtol=tolerance, atol=1e-9", "rtol=0.05, atol=1e-9")),
    WrongAnswer("check", "absolute-tolerance", "if no element is off by more than 1e-5, it is right",
                _instead("rtol=tolerance, atol=1e-9", "rtol=0, atol=1e-5")),
    WrongAnswer("check", "no-floor", "the error in relation to the gradient, always",
                _check("    error = np.linalg.norm(claimed - measured)\n"
                       "    return bool(error <= tolerance * max(np.linalg.norm(claimed), np.linalg.norm(measured)))")),
    WrongAnswer("check", "step-too-large", "a tenth is a small number", _instead("h=1e-5", "h=0.1")),
    WrongAnswer("check", "step-too-small", "the smaller the step, the closer to the limit",
                _instead("h=1e-5", "h=1e-12")),
    WrongAnswer("check", "one-sided", "the derivative is (f(x + h) - f(x)) / h",
                _instead("- forward(x - step))) / (2 * h)", "- forward(x))) / h")),
    WrongAnswer("check", "shape-not-compared", "allclose will say so if the shapes do not fit",
                _instead("if claimed.shape != x.shape:\n        return False", "pass")),
    WrongAnswer("check", "some-elements-only", "one element is as good as another",
                _instead("    for index in np.ndindex(x.shape):", "    for index in [(0,) * x.ndim]:").replace(
                    CLOSE, "    return bool(np.isclose(claimed[index], measured[index], rtol=tolerance, atol=1e-9))")),
    WrongAnswer("check", "one-direction", "moving everything at once checks everything at once", '''
def check(forward, backward, x, h=1e-5):
    x = x.astype("float64")
    g = np.random.default_rng(0).standard_normal(forward(x).shape)
    claimed = backward(g, x)
    slope = np.sum(g * (forward(x + h) - forward(x - h))) / (2 * h)
    return claimed.shape == x.shape and bool(np.isclose(claimed.sum(), slope, rtol=1e-6, atol=1e-9))
'''),
    WrongAnswer("check", "never-put-back", "x[index] += h, then x[index] -= 2 * h, and on to the next", '''
def check(forward, backward, x, h=1e-4):
    x = x.astype("float64")
    g = np.random.default_rng(0).standard_normal(forward(x).shape)
    claimed = backward(g, x)
    if claimed.shape != x.shape:
        return False
    measured = np.zeros(x.shape)
    for index in np.ndindex(x.shape):
        x[index] += h
        above = forward(x)
        x[index] -= 2 * h
        measured[index] = np.sum(g * (above - forward(x))) / (2 * h)
    return bool(np.allclose(claimed, measured, rtol=1e-6, atol=1e-9))
'''),
    WrongAnswer("check", "accepts-everything", "assert on a tuple, or a comparison with itself", '''
def check(forward, backward, x):
    g = np.random.default_rng(0).standard_normal(forward(x).shape)
    return bool(np.allclose(backward(g, x), backward(g, x)))
'''),
]
