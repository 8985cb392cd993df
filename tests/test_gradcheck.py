"""The gradient check itself: right gradients pass, each kind of mistake fails with its name, and what cannot be checked
is called inconclusive."""

import warnings

import numpy as np
import pytest

import tinyres as tr
from tinyres import models, nn, ops, random
from tinyres.analysis.gradcheck import ALL, gradcheck
from tinyres.analysis.subject import Choices, Subject
from tinyres.ops.conv import Conv2d
from tinyres.ops.elementwise import raw
from tinyres.ops.norm import BatchNorm
from tinyres.ops.pool import MaxPool2d
from tinyres.state import setting, state
from tinyres.tensor import Function, Tensor

RNG = np.random.default_rng(0)


def normal(*shape, seed=0):
    return np.random.default_rng((seed, *shape)).standard_normal(shape)


def only_wrong(result, name, order=1):
    """Whether this variable failed and no other did; all of them together fail with it."""
    wrong = {n for n, error in result.errors[order].items() if error > result.tolerance}
    return result.verdict == "FAILED" and wrong - {ALL} == {name}


# --- what is right passes -------------------------------------------------------------------------------------------

LABELS = np.array([1, 0, 3])
RIGHT = {
    "product, broadcast": (lambda x, y: x * y, normal(3, 4), normal(4)),
    "a scalar of a scalar": (lambda x: ops.exp(x), np.array(0.3)),
    "identity": (lambda x: x, normal(3)),
    "logarithm": (ops.log, abs(normal(5)) + 0.5),
    "cross-entropy": (ops.cross_entropy, normal(3, 4), LABELS),
    "cross-entropy, one loss per label": (lambda x, y: ops.cross_entropy(x, y, 0.1, "none"), normal(3, 4), LABELS),
    "several outputs, integers among them": (lambda x: ops.max(x * x, 1), normal(3, 4)),
    "a list of outputs": (lambda x: [x * x, ops.sum(x)], normal(3)),
    "convolution": (lambda x, w, b: ops.conv2d(x, w, b, 2, 1), normal(2, 2, 5, 5), normal(3, 2, 3, 3), normal(3)),
    "batch norm": (lambda x, w, b: ops.batch_norm(x, None, None, w, b, True), normal(8, 3), normal(3), normal(3)),
    "batch norm, addition, relu": (lambda x, w, b, r: ops.batch_norm(x, None, None, w, b, True, add=r, relu=True),
                                   normal(2, 3, 2, 4), normal(3), normal(3), normal(2, 3, 2, 4)),
    "batch norm, eval": (lambda x: ops.batch_norm(x, np.full(3, 0.2), np.full(3, 1.5)), normal(4, 3)),
    "max pool": (lambda x: ops.max_pool2d(x, 3, 2, 1), normal(2, 2, 5, 5)),
    "in place": (lambda x: ops.relu_(x * 2.0), normal(9)),
    "zeros behind a relu": (lambda x: ops.relu(ops.relu(x)) * x, normal(12)),
    "ties of zeros behind a relu": (lambda x: ops.max_pool2d(ops.relu(x), 2), normal(1, 2, 6, 6) - 1.0),
    "dropout": (lambda x: ops.dropout(x * x, 0.5), normal(20)),
    "one tensor, many uses": (lambda x: x * x + ops.tanh(x) - x, normal(4)),
    "not contiguous": (lambda x, w: ops.conv2d(x, w), normal(1, 5, 8, 2)[:, ::2, ::-1].transpose(0, 1, 3, 2),
                       normal(2, 3, 2, 2)[::-1]),
    "broadcast memory": (lambda x: x * x, np.broadcast_to(normal(3), (2, 3))),
}


@pytest.mark.parametrize("name", RIGHT)
@pytest.mark.parametrize("mode", ["elements", "directions"])
def test_right_gradients_pass_at_both_orders(name, mode):
    f, *inputs = RIGHT[name]
    result = gradcheck(f, *inputs, order=(1, 2), mode=mode)
    assert result and result.passed and result.verdict == "passed", str(result)
    assert set(result.errors[1]) >= {f"input {i}" for i, x in enumerate(inputs) if x.dtype.kind == "f"}
    assert result.order == (1, 2) and result.max_relative_error < 1e-6
    assert str(result).startswith("passed: ")


