"""The instruments of the function: what they report is what a few lines of NumPy, a copied network with other weights,
or a dense matrix gives; and the network is afterwards as it was, whatever happened."""

import copy
import json

import numpy as np
import pytest
from differences import norm_distance
from oracles import cross_entropy

import tinyres as tr
from tinyres import models, nn, ops
from tinyres.analysis import feature_maps, hessian, lesion, loss_surface, shattering
from tinyres.analysis.untouched import untouched
from tinyres.models.blocks import BasicBlock, Block
from tinyres.tensor import Tensor


def normal(*shape, seed=0):
    return np.random.default_rng((seed, *shape)).standard_normal(shape)


def batch(n=12, size=8, channels=3, classes=4, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, channels, size, size)), rng.integers(0, classes, n)


def generic(name="resnet8", seed=0, **options):
    """A float64 network whose batch norms have running statistics, scales and shifts that are nothing special."""
    tr.manual_seed(seed)
    model = models.build(name, num_classes=4, **options).double()
    rng = np.random.default_rng(seed)
    for p in model.parameters():
        p.data = p.data + 0.1 * rng.standard_normal(p.shape) * np.abs(p.data).max(initial=1e-3)
    with tr.no_grad():
        for _ in range(20):
            model(Tensor(batch(seed=5)[0]))
    return model


def loss_of(model, images, labels, training=False):
    with tr.no_grad():
        return float(cross_entropy(model.train(training)(Tensor(images)).numpy(), labels).mean())


@pytest.fixture(scope="module")
def network():
    return generic()


# --- nothing is left behind -------------------------------------------------------------------------------------------


class Brittle(nn.Module):
    """An identity that fails at its `failing`th call."""

    def __init__(self):
        super().__init__()
        self.calls, self.failing = 0, 0

    def forward(self, x):
        self.calls += 1
        if self.calls == self.failing:
            raise ArithmeticError("made to fail")
        return x


def snapshot(model):
    """Whatever an instrument could have changed."""
    return {
        "state": {name: (value.tobytes(), value.strides) for name, value in model.state_dict().items()},
        "gradients": [None if p.grad is None else p.grad.numpy().tobytes() for p in model.parameters()],
        "arrays": [id(t.data) for t in (*model.parameters(), *model.buffers())],
        "asked for": [p.requires_grad for p in model.parameters()],
        "modes": [m.training for m in model.modules()],
        "hooks": [(len(m._pre_hooks), len(m._forward_hooks), "forward" in vars(m)) for m in model.modules()],
        "momenta": [getattr(m, "momentum", None) for m in model.modules()],
        "random": tr.random.get_state(),
    }


INSTRUMENTS = {
    "lesion": lambda m, x, y: lesion.lesion(m, x, y, trials=2),
    "shattering": lambda m, x, y: shattering.shattering(m, x[0], x[1], 16, 4),
    "shattering, line": lambda m, x, y: shattering.shattering(m, x[0], x[1], 16, 4, statistics="line"),
    "surface": lambda m, x, y: loss_surface.loss_surface(m, x, y, 3),
    "surface, batch": lambda m, x, y: loss_surface.loss_surface(m, x, y, 3, statistics="batch"),
    "hessian": lambda m, x, y: hessian.hessian_eigenvalues(m, x, y, 1, 1, 4),
    "hessian, training": lambda m, x, y: hessian.hessian_eigenvalues(m, x, y, 1, 1, 4, training=True),
    "features": lambda m, x, y: feature_maps.feature_maps(m, x, "layer1.0"),
}


@pytest.mark.parametrize("failing", [0, 1, 2])
@pytest.mark.parametrize("name", INSTRUMENTS)
def test_the_network_is_as_before_also_after_an_error(name, failing):
    """Weights, statistics, gradients, modes, hooks and the random state, to the bit."""
    model = generic()
    model.fc = nn.Sequential(Brittle(), model.fc)
    model.train()
    model.layer2.eval()
    next(model.parameters()).requires_grad = False
    x, y = batch()
    ops.cross_entropy(model(Tensor(x)), y).backward()
    model.fc[0].calls, model.fc[0].failing = 0, failing
    before = snapshot(model)
    if failing and not (name in ("shattering", "features") and failing == 2):  # these have one forward pass
        with pytest.raises(ArithmeticError, match="made to fail"):
            INSTRUMENTS[name](model, x, y)
    else:
        INSTRUMENTS[name](model, x, y)
    after = snapshot(model)
    assert {key for key in before if before[key] != after[key]} == set()
    assert tr.is_grad_enabled() and tr.state.state.debug is None and not tr.state.state.unfused


def test_untouched_puts_back_what_is_drawn_and_trained_inside():
    model = models.resnet8(num_classes=4)
    model.layer1.eval()
    before = snapshot(model)
    with untouched(model, training=True):
        assert all(m.training for m in model.modules())
        x = ops.randn((4, 3, 8, 8))
        ops.cross_entropy(model(x), np.arange(4)).backward()
        for p in model.parameters():
            p.data = p.data - p.grad.data
    assert snapshot(model) == before


