"""What a recording holds: plain data, without arrays, and one JSON object when written (format "tinyres-trace/1").

A `Trace` is a list of `Node`s in the order of the forward pass (a node's id is its place in it): every op, and every
tensor that no op made, a parameter, an input or a constant. Of arrays there are `Summary`s: shape, norm, least, mean
and largest element, a small map. The backward pass is the list `Trace.backward`: ids of nodes in the order in which the
engine visited them. A `Group` is what one layer did (batch norm is a dozen ops): the groups are the steps of the block
view. `Trace.as_dict()` is the JSON, field by field under the names below; `trace.schema.json` says the same to
machines.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

FORMAT = "tinyres-trace/1"
LISTED = 64  # elements up to which a summary lists them all

SHORTCUT, BRANCH = "shortcut", "branch"  # routes from a fork to the join behind it; "" is neither


@dataclass(frozen=True)
class Summary:
    """Of one array.

    shape, dtype; norm: Euclidean; min, mean, max: of its elements; zeros: the share of elements that are exactly 0;
    bad: how many are NaN or Inf. The numbers are None where they are not finite or there is no element. map: its first
    image and channel (of a matrix, the matrix; of a vector, one row) as at most 8x8 averages, in whole numbers from -99
    to 99, where 99 stands for `top`. maps: of images that a layer made, up to four channels of the first image, at most
    16x16 each, on the scale of `maps_top`. values: all elements in the order of their indices, where there are at most
    64.
    """

    shape: tuple[int, ...]
    dtype: str
    norm: float | None
    min: float | None
    mean: float | None
    max: float | None
    zeros: float
    bad: int = 0
    map: list[list[int]] = field(default_factory=list)
    top: float = 0.0
    maps: list[list[list[int]]] = field(default_factory=list)
    maps_top: float = 0.0
    values: list[float | None] = field(default_factory=list)


@dataclass
class Input:
    """One input of an op. source: the node that it came from, None for a number or a plain array, of which `text`
    tells; name: the argument's; contribution: the gradient that this op brings to the source, None where none is
    wanted; passed_on: the contribution is the very array that arrived, as on the identity route; route: "shortcut" or
    "branch" where the source is the fork of a residual block."""

    source: int | None
    name: str
    text: str = ""
    contribution: Summary | None = None
    passed_on: bool = False
    route: str = ""


@dataclass(frozen=True)
class Arrival:
    """A contribution that comes to a fork. consumer: the id of the node that brings it, in a group's fork that of the
    group; route: as in Input; norm: its own; cosine: of the angle to the sum so far, None for the first; share:
    <contribution, total> / <total, total>, and these sum to 1; sum: of what has come so far, this one included."""

    consumer: int
    route: str
    norm: float | None
    cosine: float | None
    share: float | None
    sum: Summary


@dataclass(frozen=True)
class Fork:
    """A tensor with several consumers. arrivals: in the order in which they came; residual: whether it is the fork of a
    residual block; identity_share: the share of what the shortcut brought, None where there is no shortcut."""

    arrivals: list[Arrival]
    residual: bool
    identity_share: float | None


@dataclass(frozen=True)
class Join:
    """Where routes meet. kind: "addition" (the gradient is copied to each input), "concatenation" (split) or
    "projection" (split after a convolution has projected it); fork: the node at which the routes parted, None where
    that is not one node; routes: of the inputs that take part, in their order, as (input's place, "shortcut" or
    "branch")."""

    kind: str
    fork: int | None
    routes: list[tuple[int, str]]


@dataclass(frozen=True)
class Kept:
    """An array that an op keeps for its backward rule. name: "x", "weight", "output" or, for a constant of its own,
    "constant"; source: the node it came from; bytes: of the memory it lies in; freed: this op is the last that needs
    it, so it goes when the op is done; stays: it is a parameter or an input and stays anyway."""

    name: str
    source: int | None
    shape: tuple[int, ...]
    bytes: int
    freed: bool
    stays: bool


@dataclass(frozen=True)
class Worked:
    """One element of a contribution, worked out by hand. slot: which input; element: "dx[0, 3, 1, 2]"; expression: the
    rule for this element in symbols with its indices; terms: the same in numbers, as text, one a term; more: terms that
    are left out of the list; value: what they sum to; engine: the element of the engine's contribution."""

    slot: int
    element: str
    expression: str
    terms: list[str]
    more: int
    value: float
    engine: float


@dataclass(frozen=True)
class Check:
    """A finite difference beside the analytic value. what: "rule" moves one element of one input of this op and looks
    at <g, output>, "loss" moves one element of this node's output and looks at the loss; element: which, in words;
    index; step; numeric; analytic; error: |numeric - analytic| relative to the larger; dtype: in which it was computed;
    ok."""

    what: str
    element: str
    index: tuple[int, ...]
    step: float
    numeric: float
    analytic: float
    error: float
    dtype: str
    ok: bool
    note: str = ""


