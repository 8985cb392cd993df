"""The sentences of a recording, which terminal and page share: what a step is, why now, what comes, joins and stays.

Each is a function of the trace alone and returns plain text in ASCII, but for names that are the user's own. `view` is
"blocks", where an id is a group's, or "ops", where it is a node's. Steps are counted from 1, as people do.
"""

from __future__ import annotations

from tinyres.stepper.schema import BRANCH, SHORTCUT, Arrival, Fork, Group, Join, Kept, Node, Summary, Trace
from tinyres.stepper.short import LISTED, counted, several
from tinyres.stepper.short import number as number  # for those who take all their words from here
from tinyres.stepper.short import percent as percent
from tinyres.stepper.short import plain as plain
from tinyres.stepper.short import shape as shape
from tinyres.stepper.short import size as size

VIEWS = ("blocks", "ops")
DIRECTIONS = ("backward", "forward")


# --- steps -----------------------------------------------------------------------------------------------------------


def steps(trace: Trace, view: str, direction: str = "backward") -> list[int]:
    """The ids of a view in the order in which one walks through them: that of the backward pass, or of the forward
    pass, where the op view has no leaves. Raises ValueError for a view or a direction that there is not."""
    _check("view", view, VIEWS)
    _check("direction", direction, DIRECTIONS)
    if direction == "backward":
        return list(trace.block_steps if view == "blocks" else trace.backward)
    return [group.id for group in trace.groups] if view == "blocks" else [n.id for n in trace.nodes if n.kind == "op"]


def _check(option: str, got: str, known: tuple[str, ...]) -> None:
    if got not in known:
        raise ValueError(f"step: {option} must be {' or '.join(map(repr, known))}, got {got!r}")


def node_of(trace: Trace, view: str, id: int) -> Node:
    """The node whose value and gradient a step shows: itself, or a group's output."""
    return trace.nodes[trace.groups[id].output if view == "blocks" else id]


def label(trace: Trace, view: str, id: int, near: str = "") -> str:
    """What a step is called in a sentence: "conv1 of stages.0.0", "the join of stages.0.0", "the loss", "add".

    near: the block that the sentence is about, whose name is not said again.
    """
    if view == "ops":
        return _node_label(trace.nodes[id], near)
    group = trace.groups[id]
    name = plain(group.title)
    if group.kind in ("join", "loss") and name == group.kind:
        name = f"the {name}"
    return f"{name} of {plain(group.block)}" if group.block and group.block != near else name


def _node_label(node: Node, near: str) -> str:
    name = plain(node.name or node.op)
    if node.kind != "op":
        return name if name == node.kind else f"{node.kind} {name}".rstrip()
    if name == f"{node.module} {node.op}" and node.module.split(".")[-1] == node.op:  # relu in a module named relu
        name = node.module
    return name[len(near) + 1:] if near and name.startswith(f"{near}.") else name


def step_title(trace: Trace, view: str, id: int) -> str:
    """The heading of a step: "conv1 (Conv2d) of stages.0.0", "the join of stages.0.0", "parameter fc.weight"."""
    if view == "ops":
        return _node_label(trace.nodes[id], "")
    group = trace.groups[id]
    kind = f" ({plain(group.type)})" if group.type and group.type.lower() != group.title.lower() else ""
    where = f" of {plain(group.block)}" if group.block else ""
    return label(trace, view, id, group.block) + kind + where


def block_of(trace: Trace, view: str, id: int) -> str:
    """The residual block that a step belongs to, "" for none."""
    return trace.groups[id].block if view == "blocks" else trace.nodes[id].block


def consumers(trace: Trace, view: str, id: int) -> list[int]:
    """Who uses a step's value and brings it a gradient, each once, in the order in which they did."""
    if view == "ops":
        return list(dict.fromkeys(trace.nodes[id].consumers))
    if (fork := trace.groups[id].fork) is not None:
        return list(dict.fromkeys(arrival.consumer for arrival in fork.arrivals))
    using = [group for group in trace.groups if any(i.group == id and i.contribution for i in group.inputs)]
    return [group.id for group in sorted(using, key=lambda group: (group.step is None, group.step))]


def step_of(trace: Trace, view: str, id: int) -> int | None:
    """A step's place in the backward pass, from 1; None where no gradient came."""
    step = (trace.groups[id] if view == "blocks" else trace.nodes[id]).step
    return None if step is None else step + 1


