"""The wheel holds every module, the data and nothing else, and works where there is no checkout."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TEXTS = {".py", ".cu", ".cuh", ".h", ".cpp"}
DATA = {"tinyres/py.typed", "tinyres/analysis/reference_numbers.json", "tinyres/data/digits.npz",
        "tinyres/data/LICENSE-digits.txt", "tinyres/stepper/trace.schema.json",
        *(f"tinyres/stepper/page/{name}" for name in ("page.html", "page.css", "page.js", "panels.js", "pictures.js"))}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy, so that no build folder is left in the checkout and none from the past is found there."""
    source, target = tmp_path_factory.mktemp("source") / "tinyres", tmp_path_factory.mktemp("wheel")
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("tinyres", "kernels"):
        ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignore)
    offline = ["--no-build-isolation", "--no-deps", "--no-index"]
    command = [sys.executable, "-m", "pip", "wheel", *offline, "--wheel-dir", target, source]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = target.glob("*.whl")
    return built


def sources() -> set[str]:
    """The modules and the texts in C++ as the wheel should name them: kernels/ is tinyres/kernels/."""
    found = {path.relative_to(ROOT).as_posix() for path in (ROOT / "tinyres").rglob("*.py")}
    found = {name for name in found if not name.startswith("tinyres/kernels/")}
    below = [path for path in (ROOT / "kernels").rglob("*") if path.suffix in TEXTS]
    texts = {f"tinyres/{path.relative_to(ROOT).as_posix()}" for path in below}
    return found | {name for name in texts if "/__pycache__/" not in name}


def version() -> str:
    source = (ROOT / "tinyres" / "__init__.py").read_text(encoding="utf-8")
    (found,) = re.findall(r'^__version__ = "(.+)"$', source, flags=re.M)
    return found


def test_the_wheel_holds_every_module_and_nothing_else(wheel):
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    expected = sources() | DATA
    forgotten, unwanted = sorted(expected - names), sorted(names - expected)
    assert not forgotten, f"not in the wheel, add their packages to pyproject.toml: {forgotten}"
    assert not unwanted, f"in the wheel, but not part of the package: {unwanted}"
    assert {"tinyres/kernels/__init__.py", "tinyres/cli/main.py", "tinyres/data/__init__.py"} <= names
    assert {"tinyres/kernels/cuda/im2col.cu", "tinyres/kernels/cuda/emulator/cuda_host.h"} <= names
    assert any(name.endswith(".cuh") for name in names)


def test_the_wheel_installs_under_one_name_only(wheel):
    tops = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert tops == {"tinyres", f"tinyres-{version()}.dist-info"}  # `kernels` on top belongs to another project


def test_the_wheels_metadata(wheel):
    archive = zipfile.ZipFile(wheel)
    info = f"tinyres-{version()}.dist-info"
    metadata = message_from_bytes(archive.read(f"{info}/METADATA"))
    assert metadata["Requires-Python"] == ">=3.10" and metadata["Version"] == version()
    required = {re.split(r"[>=<~ ;]", line)[0] for line in metadata.get_all("Requires-Dist") if "extra ==" not in line}
    assert required == {
        "numpy", "numba", "threadpoolctl", "safetensors", "tqdm", "pooch", "requests", "urllib3", "typer", "rich",
        "matplotlib",
    }  # fmt: skip
    extras = {"cuda12", "cuda13", "kernelcheck", "gpu-lesson", "onnx", "tensorboard", "browser", "docs",
              "teach", "dev"}
    assert set(metadata.get_all("Provides-Extra")) == extras
    assert "torch" not in " ".join(metadata.get_all("Requires-Dist"))
    assert "tinyres = tinyres.cli.main:app" in archive.read(f"{info}/entry_points.txt").decode()
    licences = [archive.read(name).decode() for name in archive.namelist() if f"{info}/licenses/" in name]
    assert any("MIT License" in text for text in licences) and any("CC BY 4.0" in text for text in licences)


def test_the_unpacked_wheel_works_away_from_the_checkout(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = (
        "import tinyres, tinyres.kernels\n"
        "from tinyres import data\n"
        "from tinyres.kernels.cuda import launch, manifest\n"
        "assert all((launch.FOLDER / kernel.file).is_file() for kernel in manifest.KERNELS)\n"
        "print(tinyres.__file__, tinyres.kernels.__file__, data.digits('test').batch(8)[0].shape, sep='\\n')"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    package, kernels, shape = done.stdout.splitlines()
    assert Path(package) == tmp_path / "site" / "tinyres" / "__init__.py"
    assert Path(kernels) == tmp_path / "site" / "tinyres" / "kernels" / "__init__.py"
    assert shape == "(8, 1, 8, 8)"