def test_the_same_seed_gives_the_same_result(network):
    x, y = batch()
    for run in (lambda seed: lesion.lesion(network, x, y, trials=2, seed=seed),
                lambda seed: loss_surface.loss_surface(network, x, y, 3, seed=seed),
                lambda seed: hessian.hessian_eigenvalues(network, x, y, 1, 1, 4, seed=seed)):
        first, again, other = (json.dumps(run(seed).as_dict(), allow_nan=False) for seed in (3, 3, 4))
        assert first == again != other


def test_no_grad_around_an_instrument_does_not_matter(network):
    x, y = batch()
    with tr.no_grad():
        inside = (hessian.hessian_eigenvalues(network, x, y, 1, 0, 3).values,
                  shattering.shattering(network, x[0], x[1], 16, 4).along)
    assert inside[0] == hessian.hessian_eigenvalues(network, x, y, 1, 0, 3).values
    assert np.array_equal(inside[1], shattering.shattering(network, x[0], x[1], 16, 4).along)


# --- lesions ----------------------------------------------------------------------------------------------------------


def blocks_of(model):
    return [f"{stage}.{i}" for stage in model.stages for i in range(len(getattr(model, stage)))]


def zeroed(model, names):
    """A copy in which the branches of these blocks give exactly zero, as their last layer does."""
    model = copy.deepcopy(model)
    for name in names:
        block = model.get_submodule(name)
        last = [block.conv2.weight] if hasattr(block, "branch") else [block.bn2.weight, block.bn2.bias]
        for p in last:
            nn.init.zeros_(p)
    return model


@pytest.mark.parametrize("name, options", [("resnet8", {}), ("resnet8", {"option": "B"}), ("resnet8", {"option": "C"}),
                                           ("preact_resnet20", {"option": "B"})])
def test_without_a_block_is_with_a_branch_of_zeros(name, options):
    """So a projection stays."""
    model, (x, y) = generic(name, **options), batch()
    found = lesion.lesion(model, x, y, several=(2,), swaps=(), trials=3)
    assert [place.block for place in found.places] == blocks_of(model)
    assert found.intact.loss == pytest.approx(loss_of(model, x, y), rel=1e-10)
    for trial in (*found.single, *found.several[2]):
        names = [found.places[i].block for i in trial.removed]
        assert trial.score.loss == pytest.approx(loss_of(zeroed(model, names), x, y), rel=1e-10)
    assert len({trial.score.loss for trial in found.single}) == len(found.single)  # and each block does something


def test_accuracy_is_the_share_of_right_answers(network):
    x, y = batch()
    logits = network.eval()(Tensor(x)).numpy()
    assert lesion.lesion(network, x, y, (), (), batch=5).intact.accuracy == (logits.argmax(1) == y).mean()


def test_exchanged_blocks_are_as_if_built_in_that_order():
    model, (x, y) = generic("resnet20"), batch()
    found = lesion.lesion(model, x, y, several=(), swaps=(1, 3), trials=4, seed=2)
    for trial in (*found.swapped[1], *found.swapped[3]):
        twin, parts = copy.deepcopy(model), blocks_of(model)
        for here, there in enumerate(trial.order):
            stage, number = parts[here].split(".")
            getattr(twin, stage)[int(number)] = copy.deepcopy(model.get_submodule(parts[there]))
        assert trial.order != tuple(range(9)) and trial.score.loss == pytest.approx(loss_of(twin, x, y), rel=1e-10)
        inversions = sum(a > b for i, a in enumerate(trial.order) for b in trial.order[i:])
        assert trial.kendall_tau == pytest.approx(1 - inversions / 18)  # of 36 pairs
    assert all(set(order.order[3:4]) == {3} for order in found.swapped[3])  # a block that changes shape stays


@pytest.mark.parametrize("order, tau", [((0, 1, 2, 3), 1), ((3, 2, 1, 0), -1), ((0, 2, 1), 1 / 3), ((2, 0, 1), -1 / 3)])
def test_kendalls_tau(order, tau):
    assert lesion.kendall_tau(order) == pytest.approx(tau)


def test_a_plain_block_becomes_an_identity_where_shapes_allow():
    model, (x, y) = generic("plain20"), batch()
    found = lesion.lesion(model, x, y, several=(), swaps=())
    assert [i for i, place in enumerate(found.places) if not place.removable] == [3, 6]
    assert len(found.single) == 7
    for trial in found.single:
        twin = copy.deepcopy(model)
        stage, number = found.places[trial.removed[0]].block.split(".")
        getattr(twin, stage)[int(number)] = nn.Identity()
        assert trial.score.loss == pytest.approx(loss_of(twin, x, y), rel=1e-10)


class Twice(nn.Module):
    """One block used twice, and a block inside a block."""

    def __init__(self):
        super().__init__()
        self.block, self.outer = BasicBlock(3, 3), Nested()
        self.fc = nn.Linear(3, 4)

    def forward(self, x):
        return self.fc(ops.global_avg_pool2d(self.outer(self.block(self.block(x)))))


class Nested(Block):
    def __init__(self):
        super().__init__()
        self.inner, self.downsample = BasicBlock(3, 3), nn.Identity()

    def forward(self, x):
        return self.shortcut(x) + self.inner(x)

    def without_branch(self, x):
        return self.shortcut(x)


