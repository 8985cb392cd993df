"""What the page is given of a trace: the same facts as its JSON, written small, and every sentence beside them.

Summaries stand in one list, each different one once, and are named by their place in it: the gradient that an addition
hands on, what comes to the fork and what leaves the join are one and the same. Fields that say nothing (None, "",
empty, False) are left out. The sentences are those of words.py, the questions those of questions.py: the page's script
writes none of its own about a step.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, fields, is_dataclass, replace
from typing import Any

from tinyres.stepper import words
from tinyres.stepper.questions import questions
from tinyres.stepper.rule_table import RULES
from tinyres.stepper.schema import Group, GroupInput, Input, Join, Node, Summary, Trace

MANY = 1500  # nodes from which the maps of ops inside of layers are left out

SILENT: tuple[Any, ...] = (None, "", [], {}, False)


def page_data(trace: Trace) -> dict[str, Any]:
    """The JSON object that panels.js reads: the trace's facts with `summaries`, `rules` by op, and per view the steps
    of both directions and each step's texts. Numbers that are not finite become null."""
    nodes, groups = trace.nodes, trace.groups
    if len(nodes) > MANY:
        nodes = _without_inner_maps(trace)
    packed = _Packed()
    ops = dict.fromkeys(node.op for node in trace.nodes if node.op in RULES)
    return {
        "title": words.plain(trace.title), "loss": _finite(trace.loss), "dtype": trace.dtype, "kernels": trace.kernels,
        "unfused": trace.unfused, "versions": trace.versions, "held": trace.held, "notes": trace.notes,
        "stopped": None if trace.stopped is None else asdict(trace.stopped),
        "nodes": [packed.small(node, id=node.id, shape=node.shape) for node in nodes],
        "groups": [packed.small(group, id=group.id, output=group.output, nodes=group.nodes) for group in groups],
        "views": {view: _view(trace, view) for view in words.VIEWS},
        "rules": {op: {"forward": RULES[op].forward, "backward": list(RULES[op].backward), "note": RULES[op].note}
                  for op in ops},
        "summaries": packed.summaries,
    }


def join_of(trace: Trace, view: str, id: int) -> Join | None:
    """A step's join. A layer is one only where it is nothing else: inside of a loss things are added, too."""
    if view == "ops":
        return trace.nodes[id].join
    group = trace.groups[id]
    found = (trace.nodes[n].join for n in group.nodes if trace.nodes[n].join is not None)
    return next(found, None) if group.kind == "join" else None


def _view(trace: Trace, view: str) -> dict[str, Any]:
    backward, forward = (words.steps(trace, view, direction) for direction in words.DIRECTIONS)
    asked = questions(trace, view)
    texts: dict[str, dict[str, Any]] = {}
    for id in sorted({*backward, *forward}):
        item: Group | Node = trace.groups[id] if view == "blocks" else trace.nodes[id]
        join = join_of(trace, view, id)
        text: dict[str, Any] = {
            "title": words.step_title(trace, view, id), "label": words.label(trace, view, id),
            "fork": words.fork_sentence(item.fork) if item.fork is not None else "",
            "join": words.join_sentence(join) if join is not None else "",
            "kept": words.group_kept_sentence(trace, item) if isinstance(item, Group) else words.kept_sentence(item),
        }
        if id in asked:
            text["question"] = {"ask": asked[id].ask, "choices": asked[id].choices, "answer": asked[id].answer,
                                "because": asked[id].because}
        texts[str(id)] = {name: value for name, value in text.items() if value}
    for id in backward:
        texts[str(id)] |= {"why": words.why_now(trace, view, id), "held": words.held(trace, view, id),
                           "said": words.announcement(trace, view, id)}
    for id in forward:
        texts[str(id)] |= {"why_forward": words.why_now(trace, view, id, "forward"),
                           "said_forward": words.announcement(trace, view, id, "forward")}
    return {"backward": backward, "forward": forward, "steps": texts}


class _Packed:
    """Dataclasses as small dicts; their summaries go to a list of their own."""

    def __init__(self) -> None:
        self.summaries: list[list[Any]] = []
        self.places: dict[str, int] = {}

    def small(self, item: Any, **always: Any) -> Any:
        """A value as JSON can hold it; of a dataclass the fields that say something, and those in `always`."""
        if isinstance(item, Summary):
            return self._place(item)
        if is_dataclass(item):
            found = {f.name: self.small(value) for f in fields(item) if (value := getattr(item, f.name)) not in SILENT
                     or (value == 0 and value is not False)}
            if isinstance(item, (Input, GroupInput)) and isinstance(item.source, int):
                found["source"] = item.source
            return found | always
        if isinstance(item, (list, tuple)):
            return [self.small(part) for part in item]
        return _finite(item)

    def _place(self, summary: Summary) -> int:
        sizes = map(_finite, (summary.norm, summary.min, summary.mean, summary.max))
        row: list[Any] = [list(summary.shape), summary.dtype, *sizes, summary.zeros, summary.bad, _digits(summary.map),
                          summary.top, [_digits(m) for m in summary.maps], summary.maps_top,
                          [_finite(x) for x in summary.values]]
        while len(row) > 7 and row[-1] in ([], 0):  # bad and what follows; panels.js knows what is left out
            row.pop()
        key = json.dumps(row)
        if key not in self.places:
            self.places[key] = len(self.summaries)
            self.summaries.append(row)
        return self.places[key]


def _digits(rows: list[list[int]]) -> list[Any]:
    """A map as [columns, digits], two hexadecimal digits an element, whose -99 to 99 become 0 to 198."""
    return [len(rows[0]), "".join(f"{x + 99:02x}" for row in rows for x in row)] if rows and rows[0] else []


def _finite(x: Any) -> Any:
    return None if isinstance(x, float) and not math.isfinite(x) else x


def _without_inner_maps(trace: Trace) -> list[Node]:
    """The nodes, with maps only where a layer ends and at forks and joins."""
    seen = {group.output for group in trace.groups}

    def bare(summary: Summary | None) -> Summary | None:
        if summary is None or summary.values:
            return summary
        return replace(summary, map=[], top=0.0, maps=[], maps_top=0.0)

    return [node if node.id in seen or node.fork or node.join else replace(
        node, value=bare(node.value), gradient=bare(node.gradient),
        inputs=[replace(i, contribution=bare(i.contribution)) for i in node.inputs]) for node in trace.nodes]
