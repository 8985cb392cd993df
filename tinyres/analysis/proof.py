"""The proof table: a row a network with its exact size, its gradients against finite differences, and its numbers
against PyTorch's, each with a bound that decides whether the row passes.

Gradients are checked in float64 and in training, with the kernels that train, on images that leave 8 values a channel
to the last batch norms. Parity starts from equal weights, see tinyres.analysis.parity; without PyTorch it is left out.

Some plain networks are not checked at the weights they start from: there, the gradient of one that is normalised and
not residual grows by about 1.2 a layer towards the input (Yang et al. 2019, "A mean field theory of batch
normalization"), in plain110 to ten million times what it is at the output, and so does every rounding error. With all
batch norms' shifts at 1 instead of 0 fewer ReLUs are off, and the same code can be measured.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from tinyres.analysis import parity
from tinyres.analysis.gradcheck import gradcheck
from tinyres.analysis.twins import pytorch

GRADCHECK, PARITY, RATIO = 1e-6, 1e-8, 2.0  # the bounds
EXACT = ("outputs", "gradients", "statistics", "weights")  # what is compared with PyTorch in float64
DRAWS = 6        # of weights and images, for the float32 distances
MORE = 8         # times as many draws of a small network, of which few switch a ReLU
SMALL = 300_000  # parameters
DIRECTIONS = 2   # of all variables; then each variable is checked
MISSING = "PyTorch not installed"
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Case:
    """A network of the table. published: its number of parameters by its source, where that is known exactly.

    images, step, training: of the gradient check; parity_images: of the comparison with PyTorch; shift: of the batch
    norms at the start. usual: in the table unless all are asked for. twin: whether it is compared with PyTorch here;
    the tests of the other networks bring their own twins.
    """

    network: str
    words: str
    options: Mapping[str, Any] = field(default_factory=dict)
    published: int | None = None
    images: Shape = (8, 3, 8, 8)
    parity_images: Shape = (16, 3, 32, 32)
    step: float = 1e-5
    shift: float = 0.0
    usual: bool = False
    twin: bool = True
    training: bool = True

    @property
    def name(self) -> str:
        return f"{self.network}, {self.words}" if self.words else self.network


def cifar(network: str, option: str = "", published: int | None = None, **more: Any) -> Case:
    """A network for small images. Its shortcut option is its usual one unless given."""
    options = {"option": option} if option else {}
    return Case(network, f"option {option}" if option else "", options, published, **more)


def imagenet(network: str, published: int, step: float = 1e-5, batch: int = 8, **more: Any) -> Case:
    """A network as torchvision has it: 7x7 stem, 1,000 classes."""
    return Case(network, "ImageNet", {}, published, (8, 3, 32, 32), (batch, 3, 64, 64), step, **more)


def small_stem(network: str, published: int | None = None, step: float = 1e-5, **more: Any) -> Case:
    """The same with the stem for small images, 3x3, and 10 classes."""
    options = {"cifar_stem": True, "num_classes": 10}
    return Case(network, "CIFAR stem", options, published, (2, 3, 16, 16), (8, 3, 16, 16), step, **more)


def variant(network: str, published: int | None = None, words: str = "", **more: Any) -> Case:
    """A network of the other families, of which there is no twin here."""
    return Case(network, words, more.pop("options", {}), published, twin=False, **more)


def mlp(network: str, published: int | None = None) -> Case:
    """A network of linear layers, scaled so that its activations do not grow."""
    scaled = "residual" in network or network == "learned_scale_mlp"
    return variant(network, published, "a = 0.1" if scaled else "", options={"a": 0.1} if scaled else {},
                   images=(8, 64))


CASES = (
    cifar("plain8"),
    cifar("plain20", published=269_722, usual=True),
    cifar("plain32", published=464_154),
    cifar("plain44", published=658_586, shift=1.0),
    cifar("plain56", published=853_018, shift=1.0),
    cifar("plain110", published=1_727_962, shift=1.0),
    cifar("resnet8", "A", usual=True),
    cifar("resnet20", "A", 269_722, usual=True),
    cifar("resnet20", "B", 272_474, usual=True),
    cifar("resnet20", "C", usual=True),
    cifar("resnet32", "A", 464_154),
    cifar("resnet44", "A", 658_586),
    cifar("resnet56", "A", 853_018, usual=True),
    cifar("resnet110", "A", 1_727_962, usual=True),
    cifar("resnet1202", "A", 19_421_274, images=(8, 3, 4, 4), parity_images=(16, 3, 8, 8)),
    cifar("preact_resnet20", "A", usual=True),
    cifar("preact_resnet20", "B", usual=True),
    cifar("preact_resnet32", "A"),
    cifar("preact_resnet44", "A"),
    cifar("preact_resnet56", "A"),
    cifar("preact_resnet110", "A"),
    cifar("preact_resnet164", "B", step=3e-6),
    small_stem("preact_resnet18"),
    small_stem("preact_resnet34"),
    small_stem("preact_resnet50", step=3e-6),
    small_stem("resnet18", 11_173_962, usual=True),
    imagenet("resnet18", 11_689_512, usual=True),
    small_stem("resnet34", 21_282_122),
    imagenet("resnet34", 21_797_672),
    small_stem("resnet50", 23_520_842, 3e-6, usual=True),
    imagenet("resnet50", 25_557_032, 3e-6, 4, usual=True),
    imagenet("resnet101", 44_549_160, 1e-6, 4),
    imagenet("resnet152", 60_192_808, 1e-6, 4),
    variant("scaled_resnet", 269_722, "branch 0.1, shortcut 0.9",
            options={"residual_scale": 0.1, "shortcut_scale": 0.9}),
    *(variant(name) for name in ("rezero_resnet", "skipinit_resnet", "conv_shortcut_resnet", "dropout_shortcut_resnet",
                                 "exclusive_gate_resnet", "shortcut_gate_resnet")),
    *(variant(f"{order}_resnet", 269_722) for order in (
        "original", "bn_after_addition", "relu_before_addition", "relu_only_preactivation", "full_preactivation")),
    *(variant(f"fixup_resnet{depth}") for depth in ("", 20, 56, 110)),
    variant("stochastic_depth_resnet", 269_722, "no branch dropped", options={"survival": 0.999}),
    variant("stochastic_depth_resnet110", 1_727_962, "no branch dropped", options={"survival": 0.999}),
    *(variant(f"shared_resnet{depth}", 167_834) for depth in ("", 20, 56)),
    variant("shared_conv_resnet"),
    variant("shared_conv_resnet20"),
    *(variant(f"article_prose{reading}") for reading in ("", "_parallel", "_series", "_four_step")),
    variant("article_resnet18", 11_173_962, images=(2, 3, 16, 16)),
    variant("article_resnet34", 21_282_122, images=(2, 3, 16, 16)),
    variant("article_resnet50", 23_520_842, images=(2, 3, 16, 16), step=3e-6),
    *(variant(f"chain_{connection}") for connection in ("addition", "concatenation", "bottleneck")),
    variant("densenet40"),
    variant("densenet100", 769_162),
    *(mlp(name) for name in ("residual_mlp", "plain_mlp", "learned_scale_mlp", "rezero_mlp", "shared_mlp",
                             "shared_residual_mlp")),
    # In training, batch norm takes away what the biases in front of it add.
    variant("mlperf_resnet8", 78_186, "eval mode", training=False),
)


@dataclass(frozen=True)
class Row:
    """What was found of one network.

    gradcheck: order -> largest relative error; redrawn: directions drawn again at kinks. exact: the largest distances
    from PyTorch in float64; float32: the gradient's distance from float64, "ours", "pytorch" and their "ratio"; both
    are None where PyTorch or the twin is missing, and all are empty where the measuring broke off. complaints: why the
    row failed, in words; none if it passed. twin: whether the network has one.
    """

    name: str
    parameters: int
    published: int | None
    gradcheck: dict[int, float]
    redrawn: int
    exact: dict[str, float] | None
    float32: dict[str, float] | None
    complaints: list[str]
    twin: bool = True

    @property
    def verdict(self) -> str:
        return "FAILED" if self.complaints else "passed"

    def as_dict(self) -> dict[str, Any]:
        """Everything, as JSON can hold it: what is not finite as text."""
        return {**_finite(asdict(self)), "verdict": self.verdict}


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    return str(value) if isinstance(value, float) and not np.isfinite(value) else value


def prove(case: Case, seed: int = 0, with_pytorch: bool = True) -> Row:
    """Measure one network with the current kernel set. The seed is that of weights, images and directions."""
    model = parity.network(case.network, case.options, seed, case.shift)
    parameters = sum(p.data.size for p in model.parameters())
    complaints = []
    if case.published not in (None, parameters):
        complaints.append(f"{parameters:,} parameters, published are {case.published:,}")
    # A new network has scales of 1 and shifts of 0, where a forgotten factor would not show: nudge moves them.
    images = np.random.default_rng(seed).standard_normal(case.images)
    result = gradcheck(model.train(case.training), images, order=(1, 2), directions=DIRECTIONS, step=case.step,
                       tolerance=GRADCHECK, nudge=0.1, seed=seed)
    if not result.passed or result.notes:
        complaints.append(f"gradcheck {result.verdict}: {'; '.join(result.failures + result.unclear + result.notes)}")
    exact = float32 = None
    if with_pytorch and case.twin:
        exact = parity.exact_distances(parity.pair(case.network, case.options, case.parity_images, "float64", seed,
                                                   case.shift))
        complaints += [f"{what}: {value:.1e} from PyTorch's in float64, at most {PARITY:.0e} is right"
                       for what, value in exact.items() if not value <= PARITY]
        ours, theirs = parity.rounding(case.network, case.options, case.parity_images, seed,
                                        DRAWS * (MORE if parameters < SMALL else 1), case.shift)
        float32 = {"ours": ours, "pytorch": theirs, "ratio": ours / max(theirs, 1e-300)}
        if not float32["ratio"] <= RATIO:
            complaints.append(f"float32: {float32['ratio']:.2f} times as far from float64 as PyTorch, at most "
                              f"{RATIO:g} is right")
    worst = {order: max(errors.values()) for order, errors in result.errors.items()}
    return Row(case.name, parameters, case.published, worst, result.redrawn, exact, float32, complaints,
               case.twin)


def prove_all(cases: Sequence[Case], seed: int = 0) -> Iterator[Row]:
    """The rows of the table, one by one. A network on which the measuring itself breaks off fails with that error."""
    for case in cases:
        try:
            yield prove(case, seed, has_pytorch())
        except (ValueError, RuntimeError, ArithmeticError) as error:
            yield Row(case.name, 0, case.published, {}, 0, {}, {}, [f"{type(error).__name__}: {error}"])


def has_pytorch() -> bool:
    """Whether PyTorch can be imported."""
    try:
        pytorch()
    except ModuleNotFoundError:
        return False
    return True


# --- the table in words -----------------------------------------------------------------------------------------------

COLUMNS = (("network", "left"), ("parameters", "right"), ("published", "right"), ("gradcheck 1", "right"),
           ("gradcheck 2", "right"), ("redrawn", "right"), *((what, "right") for what in EXACT),
           ("float32 ours", "right"), ("PyTorch", "right"), ("ratio", "right"), ("verdict", "left"))
LEGEND = f"""\
- **parameters, published**: the exact number, and whether it equals the known one: torchvision's for the ImageNet
  networks; for the others that of the layers, counted by hand (He et al. 2015 print theirs rounded).