def test_a_block_used_twice_has_two_places_and_a_block_inside_a_block_none():
    tr.manual_seed(0)
    model, (x, y) = Twice().double().eval(), batch()
    found = lesion.lesion(model, x, y, several=(2,), swaps=(), trials=9)
    assert [place.block for place in found.places] == ["block", "block", "outer"]
    b, relu, outer = model.block, ops.relu, model.outer
    routes = [lambda h: outer(b(relu(h))), lambda h: outer(relu(b(h))), lambda h: b(b(h))]
    with tr.no_grad():
        ends = [model.fc(ops.global_avg_pool2d(route(Tensor(x)))).numpy() for route in routes]
    wanted = [cross_entropy(logits, y).mean() for logits in ends]
    assert [trial.score.loss for trial in found.single] == pytest.approx(wanted, rel=1e-12)
    assert [trial.removed for trial in found.several[2]] == [(0, 1), (0, 2), (1, 2)]
    named = lesion.lesion(model, x, y, (), (), blocks=["block", "outer", "outer.inner"])
    assert named.places == found.places and named.single == found.single


def test_sets_of_removed_blocks_differ_and_are_all_of_them_where_these_are_few(network):
    x, y = batch(4)
    found = lesion.lesion(network, x, y, several=(1, 2, 3), swaps=(), trials=3)
    assert {n: [t.removed for t in trials] for n, trials in found.several.items()} == {
        1: [(0,), (1,), (2,)], 2: [(0, 1), (0, 2), (1, 2)], 3: [(0, 1, 2)]}
    many = lesion.lesion(generic("resnet20"), x, y, several=(4,), swaps=(), trials=20).several[4]
    assert len({t.removed for t in many}) == 20 and all(len(set(t.removed)) == 4 for t in many)


def test_a_loss_that_overflows_is_null():
    model, (x, y) = models.residual_mlp(depth=4, a=1e20, num_classes=4), batch(channels=1)
    with np.errstate(all="ignore"):
        found = lesion.lesion(model, x.astype("float32"), y, several=(2,), swaps=(1,), trials=1)
    said = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert said["intact"]["loss"] is None and said["swapped"]["1"][0]["score"]["loss"] is None
    assert [one["score"]["accuracy"] for one in said["single"]] == [trial.score.accuracy for trial in found.single]


@pytest.mark.parametrize("call, message", [
    (lambda m, x, y: lesion.lesion(m, x, y[:3]), r"images have shape \(12, 3, 8, 8\) and labels \(3,\)"),
    (lambda m, x, y: lesion.lesion(m, x, y.astype(float)), "labels are float64, expected whole numbers"),
    (lambda m, x, y: lesion.lesion(m, x, y, several=(4,)), "4 blocks cannot be removed, expected 1 to 3"),
    (lambda m, x, y: lesion.lesion(m, x, y, swaps=(1,)), "1 exchanges cannot be made, expected 1 to 0"),
    (lambda m, x, y: lesion.lesion(m, x, y, trials=0), "trials is 0"),
    (lambda m, x, y: lesion.lesion(m, x, y, batch=0), "batch is 0, expected 1 or more images"),
    (lambda m, x, y: lesion.lesion(m, x, y, blocks=["layer9"]), "no submodule 'layer9'"),
    (lambda m, x, y: lesion.lesion(m.fc, x, y), "Linear has no residual blocks and no stages"),
    (lambda m, x, y: lesion.lesion(m, "images", y), "images must be an array or a Tensor, got str"),
    (lambda m, x, y: lesion.lesion(ops.relu, x, y), "expected a network, got function"),
])
def test_lesion_says_what_is_wrong(network, call, message):
    with pytest.raises((ValueError, TypeError, AttributeError), match=message):
        call(network, *batch())


# --- shattering -------------------------------------------------------------------------------------------------------


def test_the_gradient_along_a_line_is_the_slope_of_the_output():
    """By finite differences of each point on its own, in a network with batch norm."""
    model, x = generic(), batch()[0]
    found = shattering.shattering(model, x[0], x[1], points=9, lags=3, output=2)
    length = np.linalg.norm(x[1] - x[0])
    assert found.positions == pytest.approx(np.linspace(0, length, 9))

    def f(t):
        with tr.no_grad():
            return model.eval()(Tensor((x[0] + t / length * (x[1] - x[0]))[None])).numpy()[0, 2]

    slopes = [(f(t + 1e-6) - f(t - 1e-6)) / 2e-6 for t in found.positions]
    assert norm_distance(found.along, slopes) < 1e-6
    for position, norm in zip(found.positions[::4], found.norms[::4], strict=True):
        leaf = tr.tensor((x[0] + position / length * (x[1] - x[0]))[None], requires_grad=True)
        (grad,) = tr.grad(model(leaf)[:, 2], leaf)
        assert np.linalg.norm(grad.numpy()) == pytest.approx(norm, rel=1e-9)


@pytest.mark.parametrize("shape", [(40,), (40, 3)])
def test_autocorrelation_is_its_formula(shape):
    g = normal(*shape) + 5.0
    rows = g.reshape(40, -1)
    m = rows.mean(0)
    wanted = [sum(np.dot(rows[i] - m, rows[i + k] - m) for i in range(40 - k)) for k in range(6)]
    assert shattering.autocorrelation(g, 5) == pytest.approx(np.array(wanted) / wanted[0], rel=1e-12)
    assert shattering.autocorrelation(g * 1e200, 5) == pytest.approx(np.array(wanted) / wanted[0], rel=1e-9)


