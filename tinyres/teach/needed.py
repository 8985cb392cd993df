"""Which cells a check needs: so that checking an answer does not run a whole lesson.

A cell binds names and uses names. Going up from the checks, a cell is needed if it binds a name that a needed cell
below it uses, or changes what such a name stands for: by storing into it, or by a call for its effect, as
`tr.use_kernels("reference")`. It may keep a cell too many, never one too few, unless names are made by exec().
"""

from __future__ import annotations

import ast
import symtable
from collections.abc import Iterator, Sequence

ALWAYS = {"SEED"}  # the checks read it, see tinyres.teach.seed


def needed(sources: Sequence[str], targets: set[int]) -> list[int]:
    """The places of the cells of code that those at `targets` need, and these themselves, in order."""
    kept, wanted = [], set(ALWAYS)
    for place in range(len(sources) - 1, -1, -1):
        if place in targets or binds(sources[place]) & wanted:
            kept.append(place)
            wanted |= uses(sources[place])
    return kept[::-1]


def binds(source: str) -> set[str]:
    """The names that a cell makes or changes; none if it is not Python."""
    tree = _parsed(source)
    if tree is None:
        return set()
    table = symtable.symtable(source, "cell", "exec")
    own = {symbol.get_name() for symbol in table.get_symbols() if symbol.is_assigned() or symbol.is_imported()}
    return own | {name for node in _run_at_once(tree) for name in _changed(node)}


def uses(source: str) -> set[str]:
    """The names that a cell takes from the cells before it, and some of its own."""
    if _parsed(source) is None:
        return set()

    def free(table: symtable.SymbolTable) -> Iterator[str]:
        top = table.get_type() == "module"
        yield from (symbol.get_name() for symbol in table.get_symbols()
                    if symbol.is_referenced() and (top or symbol.is_global()))
        for inner in table.get_children():
            yield from free(inner)

    return set(free(symtable.symtable(source, "cell", "exec")))


def _parsed(source: str) -> ast.Module | None:
    try:
        tree = ast.parse(source)
        compile(source, "cell", "exec", dont_inherit=True)  # finds what the grammar alone does not, `return` outside
        return tree
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _run_at_once(tree: ast.AST) -> Iterator[ast.AST]:
    """The nodes outside of functions."""
    for node in ast.iter_child_nodes(tree):
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            yield node
            yield from _run_at_once(node)


def _changed(node: ast.AST) -> Iterator[str]:
    """The names whose things a statement changes: `a.b = c`, `a[b] += c`, `del a[b]`, and the statement `a.b(c)`."""
    if isinstance(node, (ast.Attribute, ast.Subscript)) and isinstance(node.ctx, (ast.Store, ast.Del)):
        yield from _root(node)
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        yield from _root(node.value.func)


def _root(node: ast.AST) -> Iterator[str]:
    while isinstance(node, (ast.Attribute, ast.Subscript)):
        node = node.value
        if isinstance(node, ast.Name):
            yield node.id
