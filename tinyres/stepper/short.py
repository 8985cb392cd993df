"""Short texts of numbers, shares, bytes, shapes and lists, for sentences and tables of the stepper."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

LISTED = 4  # names or norms in one sentence, the rest are counted
COUNTS = {2: "two", 3: "three", 4: "four", 5: "five", 6: "six"}


def number(x: float | None) -> str:
    """A number in at most ten signs: 4 digits, whole numbers whole; None, a number that is not there, is "-"."""
    if x is None:
        return "-"
    if not math.isfinite(x):
        return str(x)
    if x == int(x) and abs(x) < 1e6:
        return str(int(x))
    if 1e-3 <= abs(x) < 999.95:
        return f"{x:.4g}"
    if 999.95 <= abs(x) < 999999.5:
        return f"{x:.0f}"
    mantissa, exponent = f"{x:.3e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


def percent(share: float | None) -> str:
    """A share as a percentage with one digit behind the point; "-" where it is not defined."""
    if share is None:
        return "-"
    if abs(share) >= 1000:
        return f"{number(100 * share)} %"
    text = f"{100 * share:.1f}"
    return f"{'0.0' if text == '-0.0' else text} %"


def size(count: int) -> str:
    """Bytes as people read them: "1 byte", "640 bytes", "12.5 KiB", "3.2 MiB"."""
    if count < 1024:
        return "1 byte" if count == 1 else f"{count} bytes"
    value, units = count / 1024, ["KiB", "MiB", "GiB", "TiB"]
    while value >= 1023.95 and len(units) > 1:
        value, units = value / 1024, units[1:]
    return f"{value:.1f} {units[0]}"


def shape(sizes: Sequence[int]) -> str:
    """A shape as in the code, "(2, 16, 8, 8)"; of a single number "one number"."""
    return str(tuple(sizes)) if sizes else "one number"


def several(names: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and c", and of more than `LISTED` the first and how many others."""
    if len(names) > LISTED:
        return f"{', '.join(names[:LISTED - 1])} and {len(names) - LISTED + 1} others"
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def counted(many: int, thing: str) -> str:
    """ "one input", "two inputs", "12 inputs"."""
    return f"one {thing}" if many == 1 else f"{COUNTS.get(many, many)} {thing}s"


def plain(name: str) -> str:
    """A name on one line: line breaks and control characters of a user's name are shown by their escapes."""
    return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in name)


def described(value: Any) -> str:
    """A number, option or plain array in a few characters."""
    if hasattr(value, "strides"):
        return f"{value.dtype} {tuple(value.shape)}" if value.ndim else f"{value:g}"
    if isinstance(value, (tuple, list)):
        inside = ", ".join(described(v) for v in value)
        return f"({inside})" if len(inside) <= 60 else f"{len(value)} values"
    if isinstance(value, slice):
        ends = ("" if v is None else str(v) for v in (value.start, value.stop, value.step))
        return ":".join(ends).rstrip(":") or ":"
    text = f"{value:g}" if isinstance(value, float) else getattr(value, "__name__", None) or str(value)
    return text if len(text) <= 60 else text[:57] + "..."
