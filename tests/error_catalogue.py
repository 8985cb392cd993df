"""The error catalogue: what was done wrong, which exception comes, and what it says; as tutorials/errors.md.

    python tests/error_catalogue.py            print the page
    python tests/error_catalogue.py --write    write it

The cases stand in error_cases_*.py; error_case.py says how one is made. Every message of the page is what the library
said when the page was made, but for what differs between machines: FOLDER stands for a path, HASH for a digest.
"""

import argparse
import importlib
import re
import sys
import tempfile
from itertools import groupby
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "tutorials" / "errors.md"
CHAPTERS = ("arrays", "layers", "graph", "models", "training", "data", "files", "machine", "device", "inside",
            "stepper", "teach", "commands")
LONGEST = 420  # characters of a message in the page; a state dict that does not fit may name a hundred arrays

for path in (ROOT, ROOT / "tests"):  # as a script it finds neither the package nor its neighbours
    if str(path) not in sys.path:
        sys.path.insert(0, str(path))

from error_case import CASES, Case  # noqa: E402

for chapter in CHAPTERS:
    importlib.import_module(f"error_cases_{chapter}")

TOP = """# What tinyres says when something is wrong

An error names the op or the option, says what it got and what it expected, and offers a way out. Nothing is half done
by then: arrays, tensors, models, optimizers, random numbers and files are as they were before. This page lists
{count} kinds of mistakes. Search it for the message you got; it is made by running every one of them
(`python tests/error_catalogue.py --write`), and `tests/test_error_catalogue.py` checks each. FOLDER stands for a path,
HASH for a digest. Of a command's error the exception is its exit status: 2 if an option is wrong, 1 if the run failed.
"""


def page() -> str:
    """The page, from making every mistake once."""
    parts = [TOP.format(count=len(CASES))]
    with tempfile.TemporaryDirectory() as base:
        for category, cases in groupby(CASES, lambda case: case.category):
            rows = [_row(case, Path(base).resolve() / f"{CASES.index(case)}") for case in cases]
            parts.append("\n".join([f"## {category}\n", "| What happened | Exception | What tinyres says |",
                                    "| --- | --- | --- |", *rows, ""]))
    return "\n".join(parts)


def _row(case: Case, folder: Path) -> str:
    folder.mkdir()
    message, changed = case.run(folder)
    assert not changed, f"{case.title}: {changed} changed"
    exception = f"exit status {case.exception}" if isinstance(case.exception, int) else f"`{case.exception.__name__}`"
    title = re.sub(r"([*_<\[`])", r"\\\1", case.title)
    return f"| {title} | {exception} | {_code(tidy(case, message, folder))} |"


def tidy(case: Case, message: str, folder: Path) -> str:
    """The message without what differs between machines."""
    message = message.replace(f"{folder}-", "FOLDER-").replace(str(folder), "FOLDER")
    message = re.sub(r"\(called at [^()]*\)", "(called at FILE:LINE)", message)
    message = re.sub(r"\b[0-9a-f]{12,}\b", "HASH", message)
    if case.varies:
        message = re.sub(case.varies, "(...)", message)
    message = re.sub(r"\s*\n\s*", " / ", message)
    if len(message) <= LONGEST:
        return message
    head, tail = message[: LONGEST - 150].rsplit(" ", 1)[0], message[-150:].split(" ", 1)[1]
    return f"{head} ... {tail}"


def _code(text: str) -> str:
    """Text as code in a cell of a table."""
    fence = "``" if "`" in text else "`"
    pad = " " if fence == "``" or text.startswith(" ") else ""
    return f"{fence}{pad}{text}{pad}{fence}".replace("|", "\\|")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.relative_to(ROOT)} instead of printing it")
    text = page()
    if parser.parse_args().write:
        PAGE.parent.mkdir(exist_ok=True)
        PAGE.write_text(text, encoding="utf-8")
    else:
        sys.stdout.write(text)


if __name__ == "__main__":
    main()
