"""One kind of mistake: how it is made, which exception comes, what its message must hold, what must be as it was.

    case = chapter("Shapes")

    @case("Shapes that do not broadcast", ValueError, "add", "(2, 3)", "(2, 4)", fix="reshape")
    def _(folder):
        x, y = leaf(2, 3), leaf(2, 4)
        return lambda: x + y, x, y

The function sets the scene in an empty folder, which is also the working directory, and returns what is done wrong,
then all that must be unchanged afterwards. The folder and what the process has in common (random state, kernel set,
environment ...) must be so in any case. For commands the exception is their exit status.
"""

import contextlib
import hashlib
import io
import os
import shlex
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import tinyres as tr
from tinyres import data, kernels, nn, optim, random

Scene = Callable[[Path], Any]


@dataclass(frozen=True)
class Case:
    """A row of the catalogue. name: the op or option at fault; values: what was got and what was expected, as the
    message has them; fix: what it offers; varies: a pattern of what another library adds in its own words."""

    title: str
    category: str
    exception: type | int
    name: str
    values: tuple[str, ...]
    fix: str
    scene: Scene
    varies: str

    def run(self, folder: Path) -> tuple[str, list[str]]:
        """Make the mistake; returns what was said, and what has changed of the things that must not."""
        with _inside(folder):
            wrong, *watched = self.scene(folder)
            watched = [folder, *watched]
            before = [*map(snapshot, watched), surroundings()]
            message = self._made(wrong)
            after = [*map(snapshot, watched), surroundings()]
        names = [*(f"{type(x).__name__} {i}" for i, x in enumerate(watched)), "surroundings"]
        return message, [name for name, a, b in zip(names, before, after, strict=True) if a != b]

    def _made(self, wrong: Callable[[], Any]) -> str:
        if isinstance(self.exception, int):
            status, out, err = wrong()
            assert (status, out) == (self.exception, ""), f"exit status {status}, stdout {out!r}, stderr {err!r}"
            assert len(err.splitlines()) == 1 and "Traceback" not in err, err
            return err.strip()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if issubclass(self.exception, Warning):
                warnings.simplefilter("error", self.exception)
            try:
                result = wrong()
            except Exception as error:
                assert type(error) is self.exception, f"{type(error).__name__}: {error}"
                return str(error)
        raise AssertionError(f"no exception, but {result!r}")


CASES: list[Case] = []


def chapter(category: str) -> Callable[..., Callable[[Scene], Scene]]:
    """The decorator that adds cases of one category to CASES."""

    def case(title: str, exception: type | int, name: str, *values: str, fix: str,
             varies: str = "") -> Callable[[Scene], Scene]:
        def add(scene: Scene) -> Scene:
            CASES.append(Case(title, category, exception, name, values, fix, scene, varies))
            return scene

        return add

    return case


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    """With the folder as working directory, and its own random numbers; temporary files go elsewhere."""
    before, state = os.getcwd(), random.get_state()
    os.chdir(folder)
    tr.manual_seed(0)
    try:
        yield
    finally:
        os.chdir(before)
        random.set_state(state)


class Command:
    """`tinyres LINE` as a script sees it: called, it returns exit status, stdout and stderr."""

    def __init__(self, line: str):
        self.line = line

    def __call__(self) -> tuple[int, str, str]:
        from tinyres.cli.main import app

        out, err, status = io.StringIO(), io.StringIO(), 0
        state, chosen = random.get_state(), kernels.current()
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                app(shlex.split(self.line), prog_name="tinyres")
        except SystemExit as end:
            status = int(end.code or 0)
        finally:  # a process of its own would not change ours
            random.set_state(state)
            kernels.use_kernels(chosen)
        return status, out.getvalue(), err.getvalue()


@contextlib.contextmanager
def without(*modules: str) -> Iterator[None]:
    """Inside, these modules are not installed."""
    kept = {name: module for name, module in sys.modules.items() if name.partition(".")[0] in modules}
    hidden = {name: None for name in (*kept, *modules)}
    sys.modules.update(hidden)  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]
        sys.modules.update(kept)


