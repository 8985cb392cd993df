"""Optimizers and schedules: PyTorch's numbers, state that resumes, the audit, and errors that name value and fix."""

import copy
import json
import math
import tracemalloc
import warnings

import numpy as np
import pytest
import standin

import tinyres as tr
from tinyres import nn, optim
from tinyres.kernels import layout

SHAPES = [(5, 3), (4, 3, 2, 2), (7,), ()]


@pytest.fixture(autouse=True)
def seed():
    tr.manual_seed(0)


def parameters(dtype="float64"):
    rng = np.random.default_rng(0)
    return [nn.Parameter(np.asarray(rng.standard_normal(shape), dtype)) for shape in SHAPES]


def gradients(step, dtype="float64"):
    rng = np.random.default_rng(100 + step)
    return [np.asarray(rng.standard_normal(shape), dtype) for shape in SHAPES]


def run(optimizer, params, steps, dtype="float64", wrap=tr.Tensor):
    for step in steps:
        for p, g in zip(params, gradients(step, dtype), strict=True):
            p.grad = wrap(g)
        optimizer.step()


OPTIMIZERS = [
    ("SGD", {"lr": 0.1}),
    ("SGD", {"lr": 0.1, "momentum": 0.9}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.05}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.05, "nesterov": True}),
    ("Adam", {"lr": 0.01}),
    ("Adam", {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-4, "weight_decay": 0.1}),
    ("AdamW", {"lr": 0.01}),
    ("AdamW", {"lr": 0.01, "weight_decay": 0.3, "betas": (0.5, 0.9)}),
]
ids = [f"{name}-{'-'.join(options)}" for name, options in OPTIMIZERS]


@pytest.mark.parametrize("dtype, bound", [("float64", 1e-12), ("float32", 1e-5)])
@pytest.mark.parametrize("name, options", OPTIMIZERS, ids=ids)
def test_ten_steps_equal_pytorch(torch, name, options, dtype, bound):
    ours = parameters(dtype)
    arrays = [p.data for p in ours]
    theirs = [torch.nn.Parameter(torch.tensor(p.data)) for p in ours]
    run(getattr(optim, name)(ours, **options), ours, range(10), dtype)
    run(getattr(torch.optim, name)(theirs, **options), theirs, range(10), dtype, torch.tensor)
    for p, array, q in zip(ours, arrays, theirs, strict=True):
        assert p.data is array and p.dtype == dtype, "updates happen in place and keep the dtype"
        np.testing.assert_allclose(p.data, q.detach().numpy(), rtol=bound, atol=bound)


@pytest.mark.parametrize("name, options", OPTIMIZERS, ids=ids)
def test_the_rule_written_out(name, options):
    """Two steps of each optimizer on one number, from the papers' formulas, without PyTorch."""
    p, lr, decay = 2.0, options["lr"], options.get("weight_decay", 0.01 if name == "AdamW" else 0.0)
    param = nn.Parameter(np.array([p]))
    optimizer = getattr(optim, name)([param], **options)
    v = m = s = 0.0
    for step, g in enumerate([0.5, -2.0], 1):
        param.grad = tr.tensor(np.array([g]))
        optimizer.step()
        if name == "SGD":
            g += decay * p
            v = g + options.get("momentum", 0.0) * v
            p -= lr * (g + options["momentum"] * v if options.get("nesterov") else v)
            assert param.data[0] == pytest.approx(p, rel=1e-14)
            continue
        b1, b2 = options.get("betas", (0.9, 0.999))
        if name == "AdamW":
            p -= lr * decay * p
        else:
            g += decay * p
        m, s = b1 * m + (1 - b1) * g, b2 * s + (1 - b2) * g * g
        p -= lr * (m / (1 - b1**step)) / (math.sqrt(s / (1 - b2**step)) + options.get("eps", 1e-8))
        assert param.data[0] == pytest.approx(p, rel=1e-12)


def test_numpy_scalars_do_not_widen_float32():
    p = nn.Parameter(np.ones((2, 3, 2, 2), np.float32).transpose(0, 3, 1, 2))
    optimizer = optim.SGD([p], lr=np.float64(0.1), momentum=np.float64(0.9), weight_decay=np.float64(0.1))
    optimizer.param_groups[0]["lr"] = np.float64(0.2)
    p.grad = tr.tensor(np.ones(p.shape, np.float32))
    before = p.version.count
    optimizer.step()
    assert p.dtype == np.float32 == optimizer.state[p]["momentum_buffer"].dtype
    assert p.version.count == before + 1 and p.version.writer == "SGD.step"