def test_the_mode_follows_from_the_size():
    assert str(gradcheck(ops.tanh, normal(500))).startswith("passed: each element of 1 variables with 500 numbers")
    assert str(gradcheck(ops.tanh, normal(501))).startswith("passed: 3 random directions of 1 variables")
    assert "random directions" in str(gradcheck(nn.Linear(2, 1), normal(3, 2)))


def test_tensors_and_arrays_and_numbers_are_inputs():
    x = tr.tensor(normal(3), requires_grad=True)
    assert gradcheck(lambda x, n, a: x**n * a, x, 2, np.array([1, 2, 3]))
    assert x.grad is None and x.node is None


def test_modules_among_the_inputs_are_variables_too():
    model = nn.Linear(3, 4)
    images = normal(5, 3).astype("float32")
    result = gradcheck(lambda m, x, y: ops.cross_entropy(m(x), y), model, images, np.array([0, 1, 2, 3, 0]))
    assert result and set(result.errors[1]) == {ALL, "input 1", "weight", "bias"}
    two = gradcheck(lambda m, n, x: n(ops.tanh(m(x))), model, nn.Linear(4, 2), images)
    assert two and set(two.errors[1]) >= {"module 0.weight", "module 1.weight"}
    same = gradcheck(lambda m, n, x: n(ops.tanh(m(x))), square := nn.Linear(3, 3), square, images)
    assert same and list(same.errors[1]) == [ALL, "input 2", "module 0.weight", "module 0.bias"]


