"""What must hold of networks whatever their numbers: a block whose branch is zero passes gradients on unchanged, a fork
adds up its consumers, and reordering the batch, the channels or the pixels reorders the results. All in float64."""

import numpy as np
import pytest
from differences import norm_distance

import tinyres as tr
from tinyres import models, nn, ops
from tinyres.models import blocks, preact, resnet
from tinyres.tensor import Tensor

EXACT = 1e-11  # sums in another order, through 20 layers of batch norm


def normal(*shape, seed=0):
    return np.random.default_rng((seed, *shape)).standard_normal(shape)


def generic(model, x=None, seed=1):
    """The model in float64 with parameters that are nothing special (scales not 1, shifts not 0) and, given images,
    the running statistics of those, so that signals reach the output in eval mode too."""
    rng = np.random.default_rng(seed)
    for p in model.double().parameters():
        p.data = p.data + 0.1 * rng.standard_normal(p.shape) * (np.abs(p.data).max() or 1.0)
    for _ in range(30 if x is not None else 0):
        with tr.no_grad():
            model(Tensor(x))
    return model


def gradients(model, x, upstream):
    """Outputs, the gradient at the input, and those of the parameters by name."""
    leaf = tr.tensor(x, requires_grad=True)
    y = model(leaf)
    model.zero_grad()
    y.backward(upstream)
    return y.numpy(), leaf.grad.numpy(), {name: p.grad.numpy() for name, p in model.named_parameters()}


# --- a zero branch ----------------------------------------------------------------------------------------------------

POST = [blocks.BasicBlock, blocks.Bottleneck]
PRE = [blocks.PreActBasicBlock, blocks.PreActBottleneck]


def zero_branch(block, how):
    """A block of four channels whose branch gives zero; its last batch norm has scale and shift 0, or as the library
    does it for zero_init_residual."""
    tr.manual_seed(0)
    model = generic(block(4, 4))
    if how == "zero_branch_":
        model.zero_branch_()
        if block in POST:
            nn.init.zeros_(list(model.parameters())[-1])  # generic() had moved the shift off 0
    else:
        last = model.bn3 if hasattr(model, "bn3") else model.bn2
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
    return model


def jacobian(model, x):
    """Row i is the gradient of output i with respect to all inputs."""
    rows = []
    for i in range(x.size):
        leaf = tr.tensor(x, requires_grad=True)
        unit = np.zeros(x.size)
        unit[i] = 1.0
        y = model(leaf)
        (grad,) = tr.grad(y, [leaf], [unit.reshape(x.shape)])
        rows.append(grad.numpy().ravel())
    return y.numpy(), np.array(rows)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("how", ["last batch norm", "zero_branch_"])
@pytest.mark.parametrize("block", [*POST, *PRE])
def test_zero_branch_leaves_the_shortcut_alone(block, how, training):
    """Exactly: y = x and J = I before activation, y = relu(x) and J = diag(x > 0) after it."""
    x = normal(2, 4, 3, 3)
    x[0, 0, :2] = 0.0  # relu'(0) = 0
    y, J = jacobian(zero_branch(block, how).train(training), x)
    if block in PRE:
        assert np.array_equal(y, x) and np.array_equal(J, np.eye(x.size))
    else:
        assert np.array_equal(y, np.maximum(x, 0)) and np.array_equal(J, np.diag(x.ravel() > 0))


@pytest.mark.parametrize("block, passes", [(blocks.PreActBasicBlock, True), (blocks.BasicBlock, False)])
def test_a_gradient_passes_thirty_zero_branches_unchanged(block, passes):
    """To the bit before activation; after it, only where x > 0."""
    model = nn.Sequential(*(zero_branch(block, "last batch norm") for _ in range(30)))
    x, upstream = normal(2, 4, 5, 5), normal(2, 4, 5, 5, seed=1)
    _, dx, _ = gradients(model, x, upstream)
    assert np.array_equal(dx, upstream if passes else np.where(x > 0, upstream, 0.0))