@pytest.mark.parametrize("name, options", OPTIMIZERS, ids=ids)
def test_all_kernel_sets_agree(name, options):
    params, expected = parameters(), parameters()
    run(getattr(optim, name)(params, **options), params, range(4))
    with tr.use_kernels("reference"):
        run(getattr(optim, name)(expected, **options), expected, range(4))
    for p, q in zip(params, expected, strict=True):
        np.testing.assert_allclose(p.data, q.data, rtol=1e-12, atol=1e-12)


class Cubed(optim.Optimizer):
    """A rule of one's own: one parameter's arrays at a time."""

    def update(self, p, grad, group, state):
        state["count"] = state.get("count", 0) + 1
        p -= group["lr"] * grad**3


def test_a_rule_of_ones_own():
    p = nn.Parameter(np.ones(2))
    optimizer = Cubed([p], lr=0.5)
    p.grad = tr.Tensor(np.full(2, 2.0))
    optimizer.step()
    assert p.data.tolist() == [-3, -3] and optimizer.state[p] == {"count": 1}


class Halved(optim.SGD):
    """A rule built on that of SGD, one parameter at a time."""

    def update(self, p, grad, group, state):
        super().update(p, grad / 2, group, state)


class HalvedAdam(optim.AdamW):
    def update(self, p, grad, group, state):
        super().update(p, grad / 2, group, state)


class Gathered(optim.Optimizer):
    """A rule of one's own that is given the whole group."""

    def update_all(self, params, grads, group, states):
        for p, grad, state in zip(params, grads, states, strict=True):
            state["count"] = len(params)
            p -= group["lr"] * grad


class GatheredLater(Cubed):
    def update_all(self, params, grads, group, states):
        for p in params:
            p[...] = 7


@pytest.mark.parametrize("ours, theirs", [(Halved, optim.SGD), (HalvedAdam, optim.AdamW)])
def test_a_rule_built_on_ours(ours, theirs):
    options = {"lr": 0.5, "weight_decay": 0.1}
    if theirs is optim.SGD:
        options["momentum"] = 0.9
    results = []
    for kind, size in ((ours, 2.0), (theirs, 1.0)):
        p, q = nn.Parameter(np.arange(3.0)), nn.Parameter(np.ones((2, 2)))
        optimizer = kind([p, q], **options)
        for _ in range(3):
            p.grad, q.grad = tr.Tensor(np.full(3, size)), tr.Tensor(np.full((2, 2), size))
            optimizer.step()
        results.append((p.data.tolist(), q.data.tolist()))
    assert results[0] == results[1]


@pytest.mark.parametrize("kind, value", [(Gathered, 0.0), (GatheredLater, 7.0)])
def test_a_rule_for_whole_groups(kind, value):
    """The newest of update and update_all is the rule. Parameters without gradient are left out."""
    p, q, left_out, alone = (nn.Parameter(np.ones(2)) for _ in range(4))
    optimizer = kind([{"params": [p, q, left_out]}, {"params": [alone]}], lr=0.5)
    for one in (p, q, alone):
        one.grad = tr.Tensor(np.full(2, 2.0))
    with pytest.warns(optim.AuditWarning):
        optimizer.step()
    assert [one.data[0] for one in (p, q, left_out, alone)] == [value, value, 1.0, value]
    if kind is Gathered:
        assert [optimizer.state[one]["count"] for one in (p, q, alone)] == [2, 2, 1]
    assert [one.version.count for one in (p, q, left_out, alone)] == [1, 1, 0, 1]


# --- on a device ------------------------------------------------------------------------------------------------------


def device_model():
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(12, 2))
    for i, p in enumerate(model.parameters()):
        p.data[...] = np.linspace(-1, 1, p.data.size).reshape(p.shape) + i
    return model


def set_gradients(model):
    for i, p in enumerate(model.parameters()):
        p.grad = tr.tensor(np.cos(np.arange(p.data.size) + i).reshape(p.shape).astype("f")).to(p.device)