def test_white_noise_has_no_autocorrelation_and_brown_noise_much():
    white = normal(4000)
    assert np.abs(shattering.autocorrelation(white, 5)[1:]).max() < 0.06
    assert shattering.autocorrelation(np.cumsum(white), 5).min() > 0.97


def lag_5(make, seeds=5):
    return np.mean([one.autocorrelation[5] for one in shattering.over_seeds(make, range(seeds), [-2.0], [2.0])])


def test_shortcuts_alone_do_not_stop_shattering_but_a_small_branch_does():
    """Balduzzi et al. 2017, figure 1, on functions of one number: 50 blocks, 256 points."""
    plain = lag_5(lambda: models.plain_mlp(num_classes=1, in_features=1, depth=50))
    full, tenth = (lag_5(lambda a=a: models.residual_mlp(num_classes=1, in_features=1, depth=50, a=a))
                   for a in (1.0, 0.1))
    shallow = lag_5(lambda: models.plain_mlp(num_classes=1, in_features=1, depth=2))
    assert plain < 0.45 and full < 0.65 and tenth > 0.8 and shallow > 0.8


def test_statistics_of_the_line_are_those_that_a_batch_of_its_points_has():
    class Norm(nn.Module):
        def __init__(self):
            super().__init__()
            self.bn = nn.BatchNorm1d(2, dtype="float64")

        def forward(self, x):
            return ops.tanh(self.bn(x))

    model, (a, b) = Norm(), np.array([[-3.0, 5.0], [4.0, -1.0]])
    found = shattering.shattering(model, a, b, 32, 4, output=1, statistics="line")
    values = np.linspace(5.0, -1.0, 32)
    std = np.sqrt(values.var(ddof=1) + 1e-5)
    slope = (1 - np.tanh((values - values.mean()) / std) ** 2) / std * (-6 / np.linalg.norm(b - a))
    assert norm_distance(found.along, slope) < 1e-12


@pytest.mark.parametrize("statistics", shattering.STATISTICS)
def test_a_norm_that_has_only_the_batchs_statistics_is_refused(statistics):
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3, track_running_stats=False))
    with pytest.raises(ValueError, match="shattering: 1 normalises by the batch in eval mode too"):
        shattering.shattering(model, [0.0, 1.0], [1.0, 0.0], 16, 4, statistics=statistics)


def test_over_seeds_is_one_network_a_seed_and_puts_the_random_state_back():
    def make():
        return models.residual_mlp(num_classes=1, in_features=1, depth=3)

    tr.manual_seed(9)
    before = tr.random.get_state()
    three = shattering.over_seeds(make, (0, 1, 2), [-1.0], [1.0], points=32)
    assert tr.random.get_state() == before
    tr.manual_seed(1)
    assert np.array_equal(shattering.shattering(make(), [-1.0], [1.0], 32).along, three[1].along)


@pytest.mark.parametrize("options, message", [
    ({"end": None}, "expected two different inputs of one shape"),
    ({"points": 6, "lags": 5}, "6 points have no lag 5"),
    ({"output": 4}, r"the network gives \(16, 4\), which has no output 4"),
    ({"statistics": "none"}, "statistics is 'none', expected one of running, line"),
])
def test_shattering_says_what_is_wrong(network, options, message):
    x = batch()[0]
    given = {"start": x[0], "end": x[1], "points": 16, "lags": 4} | options
    given["end"] = x[0] if given["end"] is None else given["end"]
    with pytest.raises(ValueError, match=message):
        shattering.shattering(network, **given)


@pytest.mark.parametrize("g, message", [(np.ones(9), "the same all along the line"), ([1.0, np.nan, 2.0], "NaN")])
def test_there_is_no_autocorrelation_of_nothing(g, message):
    with pytest.raises(ValueError, match=message):
        shattering.autocorrelation(np.array(g), 1)


# --- loss surfaces ----------------------------------------------------------------------------------------------------


def test_every_filter_of_a_direction_is_as_long_as_the_weights_own():
    model = models.resnet8()
    found = loss_surface.filterwise_direction(model, np.random.default_rng(0))
    parameters = dict(model.named_parameters())
    assert sorted(found) == sorted(name for name in parameters if "conv" in name or name == "fc.weight")
    for name, d in found.items():
        w = parameters[name].data
        assert d.dtype == w.dtype and d.strides == w.strides
        for k in range(len(w)):
            assert np.linalg.norm(d[k]) == pytest.approx(np.linalg.norm(w[k]), rel=1e-5)
    other = loss_surface.filterwise_direction(model, np.random.default_rng(1))
    assert abs(np.vdot(found["fc.weight"], other["fc.weight"])) < 0.3 * np.vdot(found["fc.weight"], found["fc.weight"])