class Twice(nn.Module):
    """One convolution used twice, its weight scaled by a second parameter that both uses share."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, padding=1)
        self.again = self.conv
        self.scale = nn.Parameter(np.array(0.7, "float32"))

    def forward(self, x):
        return self.again(ops.tanh(self.conv(x)) * self.scale) * self.scale


def test_shared_parameters_pass_and_count_once():
    result = gradcheck(Twice(), normal(2, 2, 4, 4), order=(1, 2))
    assert result and list(result.errors[2]) == ["input 0", "scale", "conv.weight", "conv.bias"]


def small_network(p=0.3):
    tr.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.MaxPool2d(2),
                         nn.Dropout(p), nn.Flatten(), nn.Linear(16, 3))


@pytest.mark.parametrize("training", [True, False])
def test_a_module_passes_in_both_modes_and_is_left_untouched(training):
    model = small_network().train(training)
    x = normal(4, 2, 4, 4).astype("float32")
    before, kept = model.state_dict(), x.copy()
    random_state = random.get_state()
    result = gradcheck(model, x, order=(1, 2), nudge=0.1)
    assert result, str(result)
    after = model.state_dict()
    assert all(np.array_equal(before[name], after[name]) and after[name].dtype == before[name].dtype for name in before)
    assert all(p.grad is None for p in model.parameters()) and np.array_equal(x, kept)
    assert model.training is training and random.get_state() == random_state and state.choices is None


def test_buffers_are_set_back_before_each_evaluation():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("calls", np.zeros(()))

        def forward(self, x):
            self.calls.data += 1.0
            return x * x * self.calls

    model = Counting()
    assert gradcheck(model, normal(3), order=(1, 2)) and model.calls.item() == 0


def test_outputs_are_weighted_unevenly():
    subject = Subject(ops.tanh, [normal(100)], np.random.default_rng(0), 0.0)
    subject.outputs()
    sizes = abs(subject.weights[0])
    assert 0.5 <= sizes.min() < 0.6 and 1.4 < sizes.max() <= 1.5 and 30 < (subject.weights[0] > 0).sum() < 70


def test_a_direction_has_norm_1_and_equal_shares():
    subject = Subject(lambda *inputs: inputs[0], [normal(2, 3, 4, 4), normal(1), normal(200)],
                      np.random.default_rng(0), 0.0)
    norms = [np.linalg.norm(d) for d in subject.direction()]
    assert np.allclose(norms, 3**-0.5)
    some = subject.direction(subject.variables[1:])
    assert some[0] is None and np.allclose([np.linalg.norm(d) for d in some[1:]], 2**-0.5)


def test_it_runs_also_where_gradients_are_switched_off():
    with tr.no_grad():
        assert gradcheck(ops.tanh, normal(3), order=(1, 2))
        assert not tr.is_grad_enabled()


def test_frozen_parameters_are_no_variables():
    model = nn.Linear(3, 2)
    model.weight.requires_grad = False
    assert set(gradcheck(model, normal(4, 3)).errors[1]) == {ALL, "input 0", "bias"}


@pytest.mark.parametrize("kernels", ["reference", "im2col", "loops"])
def test_the_current_kernels_are_the_ones_checked(kernels):
    with tr.use_kernels(kernels):
        result = gradcheck(nn.Conv2d(1, 2, 3), normal(1, 1, 4, 4), order=(1, 2))
    assert result and f"kernels {kernels}" in str(result)


def test_unfused_ops_pass():
    with tr.unfused():
        assert gradcheck(models.resnet8(), normal(2, 3, 8, 8), order=(1, 2), nudge=0.1)


def test_a_seed_repeats_the_same_check():
    first, second, other = (gradcheck(small_network(), normal(4, 2, 4, 4), seed=s, nudge=0.1) for s in (0, 0, 1))
    assert first.errors == second.errors and first.errors != other.errors


# --- each kind of mistake fails, with its name ------------------------------------------------------------------------


class Tanh(Function):
    """tanh with a backward rule that is wrong in a chosen way."""

    wrong = staticmethod(lambda grad, y: ops.mul(grad, ops.sub(1.0, ops.mul(y, y))))

    def forward(self, x):
        y = np.tanh(x)
        self.save(y)
        return y

    def backward(self, grad):
        return self.wrong(grad, self.saved[0])


def right(grad, y):
    return ops.mul(grad, ops.sub(1.0, ops.mul(y, y)))


WRONG = {
    "sign": (lambda g, y: ops.neg(right(g, y)), "the sign is wrong"),
    "twice": (lambda g, y: ops.mul(right(g, y), 2.0), "twice the right value"),
    "half": (lambda g, y: ops.mul(right(g, y), 0.5), "half the right value"),
    "zero": (lambda g, y: ops.mul(g, 0.0), "zero, though f depends on it"),
    "none": (lambda g, y: None, "the gradient is None"),
    "term": (lambda g, y: g, "neither a sign nor a factor"),
    "not a number": (lambda g, y: ops.mul(g, np.full(g.shape, np.nan)), "the gradient is not finite"),
    "slightly": (lambda g, y: ops.mul(right(g, y), 1.0001), "nearly right"),
    "float16": (lambda g, y: raw(right(g, y)).astype("float16").astype("float64"), "nearly right"),
}


@pytest.mark.parametrize("kind", WRONG)
@pytest.mark.parametrize("mode", ["elements", "directions"])
def test_wrong_rules_fail_and_are_named(kind, mode, monkeypatch):
    rule, words = WRONG[kind]
    monkeypatch.setattr(Tanh, "wrong", staticmethod(rule))
    x = normal(6)
    result = gradcheck(lambda x, y: Tanh.apply(x) * y, x, normal(6, seed=1), mode=mode)
    assert only_wrong(result, "input 0"), str(result)
    (line,) = [text for text in result.failures if text.startswith("input 0")]
    assert words in line and "analytic" in line and "numeric" in line and line in str(result)


def test_other_factors_are_named_where_several_numbers_agree(monkeypatch):
    monkeypatch.setattr(Tanh, "wrong", staticmethod(lambda g, y: ops.mul(right(g, y), 3.0)))
    assert "3 times the right value, everywhere" in gradcheck(lambda x: Tanh.apply(x), normal(6)).failures[0]


def test_a_gradient_where_there_is_none_fails():
    class Detour(Function):
        def forward(self, x, y):
            return x + 0.0 * y

        def backward(self, grad):
            return grad, grad

    result = gradcheck(lambda x, y: Detour.apply(x, y), normal(3), normal(3))
    assert only_wrong(result, "input 1") and "f does not depend on it" in result.failures[0]


def test_a_wrong_transposition_fails():
    class Product(Function):
        def forward(self, a, b):
            self.save(a, b)
            return a @ b

        def backward(self, grad):
            a, b = self.saved
            return ops.matmul(grad, b), ops.matmul(ops.transpose(a), grad)

    result = gradcheck(lambda a, b: Product.apply(a, b), normal(3, 3), normal(3, 3, seed=1))
    assert only_wrong(result, "input 0") and "axis is swapped" in result.failures[0]


def test_one_wrong_element_fails_and_is_named():
    class Copy(Function):
        def forward(self, x):
            return x.copy()

        def backward(self, grad):
            g = raw(grad).copy()
            g[1, 2] = 0.0
            return g

    result = gradcheck(lambda x: Copy.apply(x), normal(3, 4), mode="elements")
    assert "input 0[1, 2]: relative error 1.0e+00; analytic 0, numeric" in result.failures[0]
    assert not gradcheck(lambda x: Copy.apply(x), normal(300, 400))  # nor do 120,000 numbers hide it


class Second(Function):
    """x**3 whose first derivative is right, and its rule not differentiable: x enters it as a constant."""

    def forward(self, x):
        self.save(x)
        return x**3

    def backward(self, grad):
        (x,) = self.saved
        return ops.mul(grad, 3.0 * raw(x) ** 2)


@pytest.mark.parametrize("mode", ["elements", "directions"])
def test_wrong_only_at_second_order(mode):
    f = lambda x, y: Second.apply(x) * ops.sum(y * y)  # noqa: E731
    x, y = normal(5), normal(5, seed=1)
    assert gradcheck(f, x, y, order=1, mode=mode)
    both = gradcheck(f, x, y, order=(1, 2), mode=mode)
    assert only_wrong(both, "input 0", order=2) and max(both.errors[1].values()) < 1e-6
    assert "second derivative" in both.failures[0]
    assert not gradcheck(f, x, y, order=2, mode=mode)


def without_variance_route(self, grad):
    """Batch norm's backward, minus the route through the variance."""
    x, weight, _, _, _, mean, istd = self.saved
    rows = (0, *range(2, grad.ndim))
    a = (weight * istd).reshape(1, -1, *(1,) * (grad.ndim - 2))
    centred = (x - mean.reshape(a.shape)) * istd.reshape(a.shape)
    return a * (grad - grad.mean(rows, keepdims=True)), (grad * centred).sum(rows), grad.sum(rows), None