@pytest.mark.parametrize("kernel_set", ["reference", "fast"])
@pytest.mark.parametrize("name, options", [OPTIMIZERS[3], OPTIMIZERS[7]], ids=["SGD", "AdamW"])
def test_the_state_follows_the_model_to_a_device(name, options, kernel_set):
    def train(move):
        model = device_model()
        optimizer = getattr(optim, name)(model.parameters(), **options)
        with tr.use_kernels(kernel_set):
            for step in range(4):
                if step == 2:
                    move(model)
                set_gradients(model)
                optimizer.step()
        return [p.numpy() for p in model.parameters()], optimizer.state_dict()["arrays"]

    values, arrays = train(lambda model: None)
    with standin.installed():
        moved, moved_arrays = train(lambda model: model.to("cuda"))
    for one, other in zip((*values, *arrays.values()), (*moved, *moved_arrays.values()), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)


def test_a_gradient_on_another_device_is_named():
    with standin.installed():
        p = nn.Parameter(tr.ones(2).to("cuda").data)
        optimizer = optim.SGD([("w", p)], lr=0.1)
        p.grad = tr.ones(2)
        with pytest.raises(ValueError, match=r"SGD: w is on cuda, its gradient on cpu: call zero_grad\(\)"):
            optimizer.step()


@pytest.mark.parametrize("norm_type", [2.0, 1.0, 3.0, math.inf])
def test_clipping_waits_for_the_device_once(norm_type):
    model = device_model()
    set_gradients(model)
    norm = optim.clip_grad_norm_(model.parameters(), 0.5, norm_type)
    clipped = [p.grad.numpy() for p in model.parameters()]
    with standin.installed():
        model = device_model().to("cuda")
        set_gradients(model)
        standin.syncs.clear()
        assert math.isclose(optim.clip_grad_norm_(model.parameters(), 0.5, norm_type), norm, rel_tol=1e-12)
        assert len(standin.syncs) == 1
        for p, wanted in zip(model.parameters(), clipped, strict=True):
            np.testing.assert_allclose(p.grad.numpy(), wanted, rtol=1e-6)


@pytest.mark.parametrize("kernel_set", ["reference", "fast"])
def test_a_step_on_a_device_does_not_wait_for_it(kernel_set):
    with standin.installed(), tr.use_kernels(kernel_set):
        model = device_model().to("cuda")
        optimizers = [optim.SGD(model.parameters(), momentum=0.9), optim.AdamW(model.parameters())]
        set_gradients(model)
        standin.syncs.clear()
        for optimizer in optimizers:
            optimizer.step()
        assert standin.syncs == []


# --- what users do to parameters between steps ------------------------------------------------------------------------


def rebind(p):
    p.data = p.data.copy(order="K")


def another_order(p):
    p.data = np.array(p.data, order="F")


def a_part_of_a_larger_array(p):
    """With gaps between its values, so that it cannot be read as one run of memory."""
    wide = np.full((*p.shape, 2), np.nan, p.dtype)
    wide[..., 1] = p.data
    p.data = wide[..., 1]


@pytest.mark.parametrize("change", [rebind, another_order, a_part_of_a_larger_array])
@pytest.mark.parametrize("name, options", [OPTIMIZERS[3], OPTIMIZERS[5], OPTIMIZERS[7]], ids=["SGD", "Adam", "AdamW"])
def test_a_parameter_may_get_another_array(name, options, change):
    """The state stays in the memory order of the old one; the steps go on in the new array, and there only."""
    params, expected = parameters(), parameters()
    optimizer, undisturbed = (getattr(optim, name)(ps, **options) for ps in (params, expected))
    run(optimizer, params, range(2))
    old = [p.data for p in params]
    kept = [a.copy() for a in old]
    for p in params:
        change(p)
    new = [p.data for p in params]
    run(optimizer, params, range(2, 4))
    run(undisturbed, expected, range(4))
    for p, array, before, values, q in zip(params, new, old, kept, expected, strict=True):
        assert p.data is array
        np.testing.assert_allclose(p.data, q.data, rtol=1e-12, atol=1e-12)
        np.testing.assert_array_equal(before, values)


def test_parameters_may_share_an_array():
    """Tied weights, as two Parameters over one array: each steps with its own gradient, one after the other."""
    shared = np.ones(3)
    a, b = nn.Parameter(shared), nn.Parameter(shared)
    optimizer = optim.SGD([a, b], lr=0.1)
    a.grad, b.grad = tr.Tensor(np.full(3, 1.0)), tr.Tensor(np.full(3, 2.0))
    optimizer.step()
    np.testing.assert_allclose(shared, 0.7)
    optim.SGD([b], lr=0.1).step()
    np.testing.assert_allclose(a.data, 0.5)