def test_a_network_of_zero_branches_sends_one_gradient_to_all_blocks_of_a_stage():
    model = models.preact_resnet20(zero_init_residual=True).double()
    inputs = []
    for block in list(model.layer1)[1:]:
        block.register_forward_pre_hook(lambda module, args: inputs.append(args[0]) or args[0].retain_grad())
    y = model(tr.tensor(normal(2, 3, 8, 8)))
    y.backward(normal(2, 10))
    assert len(inputs) == 2 and np.abs(inputs[0].grad.numpy()).max() > 0
    assert np.array_equal(inputs[0].grad.numpy(), inputs[1].grad.numpy())


# --- the fork in front of a block -------------------------------------------------------------------------------------


class TwoInputs(nn.Module):
    """A block whose branch and shortcut are given inputs of their own."""

    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, left, right):
        block = self.block
        if isinstance(block, blocks.PreActBasicBlock):
            return block.branch(block.bn1(left, relu=True)) + block.shortcut(right)
        h = block.bn1(block.conv1(left), relu=True)
        if isinstance(block, blocks.Bottleneck):
            h = block.bn2(block.conv2(h), relu=True)
            return block.bn3(block.conv3(h), add=block.shortcut(right), relu=True)
        return block.bn2(block.conv2(h), add=block.shortcut(right), relu=True)


FORKS = {
    "identity": lambda: blocks.BasicBlock(4, 4),
    "option A": lambda: blocks.BasicBlock(4, 8, 2, resnet.OPTIONS["A"](4, 8, 2)),
    "option B": lambda: blocks.BasicBlock(4, 8, 2),
    "bottleneck": lambda: blocks.Bottleneck(4, 8, 2),
    "pre-activation": lambda: blocks.PreActBasicBlock(4, 4),
    "pre-activation, projection": lambda: blocks.PreActBasicBlock(4, 8, 2, preact.OPTIONS["B"](4, 8, 2)),
}


@pytest.mark.parametrize("name", FORKS)
def test_the_gradient_of_a_fork_is_the_sum_over_its_consumers(name):
    tr.manual_seed(0)
    block = generic(FORKS[name]())
    x = normal(2, 4, 6, 6)
    upstream = normal(*block(Tensor(x)).shape, seed=1)
    y, dx, _ = gradients(block, x, upstream)
    left, right = (tr.tensor(x, requires_grad=True) for _ in range(2))
    apart = TwoInputs(block)(left, right)
    apart.backward(upstream)
    assert np.array_equal(apart.numpy(), y)
    through_branch, through_shortcut = left.grad.numpy(), right.grad.numpy()
    assert min(np.linalg.norm(through_branch), np.linalg.norm(through_shortcut)) > 0.1
    assert norm_distance(dx, through_branch + through_shortcut) < 1e-14
    if name in ("identity", "pre-activation"):
        assert np.array_equal(through_shortcut, upstream if name != "identity" else np.where(y > 0, upstream, 0.0))


@pytest.mark.parametrize("name", FORKS)
def test_the_walk_brings_one_contribution_per_consumer(name):
    """The events of the backward pass show the same sum: what each consumer brings, and the whole."""
    tr.manual_seed(0)
    block = generic(FORKS[name]())
    x = tr.tensor(normal(2, 4, 6, 6), requires_grad=True)
    y = block(x)
    brought = []
    for event in y.backward_steps(normal(*y.shape, seed=1)):
        if event.kind == "done":
            brought += [np.array(g) for edge, g in zip(event.node.edges, event.contributions, strict=True) if edge is x]
        elif event.node is x:
            whole = np.array(event.grad)
    assert len(brought) == 2
    assert norm_distance(whole, brought[0] + brought[1]) < 1e-15
    assert np.array_equal(whole, x.grad.numpy())


# --- reordering -------------------------------------------------------------------------------------------------------

NETWORKS = {
    "resnet20": lambda: models.resnet20(),
    "plain20": lambda: models.plain20(),
    "preact20": lambda: models.preact_resnet20(),
    "resnet20 B": lambda: models.resnet20(option="B"),
    "resnet18": lambda: models.resnet18(num_classes=10, cifar_stem=True),
}


def network(name):
    tr.manual_seed(0)
    return generic(NETWORKS[name](), normal(8, 3, 8, 8))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", NETWORKS)
