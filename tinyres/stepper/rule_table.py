"""The backward rule of every op, in words and symbols: a table to read beside the code in ops/.

`g` is the gradient that arrived, of the output's shape; `y` the output; `dx` the contribution to the input `x`. What
stands in brackets, as in g · [y > 0], is 1 where it holds and 0 elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Rule:
    """forward: what the op computes; backward: the contribution to each input (one line for all inputs where their
    number is open, as in concat); note: why it is so, in a sentence."""

    forward: str
    backward: tuple[str, ...]
    note: str


RULES = {
    # element by element
    "add": Rule(
        "y = a + b", ("da = g", "db = g"),
        "A sum moves as much as either side moves, so the gradient is copied to both; this is the join of a residual "
        "block."),
    "sub": Rule(
        "y = a - b", ("da = g", "db = -g"),
        "Raising b lowers the difference, so its side gets the sign turned."),
    "mul": Rule(
        "y = a · b", ("da = g · b", "db = g · a"),
        "Each factor moves the product by as much as the other factor is large."),
    "div": Rule(
        "y = a / b", ("da = g / b", "db = -g · a / b²"),
        "The quotient rule, taken once for each side."),
    "pow": Rule(
        "y = a^b", ("da = g · b · a^(b - 1)", "db = g · y · log(a)"),
        "The power rule in the base, the exponential rule in the exponent."),
    "maximum": Rule(
        "y = max(a, b)", ("da = g · [a > b]", "db = g · [b > a]"),
        "Only the larger side moves the result; equal ones get half each."),
    "minimum": Rule(
        "y = min(a, b)", ("da = g · [a < b]", "db = g · [b < a]"),
        "Only the smaller side moves the result; equal ones get half each."),
    "where": Rule(
        "y = a where mask, else b", ("the mask gets none", "da = g · mask", "db = g · (1 - mask)"),
        "Each side gets the gradient of the elements that were taken from it."),
    "neg": Rule(
        "y = -x", ("dx = -g",),
        "The slope is -1 everywhere."),
    "exp": Rule(
        "y = exp(x)", ("dx = g · y",),
        "The exponential is its own derivative, so the output is all that is kept."),
    "log": Rule(
        "y = log(x)", ("dx = g / x",),
        "The slope of the logarithm is 1 / x."),
    "sqrt": Rule(
        "y = √x", ("dx = g / (2 · y)",),
        "The slope is 1 / (2 √x), and √x is the output."),
    "tanh": Rule(
        "y = tanh(x)", ("dx = g · (1 - y²)",),
        "The slope can be had from the output: near 1 and -1 it is almost 0."),
    "sigmoid": Rule(
        "y = 1 / (1 + exp(-x))", ("dx = g · y · (1 - y)",),
        "The slope can be had from the output: it is 1/4 at the most."),
    "abs": Rule(
        "y = |x|", ("dx = g · sign(x)",),
        "The slope is 1 to the right of 0 and -1 to the left; at 0 it is taken as 0."),
    "relu": Rule(
        "y = max(x, 0)", ("dx = g · [y > 0]",),
        "Where the unit is on, the gradient passes unchanged; where it is off, nothing passes."),
    "dropout": Rule(
        "y = mask · x / (1 - p)", ("dx = g · mask / (1 - p)",),
        "The same mask once more: the key draws it again, so it is not kept."),
    "as_type": Rule(
        "y = x in another dtype", ("dx = g in the dtype of x",),
        "The values stay, so the gradient does too."),
    # moved, repeated, summed
    "to": Rule(
        "y = x on another device", ("dx = g on the device of x",),
        "The values stay, so the gradient does too."),
    "channels_last": Rule(
        "y = x in channels-last memory", ("dx = g",),
        "Only the order in memory changes, no value does."),
    "reshape": Rule(
        "y = x in another shape", ("dx = g in the shape of x",),
        "No element changes, so each gradient goes to where its element came from."),
    "permute": Rule(
        "y = x with its dimensions reordered", ("dx = g in the order of x",),
        "The inverse order brings every gradient back to its element."),
    "get_item": Rule(
        "y = x[index]", ("dx = zeros, with g added at index",),
        "What was not taken gets 0, and an element taken twice collects twice."),
    "put": Rule(
        "y = zeros, with x added at index", ("dx = g[index]",),
        "Each value moved the element that it was added to."),
    "gather": Rule(
        "y = x at index, along dim", ("dx = zeros, with g added at index",),
        "What was not taken gets 0, and an element taken twice collects twice."),
    "scatter": Rule(
        "y = zeros, with x added at index, along dim", ("dx = g at index",),
        "Each value moved the element that it was added to."),
    "pad": Rule(
        "y = x in a frame", ("dx = g without the frame",),
        "The frame is a constant, so its gradient is dropped."),
    "concat": Rule(
        "y = the inputs, one behind the other", ("dx = its own slice of g",),
        "The gradient is split, not copied: each input gets the part that it filled."),
    "broadcast_to": Rule(
        "y = x, repeated", ("dx = g, summed over the repeats",),
        "One value stands in many places, so it collects from all of them."),
    "sum_to": Rule(
        "y = x, summed", ("dx = g, repeated",),
        "Every element that was added moves the sum by as much as it moves itself."),
    "amax": Rule(
        "y = max of x", ("dx = g · [x = y] / ties",),
        "Only the largest element moves the maximum; equal ones share."),
    "log_softmax": Rule(
        "y = x - log Σ exp(x)", ("dx = g - softmax(x) · Σ g",),
        "Raising one score raises its own log-probability and lowers all of them by its probability."),
    # products and windows
    "matmul": Rule(
        "y = a b", ("da = g bᵀ", "db = aᵀ g"),
        "Row times column: an element of a met a whole row of b, and collects from all of it."),
    "conv2d": Rule(
        "y = x * W", ("dx = conv2d_input_grad(g, W)", "dW = conv2d_weight_grad(x, g)"),
        "A pixel collects from every window that saw it; a weight, which is shared over positions, from every "
        "position."),
    "conv2d_input_grad": Rule(
        "y = convolution with W, transposed, of x", ("dx = conv2d(g, W)", "dW = conv2d_weight_grad(g, x)"),
        "The transposed convolution goes back by the convolution itself."),
    "conv2d_weight_grad": Rule(
        "y = the weights' gradient of a convolution of x, where u arrived",
        ("dx = conv2d_input_grad(u, g)", "du = conv2d(x, g)"),
        "One form <u, x * W> with three factors: each one's derivative is the product of the other two."),
    "max_pool2d": Rule(
        "y = the maximum of each window", ("dx = zeros, with g added where the maxima were",),
        "Only the largest pixel of a window moved its output; a pixel that won two windows collects twice."),
    "gather_hw": Rule(
        "y = x at the pixel that index names", ("dx = zeros, with g added at index",),
        "What was not taken gets 0, and a pixel taken twice collects twice."),
    "scatter_hw": Rule(
        "y = zeros, with x added at the pixel that index names", ("dx = g at index",),
        "Each value moved the pixel that it was added to."),
    "avg_pool2d": Rule(
        "y = the mean of each window", ("dx = Σ over the windows that saw it of g / size",),
        "Each pixel of a window had the same part in its mean."),
    "avg_pool2d_input_grad": Rule(
        "y = x, spread over its window", ("dx = mean of g over the window",),
        "The adjoint of the mean goes back by the mean."),
    # fused
    "batch_norm": Rule(
        "y = weight · xhat + bias [+ residual] [then ReLU],  xhat = (x - mean) · istd,  istd = 1 / √(var + eps)",
        ("dx = weight · istd · (g' - mean(g') - xhat · mean(g' · xhat))",
         "dweight = Σ g' · xhat",
         "dbias = Σ g'",
         "dresidual = g'"),
        "An element acts directly, through the mean and through the variance of its channel: three terms, the last two "
        "only in training; g' is g behind the ReLU."),
    "conv_bias": Rule(
        "y = x * W + bias [+ residual] [then ReLU]",
        ("dx = conv2d_input_grad(g', W)", "dW = conv2d_weight_grad(x, g')", "dbias = Σ g'", "dresidual = g'"),
        "A convolution and what follows it in one op; g' is g behind the ReLU."),
    "cross_entropy": Rule(
        "y = -log softmax(x)[label]", ("dx = g · (softmax(x) - target)",),
        "What was predicted minus what was wanted; target is 1 at the label and 0 elsewhere, or smoothed."),
}
for _name in ("add", "sub", "mul", "div", "relu"):  # in place: another memory, the same rule
    RULES[f"{_name}_"] = RULES[_name]