def test_a_copied_model_has_its_own_weights():
    layer = nn.Linear(3, 2)
    optimizer = optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
    layer(tr.ones(1, 3)).sum().backward()
    optimizer.step()
    copied = copy.deepcopy(layer)
    before = copied.state_dict()
    optimizer.step()
    assert (layer.weight.data != copied.weight.data).any()
    for name, array in copied.state_dict().items():
        np.testing.assert_array_equal(array, before[name])


def test_a_model_may_be_converted_between_steps():
    layer = nn.Linear(3, 2)
    optimizer = optim.SGD(layer.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    layer(tr.ones(1, 3)).sum().backward()
    optimizer.step()
    layer.double()
    before = layer.weight.data.copy()
    optimizer.step()
    v = optimizer.state[layer.weight]["momentum_buffer"]
    assert layer.weight.dtype == np.float64 and v.dtype == np.float32
    np.testing.assert_allclose(layer.weight.data, before - 0.1 * v, rtol=1e-7)


def test_a_step_needs_no_memory_of_the_size_of_the_weights():
    p = nn.Parameter(np.zeros((512, 3, 3, 512), np.float32).transpose(0, 3, 1, 2))
    p.grad = tr.Tensor(np.ones_like(p.data))
    optimizer = optim.AdamW([p])
    optimizer.step()
    tracemalloc.start()
    optimizer.step()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200_000, f"{peak:,} bytes for weights of {p.data.nbytes:,}"


# --- what a step leaves as it is --------------------------------------------------------------------------------------


def test_buffers_keep_the_memory_layout():
    conv = nn.Conv2d(3, 4, 3)
    optimizer = optim.Adam(conv.parameters())
    conv(np.ones((1, 3, 4, 4), np.float32)).sum().backward()
    optimizer.step()
    assert layout.is_channels_last(conv.weight.data)
    assert layout.is_channels_last(optimizer.state[conv.weight]["exp_avg"])


def test_a_step_between_forward_and_backward_is_noticed():
    layer = nn.Linear(2, 2)
    optimizer = optim.SGD(layer.parameters(), lr=0.1)
    x = tr.tensor(np.ones((1, 2), np.float32), requires_grad=True)
    layer(x).sum().backward()
    loss = layer(x).sum()
    optimizer.step()
    with pytest.raises(RuntimeError, match=r"SGD.step changed it in place"):
        loss.backward()


def test_zero_grad():
    params = parameters()
    optimizer = optim.SGD(params, lr=0.1)
    run(optimizer, params, range(1))
    optimizer.zero_grad(set_to_none=False)
    assert all((p.grad.data == 0).all() and p.grad.shape == p.shape for p in params)
    optimizer.zero_grad()
    assert all(p.grad is None for p in params)


def test_parameters_without_gradient_stay():
    used, unused = nn.Parameter(np.ones(2)), nn.Parameter(np.ones(2))
    optimizer = optim.SGD([used, unused], lr=0.1, weight_decay=1.0)
    used.grad = tr.tensor(np.ones(2))
    with pytest.warns(optim.AuditWarning):
        optimizer.step()
    assert (used.data != 1).all() and (unused.data == 1).all()


# --- groups -----------------------------------------------------------------------------------------------------------


def test_groups_with_their_own_options(torch):
    ours = parameters()
    theirs = [torch.nn.Parameter(torch.tensor(p.data)) for p in ours]
    for lib, params, wrap in ((optim, ours, tr.Tensor), (torch.optim, theirs, torch.tensor)):
        groups = [{"params": params[:2], "lr": 0.3}, {"params": iter(params[2:]), "momentum": 0.5}]
        run(lib.SGD(groups, lr=0.1, momentum=0.9), params, range(4), wrap=wrap)
    for p, q in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(p.data, q.detach().numpy(), rtol=1e-13)


def test_named_parameters_give_names():
    layer = nn.Linear(2, 2)
    optim.SGD([("first", layer.weight), ("second", layer.bias)], lr=0.1)
    assert layer.weight.name == "first" and layer.bias.name == "second"
    optimizer = optim.SGD(nn.Sequential(layer).named_parameters(), lr=0.1)
    assert [p.name for p in optimizer.parameters()] == ["0.weight", "0.bias"]


def test_split_decay_spares_norms_and_biases():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 2))
    weights, rest = optim.split_decay(net, 0.1)
    assert [p.name for p in weights["params"]] == ["0.weight", "3.weight"] and weights["weight_decay"] == 0.1
    assert [p.name for p in rest["params"]] == ["0.bias", "1.weight", "1.bias", "3.bias"]
    optimizer = optim.SGD(optim.split_decay(net, 0.1), lr=1.0)
    before = net.state_dict()
    for p in net.parameters():
        p.grad = tr.Tensor(np.zeros_like(p.data))
    optimizer.step()
    after = net.state_dict()
    np.testing.assert_allclose(after["0.weight"], 0.9 * before["0.weight"], rtol=1e-6)
    np.testing.assert_array_equal(after["1.weight"], before["1.weight"])
    assert len(optim.split_decay(nn.BatchNorm2d(2), 0.1)) == 1