def test_batch_norm_without_the_variance_route_fails(monkeypatch):
    monkeypatch.setattr(BatchNorm, "fused_backward", without_variance_route)
    f = lambda x, w, b: ops.batch_norm(x, None, None, w, b, True)  # noqa: E731
    assert only_wrong(gradcheck(f, normal(8, 3), normal(3), normal(3)), "input 0")


def test_a_convolution_whose_weight_gets_no_gradient_fails():
    class Cut(nn.Conv2d):
        def forward(self, x):
            return ops.conv2d(x, self.weight.detach(), self.bias)

    result = gradcheck(Cut(2, 3, 3), normal(2, 2, 5, 5))
    assert only_wrong(result, "weight") and "weight: relative error 1.0e+00; analytic 0" in result.failures[0]
    assert "the gradient is None" in result.failures[0] and not result.notes


def test_an_output_cut_off_from_everything_fails():
    result = gradcheck(lambda x: ops.tanh(x).detach(), normal(3), order=(1, 2))
    assert "the gradient is None" in str(result) and result.verdict == "FAILED"


class Nudged(Function):
    """Identity whose gradient is a little too large."""

    def forward(self, x):
        return x.copy()

    def backward(self, grad):
        return ops.mul(grad, 1.0 + 1e-3)


class OneWrongBias(nn.BatchNorm2d):
    def forward(self, x, add=None, relu=False):
        bias = Nudged.apply(self.bias)
        return ops.batch_norm(x, self.running_mean, self.running_var, self.weight, bias, self.training, 0.1, self.eps,
                              add, relu)


@pytest.mark.parametrize("place", ["layer1.0.bn1", "layer2.1.bn2", "layer3.2.bn2"])
def test_one_bias_that_is_wrong_by_a_thousandth_cannot_hide_in_a_network(place):
    tr.manual_seed(0)
    model = models.resnet20()
    *path, name = place.split(".")
    owner = model.get_submodule(".".join(path))
    setattr(owner, name, OneWrongBias(getattr(owner, name).num_features))
    assert only_wrong(gradcheck(model, normal(4, 3, 8, 8), nudge=0.1), f"{place}.bias")