@pytest.mark.parametrize("statistics", ["running", "batch"])
def test_each_point_is_the_loss_of_a_copy_with_moved_weights(network, statistics):
    x, y = batch()
    rng = np.random.default_rng(0)
    pair = [loss_surface.filterwise_direction(network, rng) for _ in range(2)]
    found = loss_surface.loss_surface(network, x, y, 3, 0.5, statistics=statistics, directions=pair, batch=5)
    line = loss_surface.loss_surface(network, x, y, 3, 0.5, 1, statistics, directions=pair[:1])
    assert line.losses[0] == pytest.approx(found.losses[1], rel=1e-12) and line.is_line and not found.is_line
    for i, j in np.ndindex(3, 3):
        twin = copy.deepcopy(network)
        for name, p in twin.named_parameters():
            for step, d in zip((found.x[j], found.y[i]), pair, strict=True):
                p.data = p.data + step * d.get(name, 0.0)
        assert found.losses[i, j] == pytest.approx(loss_of(twin, x, y, statistics == "batch"), rel=1e-9)
    assert found.centre == found.losses[1, 1]


def test_rescaled_layers_have_the_same_surface():
    """What filter-wise directions are for: weights times 10 here and divided by 10 there compute the same."""
    def net():
        tr.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 8, bias=False), nn.ReLU(), nn.Linear(8, 4, bias=False)).double()

    x, y = normal(20, 6), np.arange(20) % 4
    rescaled = net()
    for layer, factor in ((rescaled[0], 10.0), (rescaled[2], 0.1)):
        layer.weight.data = layer.weight.data * factor
    one, two = (loss_surface.loss_surface(model, x, y, 5).losses for model in (net(), rescaled))
    assert norm_distance(two, one) < 1e-12 and one.std() > 0.01


def test_a_convex_surface_is_nowhere_concave_and_a_loss_that_overflows_is_null():
    tr.manual_seed(0)
    x, y = normal(20, 6), np.arange(20) % 4
    softmax = nn.Sequential(nn.Linear(6, 4)).double()  # its loss is convex in the weights
    assert loss_surface.loss_surface(softmax, x, y, 7).concave_share == 0.0
    deep = nn.Sequential(*[nn.Linear(6, 6, bias=False) for _ in range(3)], nn.Linear(6, 4))
    found = loss_surface.loss_surface(deep, x.astype("float32"), y, 3, 1e20)
    said = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert said["losses"][0][0] is None and said["losses"][1][1] == pytest.approx(found.centre)


@pytest.mark.parametrize("options, message", [
    ({"steps": 4}, "got steps=4, span=1.0, dimensions=2; expected an odd number"),
    ({"span": 0.0}, "a positive span"),
    ({"dimensions": 3}, "1 or 2 dimensions"),
    ({"statistics": "none"}, "expected one of running, batch"),
    ({"directions": [{}]}, "1 directions for 2 dimensions"),
    ({"directions": [{"fc.weight": np.ones((2, 2))}] * 2}, r"'fc.weight' has shape \(2, 2\), expected \(4, 64\)"),
    ({"directions": [{"fc.scale": np.ones(2)}] * 2}, "expected the name of a parameter"),
])
def test_loss_surface_says_what_is_wrong(network, options, message):
    with pytest.raises(ValueError, match=message):
        loss_surface.loss_surface(network, *batch(), **options)


# --- the Hessian ------------------------------------------------------------------------------------------------------


def test_lanczos_finds_both_ends_of_a_spectrum_and_says_how_near_it_is():
    A = normal(60, 60)
    A = A + A.T
    exact = np.linalg.eigvalsh(A)[::-1]
    found = hessian.lanczos(lambda v: A @ v, 60, 4, 3, tolerance=1e-10)
    assert found.converged and found.values == pytest.approx([*exact[:4], *exact[-3:]], rel=1e-9)
    early = hessian.lanczos(lambda v: A @ v, 60, 4, 3, iterations=15)
    assert not early.converged and early.products == 15
    for result in (found, early):
        for value, residual, v in zip(result.values, result.residuals, result.vectors, strict=True):
            assert np.linalg.norm(v) == pytest.approx(1)
            assert np.linalg.norm(A @ v - value * v) <= residual * (1 + 1e-6) + 1e-12 * exact[0]
            assert np.abs(exact - value).min() <= residual + 1e-12 * exact[0]
    assert np.isnan(found.history[0]).all() and found.history[-1] == pytest.approx(found.values)


def test_lanczos_goes_on_where_the_space_is_exhausted():
    """A matrix of rank 2, and one whose eigenvalues are multiple: a Krylov space holds one vector of each."""
    few = np.outer(normal(20), normal(20))
    few = few + few.T
    exact = np.linalg.eigvalsh(few)
    found = hessian.lanczos(lambda v: few @ v, 20, 2, 1)
    assert found.values == pytest.approx([exact[-1], 0, exact[0]], abs=1e-12 * exact[-1])
    many = np.diag([3.0, 3, 3, 1, 1, -2, -2, 0])
    assert hessian.lanczos(lambda v: many @ v, 8, 5, 3, 8).values == pytest.approx([3, 3, 3, 1, 1, 0, -2, -2])


@pytest.mark.parametrize("seed", range(5))
def test_an_eigenvalue_that_is_there_twice_is_found_twice_once_the_space_is_exhausted(seed):
    many = np.diag([3.0, 3, 3, 1, 1, -2, -2, 0])
    found = hessian.lanczos(lambda v: many @ v, 8, 2, 0, 8, seed=seed)
    assert found.converged and found.values == pytest.approx([3, 3])


