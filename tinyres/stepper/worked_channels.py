"""Worked elements of ops in which a whole row or a whole channel acts on each element: softmax and batch norm."""

from __future__ import annotations

import numpy as np

from tinyres.stepper.difference import floats
from tinyres.stepper.worked_terms import Call, Index, Recipe, Terms, at


def log_softmax(call: Call, index: Index) -> Recipe:
    """The element's own gradient, minus its probability times the whole row's."""
    dim = call.node.params["dim"]
    row = index[:dim] + (slice(None),) + index[dim + 1:]
    g, p, total = call.g[index], np.exp(call.y[index]), call.g[row].sum()
    along = at("g", (*index[:dim], "j", *index[dim + 1:]))
    return (f"{at('g', index)} - {at('softmax(x)', index)} · Σ over j of {along}",
            [Terms("g", {"g": g}, g.reshape(1)), Terms("-p · s", {"p": p, "s": total}, (-p * total).reshape(1))])


def cross_entropy(call: Call, index: Index) -> Recipe:
    """What was predicted minus what was wanted."""
    n, k = index
    options, classes = call.node.params, call.shape[1]
    label = int(options["labels"][n])
    target = (1 - options["smoothing"]) * (k == label) + options["smoothing"] / classes
    e = np.exp(call.x[0][n] - call.x[0][n].max())
    g, p = call.g[n], e[k] / e.sum()
    wanted = "target" if options["smoothing"] else f"[{k} = label {label}]"
    return (f"g[{n}] · (softmax(x)[{n}, {k}] - {wanted})",
            [Terms("g · (p - t)", {"g": g, "p": p, "t": target}, (g * (p - target)).reshape(1))])


def batch_norm(call: Call, index: Index) -> Recipe:
    """Of x three terms, the routes by which it acts: direct, through the mean, through the variance. (Ioffe and
    Szegedy 2015, section 3.)"""
    options, g = call.node.params, "g"
    behind = call.g
    if options["relu"]:  # the gradient behind the ReLU
        g, behind = "g'", np.where(call.y <= 0, 0.0, call.g)
    if call.slot == 3:
        return at(g, index), [Terms("g", {"g": behind[index]}, behind[index].reshape(1))]
    c = index[0] if call.slot else index[1]
    mean, var = (float(floats(options[name])[c]) for name in ("mean", "var"))
    istd = (var + options["eps"]) ** -0.5
    xhat = (call.x[0] - mean) * istd  # right in channel c alone
    ours, ours_hat = behind[:, c].ravel(), xhat[:, c].ravel()
    if call.slot == 1:
        return f"Σ of {g} · xhat over channel {c}", [Terms("g · h", {"g": ours, "h": ours_hat}, ours * ours_hat)]
    if call.slot == 2:
        return f"Σ of {g} over channel {c}", [Terms("g", {"g": ours}, ours)]
    own, h, scale = behind[index], xhat[index], call.x[1][c] * istd
    numbers = {"w": call.x[1][c], "s": istd}
    terms = [Terms("w · s · g", numbers | {"g": own}, (scale * own).reshape(1))]
    if not options["training"]:
        return f"weight[{c}] · istd · {at(g, index)}", terms
    m, v = ours.mean(), (ours * ours_hat).mean()
    terms += [Terms("-w · s · m", numbers | {"m": m}, (-scale * m).reshape(1)),
              Terms("-w · s · h · v", numbers | {"h": h, "v": v}, (-scale * h * v).reshape(1))]
    return (f"weight[{c}] · istd · ({at(g, index)} - mean({g}) - {at('xhat', index)} · mean({g} · xhat)), "
            f"means over channel {c}", terms)