@pytest.mark.parametrize("name, rule", [
    ("convolution, weight", lambda self, g: (Conv2d.right(self, g)[0], -Conv2d.right(self, g)[1])),
    ("convolution, input", lambda self, g: (Conv2d.right(self, g)[0] * 0.5, Conv2d.right(self, g)[1])),
])
def test_a_wrong_convolution_fails_in_a_network(name, rule, monkeypatch):
    monkeypatch.setattr(Conv2d, "right", Conv2d.backward, raising=False)
    monkeypatch.setattr(Conv2d, "backward", rule)
    result = gradcheck(models.resnet20(), normal(2, 3, 8, 8), directions=1)
    wrong = {n for n, error in result.errors[1].items() if error > result.tolerance}
    assert result.verdict == "FAILED" and "conv1.weight" in wrong and not wrong & {"fc.weight", "fc.bias"}
    assert result.failures[0].startswith("layer3.2.")  # nearest to the output
    assert "more, further from the output" in str(result)


def test_a_wrong_max_pool_and_a_wrong_relu_fail(monkeypatch):
    x = normal(1, 2, 4, 4)
    monkeypatch.setattr(MaxPool2d, "backward", lambda self, g: np.ones(self.x_shape))
    assert not gradcheck(lambda x: ops.max_pool2d(x, 2), x)
    monkeypatch.setattr(ops.elementwise.Relu, "backward", lambda self, g: g)
    assert "f does not depend on it" in str(gradcheck(ops.relu, -abs(x)))
    assert not gradcheck(ops.relu, x)


# --- the traps --------------------------------------------------------------------------------------------------------


def central_difference(f, x, upstream, step=1e-5):
    slope = np.zeros_like(x)
    for i in np.ndindex(x.shape):
        moved = [x.copy(), x.copy()]
        moved[0][i] += x.dtype.type(step)
        moved[1][i] -= x.dtype.type(step)
        above, below = (raw(f(Tensor(m))) for m in moved)
        slope[i] = ((above - below) * upstream).sum() / (2 * step)
    return slope


def test_trap_an_upstream_of_ones_hides_a_wrong_batch_norm(monkeypatch):
    monkeypatch.setattr(BatchNorm, "fused_backward", without_variance_route)
    f = lambda x: ops.batch_norm(x, training=True)  # noqa: E731
    x = normal(8, 3)
    leaf = tr.tensor(x, requires_grad=True)
    f(leaf).backward(np.ones((8, 3)))
    assert np.abs(leaf.grad.numpy() - central_difference(f, x, np.ones((8, 3)))).max() < 1e-9  # "passes"
    assert gradcheck(f, x).verdict == "FAILED"
    hidden = gradcheck(lambda x: f(x).sum(), x)  # the same trap, built into f: nothing was checked, and it says so
    assert hidden.verdict == "inconclusive" and not hidden and "nothing was checked" in str(hidden)


def test_trap_float32_has_too_few_digits():
    """Of a right gradient in float64 ten digits agree. In float32 the usual step leaves two, and the best one four."""
    x = normal(20)
    f = lambda t: ops.tanh(t) + 3.0  # noqa: E731

    def error(dtype, step):
        a = x.astype(dtype)
        leaf = tr.tensor(a, requires_grad=True)
        f(leaf).backward(np.ones(20, dtype))
        return float(np.abs(leaf.grad.numpy() - central_difference(f, a, 1.0, step)).max())

    assert error("float64", 1e-5) < 1e-9
    assert error("float32", 1e-5) > 1e-3 and min(error("float32", 10.0**-k) for k in range(1, 6)) > 1e-5
    with pytest.raises(TypeError, match=r"input 0 is float32; float32 has 7 digits.*pass astype\('float64'\)"):
        gradcheck(ops.tanh, x.astype("float32"))


# --- kinks ------------------------------------------------------------------------------------------------------------