class Small(nn.Module):
    """A residual network with 56 parameters."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 2, 3, padding=1, bias=False), nn.BatchNorm2d(2)
        self.conv2 = nn.Conv2d(2, 2, (1, 3), padding=(0, 1))
        self.fc = nn.Linear(2, 4)

    def forward(self, x):
        h = self.bn1(self.conv1(x), relu=True)
        return self.fc(ops.global_avg_pool2d(ops.relu(h + self.conv2(h))))


@pytest.fixture(scope="module")
def small():
    tr.manual_seed(1)
    model = Small().double()
    x, y = batch(10, 5, channels=1)
    for p in model.parameters():
        p.data = p.data * 1.5 + 0.3 * normal(*p.shape, seed=3)
    with tr.no_grad():
        model(Tensor(x))
    return model, x, y


def dense_by_differences(model, x, y, training):
    """The Hessian, column by column, from gradients a step ahead and a step behind."""
    model = copy.deepcopy(model).train(training)
    parameters = list(model.parameters())

    def gradient(at):
        for p, piece in zip(parameters, np.split(at, np.cumsum([p.data.size for p in parameters])[:-1]), strict=True):
            p.data = piece.reshape(p.shape)
        return np.concatenate([g.numpy().ravel() for g in tr.grad(ops.cross_entropy(model(Tensor(x)), y), parameters)])

    w = np.concatenate([p.numpy().ravel() for p in parameters])
    units = 1e-5 * np.eye(len(w))
    return np.array([(gradient(w + u) - gradient(w - u)) / 2e-5 for u in units])


@pytest.mark.parametrize("training", [False, True])
def test_eigenvalues_are_those_of_the_dense_hessian(small, training):
    """Formed by products with unit vectors, and by finite differences of gradients."""
    model, x, y = small
    product = hessian.HessianProduct(model, x, y, training)
    H, D = np.array([product(unit) for unit in np.eye(product.n)]), dense_by_differences(model, x, y, training)
    assert norm_distance(H, H.T) < 1e-13 and norm_distance(H, D) < 1e-6
    found = hessian.hessian_eigenvalues(model, x, y, 6, 4, tolerance=1e-10, training=training)
    exact = np.linalg.eigvalsh(H)[::-1]
    assert exact[-1] < -1e-3 < 1e-2 < exact[0]  # curved both ways
    for wanted in (exact, np.linalg.eigvalsh((D + D.T) / 2)[::-1]):
        assert np.abs(np.array(found.values) - [*wanted[:6], *wanted[-4:]]).max() < 1e-6 * exact[0]
    assert found.converged and found.parameters == len(H) and f"{found.values[0]:.6g}" in str(found)


def test_an_eigenvector_is_a_direction_in_which_the_loss_bends_by_the_eigenvalue(small):
    model, x, y = small
    found = hessian.hessian_eigenvalues(model, x, y, 1, 1, tolerance=1e-10)
    for value, direction in zip(found.values, found.vectors, strict=True):
        assert list(direction) == [name for name, _ in model.named_parameters()]
        left, middle, right = loss_surface.loss_surface(model, x, y, 3, 1e-4, 1, directions=[direction]).losses[0]
        assert (left - 2 * middle + right) / 1e-8 == pytest.approx(value, rel=1e-3)


def test_an_eigenvector_is_a_direction_of_a_float32_network_too(small):
    model, x, y = copy.deepcopy(small[0]).float(), small[1].astype("float32"), small[2]
    direction = hessian.hessian_eigenvalues(model, x, y, 1, 0, 4).vectors[0]
    found, wanted = (loss_surface.loss_surface(m, x.astype(dtype), y, 3, 0.5, 1, directions=[direction]).losses
                     for m, dtype in ((model, "float32"), (copy.deepcopy(model).double(), "float64")))
    assert norm_distance(found, wanted) < 1e-5 and np.ptp(wanted) > 1e-2
    assert all(p.data.dtype == np.float32 for p in model.parameters())


def test_parts_of_the_images_add_up_and_frozen_parameters_are_left_out(small):
    model, x, y = small
    whole, parts = hessian.HessianProduct(model, x, y), hessian.HessianProduct(model, x, y, batch=4)
    v = normal(whole.n)
    assert norm_distance(parts(v), whole(v)) < 1e-13
    frozen = copy.deepcopy(model)
    frozen.conv1.requires_grad_(False)
    rest = hessian.HessianProduct(frozen, x, y)
    padded = np.concatenate([np.zeros(18), v[18:]])
    assert rest.n == whole.n - 18 and norm_distance(rest(v[18:]), whole(padded)[18:]) < 1e-13


@pytest.mark.parametrize("options, message", [
    ({"k": 0, "negative": 0}, "0 largest and 0 smallest eigenvalues"),
    ({"k": 9, "iterations": 5}, "5 iterations give so many at most"),
    ({"training": True, "batch": 2}, "batch is 2 for 10 images, but in training mode"),
])
def test_hessian_says_what_is_wrong(small, options, message):
    with pytest.raises(ValueError, match=message):
        hessian.hessian_eigenvalues(*small, **options)


def test_there_is_no_hessian_of_a_frozen_network_or_of_an_overflow(small):
    model, x, y = small
    with pytest.raises(ValueError, match="no parameter that requires a gradient"):
        hessian.hessian_eigenvalues(copy.deepcopy(model).requires_grad_(False), x, y)
    with pytest.raises(ValueError, match="NaN or infinite"), np.errstate(all="ignore"):
        hessian.hessian_eigenvalues(model, x * 1e308, y)


# --- feature maps -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, layer", [("resnet8", "layer1.0"), ("resnet8", "layer2.0"),
                                         ("preact_resnet20", "layer1.1"), ("preact_resnet20", "layer2.0")])
def test_shortcut_and_branch_make_the_sum(name, layer):
    model, x = generic(name, option="B"), batch()[0]
    seen = []
    block = model.get_submodule(layer)
    handle = block.shortcut.register_forward_hook(lambda m, args, y: seen.append(y.numpy().copy()))
    model.eval()(Tensor(x))
    handle.remove()
    found = feature_maps.feature_maps(model, x, layer).parts
    assert list(found) == ["shortcut", "branch", "sum", "output"]
    assert norm_distance(found["shortcut"], seen[0]) < 1e-12
    assert norm_distance(found["shortcut"] + found["branch"], found["sum"]) < 1e-14
    after = np.maximum(found["sum"], 0) if name == "resnet8" else found["sum"]
    assert np.array_equal(found["output"], after)
    without = feature_maps.feature_maps(zeroed(model, [layer]), x, layer).parts
    assert not without["branch"].any() and norm_distance(without["shortcut"], found["shortcut"]) < 1e-12


@pytest.mark.parametrize("name", [
    "scaled_resnet", "exclusive_gate_resnet", "dropout_shortcut_resnet", "bn_after_addition_resnet", "fixup_resnet",
    "stochastic_depth_resnet", "shared_resnet", "article_prose_parallel", "article_prose_four_step", "mlperf_resnet8"])
def test_the_join_of_every_kind_of_block_is_found_and_its_branch_can_be_removed(name):
    tr.manual_seed(0)
    model, (x, y) = models.build(name, num_classes=4), batch(2)
    found = lesion.lesion(model, x.astype("float32"), y, several=(), swaps=())
    assert found.places and len(found.single) == len(found.places)
    for block in dict.fromkeys(place.block for place in found.places[::4]):
        parts = feature_maps.feature_maps(model, x.astype("float32"), block).parts
        assert norm_distance(parts["shortcut"] + parts["branch"], parts["sum"]) < 1e-6


def test_the_parts_of_a_sum_are_what_is_added():
    """Scales and shifts have been applied, and only the join counts: an addition inside the branch is none."""
    class Scaled(Block):
        def __init__(self):
            super().__init__()
            self.conv, self.downsample = nn.Conv2d(3, 3, 1), nn.Identity()
            self.shift = nn.Parameter(normal(3, 1, 1))

        def forward(self, x):
            return 0.5 * (self.shortcut(x) + self.shift) + 3.0 * (self.conv(x) + x)

    tr.manual_seed(0)
    model, x = nn.Sequential(Scaled()).double(), batch()[0]
    found = feature_maps.feature_maps(model, x, "0").parts
    branch = 3 * (model[0].conv(Tensor(x)).numpy() + x)
    assert norm_distance(found["shortcut"], 0.5 * (x + normal(3, 1, 1))) < 1e-14
    assert norm_distance(found["branch"], branch) < 1e-14
    assert norm_distance(found["sum"], found["output"]) == 0


class InPlace(Block):
    """A ReLU that overwrites the sum, or the layer's output, and a sum that overwrites the branch."""

    def __init__(self, adds_in_place):
        super().__init__()
        self.conv, self.downsample, self.adds_in_place = nn.Conv2d(3, 3, 1), nn.Identity(), adds_in_place

    def forward(self, x):
        h = self.conv(x)
        if self.adds_in_place:
            h += self.shortcut(x)
        else:
            h = h + self.shortcut(x)
        return ops.relu_(h)


