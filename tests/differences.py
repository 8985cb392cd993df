"""Derivatives of a row of the table, two ways: by the engine, and by finite differences of the forward pass alone."""

import numpy as np

import tinyres as tr

STEP = 1e-5  # central differences then err by about 1e-10: the square of the step, and rounding divided by it


def outputs(result):
    """The float arrays or Tensors that an op returned."""
    return [r for r in (result if isinstance(result, tuple) else [result]) if r.dtype.kind == "f"]


def copies(arrays):
    return [np.copy(a, order="K") for a in arrays]


def upstreams(row, arrays, seed=100):
    """A random gradient for each output: uniform ones would hide a wrong sum."""
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(y.shape).astype(y.dtype) for y in outputs(row.run(*copies(arrays)))]


def leaves(arrays, wanted):
    return [tr.tensor(a, requires_grad=i in wanted) for i, a in enumerate(arrays)]


def gradients(row, arrays, upstream, wanted):
    """The engine's gradients of sum(upstream * outputs) with respect to the inputs `wanted`, as arrays."""
    tensors = leaves(arrays, wanted)
    found = outputs(row.run(*tensors))
    for i, (y, u) in enumerate(zip(found, upstream, strict=True)):
        y.backward(u, retain_graph=i < len(found) - 1)
    return [tensors[i].grad.data for i in wanted]


def weighted_sum(row, arrays, upstream):
    return sum(float((u * y).sum()) for u, y in zip(upstream, outputs(row.run(*copies(arrays))), strict=True))


def finite_differences(row, arrays, upstream, wanted):
    """What `gradients` should give: each element of each input moved a step up and a step down."""
    found = []
    for i in wanted:
        slope = np.zeros(arrays[i].shape)
        for at in np.ndindex(slope.shape):
            ends = []
            for step in (STEP, -STEP):
                moved = copies(arrays)
                moved[i][at] += step
                ends.append(weighted_sum(row, moved, upstream))
            slope[at] = (ends[0] - ends[1]) / (2 * STEP)
        found.append(slope)
    return found


def second_order(row, arrays, upstream, wanted, direction):
    """By create_graph: the derivative of <gradients, direction> with respect to the inputs and to the upstream."""
    tensors, seeds = leaves(arrays, wanted), [tr.tensor(u, requires_grad=True) for u in upstream]
    inputs = [tensors[i] for i in wanted]
    first = tr.grad(outputs(row.run(*tensors)), inputs, seeds, create_graph=True)
    pairs = [(g, v) for g, v in zip(first, direction, strict=True) if g.requires_grad]
    second = tr.grad([g for g, _ in pairs], inputs + seeds, [v for _, v in pairs], allow_unused=True)
    return [np.zeros(x.shape) if h is None else h.data for h, x in zip(second, inputs + seeds, strict=True)]


def second_order_differences(row, arrays, upstream, wanted, direction):
    """What `second_order` should give: gradients, and outputs, a step ahead and a step behind along `direction`."""
    ends = []
    for step in (STEP, -STEP):
        moved = copies(arrays)
        for i, v in zip(wanted, direction, strict=True):
            moved[i] = moved[i] + step * v
        ends.append(gradients(row, moved, upstream, wanted) + outputs(row.run(*copies(moved))))
    return [(a - b) / (2 * STEP) for a, b in zip(*ends, strict=True)]


def distance(found, wanted):
    """Largest difference relative to the largest element, which counts as at least 0.001: some gradients are zero."""
    assert found.shape == wanted.shape, f"{found.shape} is not {wanted.shape}"
    scale = max(np.abs(wanted).max(initial=0), 1e-3)
    return float(np.abs(found - wanted).max(initial=0) / scale)


def norm_distance(found, wanted, at_least=1e-300):
    """Norm of the difference relative to the norm of what is wanted, which counts as `at_least` where terms cancel."""
    found, wanted = np.asarray(found, np.float64), np.asarray(wanted, np.float64)
    assert found.shape == wanted.shape, f"{found.shape} is not {wanted.shape}"
    return float(np.linalg.norm(found - wanted) / max(np.linalg.norm(wanted), at_least)) if found.size else 0.0


def summed_back(g, shape):
    """g summed over what broadcasting from `shape` repeated, one element at a time."""
    out = np.zeros(shape)
    index = np.broadcast_to(np.arange(out.size).reshape(shape), g.shape)
    np.add.at(out.reshape(-1), index.ravel(), g.ravel())
    return out


class Tape:
    """Records the choices of ops with kinks (masks, indices), or plays a recording back, as gradient checks do."""

    def __init__(self, recorded=None):
        self.frozen, self.kept, self.at = recorded is not None, list(recorded or ()), 0

    def take(self, name, fresh):
        if not self.frozen:
            self.kept.append(fresh)
            return fresh
        self.at += 1
        return self.kept[self.at - 1]

    def rewound(self):
        return Tape(self.kept)
