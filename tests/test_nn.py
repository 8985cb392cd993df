"""Modules: registration, names, state, hooks, copies. Layers and initialisers, against PyTorch if it is installed."""

import copy
import math

import numpy as np
import pytest

import tinyres as tr
from tinyres import nn
from tinyres.kernels import layout
from tinyres.tensor import Tensor


@pytest.fixture(autouse=True)
def seed():
    tr.manual_seed(0)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3, padding=1)
        self.bn = nn.BatchNorm2d(3)
        self.scale = nn.Parameter(np.ones(3, np.float32))
        self.fc = nn.Linear(3, 4)

    def forward(self, x):
        h = self.bn(self.conv(x), relu=True)
        return self.fc(tr.global_avg_pool2d(h) * self.scale)


def images(*shape, dtype="float32", seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


# --- registration -----------------------------------------------------------------------------------------------------


def test_registration_keeps_order_and_own_parameters_come_first():
    names = [name for name, _ in Net().named_parameters()]
    assert names == ["scale", "conv.weight", "conv.bias", "bn.weight", "bn.bias", "fc.weight", "fc.bias"]


def test_assigning_before_init_says_what_to_do():
    class Early(nn.Module):
        def __init__(self):
            self.fc = nn.Linear(1, 1)

    with pytest.raises(AttributeError, match=r"Early: call super\(\).__init__\(\) before assigning 'fc'"):
        Early()


def test_reassigning_keeps_the_place_and_deleting_removes():
    net = Net()
    new = nn.Conv2d(2, 3, 1)
    net.conv = new
    assert net.conv is new and [n for n, _ in net.named_children()] == ["conv", "bn", "fc"]
    del net.bn
    assert [n for n, _ in net.named_children()] == ["conv", "fc"]
    with pytest.raises(AttributeError, match="'Net' object has no attribute 'bn'"):
        _ = net.bn
    with pytest.raises(AttributeError):
        del net.bn


def test_a_name_moves_between_kinds():
    m = nn.Module()
    m.a = 1
    m.a = nn.Parameter(np.ones(2, np.float32))
    assert "a" not in vars(m) and list(m._parameters) == ["a"]
    m.a = nn.Identity()
    assert not m._parameters and list(m._modules) == ["a"]
    m.register_buffer("a", np.zeros(2, np.float32))
    assert not m._modules and list(m._buffers) == ["a"]


def test_none_keeps_the_place_and_other_values_are_refused():
    net = Net()
    net.conv.bias = None
    assert net.conv.bias is None and "conv.bias" not in net.state_dict()
    with pytest.raises(TypeError, match="Conv2d.weight is a Parameter, got ndarray"):
        net.conv.weight = np.zeros(3)
    with pytest.raises(TypeError, match="Net.fc is a Module, got int"):
        net.fc = 3


@pytest.mark.parametrize("name", ["", "a.b", "forward", "train"])
def test_bad_names_are_refused(name):
    with pytest.raises(ValueError):
        nn.Module().register_module(name, nn.Identity())


def test_buffers_are_tensors_that_want_no_gradient():
    m = nn.Module()
    m.register_buffer("kept", np.zeros(2, np.float32))
    m.register_buffer("passing", np.zeros(2, np.float32), persistent=False)
    m.register_buffer("nothing", None)
    assert isinstance(m.kept, Tensor) and not m.kept.requires_grad
    assert list(m.state_dict()) == ["kept"]
    assert [n for n, _ in m.named_buffers()] == ["kept", "passing"]
    m.passing = np.ones(3, np.float32)
    assert isinstance(m.passing, Tensor) and m.passing.shape == (3,) and list(m.state_dict()) == ["kept"]
    with pytest.raises(TypeError, match="requires a gradient"):
        m.kept = tr.tensor([1.0], requires_grad=True)
    with pytest.raises(TypeError, match="buffer 'kept' must be an array"):
        m.kept = 1.0


def test_dir_lists_what_was_registered():
    assert {"conv", "scale", "forward"} <= set(dir(Net()))


def test_get_submodule():
    net = nn.Sequential(nn.Sequential(nn.ReLU()), nn.Tanh())
    assert net.get_submodule("0.0") is net[0][0] and net.get_submodule("") is net
    with pytest.raises(AttributeError, match=r"get_submodule\('0.1'\): Sequential has no submodule '1', only 0"):
        net.get_submodule("0.1")


# --- names and sharing ------------------------------------------------------------------------------------------------


def test_shared_parameters_are_listed_once_but_saved_under_every_name():
    block = nn.Linear(2, 2)
    net = nn.Sequential(block, nn.ReLU(), block)
    assert [n for n, _ in net.named_parameters()] == ["0.weight", "0.bias"]
    assert list(net.state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    tied = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    tied[1].weight = tied[0].weight
    assert [n for n, _ in tied.named_parameters()] == ["0.weight", "0.bias", "1.bias"]
    assert len(list(nn.Sequential(block, block).children())) == 1


def test_listing_gives_parameters_their_names():
    net = Net()
    assert net.fc.weight.name is None
    list(net.parameters())
    assert net.fc.weight.name == "fc.weight" and "fc.weight" in repr(net.fc.weight)
    list(net.fc.parameters())
    assert net.fc.weight.name == "fc.weight", "a submodule knows only the end of the name"
    whole = nn.Sequential(net)
    list(whole.parameters())
    assert net.fc.weight.name == "0.fc.weight"
    moved = nn.Module()
    moved.head = net.fc
    list(moved.parameters())
    assert net.fc.weight.name == "head.weight"


# --- the whole tree ---------------------------------------------------------------------------------------------------


def test_modes_freezing_and_zero_grad_reach_every_module():
    net = nn.Sequential(Net(), nn.Dropout(0.5))
    assert net.eval() is net and not any(m.training for m in net.modules())
    assert all(m.training for m in net.train().modules())
    net.requires_grad_(False)
    assert not any(p.requires_grad for p in net.parameters())
    net.requires_grad_()
    net(images(2, 2, 4, 4)).sum().backward()
    assert all(p.grad is not None for p in net.parameters())
    net.zero_grad()
    assert all(p.grad is None for p in net.parameters())


def test_apply_visits_children_first():
    net = nn.Sequential(nn.Sequential(nn.ReLU()), nn.Tanh())
    seen = []
    net.apply(lambda m: seen.append(type(m).__name__))
    assert seen == ["ReLU", "Sequential", "Tanh", "Sequential"]


def test_astype_converts_floats_in_place_of_the_same_parameters():
    net = Net()
    params, before = list(net.parameters()), net.state_dict()
    net(images(2, 2, 4, 4)).sum().backward()
    assert net.double() is net
    assert all(p is q and p.dtype == np.float64 == p.grad.dtype for p, q in zip(params, net.parameters(), strict=True))
    assert net.bn.running_var.dtype == np.float64 and net.bn.num_batches_tracked.dtype == np.int64
    assert layout.is_channels_last(net.conv.weight.data)
    np.testing.assert_array_equal(net.state_dict()["conv.weight"], before["conv.weight"])
    assert net(images(2, 2, 4, 4, dtype="float64")).dtype == np.float64
    assert net.float().to("cpu").fc.weight.dtype == np.float32
    with pytest.raises(TypeError, match="Net.astype: parameters are floats, got dtype int64"):
        net.astype("int64")


def test_arrays_are_wrapped():
    net = Net()
    out = net(images(2, 2, 4, 4))
    assert isinstance(out, Tensor) and out.requires_grad
    x = images(2, 3, 4, 4)
    joined = nn.BatchNorm2d(3)(x, add=x, relu=True)
    assert isinstance(joined, Tensor)
    assert isinstance(nn.Identity()(x), Tensor)


def test_a_module_without_forward_says_so():
    with pytest.raises(NotImplementedError, match="Module has no forward"):
        nn.Module()(1)


def test_deepcopy_is_independent_and_keeps_layout_names_sharing_and_hooks():
    net = Net()
    net.again = net.fc
    calls = []
    net.register_forward_hook(lambda m, args, out: calls.append(m))
    loss = net(images(2, 2, 4, 4)).sum()
    loss.backward()
    list(net.parameters())
    twin = copy.deepcopy(net)
    assert list(twin.state_dict()) == list(net.state_dict())
    assert twin.again is twin.fc and twin.fc is not net.fc
    for (name, p), (_, q) in zip(net.named_parameters(), twin.named_parameters(), strict=True):
        assert type(q) is nn.Parameter and q.name == name and q.is_leaf and q.requires_grad and q.grad is None
        assert q.data is not p.data and q.data.strides == p.data.strides
        np.testing.assert_array_equal(p.data, q.data)
    twin.conv.weight.data[...] = 0
    twin.bn.running_mean.data[...] = 7
    assert net.conv.weight.data.any() and not (net.bn.running_mean.data == 7).any()
    calls.clear()
    twin(images(2, 2, 4, 4))
    assert calls == [twin]


def test_repr_is_a_tree():
    net = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
                        nn.Sequential(nn.MaxPool2d(3, 2, 1), nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
                        nn.ConvTranspose2d(4, 8, (3, 2), output_padding=1, stride=2, groups=2), nn.Linear(8, 2))
    assert repr(net) == """Sequential(
  (0): Conv2d(3, 8, kernel_size=(3, 3), stride=(2, 2), padding=(1, 1), bias=False)
  (1): BatchNorm2d(8, eps=1e-05, momentum=0.1, affine=True, track_running_stats=True)
  (2): ReLU()
  (3): Sequential(
    (0): MaxPool2d(kernel_size=3, stride=2, padding=1, dilation=1, ceil_mode=False)
    (1): AvgPool2d(kernel_size=2, stride=2, padding=0)
    (2): AdaptiveAvgPool2d(output_size=1)
    (3): Flatten(start_dim=1, end_dim=-1)
  )
  (4): ConvTranspose2d(4, 8, kernel_size=(3, 2), stride=(2, 2), output_padding=(1, 1), groups=2)
  (5): Linear(in_features=8, out_features=2, bias=True)
)"""
    assert repr(nn.Identity()) == "Identity()" and repr(nn.ReLU(inplace=True)) == "ReLU(inplace=True)"


# --- state ------------------------------------------------------------------------------------------------------------


def test_state_dict_is_a_copy_in_c_order():
    net = Net()
    state = net.state_dict()
    assert list(state)[0] == "scale" and "bn.num_batches_tracked" in state
    assert all(type(a) is np.ndarray and a.flags.c_contiguous for a in state.values())
    before = state["conv.weight"].copy()
    net.conv.weight.data[...] = 0
    np.testing.assert_array_equal(state["conv.weight"], before)


def test_load_copies_into_the_same_arrays():
    source, target = Net(), Net()
    source(images(4, 2, 4, 4))
    arrays = {name: p.data for name, p in target.named_parameters()}
    result = target.load_state_dict(source.state_dict())
    assert result == ([], []) and result.missing == []
    for name, p in target.named_parameters():
        assert p.data is arrays[name]
    assert layout.is_channels_last(target.conv.weight.data)
    for name, value in source.state_dict().items():
        np.testing.assert_array_equal(target.state_dict()[name], value)
    assert target.bn.num_batches_tracked.item() == 1


def test_load_casts_floats_to_the_models_dtype():
    net = Net()
    wide = {name: a.astype("float64") if a.dtype.kind == "f" else a for name, a in net.state_dict().items()}
    wide["scale"] = np.full(3, 0.1)
    net.load_state_dict(wide)
    assert net.scale.dtype == np.float32
    np.testing.assert_array_equal(net.scale.data, np.float32([0.1] * 3))


def test_a_state_that_does_not_fit_lists_everything_and_changes_nothing():
    net = Net()
    state = net.state_dict()
    before = net.state_dict()
    state["module.fc.weight"] = state.pop("fc.weight")
    state["stray"] = np.zeros(1)
    state["conv.weight"] = np.zeros((3, 2, 5, 5), np.float32)
    state["bn.bias"] = np.zeros(3, np.int64)
    state["scale"] = state["scale"] + 1
    with pytest.raises(ValueError) as error:
        net.load_state_dict(state)
    text = str(error.value)
    assert "Net.load_state_dict" in text and "nothing was loaded" in text
    assert "fc.weight  (near: module.fc.weight)" in text and "module.fc.weight  (near: fc.weight)" in text
    assert "stray" in text
    assert "conv.weight: the state has shape (3, 2, 5, 5), the model (3, 2, 3, 3)" in text
    assert "bn.bias: the state has dtype int64, the model float32" in text
    for name, value in net.state_dict().items():
        np.testing.assert_array_equal(value, before[name])


def test_a_prefix_in_all_names_is_pointed_out():
    net = Net()
    with pytest.raises(ValueError, match=r"The state's names begin with 'module\.net\.', the model's do not"):
        net.load_state_dict({f"module.net.{name}": a for name, a in net.state_dict().items()})


def test_strict_false_loads_what_fits_but_not_other_shapes():
    net = Net()
    result = net.load_state_dict({"scale": np.full(3, 2.0), "stray": np.zeros(1)}, strict=False)
    assert result.unexpected == ["stray"]
    assert result.missing == ["conv.weight", "conv.bias", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var",
                              "fc.weight", "fc.bias"]
    assert (net.scale.data == 2).all()
    with pytest.raises(ValueError, match=r"scale: the state has shape \(4,\)"):
        net.load_state_dict({"scale": np.zeros(4)}, strict=False)


def test_batch_count_may_be_missing_from_old_states():
    net = Net()
    state = net.state_dict()
    del state["bn.num_batches_tracked"]
    assert net.load_state_dict(state) == ([], [])


def test_loading_between_forward_and_backward_is_noticed():
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    loss = net(images(3, 2)).sum()
    net.load_state_dict(net.state_dict())
    with pytest.raises(RuntimeError, match="load_state_dict changed it in place"):
        loss.backward()


def test_states_go_to_and_from_pytorch(torch):
    theirs = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 3), torch.nn.BatchNorm2d(3), torch.nn.Flatten(),
                                 torch.nn.Linear(12, 2))
    ours = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 2))
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    ours.load_state_dict(dict(theirs.named_parameters()), strict=False)
    x = images(5, 2, 4, 4)
    np.testing.assert_allclose(ours(x).numpy(), theirs(torch.tensor(x)).detach().numpy(), rtol=1e-4, atol=1e-5)
    theirs.load_state_dict({name: torch.tensor(a) for name, a in ours.state_dict().items()})


