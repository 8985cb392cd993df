"""The layers of networks one by one: every different convolution and batch norm, forward and backward, timed alone.

Which layers there are is found by watching a training step (kernel_calls.py). Of each, all functions take turns with a
loop of nothing but multiply-adds (for convolutions) or a copy of an array as large as the image (for batch norm), and,
if asked for, with PyTorch's functions in channels_last. So a row says how much of this machine, at this moment, a
kernel uses. GFLOP/s count the operations of the direct convolution, whichever kernel computes: Winograd's kernels make
fewer, and may pass the peak.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tinyres import kernels, ops
from tinyres.analysis import bench_limits, timing
from tinyres.analysis.blas import speed
from tinyres.analysis.figure import new_figure, write_png
from tinyres.analysis.kernel_calls import CONVOLUTIONS, Call, shapes, watched, work
from tinyres.analysis.twins import pytorch
from tinyres.analysis.workload import Workload
from tinyres.files import PathLike
from tinyres.kernels import layout
from tinyres.kernels.reference import conv_output_size
from tinyres.tensor import Tensor

WORKLOADS = (Workload("resnet20", {"num_classes": 10, "option": "B"}, 128, 32),
             Workload("resnet18", {"num_classes": 10, "option": "B", "cifar_stem": True}, 32, 32))
Runs = dict[str, Callable[[], object]]
FUNCTIONS = {"conv2d": "forward", "conv2d_input_grad": "input gradient", "conv2d_input_grad_add": "input gradient",
             "conv2d_weight_grad": "weight gradient"}


@dataclass(frozen=True)
class Convolution:
    """A convolution by its shapes: x (N, C, H, W), w (K, C/G, R, S)."""

    x_shape: tuple[int, ...]
    w_shape: tuple[int, ...]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int

    def __str__(self) -> str:
        (N, C, H, W), (K, _, R, S) = self.x_shape, self.w_shape
        words = [f"{R}x{S} {C}->{K} @ {N}x{H}x{W}"]
        words += [f"stride {self.stride[0]}"] if self.stride != (1, 1) else []
        words += [f"dilation {self.dilation[0]}"] if self.dilation != (1, 1) else []
        words += [f"{self.groups} groups"] if self.groups > 1 else []
        return ", ".join(words)

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """x, w and the gradient of the output, random float32, channels-last."""
        output = conv_output_size(self.x_shape, self.w_shape[2:], self.stride, self.padding, self.dilation)
        rng = np.random.default_rng(0)
        return (_images(rng, self.x_shape), _images(rng, self.w_shape),
                _images(rng, (self.x_shape[0], self.w_shape[0], *output)))

    def ours(self) -> Runs:
        x, w, g = self.arrays()
        options = (self.stride, self.padding, self.dilation, self.groups)
        return {"forward": lambda: kernels.conv2d(x, w, *options),
                "input gradient": lambda: kernels.conv2d_input_grad(g, w, self.x_shape, *options),
                "weight gradient": lambda: kernels.conv2d_weight_grad(x, g, self.w_shape, *options)}

    def theirs(self) -> Runs:
        """PyTorch's functions on the same arrays, which it sees as channels_last."""
        torch = pytorch()
        x, w, g = (torch.from_numpy(a) for a in self.arrays())
        options = (self.stride, self.padding, self.dilation)

        def backward(*mask: bool) -> Any:
            return torch.ops.aten.convolution_backward(g, x, w, None, *options, False, (0, 0), self.groups, mask)

        return {"forward": lambda: torch.conv2d(x, w, None, *options, self.groups),
                "input gradient": lambda: backward(True, False, False),
                "weight gradient": lambda: backward(False, True, False)}


@dataclass(frozen=True)
class Norm:
    """Batch norm of x (N, C, H, W), with the addition and the ReLU that follow it in a residual block, if they do."""

    x_shape: tuple[int, ...]
    add: bool
    relu: bool

    def __str__(self) -> str:
        N, C, H, W = self.x_shape
        return f"batch norm{' + add' * self.add}{' + ReLU' * self.relu} {C} @ {N}x{H}x{W}"

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """x, what is added to it, and the gradient of the output."""
        rng = np.random.default_rng(0)
        x, residual, g = (_images(rng, self.x_shape) for _ in range(3))
        return x, residual, g

    def ours(self) -> Runs:
        x, residual, g = self.arrays()
        C = self.x_shape[1]
        inputs = [Tensor(a, requires_grad=True) for a in (x, np.ones(C, np.float32), np.zeros(C, np.float32), residual)]

        def forward() -> Any:
            image, weight, bias, added = inputs
            return ops.batch_norm(image, None, None, weight, bias, True, add=added if self.add else None,
                                  relu=self.relu)

        node = forward().node
        return {"forward": forward, "backward": lambda: node.contributions(g, None, False, ())}

    def theirs(self) -> Runs:
        """PyTorch's three operations, the last two in place, and their backward."""
        torch = pytorch()
        x, residual, g = (torch.from_numpy(a) for a in self.arrays())
        weight, bias = torch.ones(self.x_shape[1]), torch.zeros(self.x_shape[1])
        wanted = [t.requires_grad_() for t in (x, weight, bias, *([residual] if self.add else []))]

        def forward() -> Any:
            y = torch.nn.functional.batch_norm(x, None, None, weight, bias, training=True)
            y = y.add_(residual) if self.add else y
            return y.relu_() if self.relu else y

        out = forward()
        return {"forward": forward, "backward": lambda: torch.autograd.grad(out, wanted, g, retain_graph=True)}