def test_an_element_on_a_kink_is_inconclusive_not_passed():
    result = gradcheck(ops.relu, np.array([[1.0, 0.0], [-1.0, 2.0]]))
    assert result.verdict == "inconclusive" and not result.passed and not result.failures
    assert result.unclear == ["input 0[0, 1] lies on a kink, where the slope jumps: pass nudge=0.01 to move off it"]
    assert gradcheck(ops.relu, np.array([[1.0, 0.0], [-1.0, 2.0]]), nudge=0.01)


@pytest.mark.parametrize("f", [
    ops.abs, lambda x: ops.relu_(x * 1.0), lambda x: ops.maximum(x, 0.0), lambda x: ops.clamp(x, 0.0),
    lambda x: ops.amax(x, 0),
    lambda x: ops.max_pool2d(ops.reshape(x, (1, 1, 1, 2)), (1, 2)),
])
def test_kinks_of_other_ops_are_noticed(f):
    assert gradcheck(f, np.zeros(2)).verdict == "inconclusive"


def test_a_kink_nearby_is_passed_with_a_smaller_step():
    result = gradcheck(ops.relu, np.array([2e-6, 1.0]))
    assert result and result.redrawn == 2 and "2 times a direction was drawn again" in str(result)


def test_directions_that_cross_kinks_are_drawn_again():
    x = np.where(normal(100) > 0, 3e-7, -3e-7)
    result = gradcheck(ops.relu, x, mode="directions")
    assert result and result.redrawn >= 3
    assert gradcheck(ops.relu, normal(100), mode="directions").redrawn == 0


def test_directions_that_all_cross_kinks_are_inconclusive():
    result = gradcheck(lambda x: ops.relu(x) * x, np.concatenate([normal(50), np.zeros(1)]), mode="directions")
    assert result.verdict == "inconclusive" and result.redrawn == 36 and "crossed a kink" in str(result)


def test_one_clean_direction_is_enough():
    results = [gradcheck(ops.relu, np.array([1.0, 1e-9]), mode="directions", seed=seed) for seed in range(10)]
    assert any(r.passed and r.redrawn >= 12 for r in results) and any(r.verdict == "inconclusive" for r in results)
    assert all(r.verdict == ("passed" if ALL in r.errors[1] else "inconclusive") for r in results)


def test_a_kink_that_no_op_recorded_is_recognised():
    class Hinge(Function):
        def forward(self, x):
            self.save(x)
            return np.where(x > 0, x, 0.0)

        def backward(self, grad):
            return ops.mul(grad, (raw(self.saved[0]) > 0).astype(float))

    result = gradcheck(lambda x: Hinge.apply(x), np.array([1.0, 1e-7, -1.0]))
    assert "f has a kink here that no op recorded" in result.failures[0]
    assert "kink" not in str(gradcheck(lambda x: Hinge.apply(x), np.array([1.0, 0.5, -1.0])))


def test_second_order_holds_the_choices_of_the_point():
    """Zero to the left of the point, steep to its right: the second derivative is the point's own."""
    f = lambda x: ops.relu(x) * x * x  # noqa: E731
    assert gradcheck(f, np.array([1e-7, 2.0, -1.0]), order=2)


def test_the_tape_refuses_another_course_of_ops():
    recorded = Choices()
    with setting(choices=recorded):
        ops.relu(Tensor(normal(3)))
    for f in (lambda: ops.abs(Tensor(normal(3))), lambda: ops.relu(Tensor(normal(4)))):
        with setting(choices=Choices(recorded.taken)), pytest.raises(RuntimeError, match="must run the same ops"):
            f()
    assert recorded.differs(Choices())


# --- curvature and rounding -------------------------------------------------------------------------------------------


def test_strong_curvature_is_extrapolated_away(monkeypatch):
    """Along exp(300 x) a difference with step 1e-5 errs by (300 * 1e-5)^2 / 6 = 1.5e-6, of either order."""
    x = np.array([0.001, 0.01])
    assert gradcheck(lambda x: ops.exp(x * 300.0), x, order=(1, 2)).max_relative_error < 1e-9
    monkeypatch.setattr(Tanh, "wrong", staticmethod(lambda g, y: ops.mul(right(g, y), 1.0 + 2e-5)))
    assert not gradcheck(lambda x: Tanh.apply(ops.exp(x * 30.0)), x)
    monkeypatch.setattr(Tanh, "wrong", staticmethod(lambda g, y: ops.neg(right(g, y))))
    curved = gradcheck(lambda x: Tanh.apply(ops.exp(x * 3000.0) * 0.1), np.array([1e-4]))
    assert "the sign is wrong" in curved.failures[0]  # and not a kink


