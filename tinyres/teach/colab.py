"""The first cell of a notebook: the seed of its checks and, on Colab, the installation of tinyres.

On Colab a notebook finds a machine without tinyres, with a GPU or without one. The cell asks nvidia-smi which CUDA the
driver is for and installs tinyres with the extra that brings the CuPy for it; a CuPy that is there already decides
first, as two of them break each other. Anywhere else it sets SEED and does nothing.
"""

from __future__ import annotations

import json
import re
from typing import Any

from tinyres.teach import roster

Notebook = Any  # nbformat's NotebookNode, a dict

INSTALL = "tinyres"
REQUIREMENT = re.compile(r"tinyres\s*(@\s*[^\s;]+|(?:[=<>!~]=?[^;\[\]@]+)?)")
CELL_ID = "tinyres-set-up"

CELL = '''\
# Set-up. On Colab it installs tinyres, with CuPy if there is a GPU; elsewhere it installs nothing.
SEED = 0  # of the random inputs that your answers are checked with

import sys

if "google.colab" in sys.modules:
    import importlib.metadata
    import re
    import shutil
    import subprocess

    smi = shutil.which("nvidia-smi")
    driver = subprocess.run([smi], capture_output=True, text=True).stdout if smi else ""
    cuda = int((re.findall(r"CUDA (?:\\w+ )?Version: *(\\d+)", driver) or [0])[0])
    there = [d.metadata["Name"] for d in importlib.metadata.distributions()]
    here = [n for n in (12, 13) if f"cupy-cuda{n}x" in there]  # two of them break each other
    extra = f"[cuda{here[0] if here else min(cuda, 13)}]" if cuda >= 12 else ""
    wanted = "tinyres" + extra + @VERSION@
    numpy = importlib.metadata.version("numpy")
    print("installing", wanted, flush=True)
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", wanted], check=True)
    importlib.invalidate_caches()
    if "numpy" in sys.modules and importlib.metadata.version("numpy") != numpy:
        print("NumPy was replaced while in use: choose Runtime > Restart session, then run this cell again")'''


def first_cell(install: str = INSTALL, seed: int = 0) -> str:
    """The cell's text. install: what pip is given on Colab, to which the cell adds the extra that fits.

    Raises ValueError for an `install` that is not `tinyres`, `tinyres==VERSION` or `tinyres @ ADDRESS`.
    """
    found = REQUIREMENT.fullmatch(install.strip())
    if found is None:
        raise ValueError(f"teach: cannot install {install!r} on Colab; expected tinyres, tinyres==0.1.0 or tinyres @ "
                         "git+https://..., without extras: the cell adds the one that fits the GPU")
    version = f" {found[1]}" if found[1].startswith("@") else found[1]
    return roster.with_seed(CELL.replace("@VERSION@", json.dumps(version)), seed)


def with_first_cell(notebook: Notebook, install: str = INSTALL, seed: int = 0) -> Notebook:
    """A copy of the notebook that begins with this cell, in place of one that it had. It is not nbgrader's."""
    import nbformat

    copy = nbformat.from_dict(json.loads(json.dumps(notebook)))
    cell = nbformat.v4.new_code_cell(first_cell(install, seed), id=CELL_ID)
    copy.cells = [cell, *(old for old in copy.cells if old.get("id") != CELL_ID)]
    return copy