# --- hooks ------------------------------------------------------------------------------------------------------------


def test_forward_hooks_see_and_replace():
    layer = nn.Linear(2, 2)
    seen = []
    pre = layer.register_forward_pre_hook(lambda m, args: (args[0] * 2,))
    post = layer.register_forward_hook(lambda m, args, out: seen.append((m, args, out)))
    replacing = layer.register_forward_hook(lambda m, args, out: out + 1)
    x = tr.tensor(images(3, 2))
    y = layer(x)
    plain = layer.forward(x * 2)
    assert seen[0][0] is layer and isinstance(seen[0][1], tuple)
    np.testing.assert_array_equal(seen[0][2].numpy(), plain.numpy())
    np.testing.assert_array_equal(y.numpy(), plain.numpy() + 1)
    for handle in (pre, post, replacing):
        handle.remove()
    np.testing.assert_array_equal(layer(x).numpy(), layer.forward(x).numpy())
    assert len(seen) == 1


class Fork(nn.Module):
    """Uses its input twice, so grad_input is a sum."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 3)

    def forward(self, x):
        return self.fc(x) + x * x


def torch_fork(torch):
    class Module(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = torch.nn.Linear(3, 3)

        forward = Fork.forward

    return Module()


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
@pytest.mark.parametrize("input_wants_grad", [True, False])
@pytest.mark.parametrize("replace", [True, False])
def test_backward_hooks_as_in_pytorch(torch, input_wants_grad, replace):
    ours, theirs = Fork(), torch_fork(torch)
    ours.load_state_dict(theirs.state_dict())
    x, upstream = images(4, 3), images(4, 3, seed=1)
    seen = {"ours": [], "theirs": []}

    def hook(who):
        def call(module, grad_input, grad_output):
            seen[who].append((grad_input, grad_output))
            if replace and grad_input[0] is not None:
                return (grad_input[0] * 3,)
        return call

    ours.register_full_backward_hook(hook("ours"))
    theirs.register_full_backward_hook(hook("theirs"))
    a = tr.tensor(x, requires_grad=input_wants_grad)
    b = torch.tensor(x, requires_grad=input_wants_grad)
    ours(a * 1 if input_wants_grad else a).backward(tr.tensor(upstream))
    theirs(b * 1 if input_wants_grad else b).backward(torch.tensor(upstream))
    assert len(seen["ours"]) == len(seen["theirs"]) == 1
    for mine, reference in zip(seen["ours"][0], seen["theirs"][0], strict=True):
        assert isinstance(mine, tuple) and len(mine) == len(reference) == 1
        if reference[0] is None:
            assert mine[0] is None
        else:
            np.testing.assert_allclose(mine[0].numpy(), reference[0].numpy(), rtol=1e-5, atol=1e-6)
    if input_wants_grad:
        np.testing.assert_allclose(a.grad.numpy(), b.grad.numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(ours.fc.weight.grad.numpy(), theirs.fc.weight.grad.numpy(), rtol=1e-5, atol=1e-6)


def test_backward_hook_runs_once_per_pass_and_stops_when_removed():
    layer = nn.Linear(2, 2)
    calls = []
    handle = layer.register_full_backward_hook(lambda m, gi, go: calls.append((gi, go)))
    x = tr.tensor(images(3, 2), requires_grad=True)
    loss = layer(x).sum()
    loss.backward(retain_graph=True)
    loss.backward()
    assert len(calls) == 2
    np.testing.assert_array_equal(calls[0][0][0].numpy(), calls[1][0][0].numpy())
    handle.remove()
    layer(x).sum().backward()
    assert len(calls) == 2


def test_backward_hook_with_two_inputs_waits_for_both_and_refuses_to_replace():
    class Product(nn.Module):
        def forward(self, a, b):
            return a * b

    a, b = (tr.tensor(images(3, seed=i), requires_grad=True) for i in range(2))
    module, calls = Product(), []
    handle = module.register_full_backward_hook(lambda m, gi, go: calls.append(gi))
    module(a, b).sum().backward()
    (gradients,) = calls
    np.testing.assert_array_equal(gradients[0].numpy(), b.numpy())
    np.testing.assert_array_equal(gradients[1].numpy(), a.numpy())
    handle.remove()
    module.register_full_backward_hook(lambda m, gi, go: gi)
    with pytest.raises(ValueError, match="Product's full backward hook returned gradients for 2 inputs"):
        module(a, b).sum().backward()


def test_backward_hook_of_a_module_with_two_outputs():
    class Two(nn.Module):
        def forward(self, x):
            return x * 2, x * 3, "text"

    x = tr.tensor(images(4), requires_grad=True)
    module, calls = Two(), []
    module.register_full_backward_hook(lambda m, gi, go: calls.append((gi, go)))
    a, b, text = module(x)
    (a * 5 + b).sum().backward()
    ((grad_input, grad_output),) = calls
    assert text == "text" and grad_output[2] is None
    assert [g.numpy()[0] for g in grad_output[:2]] == [5, 1] and grad_input[0].numpy()[0] == 13
    np.testing.assert_array_equal(x.grad.numpy(), np.full(4, 13, np.float32))


def test_backward_hook_forgets_what_an_earlier_pass_left():
    class Cross(nn.Module):
        def forward(self, a, b):
            return a * 2 + b, a * b

    a, b = (tr.tensor(np.float32([v]), requires_grad=True) for v in (3, 5))
    module, calls = Cross(), []
    module.register_full_backward_hook(lambda m, gi, go: calls.append([g and g.item() for g in (*gi, *go)]))
    first, second = module(a, b)
    second.sum().backward(retain_graph=True)
    first.sum().backward(retain_graph=True)
    assert calls == [[5, 3, None, 1], [2, 1, 1, None]]
    for only in (a, b):  # a pass that leaves the other input without gradient cannot run the hook
        tr.grad((first * 7).sum(), only, retain_graph=True)
    assert len(calls) == 2
    for only in (a, b):
        tr.grad((first * 7).sum(), only, retain_graph=True)
        first.sum().backward(retain_graph=True)
    assert calls[2:] == [[2, 1, 1, None]] * 2


def test_backward_hook_in_no_grad_is_silent():
    layer = nn.Linear(2, 2)
    layer.register_full_backward_hook(lambda *_: pytest.fail("no backward, no hook"))
    with tr.no_grad():
        assert not layer(images(3, 2)).requires_grad


# --- layers -----------------------------------------------------------------------------------------------------------

LAYERS = [
    ("Conv2d", (4, 6, 3), {"stride": 2, "padding": 1}, (2, 4, 7, 6)),
    ("Conv2d", (4, 6, (3, 2)), {"dilation": (2, 1), "padding": (0, 1), "groups": 2, "bias": False}, (2, 4, 7, 6)),
    ("Conv2d", (4, 6, 3), {"padding": "same"}, (2, 4, 7, 6)),
    ("ConvTranspose2d", (4, 6, 3), {"stride": 2, "padding": 1, "output_padding": 1, "groups": 2}, (2, 4, 5, 4)),
    ("Linear", (5, 3), {}, (2, 4, 5)),
    ("Linear", (5, 3), {"bias": False}, (4, 5)),
    ("BatchNorm2d", (4,), {}, (3, 4, 5, 2)),
    ("BatchNorm2d", (4,), {"momentum": None, "eps": 1e-3}, (3, 4, 5, 2)),
    ("BatchNorm2d", (4,), {"affine": False, "momentum": 0.3}, (3, 4, 5, 2)),
    ("BatchNorm2d", (4,), {"track_running_stats": False}, (3, 4, 5, 2)),
    ("BatchNorm1d", (4,), {}, (6, 4)),
    ("BatchNorm1d", (4,), {}, (3, 4, 5)),
    ("ReLU", (), {}, (2, 3, 4, 5)),
    ("Tanh", (), {}, (2, 3)),
    ("Sigmoid", (), {}, (2, 3)),
    ("MaxPool2d", (3,), {"stride": 2, "padding": 1}, (2, 3, 7, 6)),
    ("MaxPool2d", (2,), {"ceil_mode": True}, (2, 3, 7, 5)),
    ("AvgPool2d", (3,), {"stride": 2, "padding": 1, "count_include_pad": False}, (2, 3, 7, 6)),
    ("AdaptiveAvgPool2d", ((3, 2),), {}, (2, 3, 7, 5)),
    ("Flatten", (), {}, (2, 3, 4, 5)),
    ("Identity", (), {}, (2, 3)),
]


@pytest.mark.parametrize("name, args, options, shape", LAYERS, ids=lambda v: v if isinstance(v, str) else "")
def test_layer_equals_pytorch(torch, name, args, options, shape):
    """Output, every gradient and the running statistics over two training steps and one in eval mode, float64."""
    ours, theirs = getattr(nn, name)(*args, **options).double(), getattr(torch.nn, name)(*args, **options).double()
    ours.load_state_dict(theirs.state_dict())
    for step in range(3):
        if step == 2:
            ours.eval()
            theirs.eval()
        x = images(*shape, dtype="float64", seed=step)
        a, b = tr.tensor(x, requires_grad=True), torch.tensor(x, requires_grad=True)
        y, z = ours(a), theirs(b)
        upstream = images(*z.shape, dtype="float64", seed=9)
        y.backward(tr.tensor(upstream))
        z.backward(torch.tensor(upstream))
        np.testing.assert_allclose(y.numpy(), z.detach().numpy(), rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(a.grad.numpy(), b.grad.numpy(), rtol=1e-10, atol=1e-12)
    gradients = {n: p.grad.numpy() for n, p in theirs.named_parameters()}
    for n, p in ours.named_parameters():
        np.testing.assert_allclose(p.grad.numpy(), gradients[n], rtol=1e-10, atol=1e-12)
    for n, value in theirs.state_dict().items():
        np.testing.assert_allclose(ours.state_dict()[n], value.numpy(), rtol=1e-12, atol=1e-14)


def test_fused_batch_norm_is_the_three_ops():
    x, shortcut = (tr.tensor(images(3, 4, 2, 2, dtype="float64", seed=i)) for i in range(2))
    bn = nn.BatchNorm2d(4).double()
    fused = bn(x, add=shortcut, relu=True)
    np.testing.assert_allclose(fused.numpy(), tr.relu(bn(x) + shortcut).numpy(), atol=1e-14)


def test_conv_weights_are_channels_last_and_gradients_too():
    conv = nn.Conv2d(4, 6, 3)
    conv(images(2, 4, 5, 5)).sum().backward()
    assert layout.is_channels_last(conv.weight.data) and layout.is_channels_last(conv.weight.grad.data)


def test_inplace_relu_writes_into_its_input():
    x = tr.tensor(images(3, 3))
    assert nn.ReLU(inplace=True)(x).data is x.data and x.data.min() == 0


def test_dropout_in_training_only():
    layer = nn.Dropout(0.25)
    x = np.ones((200, 200), np.float32)
    tr.manual_seed(0)
    y = layer(x).numpy()
    assert set(np.unique(y)) == {np.float32(0), np.float32(1 / 0.75)} and abs((y == 0).mean() - 0.25) < 0.01
    np.testing.assert_array_equal(layer.eval()(x).numpy(), x)


def test_global_avg_pool_gives_vectors():
    x = images(2, 3, 4, 5)
    np.testing.assert_allclose(nn.GlobalAvgPool2d()(x).numpy(), x.mean((2, 3)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("make, message", [
    (lambda: nn.Conv2d(3, 4, 3, groups=2), "Conv2d: groups must divide in_channels and out_channels, got groups=2"),
    (lambda: nn.Conv2d(0, 4, 3), "in_channels must be a positive int, got 0"),
    (lambda: nn.Conv2d(1, 4, (3, 3, 3)), "kernel_size must be an int or a pair"),
    (lambda: nn.Conv2d(1, 4, 3, stride=0), "stride must be an int or a pair"),
    (lambda: nn.Linear(2.5, 1), "in_features must be a positive int, got 2.5"),
    (lambda: nn.BatchNorm2d(3, momentum=1.5), "momentum must lie in"),
    (lambda: nn.Dropout(1.5), "p must lie in"),
    (lambda: nn.BatchNorm2d(3)(images(2, 3)), "BatchNorm2d takes 4-D input"),
    (lambda: nn.BatchNorm1d(3)(images(2, 3, 2, 2)), "BatchNorm1d takes 2-D or 3-D input"),
    (lambda: nn.Conv2d(3, 4, 3)(images(2, 5, 8, 8)), "conv2d"),
    (lambda: nn.Linear(3, 4)(images(2, 5)), "linear"),
])
def test_wrong_sizes_are_explained(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# --- containers -------------------------------------------------------------------------------------------------------


def test_sequential():
    net = nn.Sequential({"a": nn.Linear(2, 3), "b": nn.ReLU(), "c": nn.Linear(3, 1)})
    assert len(net) == 3 and net[0] is net.a and net[-1] is net.c
    assert list(net.state_dict())[0] == "a.weight" and [n for n, _ in net[1:].named_children()] == ["b", "c"]
    net[1] = nn.Tanh()
    assert isinstance(net.b, nn.Tanh)
    x = tr.tensor(images(4, 2))
    np.testing.assert_array_equal(net(x).numpy(), net.c(tr.tanh(net.a(x))).numpy())
    assert net[:0](x) is x
    net = nn.Sequential(nn.ReLU()).append(nn.Tanh())
    assert [n for n, _ in net.named_children()] == ["0", "1"]
    with pytest.raises(IndexError, match="index 2 is out of range for 2 modules"):
        net[2]
    with pytest.raises(TypeError, match="expected a Module or None, got int"):
        nn.Sequential(3)


def test_module_list_registers():
    net = nn.ModuleList([nn.Linear(1, 1)]).extend([nn.Linear(1, 1), nn.Linear(1, 1)])
    assert len(list(net.parameters())) == 6 and len(net[1:]) == 2 and net[-1] is list(net)[2]


# --- initialisers -----------------------------------------------------------------------------------------------------


def weight(shape=(256, 64, 3, 3), dtype="float32"):
    return nn.Parameter(np.zeros(shape, dtype))


FANS = {"fan_in": 64 * 9, "fan_out": 256 * 9}


@pytest.mark.parametrize("mode", ["fan_in", "fan_out"])
@pytest.mark.parametrize("nonlinearity, a", [("relu", 0), ("leaky_relu", 0.3), ("linear", 0), ("tanh", 0), ("selu", 0)])
def test_kaiming_statistics(torch, mode, nonlinearity, a):
    gain = torch.nn.init.calculate_gain(nonlinearity, a if a else None)
    assert nn.init.calculate_gain(nonlinearity, a) == pytest.approx(gain, rel=1e-15)
    std = gain / math.sqrt(FANS[mode])
    normal = nn.init.kaiming_normal_(weight(), a, mode, nonlinearity).data
    assert normal.std() == pytest.approx(std, rel=0.01) and abs(normal.mean()) < 0.02 * std
    assert np.abs(normal).max() > 3.5 * std
    uniform = nn.init.kaiming_uniform_(weight(), a, mode, nonlinearity).data
    bound = math.sqrt(3) * std
    assert uniform.std() == pytest.approx(std, rel=0.01) and 0.999 * bound < np.abs(uniform).max() <= bound * (1 + 1e-6)


def test_xavier_statistics():
    std = 2 * math.sqrt(2 / sum(FANS.values()))
    assert nn.init.xavier_normal_(weight(), gain=2).data.std() == pytest.approx(std, rel=0.01)
    uniform = nn.init.xavier_uniform_(weight(), gain=2).data
    assert uniform.std() == pytest.approx(std, rel=0.01) and np.abs(uniform).max() <= math.sqrt(3) * std * (1 + 1e-6)


def test_default_layer_bounds():
    conv = nn.Conv2d(8, 64, 3, groups=2)
    bound = 1 / math.sqrt(4 * 9)
    for p in (conv.weight, conv.bias):
        assert 0.9 * bound < np.abs(p.data).max() <= bound * (1 + 1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_initialisers_follow_the_seed_not_the_memory_layout(dtype):
    drawn = []
    for channels_last in (False, True):
        p = weight((4, 3, 2, 2), dtype)
        if channels_last:
            p.data = layout.nchw(np.zeros((4, 2, 2, 3), dtype))
        tr.manual_seed(5)
        assert nn.init.normal_(p, 1.0, 2.0) is p and p.dtype == dtype
        drawn.append(p.data)
    np.testing.assert_array_equal(*drawn)
    assert layout.is_channels_last(drawn[1]) and drawn[0].flags.c_contiguous
    tr.manual_seed(6)
    assert not np.array_equal(nn.init.normal_(weight((4, 3, 2, 2), dtype)).data, drawn[0])


def test_constants_and_uniform():
    p = weight((5,))
    assert (nn.init.ones_(p).data == 1).all() and (nn.init.zeros_(p).data == 0).all()
    assert (nn.init.constant_(p, 0.5).data == np.float32(0.5)).all()
    u = nn.init.uniform_(weight(), 2, 3).data
    assert u.min() >= 2 and u.max() <= 3 and abs(u.mean() - 2.5) < 0.01


def test_initialiser_errors():
    with pytest.raises(ValueError, match=r"at least 2 dimensions, got shape \(3,\)"):
        nn.init.kaiming_normal_(weight((3,)))
    with pytest.raises(ValueError, match="unknown nonlinearity 'swish'"):
        nn.init.kaiming_normal_(weight(), nonlinearity="swish")
    with pytest.raises(ValueError, match="mode must be"):
        nn.init.kaiming_normal_(weight(), mode="out")
    y = nn.Linear(2, 2)
    loss = (y(tr.tensor(images(3, 2), requires_grad=True)) ** 2).sum()
    nn.init.zeros_(y.weight)
    with pytest.raises(RuntimeError, match="constant_ changed it in place"):
        loss.backward()
