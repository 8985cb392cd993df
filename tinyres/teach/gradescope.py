"""A lesson as a Gradescope autograder: the zip that an instructor uploads, and what runs in it there.

Gradescope unpacks the zip into /autograder/source, runs setup.sh once and run_autograder for each submission, which
lies in /autograder/submission, and shows what that wrote to /autograder/results/results.json
(https://gradescope-autograders.readthedocs.io/en/latest/specs/). Here the zip holds tinyres itself as a wheel, and the
lesson without its solutions: the answers are the submission's, and the checks are part of tinyres.

It grades; it does not guard. A submission runs with the rights of the autograder, as everywhere on Gradescope.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from tinyres.files import write_atomically
from tinyres.teach import answers, check, roster
from tinyres.teach import lesson as lessons
from tinyres.teach.lesson import Cell, Lesson
from tinyres.teach.roster import Student

SET_UP = """\
#!/usr/bin/env bash
# Gradescope runs this once, while it builds the image: tinyres, and what it needs, in an environment of its own.
set -euo pipefail
root=${AUTOGRADER_ROOT:-/autograder}
if ! python3 -c 'import ensurepip, venv' 2>/dev/null; then
    apt-get update && apt-get install -y python3 python3-venv
fi
python3 -m venv "$root/venv"
"$root/venv/bin/python" -m pip install --quiet "$root"/source/tinyres-*.whl
"$root/venv/bin/python" -c 'import tinyres.teach.gradescope'
"""
RUN = """\
#!/usr/bin/env bash
# Gradescope runs this for each submission: it reads submission/ and writes results/results.json.
set -euo pipefail
root=${AUTOGRADER_ROOT:-/autograder}
cd "$root"
exec venv/bin/python -m tinyres.teach.gradescope "$root"
"""
SEEDS = "seeds.json"
OLDEST = (1980, 1, 1, 0, 0, 0)  # the time of all files in the zip, so that the same lesson gives the same bytes


# --- the zip ----------------------------------------------------------------------------------------------------------


def write(lesson: Lesson, wheel: Path, to: Path, students: Iterable[Student] = ()) -> None:
    """Write the zip of a lesson. wheel: of tinyres; students: whose submissions are graded with their own seeds.

    Raises ValueError for a wheel that lacks this lesson's checks.
    """
    wanted = f"{lesson.checks.replace('.', '/')}.py"
    with zipfile.ZipFile(wheel) as archive:
        lacking = {wanted, "tinyres/teach/gradescope.py"} - set(archive.namelist())
    if lacking:
        raise ValueError(f"teach: the wheel {wheel} has no {min(lacking)}, so it cannot grade lesson {lesson.number}; "
                         "expected one of this release of tinyres")
    seeds = {_key(student.email): student.seed for student in students if student.email}
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data, mode in (
                ("setup.sh", SET_UP.encode(), 0o755),
                ("run_autograder", RUN.encode(), 0o755),
                (lesson.path.name, lessons.cleared(lesson.path.read_text(encoding="utf-8")).encode(), 0o644),
                (SEEDS, json.dumps(seeds, sort_keys=True).encode(), 0o644),
                (wheel.name, wheel.read_bytes(), 0o644)):
            info = zipfile.ZipInfo(name, OLDEST)
            info.external_attr, info.compress_type = mode << 16, zipfile.ZIP_DEFLATED
            archive.writestr(info, data)
    write_atomically(to, content.getvalue())


def _key(email: str) -> str:
    """By what a student is found again: Gradescope knows the address, and the zip need not hold it."""
    return hashlib.sha256(email.strip().lower().encode()).hexdigest()


def build_wheel(to: Path) -> Path:
    """Build the wheel of the checkout that this package is part of, into the folder `to`.

    It is built from a copy, so that nothing is left in the checkout. Raises FileNotFoundError if this tinyres is not
    part of a checkout, RuntimeError with pip's last line if pip fails.
    """
    root = Path(__file__).resolve().parents[2]
    if not (root / "pyproject.toml").is_file() or not (root / "kernels").is_dir():
        raise FileNotFoundError("teach: an autograder needs a wheel of tinyres, which is built from a checkout, and "
                                f"{root} is none; give the wheel that you installed by --wheel, or leave the "
                                "autograders out by --no-gradescope")
    with tempfile.TemporaryDirectory(prefix="tinyres-wheel-") as place:
        copy = Path(place) / "tinyres"
        copy.mkdir()
        for name in ("pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(root / name, copy)
        for name in ("tinyres", "kernels"):
            ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
            shutil.copytree(root / name, copy / name, symlinks=True, ignore=ignore)
        # With a setuptools that will do, no network is needed.
        isolation = [] if _setuptools() < 77 else ["--no-build-isolation"]
        done = subprocess.run([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", *isolation,
                               "--wheel-dir", str(Path(place) / "built"), str(copy)], capture_output=True, text=True)
        if done.returncode:
            words = (done.stderr.strip() or done.stdout.strip() or "no word").splitlines()[-1]
            raise RuntimeError(f"teach: pip could not build the wheel of {root}: {words}; build it by `python -m "
                               "build`, and give it by --wheel")
        (built,) = (Path(place) / "built").glob("*.whl")
        write_atomically(to / built.name, built.read_bytes())
        return to / built.name


def _setuptools() -> int:
    try:
        return int(metadata.version("setuptools").split(".")[0])
    except (metadata.PackageNotFoundError, ValueError):
        return 0


# --- what runs on Gradescope ------------------------------------------------------------------------------------------


def grade(root: Path) -> dict[str, Any]:
    """Grade the submission below `root`; what results.json says of it.

    A submission that cannot be read gives 0 points and says why. Raises what is no fault of the submission's: then
    Gradescope reports that the autograder failed, instead of giving 0 points.
    """
    (source,) = (path for path in sorted((root / "source").iterdir()) if lessons.FILE.fullmatch(path.name))
    lesson = lessons.read(source)
    try:
        path = submitted(root / "submission", lesson)
        cells = answers.read(path)
    except ValueError as error:
        return results(lesson, [(exercise.name, exercise.points, 0, "nothing to grade", None)
                                for exercise in lesson.exercises], str(error).replace(f"{root}/submission/", ""))
    report = check.grade(lesson, _seeded(root, cells))
    return results(lesson, [(verdict.exercise, verdict.points, verdict.earned, verdict.says, verdict.tag)
                            for verdict in report.verdicts],
                   "\n".join([f"{path.name}: {report.earned} of {lesson.points} points", *report.notes]))


def submitted(folder: Path, lesson: Lesson) -> Path:
    """The file to grade: the lesson's notebook or script by its name, else the only one there. Raises ValueError."""
    found = sorted(path for path in folder.rglob("*") if path.suffix in (".ipynb", ".py") and path.is_file()
                   and not any(part.startswith((".", "__")) for part in path.relative_to(folder).parts))
    named = [path for path in found if path.stem == lesson.name]
    for paths in ([path for path in named if path.suffix == ".ipynb"], named, found):
        if len(paths) == 1:
            return paths[0]
    there = ", ".join(path.relative_to(folder).as_posix() for path in found) or "no notebook and no .py file"
    raise ValueError(f"The submission holds {there}; expected {lesson.name}.ipynb: hand in that notebook alone.")