def test_rounding_noise_is_measured_and_allowed_for():
    """Beside 1e6 a slope of 0.001 has few digits left; the sum of normalised values has only noise."""
    result = gradcheck(lambda x: x * 1e-3 + 1e6, normal(4))
    assert result and 1e-6 < result.noise < 1e-2
    assert not gradcheck(lambda x: ops.concat([Second.apply(x), x * 1e-3 + 1e3], 0), normal(4) + 3.0, order=2)
    assert gradcheck(lambda x: ops.batch_norm(x, training=True).sum() + x.mean(), normal(8, 3))


def test_variables_without_influence_are_noted():
    class Biased(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)
            self.unused = nn.Parameter(np.ones(2, "float32"))

        def forward(self, x):
            return self.norm(self.conv(x))

    result = gradcheck(Biased(), normal(2, 2, 5, 5), order=(1, 2))
    assert result, str(result)
    assert len(result.notes) == 1 and "conv.bias" in result.notes[0] and "unused" in result.notes[0]
    assert "conv.weight" not in result.notes[0]


def test_a_zero_branch_is_noted_and_nudge_reaches_it():
    model = nn.Sequential(models.blocks.BasicBlock(4, 4))
    model[0].zero_branch_()
    x = normal(2, 4, 4, 4)
    assert "0.conv1.weight" in gradcheck(model, x).notes[0]
    assert not gradcheck(model, x, nudge=0.1).notes


@pytest.mark.parametrize("images, warns", [(7, True), (8, False)])
def test_batch_norm_with_few_values_warns(images, warns):
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    x = normal(images, 1, 3, 3)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = gradcheck(model, x)
        gradcheck(model.eval(), x)
    assert bool(caught) is warns and len(caught) < 2
    if warns:
        assert "sees 7 values per channel ((7, 2, 1, 1))" in str(caught[0].message)
        assert any("use more or larger images, or eval()" in note for note in result.notes)
        assert caught[0].filename == __file__


# --- bad calls --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call, error, message", [
    (lambda: gradcheck(ops.tanh, normal(2), order=3), ValueError, r"order must be 1, 2 or \(1, 2\), got 3"),
    (lambda: gradcheck(ops.tanh, normal(2), order=()), ValueError, "order must be"),
    (lambda: gradcheck(ops.tanh, normal(2), mode="all"), ValueError, "mode must be 'elements', 'directions'"),
    (lambda: gradcheck(ops.tanh, normal(2), step=0), ValueError, "must be positive"),
    (lambda: gradcheck(ops.tanh, np.arange(3)), ValueError, "nothing to check"),
    (lambda: gradcheck(lambda: tr.zeros((2,))), ValueError, "nothing to check"),
    (lambda: gradcheck(ops.log, np.array([-1.0])), ValueError, "not finite at this point"),
    (lambda: gradcheck(lambda x: x.data, normal(2)), TypeError, "must return float64 Tensors, got ndarray"),
    (lambda: gradcheck(lambda x: x.float(), normal(2)), TypeError, "got a float32 Tensor"),
    (lambda: gradcheck(lambda x: ops.argmax(x), normal(2)), TypeError, "returned no float Tensor"),
    (lambda: gradcheck(lambda x: x * RNG.random(), normal(2)), RuntimeError, "two different values at one point"),
])
def test_bad_calls_say_what_to_do(call, error, message):
    random_state = random.get_state()
    with np.errstate(invalid="ignore"), pytest.raises(error, match=f"gradcheck: .*{message}"):
        call()
    assert random.get_state() == random_state and state.choices is None


def test_raise_on_failure():
    assert gradcheck(ops.tanh, normal(3), raise_on_failure=True)
    with pytest.raises(AssertionError, match="FAILED: each element"):
        gradcheck(lambda x: Second.apply(x), normal(3), order=2, raise_on_failure=True)
    with pytest.raises(AssertionError, match="inconclusive"):
        gradcheck(ops.relu, np.zeros(1), raise_on_failure=True)