@contextlib.contextmanager
def environment(**variables: str) -> Iterator[None]:
    """Inside, these environment variables are set; an empty one is not there."""
    before = dict(os.environ)
    os.environ.update(variables)
    for name in [name for name, value in variables.items() if not value]:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


# --- what must not change ---------------------------------------------------------------------------------------------


def snapshot(x: Any) -> Any:
    """All that can be seen of a thing, in a form that == compares. Raises TypeError for what it does not know."""
    if isinstance(x, tr.Tensor):
        extra = x.requires_grad, id(x.node), x.version.count, len(x.hooks), getattr(x, "name", None)
        return snapshot(x.data), snapshot(x.grad), *extra
    if isinstance(x, np.ndarray):
        flags = x.flags.writeable, x.flags.c_contiguous, x.flags.aligned
        mask = snapshot(x.mask) if isinstance(x, np.ma.MaskedArray) else None
        return type(x), x.dtype.str, x.shape, x.strides, flags, x.tobytes(), mask
    if type(x).__module__ == "cupy":  # an array of the stand-in for CuPy
        return "cuda", snapshot(x.get(order="A"))
    if isinstance(x, nn.Module):
        tree = [(name, type(m), m.training, len(m._pre_hooks), len(m._forward_hooks), len(m._backward_hooks))
                for name, m in x.named_modules()]
        return tree, snapshot(dict(x.named_parameters())), snapshot(dict(x.named_buffers()))
    if isinstance(x, optim.Optimizer):
        groups = [{k: v for k, v in group.items() if k != "params"} for group in x.param_groups]
        return type(x), repr(groups), snapshot(x.state_dict()), [snapshot(p) for p in x.parameters()]
    if isinstance(x, optim.Schedule):
        return x.state_dict(), snapshot(x.optimizer)
    if isinstance(x, optim.ExponentialMovingAverage):
        return x.decay, x.count, snapshot(x.model)
    if isinstance(x, data.Dataset):
        return [snapshot(part) for part in (x.images, x.labels, x.mean, x.std)], x.classes, x.scale, x.name
    if isinstance(x, Path):
        return {str(path.relative_to(x)): _file(path) for path in sorted(x.rglob("*"))} if x.is_dir() else _file(x)
    if isinstance(x, Mapping):
        return [(key, snapshot(value)) for key, value in x.items()]
    if isinstance(x, (list, tuple)):
        return [snapshot(value) for value in x]
    if x is None or isinstance(x, (bool, int, float, str, bytes)):
        return type(x), repr(x)
    raise TypeError(f"there is no snapshot of a {type(x).__name__}")


def _file(path: Path) -> Any:
    if path.is_symlink():
        return "link", os.readlink(path)
    if not path.is_file():
        return "folder" if path.is_dir() else "nothing"
    return path.stat().st_mode, hashlib.sha256(path.read_bytes()).hexdigest()


def surroundings() -> Any:
    """What the whole process has in common."""
    state = tr.state.state
    switches = state.grad_enabled, state.walking, state.unfused, state.choices is None, state.debug is None
    variables = {name: value for name, value in os.environ.items() if not name.startswith("KMP_")}  # Numba sets one
    return random.get_state(), kernels.current(), switches, os.getcwd(), variables, np.geterr()


# --- things to be wrong with ------------------------------------------------------------------------------------------


def floats(*shape: int, dtype: str = "float32") -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(dtype)


def leaf(*shape: int, dtype: str = "float32") -> tr.Tensor:
    return tr.tensor(floats(*shape, dtype=dtype), requires_grad=True)


def images(count: int = 8, channels: int = 1, size: int = 8) -> data.Dataset:
    """A data set of random bytes in two classes."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (count, channels, size, size), np.uint8)
    return data.Dataset(pixels, np.arange(count) % 2, ["cat", "dog"], name="pets")