- **gradcheck 1, 2**: gradients, and Hessian-vector products, in float64 against central differences along random
  directions: the largest relative error over all parameters together, each parameter, and the images. Bound
  {GRADCHECK:.0e}. **redrawn**: directions drawn again because a ReLU or a maximum switched between the two ends.
- **outputs, gradients, statistics, weights**: the largest distance from PyTorch in float64, relative to the norm of the
  tensor, over {parity.STEPS} steps of SGD with momentum from equal weights. Bound {PARITY:.0e}. "-" where PyTorch has
  no twin here; the tests of those networks bring their own.
- **float32 ours, PyTorch, ratio**: the distance of the gradient in float32 from that in float64, root mean square of
  {DRAWS} draws, of networks with less than {SMALL:,} parameters {DRAWS * MORE}, ours and PyTorch's (channels_last),
  and ours by PyTorch's. Bound {RATIO:g}. A draw is about 1e-6, or 1e-3 where rounding switches a ReLU, so the ratio
  says only that ours is not the worse of the two.
"""


def cells(row: Row) -> list[str]:
    """A row of the table as texts, one for each of COLUMNS."""
    known = "-" if row.published is None else f"{row.published:,}"
    found = [f"{row.gradcheck[order]:.1e}" if order in row.gradcheck else "-" for order in (1, 2)]
    compared = [MISSING if row.exact is None and row.twin else "-"] + ["-"] * (len(EXACT) + 2)
    if row.exact and row.float32:
        compared = [f"{row.exact[what]:.1e}" for what in EXACT]
        compared += [f"{row.float32['ours']:.1e}", f"{row.float32['pytorch']:.1e}", f"{row.float32['ratio']:.2g}"]
    return [row.name, f"{row.parameters:,}", "equal" if row.published == row.parameters else known, *found,
            str(row.redrawn), *compared, row.verdict]


def markdown(rows: Sequence[Row], made: str) -> str:
    """The table as a page of Markdown; `made` says how, when and on what."""
    lines = [[heading for heading, _ in COLUMNS], ["---:" if side == "right" else "---" for _, side in COLUMNS],
             *map(cells, rows)]
    table = [f"| {' | '.join(line)} |" for line in lines]
    shifted = [case.name for case in CASES if case.shift and any(row.name == case.name for row in rows)]
    note = (f"- Shifts of all batch norms are 1 instead of 0 at the start in {', '.join(shifted)}: with 0 the gradient "
            "grows by about 1.2 a layer towards the input, and rounding errors with it, beyond these bounds.")
    notes = [textwrap.fill(note, 120, subsequent_indent="  "), ""] if shifted else []
    return "\n".join(["# The proof table\n", made, "", *table, "", summary(rows), *failures(rows), "",
                      LEGEND + "\n".join(notes)])


def summary(rows: Sequence[Row]) -> str:
    """How many passed, in a sentence."""
    passed = sum(row.verdict == "passed" for row in rows)
    without = f" ({MISSING}: nothing was compared with it)" if any(row.exact is None and row.twin
                                                                               for row in rows) else ""
    return f"{passed} of {len(rows)} networks passed{without}."


def failures(rows: Sequence[Row]) -> list[str]:
    """What failed, a line each."""
    return [f"- {row.name}: {complaint}" for row in rows for complaint in row.complaints]