Layer = Convolution | Norm


def _images(rng: np.random.Generator, shape: Sequence[int]) -> np.ndarray:
    N, C, H, W = shape
    return layout.nchw(rng.standard_normal((N, H, W, C), np.float32))


# ---- which layers, and how fast ----


def layers_of(work_load: Workload) -> dict[Layer, dict[str, int]]:
    """The different layers of a network in the order of its forward pass: how often a step calls each function."""
    found: dict[Layer, dict[str, int]] = {}

    def note(layer: Layer, function: str) -> None:
        functions = found.setdefault(layer, {})
        functions[function] = functions.get(function, 0) + 1

    def seen(call: Call) -> None:
        if call.name in CONVOLUTIONS:
            x_shape, w_shape, _ = shapes(call)
            at = call.arguments
            options = (tuple(at["stride"]), tuple(at["padding"]), tuple(at["dilation"]), at["groups"])
            note(Convolution(tuple(x_shape), tuple(w_shape), *options), FUNCTIONS[call.name])
        elif call.name == "batch_norm_apply":
            at = call.arguments
            layer = Norm(at["x"].shape, at["residual"] is not None, at["relu"])
            note(layer, "forward")
            note(layer, "backward")

    model, (x, y) = work_load.network(), work_load.data()
    with watched(seen):
        ops.cross_entropy(model(Tensor(x)), y).backward()
    return found


LEAD = 3  # runs of a turn that are not timed: a layer takes a millisecond, and waking the processor no less


