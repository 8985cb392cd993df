"""Text for a terminal: lines of a known width, in box characters or ASCII, that mean the same without colour."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from tinyres.stepper.schema import Summary
from tinyres.stepper.short import number, plain

Part = tuple[str, str]  # a text and its style in rich's words, "" for none
Line = list[Part]

STRONG, WEAK, PLUS, MINUS = "bold", "dim", "bright_blue", "yellow"  # the two colours can be told apart with any sight
SHADES, ASCII_SHADES = "░▒▓█", ".:*#"  # from weak to strong
BELOW, ASCII_BELOW = "-=", "-="  # one sign a cell: weakly and strongly negative
IN_ASCII = {"─": "-", "│": "|", **dict.fromkeys("┌┐└┘├┤┼┴┬", "+"),
            "·": "*", "×": "x", "²": "^2", "³": "^3",
            "⊙": "*", "∘": "o", "Σ": "sum ", "∑": "sum ", "√": "sqrt", "∂": "d", "≤": "<=", "≥": ">=", "≠": "!=",
            "≈": "~", "→": "->", "←": "<-", "−": "-", "–": "-", "ᵀ": ".T", "⁻": "^-", "∈": " in ", "∞": "inf",
            "⟨": "<", "⟩": ">", "‖": "|", "μ": "mu", "σ": "sigma", "ε": "eps", "γ": "gamma", "β": "beta",
            "λ": "lambda", "α": "alpha", "δ": "delta", "█": "#", "▓": "*", "▒": ":", "░": ".", "…": "..."}


def fits(text: str, encoding: str) -> bool:
    """Whether an encoding has all signs of a text."""
    try:
        text.encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def cells(text: str) -> int:
    """How many places of a terminal a text takes: a Chinese sign takes two."""
    from rich.cells import cell_len

    return cell_len(text)


@dataclass(frozen=True)
class Paper:
    """What is written on. width: in places; encoding: whose signs can be shown, the others are written in ASCII."""

    width: int = 80
    encoding: str = "utf-8"

    @property
    def ascii(self) -> bool:
        """Whether there are no box and shade characters."""
        return not fits("─│┐┘┤┼┴┬░▒▓█·", self.encoding)

    def text(self, text: str) -> str:
        """A text on one line, with signs that can be shown."""
        text = plain(text)
        if text.isascii() or fits(text, self.encoding):
            return text
        parts = (sign if fits(sign, self.encoding) else IN_ASCII.get(sign) or unicodedata.normalize("NFKD", sign)
                 for sign in text)
        return "".join(sign if fits(sign, self.encoding) else "?" for part in parts for sign in part
                       if not unicodedata.combining(sign))

    def wrap(self, text: str, first: str = "", indent: int = 0) -> list[str]:
        """A text in lines: `first` before the first line, `indent` spaces before the others; words are not broken
        unless one alone is too long."""
        lines, line, empty = [], self.text(first), True
        for word in self.text(text).split():
            if not empty and cells(line) + 1 + cells(word) > self.width:
                lines.append(line)
                line, empty = " " * indent, True
            line += word if empty else f" {word}"
            empty = False
            while cells(line) > self.width:
                cut = max(i for i in range(1, len(line)) if i <= max(indent, 0) + 1 or cells(line[:i]) <= self.width)
                lines.append(line[:cut])
                line = " " * indent + line[cut:]
        return [*lines, line.rstrip()]

    def item(self, name: str, text: str, style: str = "") -> list[Line]:
        """A heading of up to nine signs and a text beside it, wrapped."""
        head = f"{name:<9} "
        first, *others = self.wrap(text, head, len(head))
        return [[(first[:len(head)], STRONG), (first[len(head):], style)], *([(line, style)] for line in others)]

    def shades(self) -> str:
        """Four signs from weak to strong."""
        return ASCII_SHADES if self.ascii else SHADES

    def bar(self, share: float, width: int) -> str:
        """A bar for a share of the whole width; anything above zero is at least one sign long."""
        long = min(width, max(round(share * width), int(share > 0)))
        return ("#" if self.ascii else "█") * long

    def heat(self, values: Sequence[Sequence[int]]) -> list[Line]:
        """Whole numbers from -99 to 99 as cells of two signs: "+" or "-", and how strong; zero is a dot."""
        rows: list[Line] = []
        for row in values:
            line: Line = []
            for value in row:
                shade = self.shades()[min(3, abs(value) * 4 // 100)]
                line.append((f"+{shade}", PLUS) if value > 0 else (f"-{shade}", MINUS) if value < 0 else
                            (self.text(" ·") if not self.ascii else " 0", WEAK))
            rows.append(line)
        return rows

    def picture(self, values: Sequence[Sequence[int]]) -> list[Line]:
        """The same in one sign a cell: shades are positive, "-" and "=" negative, a dot is zero."""
        rows: list[Line] = []
        for row in values:
            rows.append([(self.shades()[min(3, v * 4 // 100)], PLUS) if v > 0 else
                         (BELOW[min(1, -v * 2 // 100)], MINUS) if v < 0 else ("0" if self.ascii else "·", WEAK)
                         for v in row])
        return rows

    def beside(self, pictures: Sequence[list[Line]], gap: int = 2) -> list[Line]:
        """Pictures next to each other, as many as the width takes; the rest are left out."""
        taken: list[list[Line]] = []
        used = 0
        for picture in pictures:
            wide = max((width(line) for line in picture), default=0)
            if taken and used + gap + wide > self.width:
                break
            used += (gap if taken else 0) + wide
            taken.append([[*line, (" " * (wide - width(line)), "")] for line in picture] or [[]])
        rows: list[Line] = []
        for i in range(max((len(picture) for picture in taken), default=0)):
            row: Line = []
            for j, picture in enumerate(taken):
                blank = [(" " * max((width(line) for line in picture), default=0), "")]
                row += ([(" " * gap, "")] if j else []) + (picture[i] if i < len(picture) else blank)
            rows.append(row)
        return rows

    def numbers(self, summary: Summary, indent: int = 0) -> list[Line]:
        """All elements of a small array as rows of its last dimension, dimensions of size 1 left out; where more than
        two are left, a line "[0, 1, :, :]" before each matrix. Nothing where the summary does not list them, or a row
        is wider than the paper."""
        values, sizes = summary.values, summary.shape
        kept = [d for d, n in enumerate(sizes) if n != 1][-2:] or [len(sizes) - 1]
        wide = sizes[kept[-1]] if sizes else 1
        texts = ["nan" if v is None else number(v) for v in values]
        column = max(map(len, texts), default=0)
        if not values or indent + wide * (column + 2) > self.width:
            return []
        high = sizes[kept[0]] if len(kept) > 1 else 1
        lines: list[Line] = []
        for r in range(len(values) // wide):
            if wide * high < len(values) and r % high == 0:
                place = [":" if d in kept else str(i) for d, i in enumerate(_place(r * wide, sizes))]
                lines.append([(f"{'':{indent}}[{', '.join(place)}]", WEAK)])
            row = texts[r * wide:(r + 1) * wide]
            lines.append([(" " * indent + "".join(f"{text:>{column + 2}}" for text in row), "")])
        return lines


def _place(number: int, sizes: Sequence[int]) -> list[int]:
    """The index of the number-th element of an array of these sizes."""
    index: list[int] = []
    for n in reversed(sizes):
        index.insert(0, number % n)
        number //= n
    return index


def shortened(text: str, places: int) -> str:
    """A text in at most so many places, ".." for the end that was cut off."""
    if cells(text) <= places:
        return text
    while text and cells(text) > places - 2:
        text = text[:-1]
    return text + ".."


def width(line: Line) -> int:
    """How many places a line takes."""
    return sum(cells(text) for text, _ in line)


def unstyled(line: Line) -> str:
    """A line as plain text."""
    return "".join(text for text, _ in line).rstrip()
