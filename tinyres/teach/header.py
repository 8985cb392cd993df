"""The header of a lesson: commented YAML, of which only what a lesson's header holds is read, without a library.

    # ---
    # jupyter:
    #   ...
    # tinyres:
    #   lesson: 1
    #   title: Forks and order
    #   minutes: 60            # a comment
    #   seconds: 5
    #   needs: []
    #   objectives: [add up the gradients of a fork, "sort a graph, by its consumers"]
    # ---
"""

from __future__ import annotations

import re
from typing import Any

JUPYTER = """\
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
"""
KEYS: dict[str, type] = {"lesson": int, "title": str, "minutes": int, "seconds": int, "needs": list,
                         "objectives": list}
MARK = "# ---\n"
ITEM = re.compile(r"""\s*("(?:[^"\\]|\\.)*"|'(?:[^']|'')*'|[^,\]\["'\s][^,\]\[]*?)\s*(,|$)""")


def split(text: str, where: str) -> tuple[str, str]:
    """The header's lines between its marks, and the rest of the file. Raises ValueError if there is no header."""
    if not text.startswith(MARK) or MARK not in text[len(MARK):]:
        raise ValueError(f"{where} is no lesson: it has no header; expected commented YAML from {MARK.strip()!r} to "
                         f"{MARK.strip()!r} at its top")
    header, rest = text[len(MARK):].split(MARK, 1)
    return header, rest


def read(header: str, where: str) -> dict[str, Any]:
    """What stands under `tinyres:`, with its kinds checked. Raises ValueError that names the key and what it holds."""
    before, found, own = header.partition("# tinyres:\n")
    if not found or before != JUPYTER:
        raise ValueError(f"{where}: the header must begin with exactly\n{JUPYTER}# tinyres:\nand begins with\n{before}")
    values = {key: _value(key, raw, where) for key, raw in _entries(own, where)}
    if list(values) != list(KEYS):
        raise ValueError(f"{where}: the header has {', '.join(values)} under tinyres; expected exactly "
                         f"{', '.join(KEYS)}")
    return values


def _entries(own: str, where: str) -> list[tuple[str, str]]:
    """(key, value) of each entry; a list may go on over several lines, or have an item a line behind a dash."""
    entries: list[tuple[str, str]] = []
    for line in own.splitlines():
        begins = re.fullmatch(r"#   (\w+):(?: +(.*))?", line)
        goes_on = re.fullmatch(r"#    ?[ -] *(.*)", line)
        if begins:
            entries.append((begins[1], _without_comment(begins[2] or "")))
        elif goes_on and entries:
            key, value = entries[-1]
            dash = re.match(r"#  +- +(.*)", line)
            item = _without_comment(dash[1] if dash else goes_on[1])
            entries[-1] = key, f"{value}\n- {item}" if dash else f"{value} {item}"
        else:
            raise ValueError(f"{where}: the header's line {line!r} is not understood; expected \"#   key: value\" "
                             "under tinyres")
    return entries


def _without_comment(text: str) -> str:
    return re.sub(r"""^((?:"(?:[^"\\]|\\.)*"|'[^']*'|[^"'])*?)(?:^|\s)#\s.*$""", r"\1", text).strip()


def _value(key: str, raw: str, where: str) -> Any:
    kind = KEYS.get(key)
    try:
        if kind is int:
            return int(raw)
        if kind is list:
            items = [_scalar(item) for item in _items(raw)]
            return [int(item) for item in items] if key == "needs" else items
        return _scalar(raw)
    except ValueError:
        words = {int: "a whole number", list: "whole numbers in brackets" if key == "needs" else "texts in brackets"}
        expected = words.get(kind or str, "a text")
        raise ValueError(f"{where}: the header's {key} is {raw!r}, expected {expected}") from None


def _items(raw: str) -> list[str]:
    if raw.startswith("\n- "):
        return raw.removeprefix("\n- ").split("\n- ")
    if not (raw.startswith("[") and raw.endswith("]")):
        raise ValueError(raw)
    rest, items = raw[1:-1].strip(), []
    while rest:
        item = ITEM.match(rest)
        if item is None:
            raise ValueError(raw)
        items.append(item[1])
        rest = rest[item.end():]
    return items


def _scalar(raw: str) -> str:
    """A YAML scalar as text: quoted by either kind of quotes, or plain."""
    if raw[:1] == raw[-1:] == '"' and len(raw) > 1:
        return re.sub(r"\\(.)", r"\1", raw[1:-1])
    if raw[:1] == raw[-1:] == "'" and len(raw) > 1:
        return raw[1:-1].replace("''", "'")
    if not raw or raw[0] in "[]{}&*!|>%@`\"'#" or re.search(r":(\s|$)", raw):
        raise ValueError(raw)
    return raw