# --- errors -----------------------------------------------------------------------------------------------------------

P = nn.Parameter(np.ones(2, np.float32))


@pytest.mark.parametrize("make, error, message", [
    (lambda: optim.SGD([]), ValueError, "SGD: the list of parameters is empty"),
    (lambda: optim.SGD(nn.Linear(1, 1)), TypeError, r"got Linear: pass model.parameters\(\)"),
    (lambda: optim.SGD(P), TypeError, "expected an iterable of parameters, got Parameter"),
    (lambda: optim.SGD([np.ones(2)]), TypeError, "parameters must be Tensors"),
    (lambda: optim.SGD([P * 2]), TypeError, "was made by mul, and only leaves can be trained"),
    (lambda: optim.SGD([tr.Tensor(np.ones(2, int))]), TypeError, "dtype int64, and only floats"),
    (lambda: optim.SGD([P, P]), ValueError, r"a tensor of shape \(2,\) was given twice"),
    (lambda: optim.SGD([{"params": [P]}, {"params": P}]), ValueError, "was given twice"),
    (lambda: optim.SGD([P], lr=-0.1), ValueError, "SGD: lr must not be negative, got -0.1"),
    (lambda: optim.SGD([P], lr=math.nan), ValueError, "lr must not be negative, got nan"),
    (lambda: optim.SGD([P], momentum=1.0), ValueError, r"momentum must lie in \[0, 1\), got 1.0"),
    (lambda: optim.SGD([P], weight_decay=-1), ValueError, "weight_decay must not be negative"),
    (lambda: optim.SGD([P], nesterov=True), ValueError, "nesterov=True needs a momentum above 0"),
    (lambda: optim.Adam([P], betas=(0.9, 1.0)), ValueError, "betas must be two numbers in"),
    (lambda: optim.Adam([P], eps=-1), ValueError, "Adam: eps must not be negative"),
    (lambda: optim.SGD([{"params": [P], "weight_decy": 1}]), ValueError, "did you mean 'weight_decay'"),
    (lambda: optim.SGD([{"lr": 1}]), ValueError, "must be a dict with 'params'"),
])
def test_errors(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_a_gradient_of_another_dtype_is_refused():
    layer = nn.Linear(2, 1)
    optimizer = optim.SGD(layer.named_parameters(), lr=0.1)
    for p in layer.parameters():
        p.grad = tr.Tensor(np.zeros(p.shape))
    with pytest.raises(ValueError, match=r"weight is float32 \(1, 2\), its gradient float64 \(1, 2\)"):
        optimizer.step()


# --- the audit --------------------------------------------------------------------------------------------------------


class Forgetful(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.unused = nn.Linear(2, 2), nn.Linear(2, 2)
        self.hidden = [nn.Linear(2, 2)]  # a plain list registers nothing

    def forward(self, x):
        return self.hidden[0](self.used(x))


def test_audit_names_what_will_not_be_trained_once():
    net = Forgetful()
    list(nn.ModuleList(net.hidden).parameters())
    optimizer = optim.SGD(net.parameters(), lr=0.1)
    net(np.ones((1, 2), np.float32)).sum().backward()
    with pytest.warns(optim.AuditWarning) as caught:
        optimizer.step()
    assert len(caught) == 1 and caught[0].filename == __file__
    text = str(caught[0].message)
    assert "without gradient, so never trained: unused.weight, unused.bias." in text
    assert "with a gradient, but in no optimizer: 0.bias, 0.weight." in text
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step()


def test_audit_is_silent_when_all_is_well_frozen_or_held_by_another():
    net = Forgetful()
    net.unused.requires_grad_(False)
    hidden = optim.SGD(net.hidden[0].parameters(), lr=0.1)
    optimizer = optim.Adam(net.parameters(), lr=0.1)
    net(np.ones((1, 2), np.float32)).sum().backward()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step()
        hidden.step()


def test_audit_names_what_no_optimizer_holds_also_when_the_optimizer_is_made_after_backward():
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    dict(net.named_parameters())  # a parameter learns its dotted name when it is listed
    net(np.ones((1, 2), np.float32)).sum().backward()
    with pytest.warns(optim.AuditWarning, match=r"in no optimizer: .*1\.bias, 1\.weight"):
        optim.SGD(net[0].parameters(), lr=0.1).step()


def test_audit_forgets_models_that_were_trained_before():
    """As in a notebook, where the loss of the first model is still a variable when the second is trained."""
    losses = []
    for _ in range(2):
        model = nn.Linear(3, 2)
        optimizer = optim.SGD(model.parameters(), 0.1)
        losses.append(model(tr.ones(1, 3)).sum())
        losses[-1].backward()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            optimizer.step()
        del model, optimizer


def test_audit_names_some_of_many():
    many = [nn.Parameter(np.ones(2, np.float32)) for _ in range(20)]
    for i, p in enumerate(many):
        p.rename(f"p{i:02}")
    sum((p * 1.0).sum() for p in many).backward()
    with pytest.warns(optim.AuditWarning, match=r"in no optimizer: p01, .*, p08 and 11 more\. Add them"):
        optim.SGD(many[:1], 0.1).step()


def test_audit_of_a_step_without_backward():
    with pytest.warns(optim.AuditWarning, match=r"no parameter has a gradient: call loss.backward\(\) before step"):
        optim.SGD(nn.Linear(1, 1).parameters(), lr=0.1).step()


# --- state ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, options", OPTIMIZERS, ids=ids)
def test_resuming_from_the_state_changes_no_bit(name, options):
    def fresh():
        params = parameters("float32")
        return params, getattr(optim, name)(params, **options)

    params, optimizer = fresh()
    run(optimizer, params, range(8), "float32")
    halfway, first = fresh()
    run(first, halfway, range(4), "float32")
    first.param_groups[0]["lr"] = 0.5
    saved = first.state_dict()
    scalars = json.loads(json.dumps(saved["scalars"]))
    assert all(type(a) is np.ndarray and a.flags.c_contiguous for a in saved["arrays"].values())
    resumed, second = fresh()
    for p, q in zip(resumed, halfway, strict=True):
        p.data[...] = q.data
    second.load_state_dict({"arrays": saved["arrays"], "scalars": scalars})
    assert second.param_groups[0]["lr"] == 0.5
    assert type(second.param_groups[0].get("betas", ())) is tuple
    second.param_groups[0]["lr"] = options["lr"]
    run(second, resumed, range(4, 8), "float32")
    for p, q in zip(params, resumed, strict=True):
        np.testing.assert_array_equal(p.data, q.data)


@pytest.mark.parametrize("name, options", OPTIMIZERS[1:], ids=ids[1:])
def test_the_state_has_pytorchs_names_and_numbers(torch, name, options):
    ours = parameters()
    theirs = [torch.nn.Parameter(torch.tensor(p.data)) for p in ours]
    lib = {optim: getattr(optim, name)(ours, **options), torch: getattr(torch.optim, name)(theirs, **options)}
    run(lib[optim], ours, range(3))
    run(lib[torch], theirs, range(3), wrap=torch.tensor)
    for p, q in zip(ours, theirs, strict=True):
        state, expected = lib[optim].state[p], lib[torch].state[q]
        assert state.keys() == expected.keys()
        for key, value in state.items():
            np.testing.assert_allclose(value, expected[key].numpy(), rtol=1e-12, atol=1e-14)


def test_state_arrays_are_copies():
    params = parameters()
    optimizer = optim.SGD(params, lr=0.1, momentum=0.9)
    run(optimizer, params, range(1))
    saved = optimizer.state_dict()["arrays"]["1.momentum_buffer"]
    before = saved.copy()
    run(optimizer, params, range(1, 2))
    np.testing.assert_array_equal(saved, before)


def test_a_state_that_does_not_fit_changes_nothing():
    params = parameters()
    optimizer = optim.SGD(params, lr=0.1, momentum=0.9)
    run(optimizer, params, range(1))
    saved = optimizer.state_dict()
    with pytest.raises(ValueError, match="Adam.load_state_dict: nothing was loaded: the state is of SGD"):
        optim.Adam(params).load_state_dict(saved)
    with pytest.raises(ValueError, match=r"its groups have \[4\] parameters, this optimizer's have \[3\]"):
        optim.SGD(params[1:], lr=0.1).load_state_dict(saved)
    other = optim.SGD(params[::-1], lr=0.3)
    with pytest.raises(ValueError, match=r"0.momentum_buffer .* has shape \(5, 3\), expected \(\)"):
        other.load_state_dict(saved)
    assert other.param_groups[0]["lr"] == 0.3 and not other.state
    layer = nn.Linear(2, 2)
    saved = optim.SGD(layer.named_parameters(), lr=0.1).state_dict()
    with pytest.raises(ValueError, match="the state has weight where this optimizer has a"):
        optim.SGD([("a", nn.Parameter(np.ones((2, 2)))), ("b", nn.Parameter(np.ones(2)))]).load_state_dict(saved)


# --- schedules --------------------------------------------------------------------------------------------------------


def rates(lib, make, steps, optimizer="SGD", **options):
    params = [nn.Parameter(np.ones(2))]
    if lib is not optim:
        import torch
        params = [torch.nn.Parameter(torch.ones(2))]
    opt = getattr(lib, optimizer)([{"params": params, "lr": 0.3}], **options)
    schedule = make(opt)
    seen = []
    for _ in range(steps):
        group = opt.param_groups[0]
        seen.append((group["lr"], group.get("momentum", 0) or group.get("betas", (0,))[0]))
        if lib is not optim:
            opt.step()
        schedule.step()
    return np.array(seen)


SCHEDULES = [
    ("StepLR", {"step_size": 3, "gamma": 0.5}),
    ("MultiStepLR", {"milestones": [2, 5, 5, 9]}),
    ("CosineAnnealingLR", {"T_max": 7, "eta_min": 0.01}),
    ("CosineAnnealingLR", {"T_max": 20}),
    ("OneCycleLR", {"max_lr": 0.7, "total_steps": 20}),
    ("OneCycleLR", {"max_lr": 0.7, "total_steps": 19, "anneal_strategy": "linear", "pct_start": 0.4, "div_factor": 10}),
    ("OneCycleLR", {"max_lr": 0.7, "total_steps": 19, "cycle_momentum": False, "final_div_factor": 50}),
]


@pytest.mark.parametrize("optimizer, options", [("SGD", {"momentum": 0.9}), ("Adam", {})])
@pytest.mark.parametrize("name, arguments", SCHEDULES)
def test_schedules_equal_pytorch(torch, name, arguments, optimizer, options):
    steps = arguments.get("total_steps", 19) - 1
    ours = rates(optim, lambda o: getattr(optim, name)(o, **arguments), steps, optimizer, **options)
    theirs = rates(torch.optim, lambda o: getattr(torch.optim.lr_scheduler, name)(o, **arguments), steps, optimizer,
                   **options)
    np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-15)
    assert len(set(ours[:, 0])) > 2


def test_warmup_equals_pytorchs_sequence(torch):
    def pytorch(o):
        s = torch.optim.lr_scheduler
        return s.SequentialLR(o, [s.LinearLR(o, 0.1, 1.0, 4), s.MultiStepLR(o, [3, 6])], [4])

    ours = rates(optim, lambda o: optim.LinearWarmup(optim.MultiStepLR(o, [3, 6]), 4, 0.1), 14)
    np.testing.assert_allclose(ours, rates(torch.optim, pytorch, 14), rtol=1e-12)


def test_rates_written_out():
    milestones = rates(optim, lambda o: optim.MultiStepLR(o, [1, 3]), 5)[:, 0]
    np.testing.assert_allclose(milestones, [0.3, 0.03, 0.03, 0.003, 0.003], rtol=1e-14)
    cosine = rates(optim, lambda o: optim.CosineAnnealingLR(o, 4), 5)[:, 0]
    np.testing.assert_allclose(cosine, 0.15 * (1 + np.cos(np.pi * np.arange(5) / 4)), atol=1e-16)
    ramp = rates(optim, lambda o: optim.LinearWarmup(o, 4, 0.2), 6)[:, 0]
    np.testing.assert_allclose(ramp, 0.3 * np.array([0.2, 0.4, 0.6, 0.8, 1, 1]), rtol=1e-14)
    constant = rates(optim, lambda o: optim.LinearWarmup(optim.StepLR(o, 2), 3, 0.1, 0.1), 6)[:, 0]
    np.testing.assert_allclose(constant, [0.03, 0.03, 0.03, 0.3, 0.3, 0.03], rtol=1e-14)


def test_a_schedule_resumes():
    make = [lambda o: optim.StepLR(o, 2), lambda o: optim.LinearWarmup(optim.CosineAnnealingLR(o, 5), 3),
            lambda o: optim.OneCycleLR(o, 0.5, 12)]
    for build in make:
        opt = optim.SGD([nn.Parameter(np.ones(1))], lr=0.2, momentum=0.9)
        schedule = build(opt)
        for _ in range(4):
            schedule.step()
        saved, rate = json.loads(json.dumps(schedule.state_dict())), opt.state_dict()
        again = optim.SGD([nn.Parameter(np.ones(1))], lr=0.9, momentum=0.9)
        again.load_state_dict(rate)
        resumed = build(again)
        resumed.load_state_dict(saved)
        for _ in range(5):
            assert again.param_groups[0]["lr"] == opt.param_groups[0]["lr"] == resumed.get_last_lr()[0]
            schedule.step()
            resumed.step()


def test_schedule_errors():
    opt = optim.SGD([nn.Parameter(np.ones(1))], lr=0.2)
    with pytest.raises(ValueError, match="step_size must be a positive int, got 0"):
        optim.StepLR(opt, 0)
    with pytest.raises(ValueError, match="OneCycleLR has its own warm-up"):
        optim.LinearWarmup(optim.OneCycleLR(opt, 0.1, 5), 2)
    with pytest.raises(ValueError, match="anneal_strategy must be 'cos' or 'linear'"):
        optim.OneCycleLR(opt, 0.1, 5, anneal_strategy="sin")
    cycle = optim.OneCycleLR(opt, 0.1, 2)
    cycle.step()
    with pytest.raises(ValueError, match="step 2 is beyond its 2 steps"):
        cycle.step()
    with pytest.raises(ValueError, match="the state is of StepLR with 1 groups"):
        optim.MultiStepLR(opt, [1]).load_state_dict(optim.StepLR(opt, 1).state_dict())


# --- clipping ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm_type", [2.0, 1.0, 3.0, math.inf])
@pytest.mark.parametrize("max_norm", [0.5, 1e6])
def test_clipping_equals_pytorch(torch, norm_type, max_norm):
    ours, theirs = parameters(), []
    for p, g in zip(ours, gradients(0), strict=True):
        p.grad = tr.Tensor(g)
        q = torch.nn.Parameter(torch.tensor(p.data))
        q.grad = torch.tensor(g)
        theirs.append(q)
    total = optim.clip_grad_norm_(ours + [nn.Parameter(np.ones(2))], max_norm, norm_type)
    assert total == pytest.approx(torch.nn.utils.clip_grad_norm_(theirs, max_norm, norm_type).item(), rel=1e-12)
    for p, q in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(p.grad.numpy(), q.grad.numpy(), rtol=1e-12)


def test_the_largest_gradient_is_nan_if_any_is():
    ours = parameters()
    for p, g in zip(ours, gradients(0), strict=True):
        p.grad = tr.Tensor(g)
    ours[-1].grad.data.flat[0] = np.nan
    assert math.isnan(optim.clip_grad_norm_(ours, 1.0, math.inf)) and math.isnan(optim.clip_grad_norm_(ours, 1.0))


def test_clipping_leaves_a_shared_gradient_array_alone():
    shared = np.full(3, 2.0, np.float32)
    a, b = nn.Parameter(np.ones(3, np.float32)), nn.Parameter(np.ones(3, np.float32))
    a.grad = b.grad = tr.Tensor(shared)
    total = optim.clip_grad_norm_([a, b], 1.0)
    assert total == pytest.approx(math.sqrt(24)) and (shared == 2).all()
    assert a.grad.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(np.concatenate([a.grad.numpy(), b.grad.numpy()])), 1, rtol=1e-5)


def test_clipping_errors():
    p = nn.Parameter(np.ones(2))
    p.grad = tr.Tensor(np.array([np.nan, 1]))
    with pytest.raises(RuntimeError, match="the gradients' norm is nan"):
        optim.clip_grad_norm_(p, 1.0, error_if_nonfinite=True)
    with pytest.raises(ValueError, match="max_norm and norm_type must be positive, got 0"):
        optim.clip_grad_norm_([p], 0)
