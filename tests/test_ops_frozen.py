"""The choices that ops make at their kinks (which side of a ReLU, which of two maxima), recorded and played back.

Gradient checks need the smooth function on which a point lies, also where a step would leave it."""

import numpy as np
import pytest
from differences import (
    Tape,
    copies,
    distance,
    finite_differences,
    gradients,
    outputs,
    second_order,
    upstreams,
    weighted_sum,
)
from op_table import ROWS

import tinyres as tr
from tinyres import ops
from tinyres.state import setting

KINKED = {"relu", "abs", "clamp", "maximum", "minimum", "amax", "amin", "max", "min", "max_pool2d",
          "adaptive_max_pool2d"}
TAPED = [pytest.param(row, id=row.id) for row in ROWS if row.name in KINKED or "relu" in row.case]


def test_no_other_op_makes_choices():
    for row in ROWS:
        tape = Tape()
        with setting(choices=tape):
            row.run(*row.make())
        assert bool(tape.kept) == (row.name in KINKED or "relu" in row.case), row.id


@pytest.mark.parametrize("row", TAPED)
def test_recording_and_playing_back_change_nothing(row):
    arrays = row.make()
    upstream, wanted = upstreams(row, arrays), row.differentiable(arrays)
    plain, expected = gradients(row, arrays, upstream, wanted), outputs(row.run(*copies(arrays)))
    tape = Tape()
    for choices in (lambda: tape, lambda: tape.rewound()):
        with setting(choices=choices()):
            found = outputs(row.run(*copies(arrays)))
        for y, w in zip(found, expected, strict=True):
            assert y.dtype == w.dtype and distance(y, w) < 1e-14
        with setting(choices=tape.rewound()):
            for g, w in zip(gradients(row, arrays, upstream, wanted), plain, strict=True):
                assert distance(g, w) < 1e-14


@pytest.mark.parametrize("row", TAPED)
def test_frozen_choices_make_the_op_smooth(row):
    """Recorded at one point and played back at another, the op is the smooth function that the first point lies on."""
    base, other = row.make(seed=0), row.make(seed=1)
    for i in range(len(base)):
        if i not in row.differentiable(base):
            other[i] = base[i]
    tape = Tape()
    with setting(choices=tape):
        at_base = outputs(row.run(*copies(base)))
    upstream, wanted = upstreams(row, base), row.differentiable(base)

    class Frozen:
        def run(self, *inputs):
            with setting(choices=tape.rewound()):
                return row.run(*inputs)

    found = gradients(Frozen(), other, upstream, wanted)
    for g, slope in zip(found, finite_differences(Frozen(), other, upstream, wanted), strict=True):
        assert distance(g, slope) < 1e-7
    if row.name == "batch_norm":
        x, m, v, w, b, add = _batch_norm_inputs(row, other)
        smooth = outputs(ops.batch_norm(x, m, v, w, b, m is None, add=add))[0]
        with setting(choices=tape.rewound()):
            assert distance(row.run(*copies(other)), np.where(at_base[0] > 0, smooth, 0)) < 1e-13
        return
    moved = weighted_sum(Frozen(), other, upstream) - weighted_sum(row, base, upstream)
    along = sum((g * (other[i] - base[i])).sum() for i, g in zip(wanted, found, strict=True))
    assert abs(moved - along) < 1e-12 * max(1, abs(moved))


@pytest.mark.parametrize("row", TAPED)
def test_second_derivatives_leave_the_tape_alone(row):
    """Under create_graph a fused op differentiates its spec, whose ReLU is one that was recorded already."""
    arrays = row.make()
    upstream, wanted = upstreams(row, arrays), row.differentiable(arrays)
    direction = [np.random.default_rng(7).standard_normal(arrays[i].shape) for i in wanted]
    tape = Tape()
    with setting(choices=tape):
        row.run(*copies(arrays))
    recorded = len(tape.kept)
    plain = second_order(row, arrays, upstream, wanted, direction)
    for choices in (Tape(), tape.rewound()):
        with setting(choices=choices):
            found = second_order(row, arrays, upstream, wanted, direction)
        assert len(choices.kept) == recorded and choices.at in (0, recorded)
        for h, w in zip(found, plain, strict=True):
            assert distance(h, w) < 1e-12


def test_relu_in_place_keeps_to_the_tape():
    base, other = np.array([-1.0, 2.0, 3.0, -4.0]), np.array([1.0, -2.0, 5.0, -6.0])
    tape = Tape()
    with setting(choices=tape):
        ops.relu_(tr.tensor(base))
    for array, wanted in ((base, [0.0, 2.0, 3.0, 0.0]), (other, [0.0, -2.0, 5.0, 0.0])):
        x = tr.tensor(array, requires_grad=True)
        with setting(choices=tape.rewound()):
            y = ops.relu_(x * 1.0)
        assert y.tolist() == wanted
        y.backward(np.array([1.0, 2.0, 3.0, 4.0]))
        assert x.grad.tolist() == [0.0, 2.0, 3.0, 0.0]


def _batch_norm_inputs(row, arrays):
    if row.constant:
        return (*arrays[:5], arrays[5] if len(arrays) > 5 else None)
    return arrays[0], None, None, arrays[1], arrays[2], arrays[3] if len(arrays) > 3 else None
