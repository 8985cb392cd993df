"""What follows a convolution whose batch norm was folded into it: + bias [+ residual] [ReLU], in place.

Batch norm behind a convolution is a scale and a shift of each channel, once its statistics stand still. The scale goes
into the convolution's weights, at no cost. The shift is left, and is added in the pass that adds the residual and takes
the ReLU. With M = N*P*Q pixels and K channels, for float32:

    function     reads           writes     bytes
    add_bias     y [residual]    y          8 M K   [+ 4 M K]

The convolution has just made y and nothing else holds it, so it is changed in place: no fresh memory is asked for,
which the processor would first read, too.
"""

import numpy as np

from ..layout import from_rows, rows
from .jit import compiled
from .norm import range_of, widen
from .threads import split


def add_bias(y, bias, residual, relu):
    """y + bias [+ residual], then max(y, 0) if relu, in y's memory; NaN stays NaN."""
    lanes, (values, added) = widen(rows(y), residual)
    bias = np.concatenate([bias] * lanes)

    def run(slot, start, stop):
        part = slice(start, stop)
        finish(values[part], bias, range_of(added, part), relu)

    split(len(values), run, values.size / 6)
    return from_rows(values, y.shape)


@compiled
def finish(y, bias, residual, relu):
    """All that follows the addition is done while the value is in a register."""
    M, K = y.shape
    for m in range(M):
        for k in range(K):
            v = y[m, k] + bias[k]
            if residual is not None:
                v += residual[m, k]
            y[m, k] = 0 if relu and v <= 0 else v  # not max(v, 0): a NaN must pass