def named_step(trace: Trace, view: str, id: int, near: str = "") -> str:
    """A step's label and place: "the join (step 3)"."""
    place = step_of(trace, view, id)
    return label(trace, view, id, near) + ("" if place is None else f" (step {place})")


def why_now(trace: Trace, view: str, id: int, direction: str = "backward") -> str:
    """Why a step's turn has come: "both consumers are done: the join (step 3) and conv1 (step 9)"."""
    near = block_of(trace, view, id)
    if direction == "forward":
        return _why_forward(trace, view, id, near)
    using = consumers(trace, view, id)
    names = several([named_step(trace, view, consumer, near) for consumer in using])
    if not using:
        return ("it is the loss: the backward pass begins here, with the gradient 1" if step_of(trace, view, id) == 1
                else "nothing that leads to the loss uses it")
    if len(using) == 1:
        times = _times(trace, view, id)
        twice = "" if times == 1 else ", which uses it twice" if times == 2 else f", which uses it {times} times"
        return f"its only consumer is done: {names}{twice}"
    return f"{'both' if len(using) == 2 else f'all {len(using)}'} consumers are done: {names}"


def _times(trace: Trace, view: str, id: int) -> int:
    """How often the one consumer uses a step's value."""
    consumer = consumers(trace, view, id)[0]
    if view == "blocks":
        return max((i.uses for i in trace.groups[consumer].inputs if i.group == id), default=1)
    return sum(i.source == id for i in trace.nodes[consumer].inputs) or 1


def _why_forward(trace: Trace, view: str, id: int, near: str) -> str:
    if view == "blocks":
        sources = [_node_label(trace.nodes[i.source], near) if i.group is None else label(trace, view, i.group, near)
                   for i in trace.groups[id].inputs]
    else:
        sources = [label(trace, view, i.source, near) if i.source is not None else plain(f"{i.name} {i.text}").strip()
                   for i in trace.nodes[id].inputs]
    sources = list(dict.fromkeys(sources))
    if not sources:
        return "it needs nothing that was computed before"
    return f"{'its input is' if len(sources) == 1 else 'its inputs are'} there: {several(sources)}"


# --- what comes, joins and stays -------------------------------------------------------------------------------------


def summary_line(summary: Summary | None) -> str:
    """An array in a line: "(2, 16, 8, 8), norm 1.25, from -0.31 to 0.42, mean 0.001, 52.0 % zeros"."""
    if summary is None:
        return "none"
    if not summary.shape and summary.norm is not None:
        return f"one number, {number(summary.mean)}"
    parts = [shape(summary.shape)]
    if summary.norm is not None:
        parts += [f"norm {number(summary.norm)}", f"from {number(summary.min)} to {number(summary.max)}",
                  f"mean {number(summary.mean)}"]
    if summary.zeros > 0:
        parts.append(f"{percent(summary.zeros)} zeros")
    if summary.bad:
        parts.append(f"{summary.bad} NaN or Inf")
    return ", ".join(parts)


def arrival_line(trace: Trace, view: str, arrival: Arrival, near: str = "") -> str:
    """What one consumer brings to a fork: "shortcut, from the join (step 3): norm 0.5, cosine to the sum so far 0.3,
    share 71.2 %; the sum has norm 0.7"."""
    who = named_step(trace, view, arrival.consumer, near)
    parts = [f"norm {number(arrival.norm)}"]
    if arrival.cosine is not None:
        parts.append(f"cosine to the sum so far {number(arrival.cosine)}")
    if arrival.share is not None:
        parts.append(f"share {percent(arrival.share)}")
    route = f"{arrival.route}, from {who}" if arrival.route else who
    return f"{route}: {', '.join(parts)}; the sum has norm {number(arrival.sum.norm)}"


def fork_sentence(fork: Fork) -> str:
    """What is added at a fork, and how much of it the shortcut carries."""
    arrivals = fork.arrivals
    if len(arrivals) < 2:
        return f"One contribution came, of norm {number(arrivals[0].norm)}." if arrivals else "No contribution came."
    text = f"{counted(len(arrivals), 'contribution').capitalize()} are added"
    if len(arrivals) <= LISTED:
        norms = [number(a.norm) + (f" ({a.route})" if a.route else "") for a in arrivals]
        text += f", of norms {several(norms)}"
    text += f"; the sum has norm {number(arrivals[-1].sum.norm)}."
    share = fork.identity_share
    if arrivals[-1].sum.norm == 0:
        return f"{text} They cancel, so that no share is defined."
    if share is None:
        return text
    if share < 0:
        return f"{text} The share of the shortcut is {percent(share)}: it works against the sum."
    if share > 1:
        return f"{text} The share of the shortcut is {percent(share)}: the branch works against the sum."
    return f"{text} The shortcut carries {percent(share)} of it."


