"""Imports only go down: kernels < engine < ops < nn < models < data, optim, train, weights < analysis, stepper < cli,
teach. The imports are read from the source, those inside functions too. And `import tinyres` costs NumPy and Numba."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# From the ground up; a module is named by the first part below tinyres. A new one gets its place here.
FLOORS = [
    {"kernels"},
    {"files", "npy", "torch_file", "torch_pickle", "interrupt", "run_log", "random", "errors", "state", "graph",
     "operands", "tensor", "autograd", "debug"},
    {"ops"},
    {"nn"},
    {"models"},
    {"data", "optim", "optimizer", "schedules", "train", "finite", "checkpoint", "ema", "weights",
     "keras_names", "onnx"},
    {"analysis", "stepper"},
    {"cli", "teach", "__init__", "__main__"},  # the package itself is on top: only these may `import tinyres as tr`
]
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}
GROUND = {"numpy", "numba", "llvmlite"}  # what a module may import when it is itself imported
COMMAND_LINE = {"typer", "rich", "click"}  # and the command line besides
LATER = ("cupy cupyx typer rich click tqdm pooch safetensors matplotlib threadpoolctl onnx onnxruntime torch scipy "
         "pandas").split()


def modules() -> dict[str, Path]:
    """Dotted name -> file, of everything in tinyres/ and kernels/; the symlink tinyres/kernels is not followed."""
    found = {}
    for folder, package in (("tinyres", "tinyres"), ("kernels", "tinyres.kernels")):
        for path in sorted((ROOT / folder).rglob("*.py")):
            below = path.relative_to(ROOT / folder).with_suffix("").parts
            if folder == "tinyres" and below[0] == "kernels":
                continue
            found[".".join((package, *below)).removesuffix(".__init__")] = path
    return found


MODULES = modules()


def imports(name: str, path: Path, tree: ast.AST) -> Iterator[tuple[str, int]]:
    """(dotted name, line) of what is imported; `from package import x` is package.x where that is a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
                kept = package[: len(package) - node.level + 1]
                base = ".".join([*kept, base] if base else kept)
            for alias in node.names:
                full = f"{base}.{alias.name}"
                yield (full if full in MODULES else base), node.lineno


def part(name: str) -> str:
    """The part of tinyres that a dotted name belongs to; "__init__" for the package itself and the names in it."""
    pieces = name.split(".")
    return pieces[1] if len(pieces) > 1 else "__init__"


def without_functions(tree: ast.AST) -> Iterator[ast.AST]:
    """The nodes that run when the module is imported."""
    for node in ast.iter_child_nodes(tree):
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            yield node
            yield from without_functions(node)


def violations(name: str, path: Path, source: str) -> list[str]:
    """What is wrong with a module's imports, a line each."""
    tree = ast.parse(source)
    own = part(name)
    wrong = []
    for target, line in imports(name, path, tree):
        place = f"{path.name}:{line}: {name} imports {target}"
        if target == "kernels" or target.startswith("kernels."):
            wrong.append(f"{place}; import it as tinyres.kernels")
        elif target.split(".")[0] != "tinyres":
            continue
        elif part(target) not in FLOOR:
            wrong.append(f"{place}, which has no floor in tests/test_floors.py")
        elif FLOOR[part(target)] > FLOOR[own]:
            wrong.append(f"{place}, which is on a floor above")
    allowed = {"tinyres", "kernels"} | GROUND | set(sys.stdlib_module_names)
    if own in ("cli", "__main__"):
        allowed |= COMMAND_LINE
    top = ast.Module([node for node in without_functions(tree) if isinstance(node, (ast.Import, ast.ImportFrom))], [])
    for target, line in imports(name, path, top):
        if target.split(".")[0] not in allowed:
            wrong.append(f"{path.name}:{line}: {name} imports {target} when it is imported; do so in the function")
    return wrong


@pytest.mark.parametrize("name", MODULES)
def test_imports_only_go_down(name):
    assert part(name) in FLOOR, f"{name} has no floor: give {part(name)!r} one in tests/test_floors.py"
    assert violations(name, MODULES[name], MODULES[name].read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "name, source, message",
    [
        ("tinyres.kernels.pool", "def f():\n    from tinyres import tensor", "on a floor above"),
        ("tinyres.kernels.pool", "from ..ops import conv", "on a floor above"),
        ("tinyres.ops.conv", "import kernels.layout", "import it as tinyres.kernels"),
        ("tinyres.ops.conv", "import tinyres as tr", "on a floor above"),
        ("tinyres.data.cifar", "from tinyres import Module", "on a floor above"),
        ("tinyres.data.cifar", "from tinyres.helpers import x", "no floor"),
        ("tinyres.data.cifar", "try:\n    import pooch\nexcept ImportError:\n    pass", "when it is imported"),
        ("tinyres.cli.main", "import cupy", "when it is imported"),
    ],
)
def test_violations_are_found(name, source, message):
    assert any(message in line for line in violations(name, Path("made_up.py"), source))


def test_what_is_allowed_is_not_reported():
    source = "import numpy as np\nfrom tinyres import kernels\ndef f():\n    import pooch\n    from tinyres import nn"
    assert violations("tinyres.data.cifar", Path("made_up.py"), source) == []
    assert violations("tinyres.cli.main", Path("made_up.py"), "import typer\nimport tinyres as tr") == []


def test_importing_loads_only_numpy_and_numba():
    below = [name for name in MODULES if part(name) not in ("cli", "teach", "__main__")]
    assert "tinyres" in below and "tinyres.data.cifar" in below
    code = (f"import sys, numba; own = set(sys.modules); "  # numba loads SciPy if that is there
            f"import {', '.join(below)}; print(*[name for name in {LATER} if name in set(sys.modules) - own])")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.split()) == (0, []), done.stderr


def test_no_module_hides_an_op():
    """Importing tinyres.x later sets the attribute x of the package: an op of that name would be gone from then on."""
    below = [name for name in MODULES if part(name) not in ("cli", "teach", "__main__")]
    code = ("import tinyres as tr\nbefore = {name: getattr(tr, name) for name in [*tr.ops.__all__, 'debug', 'grad']}\n"
            f"import {', '.join(below)}\nprint(*[name for name in before if getattr(tr, name) is not before[name]])")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.split()) == (0, []), done.stderr