def test_order_of_the_batch(name, training):
    """Reordering the images reorders outputs and input gradients, and leaves parameters' gradients as they are."""
    model = network(name).train(training)
    x, upstream, order = normal(5, 3, 8, 8), normal(5, 10), np.array([3, 0, 4, 1, 2])
    y, dx, grads = gradients(model, x, upstream)
    y2, dx2, grads2 = gradients(model, x[order], upstream[order])
    assert norm_distance(y2, y[order]) < EXACT and norm_distance(dx2, dx[order]) < EXACT
    assert norm_distance(y2, y) > 0.01
    assert max(norm_distance(grads2[n], grads[n]) for n in grads) < EXACT


def channels_of(model, stage, inner):
    """(name, axis) of every parameter and statistic along which the channels of a stage run: those of its blocks'
    outputs, or those between the two convolutions of its second block."""
    entries = []

    def add(module, axis=0):
        for name, t in (*model.named_parameters(), *model.named_buffers()):
            if name.rpartition(".")[0] == module and t.ndim > axis:
                entries.append((name, axis))

    pre = isinstance(model, preact.PreActResNet)
    if inner:
        block = f"{stage}.1"
        add(f"{block}.conv1")
        add(f"{block}.bn2" if pre else f"{block}.bn1")
        add(f"{block}.conv2", 1)
        return entries
    for i in range(len(getattr(model, stage))):
        block = f"{stage}.{i}"
        add(f"{block}.conv2")
        if not pre:
            add(f"{block}.bn2")
        if i == 0:
            add(f"{block}.downsample.0")
            add(f"{block}.downsample.1")
        else:
            add(f"{block}.conv1", 1)
            if pre:
                add(f"{block}.bn1")
    if pre:
        add("bn")
    entries.append(("fc.weight", 1))
    return entries


@pytest.mark.parametrize("inner", [False, True])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("build", [models.resnet20, models.preact_resnet20])
def test_order_of_the_channels_of_a_stage(build, training, inner):
    """Renumbering the channels of the last stage, in every layer that sees them, changes no output; the gradients of
    those layers are renumbered with them."""
    tr.manual_seed(0)
    model = generic(build(option="B"), normal(8, 3, 8, 8)).train(training)
    x, upstream = normal(4, 3, 8, 8), normal(4, 10)
    y, dx, grads = gradients(model, x, upstream)
    order = np.random.default_rng(0).permutation(64)
    entries = channels_of(model, "layer3", inner)
    tensors = dict((*model.named_parameters(), *model.named_buffers()))
    for name, axis in entries:
        tensors[name].data = np.take(tensors[name].data, order, axis)
    y2, dx2, grads2 = gradients(model, x, upstream)
    assert norm_distance(y2, y) < EXACT and norm_distance(dx2, dx) < EXACT
    axes = dict(entries)
    for name, grad in grads.items():
        wanted = np.take(grad, order, axes[name]) if name in axes else grad
        assert norm_distance(grads2[name], wanted) < EXACT, name
    name, axis = entries[0]  # one layer left out, and the outputs do change
    tensors[name].data = np.take(tensors[name].data, order, axis)
    assert norm_distance(model(Tensor(x)).numpy(), y) > 0.01


TURNS = {
    "left and right": lambda a: a[..., ::-1],
    "top and bottom": lambda a: a[..., ::-1, :],
    "rows and columns": lambda a: np.swapaxes(a, -1, -2),
}
# At an odd size the pixels that a stride of 2 visits, 0 2 4 6 8, are the same from both ends.
TURNED = {
    "resnet20": (lambda: models.resnet20(), (3, 3, 9, 9)),
    "preact20": (lambda: models.preact_resnet20(), (3, 3, 9, 9)),
    "plain20": (lambda: models.plain20(), (3, 3, 9, 9)),
    "resnet18, 7x7 stem and max pool": (lambda: models.resnet18(num_classes=10), (2, 3, 65, 65)),
}