@dataclass
class Node:
    """An op, or a tensor that none made.

    kind: "op", "parameter", "input" (a leaf that wants a gradient, or the network's input) or "constant"; op: "conv2d",
    "" for others; name: of a parameter its dotted one, of an op its module's and its own; module, module_type: the
    innermost module in which it ran; block: the innermost residual block; line: "net.py:12", the user's line; options:
    of the op, as text; value: of the forward pass.

    step: its place in Trace.backward, None where no gradient came; consumers: ids of the ops that use it and bring a
    gradient, in the order in which they did; gradient: the whole one; kept, held: what the op kept, and the bytes that
    the graph still holds once it is done; group: of the layer that it belongs to, None for a leaf; shapes: the rule
    with this step's shapes, a line per input; worked, checks: where asked for.
    """

    id: int
    kind: str
    op: str
    name: str
    shape: tuple[int, ...]
    dtype: str
    module: str = ""
    module_type: str = ""
    block: str = ""
    line: str = ""
    options: dict[str, str] = field(default_factory=dict)
    value: Summary | None = None
    inputs: list[Input] = field(default_factory=list)
    fused: bool = False
    step: int | None = None
    consumers: list[int] = field(default_factory=list)
    gradient: Summary | None = None
    kept: list[Kept] = field(default_factory=list)
    held: int = 0
    fork: Fork | None = None
    join: Join | None = None
    group: int | None = None
    shapes: list[str] = field(default_factory=list)
    worked: list[Worked] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)


@dataclass
class GroupInput:
    """A node outside a group that the group's ops use. contribution: all that the group brings to it, summed; uses: by
    how many of its ops; group: the one that made the source, None for a leaf; route: as in Input."""

    source: int
    group: int | None
    uses: int
    contribution: Summary | None = None
    passed_on: bool = False
    route: str = ""


@dataclass
class Group:
    """What one call of a layer did, the join and the ReLU behind it apart: a step of the block view.

    title: "conv1", "join", "relu" ...; kind: "layer", "join", "activation", "loss", "other" (a function like mean()),
    or "input" and "parameter": a leaf that is a step of its own, inputs that want a gradient and parameters that
    several layers share; type: the layer's class; lane: "shortcut" for what runs on the shortcut of a residual block,
    else "main"; nodes: ids in forward order; output: the last of them, whose value and gradient are the group's; fork:
    of the output, counted in groups; kept: bytes that its ops keep and no earlier group did.
    """

    id: int
    title: str
    kind: str
    type: str
    module: str
    block: str
    lane: str
    nodes: list[int]
    output: int
    inputs: list[GroupInput] = field(default_factory=list)
    step: int | None = None
    fork: Fork | None = None
    kept: int = 0


@dataclass(frozen=True)
class BlockSpan:
    """A call of a residual block. name: dotted; type: its class; fork: the node at which shortcut and branch part;
    join: that at which they meet, None where it was not found; groups: of the block, in forward order; shortcut: the
    class of its shortcut module."""

    name: str
    type: str
    fork: int
    join: int | None
    groups: list[int]
    shortcut: str


@dataclass(frozen=True)
class Stop:
    """Why the forward pass ended before the loss. op: which op refused; message: its words; text: the explanation, a
    paragraph a line; sides: what met what, as (how it was made, its shape); fixes: the legal ways out."""

    op: str
    message: str
    text: list[str]
    sides: list[tuple[str, tuple[int, ...]]]
    fixes: list[str]


@dataclass
class Trace:
    """A forward and a backward pass. loss: the value that was differentiated; backward: ids of nodes, block_steps: ids
    of groups, in the order in which their whole gradients were known; held: bytes that the graph holds when the forward
    pass ends, without parameters and inputs; unfused: whether fused ops ran as their parts; notes: what a reader should
    know; stopped: the forward pass ended early, and there is no backward pass."""

    title: str
    loss: float | None
    dtype: str
    kernels: str
    unfused: bool
    versions: dict[str, str]
    nodes: list[Node] = field(default_factory=list)
    groups: list[Group] = field(default_factory=list)
    blocks: list[BlockSpan] = field(default_factory=list)
    backward: list[int] = field(default_factory=list)
    block_steps: list[int] = field(default_factory=list)
    held: int = 0
    notes: list[str] = field(default_factory=list)
    stopped: Stop | None = None

    def as_dict(self) -> dict[str, Any]:
        """The JSON object, the format's name first."""
        return {"format": FORMAT} | asdict(self)