def test_what_is_overwritten_later_is_shown_as_it_was():
    tr.manual_seed(0)
    model, x = nn.Sequential(InPlace(False), InPlace(True)).double(), batch()[0]
    found = feature_maps.feature_maps(model, x, "0").parts
    assert (found["sum"] < 0).any() and norm_distance(found["shortcut"] + found["branch"], found["sum"]) < 1e-14
    assert np.array_equal(found["output"], np.maximum(found["sum"], 0))
    assert list(feature_maps.feature_maps(model, x, "1").parts) == ["output"]
    maps = feature_maps.feature_maps(model, x, "1.conv").parts["output"]
    assert norm_distance(maps, model[1].conv(Tensor(found["output"])).numpy()) < 1e-14


def test_maps_that_overflow_are_null_in_json():
    model = nn.Sequential(nn.Conv2d(3, 2, 1)).double()
    with np.errstate(all="ignore"):
        found = feature_maps.feature_maps(model, np.full((1, 3, 2, 2), np.inf), "0")
        said = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert said["parts"]["output"]["mean"] is None and said["parts"]["output"]["norm"] is None


def test_a_layers_maps_are_its_output_and_dead_channels_are_named(network):
    x = batch()[0]
    model = copy.deepcopy(network).eval()
    model.bn1.weight.data[5] = 0.0
    model.bn1.bias.data[5] = -1.0
    found = feature_maps.feature_maps(model, x, "bn1")
    with tr.no_grad():
        wanted = model.bn1(model.conv1(Tensor(x)), relu=True).numpy()
    assert list(found.parts) == ["output"] and norm_distance(found.parts["output"], wanted) < 1e-13
    said = found.as_dict()["parts"]["output"]
    assert 5 in said["dead_channels"] and said["zeros"] == (wanted == 0).mean()