def join_sentence(join: Join) -> str:
    """What a join does with the gradient that arrives."""
    routes = [route for _, route in join.routes if route]
    both = "shortcut and branch" if SHORTCUT in routes and BRANCH in routes else "the inputs"
    if join.kind == "addition":
        return f"An addition: the gradient that arrives is copied, {both} get the same one."
    if join.kind == "concatenation":
        return f"A concatenation: the gradient that arrives is split, {both} get a part each."
    if join.kind == "projection":
        return ("A concatenation with a convolution behind it: the convolution has projected the gradient back, now it "
                f"is split, {both} get a part each.")
    return f"A join ({plain(join.kind)}): {both} get what its rule makes of the gradient."


def kept_sentence(node: Node) -> str:
    """Which arrays an op's rule needs of the forward pass, and which go now."""
    if node.kind != "op":
        return "A leaf keeps nothing: its gradient stays, for the optimizer or for you."
    if not node.kept:
        return f"The rule of {plain(node.op)} needs no array of the forward pass: nothing is kept, nothing is freed."
    sentences = [f"The rule needs {several([_kept(kept) for kept in node.kept])}."]
    freed = [kept for kept in node.kept if kept.freed]
    if freed:
        bytes = size(sum(kept.bytes for kept in freed))
        sentences.append(f"Now {several([kept.name for kept in freed])} can go: {bytes} are freed.")
    waits = [kept.name for kept in node.kept if not kept.freed and not kept.stays]
    if waits:
        sentences.append(f"An earlier op still needs {several(waits)}.")
    stays = [kept.name for kept in node.kept if kept.stays]
    if stays:
        what = "is a parameter or an input and stays" if len(stays) == 1 else "are parameters or inputs and stay"
        sentences.append(f"Of these {several(stays)} {what} anyway.")
    return " ".join(sentences)


def _kept(kept: Kept) -> str:
    return f"{kept.name} {shape(kept.shape)} of {size(kept.bytes)}"


def group_kept_sentence(trace: Trace, group: Group) -> str:
    """The same of a layer as a whole: what its ops keep that no earlier layer did, and what its step frees."""
    text = f"Its ops keep {size(group.kept)} that no earlier layer kept." if group.kept else "It keeps nothing new."
    freed = freed_now(trace, "blocks", group.id)
    return f"{text} Now {size(freed)} are freed." if freed else f"{text} Nothing is freed now."


def freed_now(trace: Trace, view: str, id: int) -> int:
    """The bytes that go when a step is done."""
    nodes = trace.groups[id].nodes if view == "blocks" else [id]
    return sum(kept.bytes for n in nodes for kept in trace.nodes[n].kept if kept.freed)


def held(trace: Trace, view: str, id: int) -> tuple[int, int]:
    """The bytes that the graph holds before and after a step of the backward pass."""
    if view == "blocks":
        visited = [trace.nodes[n] for n in trace.groups[id].nodes if trace.nodes[n].step is not None]
    else:
        visited = [trace.nodes[id]] if trace.nodes[id].step is not None else []
    if not visited:
        return trace.held, trace.held
    last = max(visited, key=lambda node: node.step or 0)
    return last.held + freed_now(trace, view, id), last.held


def sentence(text: str) -> str:
    """With a capital at its beginning and a full stop at its end."""
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")


def announcement(trace: Trace, view: str, id: int, direction: str = "backward") -> str:
    """A step in one sentence, for a screen reader."""
    order = steps(trace, view, direction)
    place = f"Step {order.index(id) + 1} of {len(order)}: {step_title(trace, view, id)}"
    node = node_of(trace, view, id)
    if direction == "forward":
        return f"{place}, value {summary_line(node.value)}."
    fork = trace.groups[id].fork if view == "blocks" else node.fork
    share = "" if fork is None or fork.identity_share is None else f", shortcut {percent(fork.identity_share)}"
    added = "" if fork is None else f", a fork of {counted(len(fork.arrivals), 'contribution')}{share}"
    return f"{place}, gradient {summary_line(node.gradient)}{added}."