def measure(batch: int | None = None, against_torch: bool = False, rounds: int = 9,
            workloads: Sequence[Workload] = WORKLOADS,
            tell: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
    """Time every different layer of the networks; returns what JSON can hold.

    batch: instead of the workloads' own. tell: is called with a line for people before each network. Keys: machine,
    peak_gflops, matrix_gflops (NumPy's product), networks (in words), rows: network, layer, calls (in a step),
    function, kernel, ms (median), gflops, share_of_peak (of convolutions, else None), gbs, share_of_copy (of batch
    norm), torch_ms and ratio (ours to theirs, None without PyTorch).

    Raises ModuleNotFoundError without PyTorch if that is asked for.
    """
    torch = pytorch() if against_torch else None
    workloads = [w if batch is None else Workload(w.model, w.options, batch, w.size, w.seed) for w in workloads]
    peak, rows = 0.0, []
    with timing.pinned(torch):
        machine = timing.machine()
        for one in workloads:
            tell(f"the layers of {one.words()}")
            for layer, calls in layers_of(one).items():
                reached, of_layer = _measured(layer, calls, against_torch, rounds)
                peak = max(peak, reached)
                rows += [{"network": one.model, **row} for row in of_layer]
        product = speed(timing.ours_threads())
    for row in rows:
        row["share_of_peak"] = row["gflops"] * 1e9 / peak if row["gflops"] is not None and peak else None
    return {"machine": machine, "peak_gflops": peak / 1e9, "matrix_gflops": product / 1e9,
            "networks": [one.words() for one in workloads], "rows": rows}


def _measured(layer: Layer, calls: dict[str, int], against_torch: bool, rounds: int) -> tuple[float, list[dict]]:
    """The operations a second of the multiply-adds that took turns with a layer (0 for batch norm), and its rows."""
    ours, theirs = layer.ours(), layer.theirs() if against_torch else {}
    convolution = isinstance(layer, Convolution)
    yardstick, amount = bench_limits.multiply_adds() if convolution else bench_limits.copy(4 * _size(layer.x_shape))
    runs: Runs = {"yardstick": yardstick}
    for function in calls:
        runs[function] = ours[function]
        if theirs:
            runs["PyTorch " + function] = theirs[function]
    times = timing.alternate(runs, rounds, lead=LEAD)
    best = amount / times["yardstick"].least
    rows = []
    for function, count in calls.items():
        seconds, done = times[function].median, list(_works(ours[function]))
        flops, moved = (sum(getattr(one, what) for one in done) for what in ("flops", "bytes"))
        row: dict[str, Any] = {"layer": str(layer), "calls": count, "function": function, "kernel": done[0].kernel,
                               "ms": 1e3 * seconds, "gflops": flops / seconds / 1e9 if convolution else None,
                               "share_of_peak": None, "gbs": moved / seconds / 1e9, "share_of_copy": None,
                               "torch_ms": None, "ratio": None}
        if not convolution:
            row["share_of_copy"] = moved / seconds * times["yardstick"].least / amount
        if theirs:
            other = times["PyTorch " + function]
            row["torch_ms"], row["ratio"] = 1e3 * other.median, timing.ratio(times[function], other)["median"]
        rows.append(row)
    return (best if convolution else 0.0), rows


def _size(shape: Sequence[int]) -> int:
    return int(np.prod(shape))


def _works(run: Callable[[], object]) -> Iterator[Any]:
    calls: list[Call] = []
    with watched(calls.append):
        run()
    yield from map(work, calls)


# ---- for people ----

COLUMNS = (("network", "left"), ("layer", "left"), ("calls", "right"), ("function", "left"), ("kernel", "left"),
           ("ms", "right"), ("GFLOP/s", "right"), ("of the peak", "right"), ("GB/s", "right"), ("of a copy", "right"),
           ("PyTorch ms", "right"), ("tinyres takes", "right"))


def rows(found: dict[str, Any]) -> list[list[str]]:
    """The cells of the table that COLUMNS head."""

    def text(value: float | None, form: str, after: str = "") -> str:
        return "" if value is None else format(value, form) + after

    return [[row["network"], row["layer"], str(row["calls"]), row["function"], row["kernel"], f"{row['ms']:.2f}",
             text(row["gflops"], ".0f"), text(row["share_of_peak"], ".0%"), text(row["gbs"], ".1f"),
             text(row["share_of_copy"], ".0%"), text(row["torch_ms"], ".2f"), text(row["ratio"], ".2f", " of it")]
            for row in found["rows"]]


def summary(found: dict[str, Any]) -> str:
    """What the table does not say, a line each: the limits measured, and the sum over each network's layers."""
    lines = [f"peak of multiply-adds {found['peak_gflops']:.0f} GFLOP/s, NumPy's matrix product "
             f"{found['matrix_gflops']:.0f}"]
    for network in dict.fromkeys(row["network"] for row in found["rows"]):
        own = [row for row in found["rows"] if row["network"] == network]
        parts = []
        for kind, chosen in (("convolutions", [row for row in own if row["gflops"] is not None]),
                             ("batch norm", [row for row in own if row["gflops"] is None])):
            ours = sum(row["calls"] * row["ms"] for row in chosen)
            words = f"{kind} {ours:.1f} ms"
            if chosen and chosen[0]["torch_ms"] is not None:
                theirs = sum(row["calls"] * row["torch_ms"] for row in chosen)
                words += f", PyTorch's {theirs:.1f} (tinyres takes {ours / theirs:.2f} of it)"
            parts.append(words)
        lines.append(f"{network}, all layers of a step: {'; '.join(parts)}")
    return "\n".join(lines)


def draw(found: dict[str, Any], path: PathLike) -> None:
    """Write a PNG: for each network how much of the peak its convolutions reach, and its batch norms of a copy."""
    networks = list(dict.fromkeys(row["network"] for row in found["rows"]))
    figure = new_figure(13, 1 + 0.16 * len(found["rows"]))
    grid = figure.subplots(len(networks), 2, squeeze=False)
    for network, (left, right) in zip(networks, grid, strict=True):
        own = [row for row in found["rows"] if row["network"] == network]
        _draw_bars(left, [row for row in own if row["gflops"] is not None], "gflops")
        left.axvline(found["peak_gflops"], color="black", label="peak of multiply-adds")
        left.axvline(found["matrix_gflops"], color="black", linestyle="--", label="NumPy's matrix product")
        left.set_xlabel("GFLOP/s of the direct convolution")
        _draw_bars(right, [row for row in own if row["gflops"] is None], "share_of_copy")
        right.axvline(1, color="black", label="a copy of the image")
        right.set_xlabel("bytes a second, as a share of a copy's")
        left.set_title(network, fontsize=10)
        for axes in (left, right):
            axes.grid(alpha=0.3, axis="x")
            axes.legend(fontsize=7)
    write_png(figure, path)


def _draw_bars(axes: Any, own: list[dict[str, Any]], value: str) -> None:
    """A group of bars for each layer, the first on top: one for each function. A dot is PyTorch's speed."""
    layers = list(dict.fromkeys(row["layer"] for row in own))[::-1]
    colors = {"forward": "tab:blue", "input gradient": "tab:orange", "weight gradient": "tab:green",
              "backward": "tab:orange"}
    for function in [name for name in colors if any(row["function"] == name for row in own)]:
        chosen = [row for row in own if row["function"] == function]
        shift = {"forward": 0.27, "input gradient": 0, "weight gradient": -0.27, "backward": 0}[function]
        places = [layers.index(row["layer"]) + shift for row in chosen]
        axes.barh(places, [row[value] for row in chosen], height=0.25, color=colors[function], label=function)
        if chosen[0]["ratio"] is not None:
            axes.plot([row[value] * row["ratio"] for row in chosen], places, "k.", markersize=4,
                      label="PyTorch" if function == "forward" else None)
    axes.set_yticks(range(len(layers)), layers, fontsize=7)
