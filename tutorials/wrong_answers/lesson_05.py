"""Wrong answers to the exercises of lesson 5, each with the misconception that its check must name."""

from tinyres.teach.misconception import WrongAnswer

BACKWARD = '''
def batch_norm_backward(g, x, gamma, eps):
    channel = (0, 2, 3)
    mean, var = x.mean(channel, keepdims=True), x.var(channel, keepdims=True)
    istd = 1 / np.sqrt(var + eps)
    xhat = (x - mean) * istd
    dgamma, dbeta = (g * xhat).sum(channel), g.sum(channel)
    gx = gamma[:, None, None] * g
    dx = istd * (gx - gx.mean(channel, keepdims=True) - xhat * (gx * xhat).mean(channel, keepdims=True))
    return dx, dgamma, dbeta
'''

RUNNING = '''
def running_update(running_mean, running_var, x, momentum):
    channel = (0, 2, 3)
    count = x.size // x.shape[1]
    mean = x.mean(channel)
    var = x.var(channel) * count / (count - 1)
    return (1 - momentum) * running_mean + momentum * mean, (1 - momentum) * running_var + momentum * var
'''


def _instead(right: str, *changes: tuple[str, str]) -> str:
    """The right answer with some of it replaced."""
    for old, new in changes:
        assert old in right
        right = right.replace(old, new)
    return right


def _backward(tag: str, why: str, *changes: tuple[str, str]) -> WrongAnswer:
    return WrongAnswer("batch_norm_backward", tag, why, _instead(BACKWARD, *changes))


def _running(tag: str, why: str, *changes: tuple[str, str]) -> WrongAnswer:
    return WrongAnswer("running_update", tag, why, _instead(RUNNING, *changes))


WRONG: list[WrongAnswer] = [
    _backward("statistics-as-constants", "batch norm is a multiplication and an addition, so its slope is the factor",
              (" - gx.mean(channel, keepdims=True) - xhat * (gx * xhat).mean(channel, keepdims=True)", "")),
    _backward("no-route-through-mean", "the derivative of the mean is so small that it does not matter",
              (" - gx.mean(channel, keepdims=True)", "")),
    _backward("no-route-through-variance", "the variance is a constant of the batch",
              (" - xhat * (gx * xhat).mean(channel, keepdims=True)", "")),
    _backward("sum-for-mean", "the gradient of a shared value is a sum, and that is all there is to it",
              ("gx.mean(", "gx.sum("), ("(gx * xhat).mean(", "(gx * xhat).sum(")),
    _backward("wrong-sign", "routes add up", ("- gx.mean", "+ gx.mean"), ("- xhat *", "+ xhat *")),
    _backward("gamma-forgotten", "gamma has its own gradient, x has nothing to do with it",
              ("gamma[:, None, None] * g", "g")),
    _backward("x-for-xhat", "the variance is made of x - mean, so its route has x - mean",
              ("- xhat * (gx * xhat)", "- (x - mean) * (gx * (x - mean))")),
    _backward("x-for-xhat-in-dgamma", "gamma multiplies x", ("dgamma, dbeta = (g * xhat)", "dgamma, dbeta = (g * x)")),
    _backward("not-divided", "the division by the deviation happened in the forward pass", ("dx = istd * ", "dx = ")),
    _backward("eps-forgotten", "eps is there against a division by 0, it has no part in the gradient",
              ("istd * (gx - gx.mean(channel, keepdims=True) - xhat * (gx * xhat).mean(channel, keepdims=True))",
               "(gx - gx.mean(channel, keepdims=True) - (x - mean) / np.sqrt(var) * (gx * (x - mean) / np.sqrt(var))"
               ".mean(channel, keepdims=True)) / np.sqrt(var)")),
    _backward("bessel-in-the-batch", "a variance is divided by M - 1",
              ("x.var(channel, keepdims=True)", "x.var(channel, keepdims=True, ddof=1)"),
              ("(g * xhat).sum", "(g * (x - mean) / np.sqrt(x.var(channel, keepdims=True) + eps)).sum"),
              ("(gx * xhat).mean(channel, keepdims=True)",
               "(gx * xhat).sum(channel, keepdims=True) / (x.size // x.shape[1] - 1)")),
    _backward("wrong-axes", "batch norm takes its means over the batch",
              ("gx.mean(channel, keepdims=True)", "gx.mean(0, keepdims=True)"),
              ("(gx * xhat).mean(channel, keepdims=True)", "(gx * xhat).mean(0, keepdims=True)")),
    _backward("mean-for-sum", "the parameters' gradients are averaged over the batch",
              ("(g * xhat).sum(channel), g.sum(channel)", "(g * xhat).mean(channel), g.mean(channel)")),
    _backward("swapped", "first the shift, then the scale", ("return dx, dgamma, dbeta", "return dx, dbeta, dgamma")),
    _backward("wrong-shape", "keepdims keeps broadcasting happy",
              ("(g * xhat).sum(channel), g.sum(channel)",
               "(g * xhat).sum(channel, keepdims=True), g.sum(channel, keepdims=True)")),
    _backward("changes-its-input", "g is not needed any more", ("gx = gamma[:, None, None] * g",
                                                                "g *= gamma[:, None, None]\n    gx = g")),
    _running("momentum-reversed", "momentum is what is kept, as in an optimizer",
             ("(1 - momentum) * running_mean + momentum * mean", "momentum * running_mean + (1 - momentum) * mean"),
             ("(1 - momentum) * running_var + momentum * var", "momentum * running_var + (1 - momentum) * var")),
    _running("biased", "the running variance is the average of the variances that were used",
             (" * count / (count - 1)", "")),
    _running("counts-images", "the batch has N samples", ("count = x.size // x.shape[1]", "count = x.shape[0]")),
    _running("bessel-inverted", "the correction is (M - 1) / M", ("count / (count - 1)", "(count - 1) / count")),
    _running("corrects-twice", "the correction belongs to the running variance",
             (" * count / (count - 1)", ""),
             ("(1 - momentum) * running_var + momentum * var",
              "((1 - momentum) * running_var + momentum * var) * count / (count - 1)")),
    _running("deviation-for-variance", "what x is divided by is what is kept",
             ("x.var(channel) * count / (count - 1)", "x.std(channel, ddof=1)")),
    _running("around-the-running-mean", "once there is a better mean, the variance is taken around it",
             ("    return", "    new = (1 - momentum) * running_mean + momentum * mean\n"
              "    var = ((x - new[:, None, None]) ** 2).mean(channel) * count / (count - 1)\n    return")),
    _running("adds-without-forgetting", "the new batch is added to the total",
             ("(1 - momentum) * running_mean", "running_mean"), ("(1 - momentum) * running_var", "running_var")),
    _running("forgets-the-past", "the latest batch is the best estimate",
             ("(1 - momentum) * running_mean + momentum * mean", "mean"),
             ("(1 - momentum) * running_var + momentum * var", "var")),
    _running("changes-its-input", "running statistics are buffers, so they are changed in place",
             ("    return (1 - momentum) * running_mean + momentum * mean, "
              "(1 - momentum) * running_var + momentum * var",
              "    running_mean += momentum * (mean - running_mean)\n"
              "    running_var += momentum * (var - running_var)\n"
              "    return running_mean, running_var")),
]
