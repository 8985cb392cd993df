"""What an op's rule says, with names and shapes: of tinyres' ops from the table in rule_table.py, of others' from their
docstrings. One element of it in numbers is in worked.py, a finite difference to hold it against in difference.py.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from typing import Any

from tinyres.stepper.difference import check_rule as check_rule
from tinyres.stepper.difference import input_names as input_names
from tinyres.stepper.rule_table import RULES as RULES
from tinyres.stepper.rule_table import Rule as Rule
from tinyres.stepper.worked import worked as worked
from tinyres.tensor import Function

Shape = tuple[int, ...]

BROADCASTING = ("add", "sub", "mul", "div", "pow", "maximum", "minimum", "where", "add_", "sub_", "mul_", "div_")
GEOMETRY = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1}  # and what goes without saying


def rule_of(node: Function) -> Rule:
    """The rule of an op: from the table, or for one that is not tinyres' own what its docstring says. Of a docstring
    "y = x**3;  dx = 3 g x**2." the part before the semicolon is the forward pass, the rest the rule of each input."""
    if (name := own_name(node)) in RULES:
        return RULES[name]
    first = (inspect.getdoc(type(node)) if type(node).__doc__ else "") or ""
    forward, _, backward = first.partition("\n\n")[0].replace("\n", " ").partition(";")
    count = max(len(getattr(node, "edges", ())), 1)
    return Rule(forward.strip() or f"y = {node.name}(...)",
                ((backward.strip().rstrip(".") or "what its backward(grad) returns"),) * count,
                "An op that is not part of tinyres, in the words of its own docstring." if first else
                "An op that is not part of tinyres and has no docstring: read its backward(grad).")


def own_name(node: Any) -> str:
    """The op's name if it is one of tinyres, else "": a subclass that someone wrote may have another rule."""
    return node.name if type(node).__module__.startswith("tinyres.") else ""


def with_shapes(node: Function, input_shapes: Sequence[Shape | None], grad_shape: Shape) -> list[str]:
    """The rule with this step's shapes, a line for each input that wants a gradient.

    input_shapes: one per input, None for a number or a missing input; grad_shape: of the gradient that arrived, which
    is the output's. A symbol shows its shape where it first stands in a line.
    """
    rule, names = rule_of(node), input_names(node, len(input_shapes))
    shapes = dict(zip(names, input_shapes, strict=True)) | {"g": grad_shape, "g'": grad_shape, "y": grad_shape}
    lines = []
    for slot, (name, shape) in enumerate(zip(names, input_shapes, strict=True)):
        if shape is None or node.edges[slot] is None:
            continue
        text = rule.backward[min(slot, len(rule.backward) - 1)]
        if own_name(node) in RULES:
            right = _annotated(_of_this_step(node, slot, input_shapes) or text.partition(" = ")[2], shapes)
            lines.append(f"d{name} {shape} = {right}{_summed(node, shape, grad_shape)}{_geometry(node)}")
        else:
            lines.append(f"d{name} {shape} from g {grad_shape}: {text}")
    return lines


def _annotated(text: str, shapes: dict[str, Shape | None]) -> str:
    """Each symbol followed by its shape, the first time; a transposed one by the transposed shape."""
    shown: set[str] = set()

    def replace(found: re.Match) -> str:
        name, turned = found[1], found[2]
        shape = shapes[name]
        if shape is None or name in shown:
            return found[0]
        shown.add(name)
        return f"{found[0]} {(*shape[:-2], *shape[:-3:-1]) if turned else shape}"

    names = "|".join(sorted(map(re.escape, shapes), key=len, reverse=True))
    return re.sub(rf"(?<!\w)({names})(ᵀ?)(?![\w'])", replace, text)


def _summed(node: Function, shape: Shape, grad_shape: Shape) -> str:
    """What undoes the broadcasting of an operand, in words; "" where it was not broadcast."""
    name = own_name(node)
    full = grad_shape if name in BROADCASTING else (*grad_shape[:-2], *shape[-2:]) if name == "matmul" else shape
    lead = len(full) - len(shape)
    dims = [str(i) for i, n in enumerate(full) if i < lead or (shape[i - lead] == 1 and n != 1)]
    return f", summed over dim{'s' * (len(dims) > 1)} {', '.join(dims)}" if dims else ""


def _of_this_step(node: Function, slot: int, shapes: Sequence[Shape | None]) -> str:
    """The right side of the rule where the options make it plainer than the table can; else ""."""
    name, params, shape = own_name(node), node.params, shapes[slot] or ()
    if name == "concat":
        lengths = [0 if s is None else s[params["dim"]] for s in shapes]
        start = sum(lengths[:slot])
        return f"g[{':, ' * params['dim']}{start}:{start + lengths[slot]}]"
    if name == "pad":
        inside = (f"{b}:{b + n}" if m > n else ":" for b, n, m in zip(params["before"], shape, params["shape"],
                                                                      strict=True))
        return f"g[{', '.join(inside)}]"
    if name == "get_item" and (index := _index_text(params["index"])):
        return f"zeros, with g added at [{index}]"
    if name == "put" and (index := _index_text(params["index"])):
        return f"g[{index}]"
    if name == "batch_norm" and slot == 0 and not params["training"]:
        return "weight · istd · g'"
    return ""


def _index_text(index: Any) -> str:
    """An index as it is written in code; "" where arrays are in it."""
    found = []
    for part in index if isinstance(index, tuple) else (index,):
        if isinstance(part, slice):
            start, stop, step = ("" if v is None else str(v) for v in (part.start, part.stop, part.step))
            found.append(f"{start}:{stop}" + (f":{step}" if step else ""))
        elif part is Ellipsis or part is None or isinstance(part, int):
            found.append("..." if part is Ellipsis else str(part))
        else:
            return ""
    return ", ".join(found)


def _geometry(node: Function) -> str:
    """Stride, padding and their like, where they say something."""
    found = []
    for name, silent in GEOMETRY.items():
        value = getattr(node, "params", {}).get(name, silent)
        value = value[0] if isinstance(value, tuple) and len(set(value)) == 1 else value
        if value != silent:
            found.append(f"{name} {value}")
    return f"; {', '.join(found)}" if found else ""
