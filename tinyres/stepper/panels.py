"""What a step shows in a terminal: a list of lines, the same for a tty, a pipe and a test.

On a colourless or ASCII-only terminal the lines say the same: signs are written, not only coloured, routes have names.
"""

from __future__ import annotations

from collections.abc import Iterator

from tinyres.stepper import words
from tinyres.stepper.lines import MINUS, PLUS, STRONG, WEAK, Line, Paper, cells, shortened
from tinyres.stepper.rules import RULES
from tinyres.stepper.schema import Check, Fork, Node, Stop, Summary, Trace, Worked
from tinyres.stepper.short import counted, number, percent, plain, several, shape, size

BAR = 20  # places of a full bar
FEW = 16  # elements up to which an array is shown number by number beside its summary


def step(paper: Paper, trace: Trace, view: str, id: int, direction: str = "backward", pictures: bool = True,
         checks: list[Check] | None = None) -> list[Line]:
    """Everything about a step, below its title. pictures: heat maps and feature maps too; checks: finite differences
    that were just made, shown first, in place of the recorded ones."""
    node = words.node_of(trace, view, id)
    lines = paper.item("why now", words.why_now(trace, view, id, direction))
    for done in checks or []:
        lines += checked(paper, done)
    if direction == "forward":
        lines += _value(paper, node, pictures) + _rule(paper, trace, view, id, forward=True)
        lines += _source(paper, node)
        return lines
    fork = trace.groups[id].fork if view == "blocks" else node.fork
    if fork is not None:
        lines += _fork(paper, trace, view, id, fork)
    lines += _gradient(paper, trace, view, id, node, pictures)
    if node.join is not None:
        lines += paper.item("join", words.join_sentence(node.join))
    lines += _rule(paper, trace, view, id, forward=False)
    if view == "ops" or len(trace.groups[id].nodes) == 1:
        for worked in node.worked:
            lines += _worked(paper, worked)
        for done in [] if checks else node.checks:
            lines += checked(paper, done)
    lines += _memory(paper, trace, view, id, node)
    return lines + _source(paper, node)


def hidden(paper: Paper, trace: Trace, view: str, id: int) -> list[Line]:
    """What may be seen of a step before its question is answered: why it comes now, and what was computed forward."""
    node = words.node_of(trace, view, id)
    lines = paper.item("why now", words.why_now(trace, view, id))
    lines += paper.item("value", words.summary_line(node.value) if node.value else shape(node.shape))
    if view == "ops" and node.op in RULES:
        lines += paper.item("forward", RULES[node.op].forward)
    return lines


def stopped(paper: Paper, stop: Stop) -> list[Line]:
    """Why the forward pass ended early: what met what, and the ways out."""
    lines: list[Line] = [[(text, STRONG)] for text in paper.wrap(f"The forward pass stopped at {stop.op}.")]
    lines += paper.item("message", stop.message)
    for made, sizes in stop.sides:
        lines += paper.item("met", f"{shape(sizes)}, {made}")
    for text in stop.text:
        lines += [[(line, "")] for line in paper.wrap(text)]
    for place, fix in enumerate(stop.fixes, 1):
        lines += [[(line, "")] for line in paper.wrap(fix, f"{f'fix {place}':<9} ", 10)]
    return lines


def _fork(paper: Paper, trace: Trace, view: str, id: int, fork: Fork) -> list[Line]:
    """The running sum: 0, what each consumer adds, the total, each with a bar for its norm."""
    near = words.block_of(trace, view, id)
    lines = paper.item("fork", words.fork_sentence(fork))
    norms = [x for a in fork.arrivals for x in (a.norm, a.sum.norm) if x is not None]
    top = max(norms, default=0.0)
    lines.append([(f"{'':10}0", WEAK)])
    for arrival in fork.arrivals:
        who = words.named_step(trace, view, arrival.consumer, near)
        title = f"+ {arrival.route}, from {who}" if arrival.route else f"+ {who}"
        lines += [[(line, STRONG)] for line in paper.wrap(title, " " * 10, 12)]
        facts = [f"norm {number(arrival.norm)}"]
        facts += [f"cosine {number(arrival.cosine)}"] if arrival.cosine is not None else []
        facts += [f"share {percent(arrival.share)}"] if arrival.share is not None else []
        style = PLUS if (arrival.share or 0) >= 0 else MINUS
        lines += _barred(paper, _share(arrival.norm, top), ", ".join(facts), style)
        if arrival is not fork.arrivals[-1]:
            lines += _sum_so_far(paper, arrival.sum, first=arrival is fork.arrivals[0])
    lines.append([(f"{'':10}= the sum", STRONG)])
    total = fork.arrivals[-1].sum if fork.arrivals else None
    lines += _barred(paper, _share(None if total is None else total.norm, top),
                     f"norm {number(None if total is None else total.norm)}", "")
    return lines