@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize("name", TURNED)
def test_turning_image_and_kernels_turns_the_gradients(name, turn):
    """Logits stay; gradients of images and kernels turn with them."""
    build, shape = TURNED[name]
    tr.manual_seed(0)
    model, turned = generic(build()), TURNS[turn]
    x, upstream = normal(*shape), normal(shape[0], 10)
    y, dx, grads = gradients(model, x, upstream)
    for p in model.parameters():
        if p.ndim == 4:
            p.data = np.ascontiguousarray(turned(p.data))
    y2, dx2, grads2 = gradients(model, np.ascontiguousarray(turned(x)), upstream)
    assert norm_distance(y2, y) < EXACT and norm_distance(dx2, turned(dx)) < EXACT
    for n, grad in grads.items():
        assert norm_distance(grads2[n], turned(grad) if grad.ndim == 4 else grad) < EXACT, n


@pytest.mark.parametrize("stride", [1, 2])
def test_shifting_an_object_shifts_what_a_stack_of_convolutions_sees(stride):
    """Far from the border. With stride 2 the object moves by even steps, and its image by half of them; an odd step is
    not seen as a shift."""
    tr.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3, stride=stride, padding=1, bias=False), nn.ReLU(),
                          nn.Conv2d(4, 3, 5, padding=2, bias=False), nn.ReLU(), nn.MaxPool2d(3, 1, 1)).double()
    x = np.zeros((2, 2, 28, 28))
    x[:, :, 8:12, 8:12] = normal(2, 2, 4, 4)
    size = 28 // stride
    upstream = np.zeros((2, 3, size, size))
    upstream[:, :, 8 // stride:16 // stride, 8 // stride:16 // stride] = normal(2, 3, 8 // stride, 8 // stride)

    def shifted(a, steps):
        return np.roll(a, steps, (2, 3))

    y, dx, grads = gradients(model, x, upstream)
    y2, dx2, grads2 = gradients(model, shifted(x, (4, 6)), shifted(upstream, (4 // stride, 6 // stride)))
    assert np.abs(y).max() > 0.1 and np.abs(dx).max() > 0.01
    assert norm_distance(y2, shifted(y, (4 // stride, 6 // stride))) < 1e-14
    assert norm_distance(dx2, shifted(dx, (4, 6))) < 1e-14
    assert max(norm_distance(grads2[n], grads[n]) for n in grads) < 1e-14
    odd = model(Tensor(shifted(x, (1, 0)))).numpy()
    nearest = min(norm_distance(odd, shifted(y, (step, 0))) for step in (0, 1))
    assert nearest < 1e-14 if stride == 1 else nearest > 0.01


def test_scaling_a_convolution_in_front_of_batch_norm_changes_nothing_but_its_gradient():
    """f(c w) = f(w) as eps -> 0, so <w, dw> = 0, and dw shrinks as 1/c."""
    tr.manual_seed(0)
    model = generic(nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4, eps=1e-14), nn.ReLU()))
    x = normal(4, 3, 6, 6)
    upstream = normal(4, 4, 4, 4)
    y, _, grads = gradients(model, x, upstream)
    w, dw = model[0].weight.data.copy(), grads["0.weight"]
    assert abs((w * dw).sum()) < 1e-11 * np.linalg.norm(w) * np.linalg.norm(dw)
    model[0].weight.data = 4.0 * w
    y2, _, grads2 = gradients(model, x, upstream)
    assert norm_distance(y2, y) < 1e-12 and norm_distance(grads2["0.weight"], dw / 4) < 1e-10


def test_a_stack_of_relu_layers_scales_with_its_input():
    """Without shifts, f(c x) = c f(x) for c > 0, and Euler's theorem holds: <x, dx> = <upstream, f(x)>."""
    tr.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.ReLU(), nn.MaxPool2d(2),
                          nn.Conv2d(4, 4, 3, stride=2, bias=False), nn.ReLU()).double()
    x = normal(2, 3, 10, 10)
    upstream = normal(2, 4, 2, 2)
    y, dx, grads = gradients(model, x, upstream)
    assert norm_distance(model(Tensor(3.0 * x)).numpy(), 3.0 * y) < 1e-14
    total = (upstream * y).sum()
    for a, da in ((x, dx), *((model.get_submodule(n[0]).weight.data, g) for n, g in grads.items())):
        assert abs((a * da).sum() - total) < 1e-12 * abs(total)
    assert ops.sum(y) > 0