def results(lesson: Lesson, rows: Sequence[tuple[str, int, int, str, str | None]], words: str) -> dict[str, Any]:
    """results.json: a test an exercise. rows: exercise, points, of them earned, what is said, misconception or None."""
    tests = [{"name": name, "number": f"{lesson.number}.{place}", "score": earned, "max_score": points,
              "status": "passed" if earned == points else "failed", "output": says, "output_format": "text",
              "visibility": "visible", **({"tags": [tag]} if tag else {})}
             for place, (name, points, earned, says, tag) in enumerate(rows, 1)]
    return {"output": words, "output_format": "text", "tests": tests}


def _seeded(root: Path, cells: list[Cell]) -> list[Cell]:
    """The cells with the seed of the student, if the roster knew one of those who handed in."""
    about = root / "submission_metadata.json"
    users = json.loads(about.read_text(encoding="utf-8")).get("users", []) if about.is_file() else []
    seeds = json.loads((root / "source" / SEEDS).read_text(encoding="utf-8"))
    known = [seeds[key] for user in users if (key := _key(user.get("email") or "")) in seeds]
    return roster.cells_with_seed(cells, known[0]) if known else cells


def main(root: Path) -> None:
    """Grade what lies under `root`, as on Gradescope, and write results/results.json."""
    found = grade(root)
    (root / "results").mkdir(exist_ok=True)
    write_atomically(root / "results" / "results.json", json.dumps(found, indent=1).encode())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
