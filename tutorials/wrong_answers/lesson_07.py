"""Wrong answers to the exercises of lesson 7, each with the tag of the misconception behind it."""

from tinyres.teach.misconception import WrongAnswer

WRONG = [
    # --- residual_backward --------------------------------------------------------------------------------------------
    WrongAnswer("residual_backward", "shortcut-forgotten", "a block has one backward rule, its branch's", """
def residual_backward(g, a, f, vjp):
    return a * vjp(g), np.sum(g * f)
"""),
    WrongAnswer("residual_backward", "branch-forgotten", "the identity route carries the gradient, so it is it", """
def residual_backward(g, a, f, vjp):
    vjp(g)
    return g, np.sum(g * f)
"""),
    WrongAnswer("residual_backward", "scale-forgotten", "a constant matters in the forward pass only", """
def residual_backward(g, a, f, vjp):
    return g + vjp(g), np.sum(g * f)
"""),
    WrongAnswer("residual_backward", "scale-on-the-shortcut", "a scales the block, so it scales its gradient", """
def residual_backward(g, a, f, vjp):
    return a * (g + vjp(g)), np.sum(g * f)
"""),
    WrongAnswer("residual_backward", "scale-on-the-wrong-route", "the shortcut is the residual, so it is scaled", """
def residual_backward(g, a, f, vjp):
    return a * g + vjp(g), np.sum(g * f)
"""),
    WrongAnswer("residual_backward", "scaled-twice", "a scales what goes into the rule and what comes out of it", """
def residual_backward(g, a, f, vjp):
    at_branch = a * g
    return g + a * vjp(at_branch), np.sum(g * f)
"""),
    WrongAnswer("residual_backward", "jacobian-as-numbers", "the derivative of a branch is a number an element", """
def residual_backward(g, a, f, vjp):
    slope = 1 + a * vjp(np.ones_like(g))
    return g * slope, np.sum(g * f)
"""),
    WrongAnswer("residual_backward", "argument-overwritten", "the gradient that arrived is mine to add to", """
def residual_backward(g, a, f, vjp):
    da = np.sum(g * f)
    g += a * vjp(g)
    return g, da
"""),
    WrongAnswer("residual_backward", "branch-walked-again", "every product with J^T is a walk of its own", """
def residual_backward(g, a, f, vjp):
    dx = g.copy()
    for index in np.ndindex(*g.shape):
        one = np.zeros_like(g)
        one[index] = g[index]
        dx += a * vjp(one)
    return dx, np.sum(g * f)
"""),
    WrongAnswer("residual_backward", "scale-in-its-own-gradient", "what was added to x is a F, so da = <g, a F>", """
def residual_backward(g, a, f, vjp):
    scaled = a * f
    return g + a * vjp(g), np.sum(g * scaled)
"""),
    WrongAnswer("residual_backward", "mean-for-sum", "a number for all elements gets their mean", """
def residual_backward(g, a, f, vjp):
    return g + a * vjp(g), np.mean(g * f)
"""),
    WrongAnswer("residual_backward", "branch-output-forgotten", "a number used everywhere collects the gradients", """
def residual_backward(g, a, f, vjp):
    return g + a * vjp(g), np.sum(g)
"""),
    WrongAnswer("residual_backward", "gradient-of-another-place", "the new gradient replaces the old one at once", """
def residual_backward(g, a, f, vjp):
    dx = g + a * vjp(g)
    return dx, np.sum(dx * f)
"""),
    WrongAnswer("residual_backward", "da-not-summed", "a gradient has the shape of what arrives", """
def residual_backward(g, a, f, vjp):
    return g + a * vjp(g), g * f
"""),
    WrongAnswer("residual_backward", "not-two-gradients", "a is a constant and has no gradient", """
def residual_backward(g, a, f, vjp):
    return g + a * vjp(g)
"""),
    # --- scale_for_depth ----------------------------------------------------------------------------------------------
    WrongAnswer("scale_for_depth", "lengths-add", "x and a F(x) are as long as both together", """
def scale_for_depth(depth, growth, s=1.0):
    return (growth ** (1 / depth) - 1) / np.sqrt(s)
"""),
    WrongAnswer("scale_for_depth", "square-for-length", "the product of 1 + a^2 s is the growth", """
def scale_for_depth(depth, growth, s=1.0):
    return np.sqrt((growth ** (1 / depth) - 1) / s)
"""),
    WrongAnswer("scale_for_depth", "a-squared", "a is growth^(2/L) - 1, by s", """
def scale_for_depth(depth, growth, s=1.0):
    return (growth ** (2 / depth) - 1) / s
"""),
    WrongAnswer("scale_for_depth", "s-ignored", "a branch always keeps the size", """
def scale_for_depth(depth, growth, s=1.0):
    return np.sqrt(growth ** (2 / depth) - 1)
"""),
    WrongAnswer("scale_for_depth", "s-upside-down", "a larger branch needs a larger scale", """
def scale_for_depth(depth, growth, s=1.0):
    return np.sqrt((growth ** (2 / depth) - 1) * s)
"""),
    WrongAnswer("scale_for_depth", "first-order", "(1 + a^2 s)^L is exp(L a^2 s)", """
def scale_for_depth(depth, growth, s=1.0):
    return np.sqrt(2 * np.log(growth) / (depth * s))
"""),
    WrongAnswer("scale_for_depth", "depth-ignored", "each block may grow by that much", """
def scale_for_depth(depth, growth, s=1.0):
    return np.sqrt((growth ** 2 - 1) / s)
"""),
    WrongAnswer("scale_for_depth", "always-one-over-root-depth", "1/sqrt(L) is the answer whatever is asked", """
def scale_for_depth(depth, growth, s=1.0):
    return 1 / np.sqrt(depth)
"""),
    # --- find_the_branch ----------------------------------------------------------------------------------------------
    WrongAnswer("find_the_branch", "by-position", "the shortcut is written first", """
def find_the_branch(routes, shape):
    return next(iter(routes))
"""),
    WrongAnswer("find_the_branch", "by-name", "what is called a shortcut is one", """
def find_the_branch(routes, shape):
    return "shortcut"
"""),
    WrongAnswer("find_the_branch", "by-size", "the identity carries the most", """
def find_the_branch(routes, shape):
    g = np.random.default_rng(0).standard_normal(shape)
    return max(routes, key=lambda name: np.linalg.norm(routes[name](g)))
"""),
    WrongAnswer("find_the_branch", "same-array", "an identity hands on the very array", """
def find_the_branch(routes, shape):
    g = np.random.default_rng(0).standard_normal(shape)
    for name, vjp in routes.items():
        if vjp(g) is g:
            return name
    return None
"""),
    WrongAnswer("find_the_branch", "direction-only", "a factor in front does not matter", """
def find_the_branch(routes, shape):
    g = np.random.default_rng(0).standard_normal(shape)
    for name, vjp in routes.items():
        h = vjp(g)
        if np.vdot(g, h) > 0.999 * np.linalg.norm(g) * np.linalg.norm(h):
            return name
    return None
"""),
    WrongAnswer("find_the_branch", "norm-only", "a gradient that keeps its size is unchanged", """
def find_the_branch(routes, shape):
    g = np.random.default_rng(0).standard_normal(shape)
    for name, vjp in routes.items():
        if np.isclose(np.linalg.norm(vjp(g)), np.linalg.norm(g)):
            return name
    return None
"""),
    WrongAnswer("find_the_branch", "ones-only", "an upstream gradient of ones will do", """
def find_the_branch(routes, shape):
    g = np.ones(shape)
    for name, vjp in routes.items():
        if np.allclose(vjp(g), g):
            return name
    return None
"""),
    WrongAnswer("find_the_branch", "one-element", "what holds for one element holds for all", """
def find_the_branch(routes, shape):
    g = np.zeros(shape)
    g.flat[0] = 1
    for name, vjp in routes.items():
        if np.allclose(vjp(g), g):
            return name
    return None
"""),
    WrongAnswer("find_the_branch", "sum-only", "a gradient whose sum stays is unchanged", """
def find_the_branch(routes, shape):
    g = np.random.default_rng(0).standard_normal(shape)
    for name, vjp in routes.items():
        if np.isclose(np.sum(vjp(g)), np.sum(g)):
            return name
    return None
"""),
    WrongAnswer("find_the_branch", "always-names-one", "every block has a shortcut", """
def find_the_branch(routes, shape):
    g = np.random.default_rng(0).standard_normal(shape)
    return min(routes, key=lambda name: np.linalg.norm(routes[name](g) - g))
"""),
]