@pytest.mark.parametrize("layer, error, message", [
    ("layer9", AttributeError, "no submodule 'layer9'"),
    ("fc", ValueError, r"'fc' gives \(12, 4\), expected maps"),
    ("layer1", ValueError, None),
])
def test_feature_maps_says_what_is_wrong(network, layer, error, message):
    if message is None:  # a stage has maps too
        assert feature_maps.feature_maps(network, batch()[0], layer).parts["output"].shape == (12, 16, 8, 8)
        return
    with pytest.raises(error, match=message):
        feature_maps.feature_maps(network, batch()[0], layer)


def test_a_layer_that_is_never_called_has_no_maps(network):
    model = copy.deepcopy(network)
    model.spare = nn.ReLU()
    with pytest.raises(ValueError, match="does not call 'spare'"):
        feature_maps.feature_maps(model, batch()[0], "spare")


# --- figures and commands ---------------------------------------------------------------------------------------------


def test_every_figure_can_be_drawn(network, small, tmp_path):
    pytest.importorskip("matplotlib")
    x, y = batch()
    line = {"$a$": loss_surface.loss_surface(network, x, y, 5, dimensions=1)}
    surface = loss_surface.loss_surface(network, x, y, 3)
    shattered = shattering.shattering(network, x[0], x[1], 16, 4)
    drawings = [
        (lesion.draw, lesion.lesion(network, x, y, trials=2)),
        (lesion.draw, lesion.lesion(generic("plain8"), x, y, (), ())),
        (shattering.draw, shattered), (shattering.draw, {"one_$": [shattered], "two": [shattered] * 2}),
        (loss_surface.draw, surface), (loss_surface.draw, {"a": surface, "b": surface}), (loss_surface.draw, line),
        (hessian.draw, hessian.hessian_eigenvalues(*small)),
        (hessian.draw, hessian.hessian_eigenvalues(*small, 0, 1, iterations=2)),
        (feature_maps.draw, feature_maps.feature_maps(network, x, "layer1.0")),
        (feature_maps.draw, feature_maps.feature_maps(network, x, "conv1")),
    ]
    for i, (draw, result) in enumerate(drawings):
        draw(result, tmp_path / f"{i}.png", "resnet_8 $")
        assert (tmp_path / f"{i}.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="cannot be drawn together"):
        loss_surface.draw({"a": surface, **line}, tmp_path / "no.png")
    assert not (tmp_path / "no.png").exists()


COMMANDS = {
    "lesion --model plain8 --trials 1 --batch 20": {"intact", "single", "several", "swapped", "places"},
    "lesion --model resnet8 --trials 1 --batch 20": {"intact", "single", "several", "swapped", "places"},
    "shattering --model resnet8 --points 16 --lags 4": {"along", "norms", "autocorrelation", "statistics"},
    "shattering --grid --seeds 2 --model-option depth=3": {"autocorrelation", "by_seed", "seeds", "model"},
    "surface --model resnet8 --steps 3 --batch 20": {"losses", "accuracies", "centre", "concave_share"},
    "hessian --model resnet8 --largest 1 --iterations 3 --batch 4": {"values", "residuals", "converged"},
    "features --model resnet8 --layer layer2.0": {"layer", "parts"},
}


@pytest.mark.parametrize("line", COMMANDS)
def test_each_command_prints_its_result_and_draws_it(line, tinyres_command, tmp_path):
    pytest.importorskip("matplotlib")
    status, out, err = tinyres_command(f"analyze {line} --json --kernels im2col --out figure.png")
    assert status == 0, err
    said = json.loads(out.splitlines()[-1])
    assert said.keys() >= COMMANDS[line] and said["figure"] == "figure.png"
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    status, out, err = tinyres_command(f"analyze {line} --kernels im2col")
    assert status == 0 and len(out.splitlines()) >= 1 and "{" not in out, err


@pytest.mark.parametrize("line, message", [
    ("lesion --out figure.pdf", "figure.pdf is not a .png file"),
    ("features --layer layer9 --model resnet8", "no submodule 'layer9'"),
    ("shattering --grid --model resnet8", "resnet8 takes images; use a network of numbers"),
    ("shattering --grid --weights x.npz", "it takes new weights and numbers from -2 to 2; leave --weights out"),
    ("shattering --grid --data digits", "leave --data out"),
    ("shattering --grid --data-dir .", "leave --data-dir out"),
    ("shattering --grid --statistics line", "leave --statistics out"),
    ("surface --steps 4 --model resnet8", "expected an odd number"),
])
def test_commands_say_what_is_wrong(line, message, tinyres_command):
    status, _, err = tinyres_command(f"analyze {line} --kernels im2col")
    assert status in (1, 2) and message in err and len(err.splitlines()) == 1