def _sum_so_far(paper: Paper, total: Summary, first: bool) -> list[Line]:
    """The running sum, element by element where there are few; of the first contribution that alone is new."""
    few = paper.numbers(total, 14) if 1 < len(total.values) <= FEW else []
    if first and not few:
        return []
    return [[(f"{'':12}the sum so far has norm {number(total.norm)}{':' if few else ''}", WEAK)], *few]


def _share(norm: float | None, top: float) -> float:
    return 0.0 if norm is None or not top else norm / top


def _barred(paper: Paper, share: float, text: str, style: str) -> list[Line]:
    """A bar and the numbers behind it, or below it on narrow paper."""
    head, bar = " " * 12, paper.bar(share, BAR)
    if paper.width < 70:
        return [[(head, ""), (bar, style)], *([(line, "")] for line in paper.wrap(text, head, 12))]
    return [[(head, ""), (f"{bar:<{BAR}} ", style), (paper.text(text), "")]]


def _gradient(paper: Paper, trace: Trace, view: str, id: int, node: Node, pictures: bool) -> list[Line]:
    """What arrived, and what the step brings to each input."""
    lines = paper.item("gradient", words.summary_line(node.gradient))
    shown = [] if node.gradient is None else [("gradient", node.gradient)]
    brought = list(_brought(trace, view, id))
    for name, contribution, passed_on in brought:
        same = ", the very array that arrived" if passed_on else ""
        lines += paper.item("brings", f"to {name}: {words.summary_line(contribution)}{same}")
        if not passed_on:
            shown.append((f"to {name}", contribution))
    for name, summary in shown:
        few = 1 < len(summary.values) <= FEW and paper.numbers(summary, 12)
        if few:
            lines += [[(line, WEAK)] for line in paper.wrap(f"{name}, element by element:", " " * 10, 12)] + few
    heats = [(name, s) for name, s in shown if s.map and not 0 < len(s.values) <= FEW]
    if pictures and heats:
        drawn = [paper.heat(summary.map) for _, summary in heats]
        row = paper.beside([_headed(paper, name, heat) for (name, _), heat in zip(heats, drawn, strict=True)])
        lines += [[(line, WEAK)] for line in paper.wrap("heat maps: + and - are the signs, the shade is the size")]
        lines += row
    return lines


def _brought(trace: Trace, view: str, id: int) -> Iterator[tuple[str, Summary, bool]]:
    """(to what, contribution, whether it is the very array that arrived), for each input that wants a gradient."""
    near = words.block_of(trace, view, id)
    if view == "blocks":
        for entry in trace.groups[id].inputs:
            if entry.contribution is not None:
                name = words.label(trace, "ops", entry.source, near) if entry.group is None else \
                    words.label(trace, "blocks", entry.group, near)
                uses = f" (by {entry.uses} of its ops)" if entry.uses > 1 else ""
                yield _routed(name, entry.route) + uses, entry.contribution, entry.passed_on
    else:
        for slot in trace.nodes[id].inputs:
            if slot.contribution is not None and slot.source is not None:
                name = words.label(trace, "ops", slot.source, near)
                yield _routed(f"{slot.name} = {name}", slot.route), slot.contribution, slot.passed_on


def _routed(name: str, route: str) -> str:
    return f"{name}, by the {route}" if route else name


