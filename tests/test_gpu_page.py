"""The session with gdb on the page about the GPU: what is typed there gives what stands there."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from emulated import NEEDS_EMULATOR

from tinyres.kernels.cuda import compile_check
from tinyres.kernels.cuda.manifest import ARCHITECTURES

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "tutorials" / "gpu.md").read_text(encoding="utf-8")


@NEEDS_EMULATOR
def test_the_session_with_gdb(tmp_path):
    if shutil.which("gdb") is None:
        pytest.skip("gdb is not there, so the session was not tried: apt-get install gdb")
    (script,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.S | re.M)
    (session,) = re.findall(r"^```\n\$ gdb (.*?)^```$", PAGE, re.S | re.M)
    (tmp_path / "stop.py").write_text(script)
    commands = re.findall(r"^\(gdb\) (.*)$", session, re.M)
    answers = re.findall(r"^\$\d+ = .*$", session, re.M)
    line = ["gdb", "-q", "-batch", *[word for command in commands for word in ("-ex", command)], "--args",
            sys.executable, "stop.py"]
    done = subprocess.run(line, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True,
                          text=True, timeout=120)
    if re.search("ptrace|not permitted", done.stdout + done.stderr):
        pytest.skip("gdb may not watch a process here, so the session was not tried")
    assert len(answers) == 4
    assert re.findall(r"^\$\d+ = .*$", done.stdout, re.M) == answers, done.stdout + done.stderr


def test_what_the_page_says_of_the_compile_check():
    assert compile_check.INSTALL.replace("'", '"') in PAGE
    architectures = re.search(r"compiles all for (.*?), and holds", PAGE)[1]
    assert re.findall(r"sm_(\d+)", architectures) == list(ARCHITECTURES)