def _headed(paper: Paper, name: str, heat: list[Line]) -> list[Line]:
    wide = max([16, *(cells("".join(text for text, _ in line)) for line in heat)])
    return [[(shortened(paper.text(name), wide), WEAK)], *heat]


def _value(paper: Paper, node: Node, pictures: bool) -> list[Line]:
    """The forward pass's value: its numbers, a small array's elements, the feature maps of images."""
    if node.value is None:
        return paper.item("value", f"{shape(node.shape)}, not recorded")
    lines = paper.item("value", words.summary_line(node.value))
    if 1 < len(node.value.values) <= FEW:
        lines += paper.numbers(node.value, 12)
    elif pictures and node.value.maps:
        maps = [[[(f"channel {place}", WEAK)], *paper.picture(rows)] for place, rows in enumerate(node.value.maps)]
        signs = {v < 0 for rows in node.value.maps for row in rows for v in row}
        text = "feature maps of the first image, shades are positive" + (", - and = negative" if True in signs else "")
        lines += [[(line, WEAK)] for line in paper.wrap(text)]
        lines += paper.beside(maps)
    elif pictures and node.value.map:
        lines += paper.heat(node.value.map)
    return lines


def _rule(paper: Paper, trace: Trace, view: str, id: int, forward: bool) -> list[Line]:
    """The rule in symbols and with the shapes; of a layer of several ops, their names."""
    node = words.node_of(trace, view, id)
    if view == "blocks" and len(trace.groups[id].nodes) > 1:
        ops = [plain(trace.nodes[n].op) for n in trace.groups[id].nodes if trace.nodes[n].kind == "op"]
        if len(ops) > 1:
            listed = ", ".join(ops) if len(ops) <= 20 else several(ops)
            return paper.item("ops", f"{counted(len(ops), 'op')}, forward: {listed}. The op view (v) goes through them "
                                     "one by one.")
    if node.kind != "op":
        return []
    lines: list[Line] = []
    options = ", ".join(f"{name}={value}" for name, value in node.options.items())
    if options:
        lines += paper.item("options", options)
    rule = RULES.get(node.op)
    if rule is None:
        return lines + paper.item("rule", f"{plain(node.op)} has no rule in the table: see its docstring")
    lines += paper.item("forward", rule.forward)
    if forward:
        return lines
    for place, text in enumerate(rule.backward):
        lines += paper.item("backward" if place == 0 else "", text)
    for place, text in enumerate(node.shapes):
        lines += paper.item("shapes" if place == 0 else "", text)
    return lines + paper.item("because", rule.note)


def _worked(paper: Paper, worked: Worked) -> list[Line]:
    """One element by hand."""
    lines = paper.item("by hand", f"{worked.element} = {worked.expression}")
    more = f" + {worked.more} more" if worked.more else ""
    terms = " + ".join(worked.terms)
    lines += paper.item("", f"= {terms}{more}") if terms else []
    return lines + paper.item("", f"= {number(worked.value)}; the engine has {number(worked.engine)}")


def checked(paper: Paper, check: Check) -> list[Line]:
    """A finite difference beside the analytic value."""
    verdict = "they agree" if check.ok else "THEY DO NOT AGREE"
    lines = paper.item("check", f"{check.element}, moved by {number(check.step)} in {check.dtype}: finite difference "
                                f"{number(check.numeric)}, the engine {number(check.analytic)}, relative error "
                                f"{number(check.error)}: {verdict}", "" if check.ok else STRONG)
    return lines + (paper.item("", check.note) if check.note else [])


def _memory(paper: Paper, trace: Trace, view: str, id: int, node: Node) -> list[Line]:
    """What was kept, what goes now, what the graph still holds."""
    text = words.group_kept_sentence(trace, trace.groups[id]) if view == "blocks" else words.kept_sentence(node)
    before, after = words.held(trace, view, id)
    return paper.item("kept", f"{text} The graph held {size(before)}, now {size(after)}.")


def _source(paper: Paper, node: Node) -> list[Line]:
    """Where in the user's file the op was called."""
    return paper.item("line", node.line) if node.line else []
