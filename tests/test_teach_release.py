"""A course as nbgrader, Gradescope and Colab take it: released, handed in full and empty, graded."""

import hashlib
import importlib
import json
import os
import shutil
import subprocess
import sys
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tinyres.teach import colab, gradescope, pages, release, roster
from tinyres.teach import lesson as lessons

LESSON = lessons.one_of(lessons.all_in(lessons.folder()), 1)
FILE, NAME = f"{LESSON.name}.ipynb", release.assignment(LESSON)
ROSTER = ("id,first_name,last_name,email,section\n"
          "ada,Ada,Lovelace,ada@example.org,1\n"
          "zhu.shijie,世杰,朱,Zhu@example.org,2\n")
SOLUTIONS = {cell.grade_id: cell.source for cell in LESSON.solved().cells if cell.is_solution}
# Lines of the solutions that stand nowhere else in the lesson.
SECRETS = ({line for cell in LESSON.cells for line in lessons.solutions(cell.source) if len(line) > 12}
           - {line.strip() for cell in LESSON.student().cells for line in cell.source.splitlines()})


def answered(notebook, answers):
    """A notebook with these answers, by the exercise's name."""
    notebook = json.loads(json.dumps(notebook))
    for cell in notebook["cells"]:
        name = cell["metadata"].get("nbgrader", {}).get("grade_id")
        cell["source"] = answers.get(name, cell["source"])
    return notebook


def text_of(notebook):
    return "\n".join("".join(cell["source"]) for cell in notebook["cells"])


def unsolved():
    """The student's notebook as JSON, made without the extra `teach`."""
    cells = [{"cell_type": cell.kind, "source": cell.source, "metadata": dict(cell.metadata),
              **({"outputs": [], "execution_count": None} if cell.kind == "code" else {})}
             for cell in LESSON.student().cells]
    return {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 4}


# --- the roster -------------------------------------------------------------------------------------------------------


def write_roster(tmp_path, text):
    path = tmp_path / "roster.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_a_roster_is_read_as_spreadsheets_write_it(tmp_path):
    expected = [roster.Student("ada", "Ada", "Lovelace", "ada@example.org"),
                roster.Student("zhu.shijie", "世杰", "朱", "Zhu@example.org")]
    for text in (ROSTER, "\ufeff" + ROSTER.replace(",", ";").replace("\n", "\r\n"), ROSTER + "\n,,,,\n"):
        assert roster.read(write_roster(tmp_path, text)) == expected
    (quoted,) = roster.read(write_roster(tmp_path, 'last_name, ID\n"O, Brien",7\n'))
    assert quoted == roster.Student("7", "", "O, Brien")


@pytest.mark.parametrize("text, words", [
    (b"id\n\xe4\n", ["not text in UTF-8", "save it as CSV in UTF-8"]),
    ("name,email\nada,a@b\n", ["'name,email'", "`id` among them once"]),
    ("", ["''", "`id` among them once"]),
    ("id,id\n1,2\n", ["'id,id'", "once"]),
    ("id\n", ["names no student", "a line for each"]),
    ("id,email\nada,a@b\n,c@d\n", ["line 3", "the id is ''", "expected letters"]),
    ("id\n../ada\n", ["line 2", "'../ada'", "a folder is named by it"]),
    ("id\n.\n", ["line 2", "'.'", "a folder is named by it"]),
    ("id\nada\nbob\nAda\n", ["line 4", "'Ada'", "in line 2 already", "an id of their own"]),
    ("id,last_name\nada,Lovelace, Countess\n", ["line 2", "3 columns", "expected the 2", "in quotes"]),
])
def test_a_roster_that_will_not_do_says_where_and_why(tmp_path, text, words):
    with pytest.raises(ValueError) as error:
        roster.read(write_roster(tmp_path, text))
    assert str(error.value).startswith("teach: the ") and "roster.csv" in str(error.value)
    assert not [word for word in words if word not in str(error.value)], error.value


def test_a_seed_is_a_hash_of_the_id_alone():
    assert roster.seed("ada") == int(hashlib.sha256(b"ada").hexdigest()[:8], 16) == 4260250381
    seeds = {roster.seed(f"student{i}") for i in range(2000)}
    assert len(seeds) == 2000 and min(seeds) < 2**24 and max(seeds) > 2**32 - 2**24
    np.random.default_rng([max(seeds), 1])


def test_a_seed_is_set_wherever_a_cell_sets_it_and_nowhere_else():
    assert roster.with_seed("SEED = 0  # of the inputs\nx = SEED", 5) == "SEED = 5  # of the inputs\nx = SEED"
    untouched = "if SEED == 3:\n    SEED = 1\nMY_SEED = 2\nSEED == 4\nseed = 0"
    assert roster.with_seed(untouched, 5) == untouched
    cell = lessons.Cell
    cells = [cell("markdown", "SEED = 1"), cell("code", "SEED=0"), cell("code", "SEED = 7 # mine")]
    assert [c.source for c in roster.cells_with_seed(cells, 5)] == ["SEED = 1", "SEED = 5", "SEED = 5 # mine"]
    assert [c.source for c in roster.cells_with_seed(cells[:1], 5)] == ["SEED = 5", "SEED = 1"]


# --- Colab ------------------------------------------------------------------------------------------------------------


def run_cell(monkeypatch, source, smi=None, there=(), new_numpy="2.2.0"):
    """Run the first cell as on Colab; what it gave to pip. smi: what nvidia-smi prints, None if there is none."""
    calls, numpy_version = [], ["2.0.2"]

    def run(command, **options):
        calls.append(command)
        if "pip" in command:
            numpy_version[0] = new_numpy
        return types.SimpleNamespace(stdout=smi)

    monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}" if smi else None)
    monkeypatch.setattr(importlib.metadata, "distributions",
                        lambda: [types.SimpleNamespace(metadata={"Name": name}) for name in there])
    monkeypatch.setattr(importlib.metadata, "version", lambda name: numpy_version[0])
    variables = {}
    exec(source, variables)
    installed = [command for command in calls if "pip" in command]
    assert [command[:5] for command in installed] == [[sys.executable, "-m", "pip", "install", "-q"]]
    assert variables["SEED"] == 0
    return installed[0][5]


@pytest.mark.parametrize("smi, there, extra", [
    (None, [], ""),
    ("| NVIDIA-SMI 470.82.01  Driver Version: 470.82.01  CUDA Version: 11.4 |", [], ""),
    ("| NVIDIA-SMI 550.54.15  Driver Version: 550.54.15  CUDA Version: 12.4     |", [], "[cuda12]"),
    ("| NVIDIA-SMI 580.82.07  Driver Version: 580.82.07  CUDA Version: 13.0     |", [], "[cuda13]"),
    ("| NVIDIA-SMI 580.82.07  Driver Version: 580.82.07  CUDA Version: 13.0     |", ["cupy-cuda12x"], "[cuda12]"),
    ("| NVIDIA-SMI 999.00.00  Driver Version: 999.00.00  CUDA Version: 14.1     |", [], "[cuda13]"),
    ("NVIDIA-SMI has failed because it could not talk to the driver", ["cupy-cuda12x"], ""),
])
def test_on_colab_the_first_cell_installs_the_extra_that_fits(monkeypatch, capsys, smi, there, extra):
    assert run_cell(monkeypatch, colab.first_cell(), smi, there) == f"tinyres{extra}"
    assert capsys.readouterr().out.startswith(f"installing tinyres{extra}\nNumPy was replaced while in use")
    assert run_cell(monkeypatch, colab.first_cell("tinyres==0.1.0"), smi, there) == f"tinyres{extra}==0.1.0"
    address = "git+https://example.org/tinyres.git@main"
    assert run_cell(monkeypatch, colab.first_cell(f"tinyres @ {address}"), smi, there) == f"tinyres{extra} @ {address}"
    capsys.readouterr()
    run_cell(monkeypatch, colab.first_cell(), smi, there, new_numpy="2.0.2")
    assert "NumPy" not in capsys.readouterr().out


def test_elsewhere_the_first_cell_sets_the_seed_and_does_nothing(monkeypatch):
    monkeypatch.setattr(subprocess, "run", None)
    variables = {}
    exec(colab.first_cell(seed=12), variables)
    assert set(variables) == {"__builtins__", "SEED", "sys"} and variables["SEED"] == 12


@pytest.mark.parametrize("install", ["", "numpy", "tinyres[cuda12]", "tinyres; rm -rf /", "git+https://example.org/x",
                                     "tinyres @ https://example.org/x; y", "tinyres-of-another"])
def test_what_cannot_be_installed_on_colab_is_refused(install):
    with pytest.raises(ValueError, match="expected tinyres, tinyres==0.1.0 or tinyres @ ") as error:
        colab.first_cell(install)
    assert repr(install) in str(error.value)


# --- nbgrader ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    """The folder of a course with the first lesson and two students."""
    pytest.importorskip("nbgrader", reason='needs the extra teach: pip install -e ".[teach]"')
    place = tmp_path_factory.mktemp("course")
    students = roster.read(write_roster(place, ROSTER))
    said = []
    done = release.release([LESSON], place / "course", (), students, with_gradescope=False, tell=said.append)
    assert done == release.Released(place / "course", (NAME,), 2, ()) and said == [f"lesson 1: {LESSON.title}"]
    return done.folder


def notebook(path):
    return json.loads(path.read_text(encoding="utf-8"))


def gradebook(course):
    from nbgrader.api import Gradebook

    return Gradebook(f"sqlite:///{course}/gradebook.db", "tinyres")


def test_a_course_has_a_notebook_for_all_and_one_for_each_student(course):
    assert {path.relative_to(course).as_posix() for path in course.rglob("*") if path.is_file()} == {
        "nbgrader_config.py", "gradebook.db", *(f"{folder}/{NAME}/{FILE}" for folder in (
            "source", "release", "students/ada", "students/zhu.shijie"))}
    texts = {}
    for folder, number in (("source", 0), ("release", 0), ("students/ada", roster.seed("ada")),
                           ("students/zhu.shijie", roster.seed("zhu.shijie"))):
        found = notebook(course / folder / NAME / FILE)
        texts[folder] = text_of(found)
        assert "".join(found["cells"][0]["source"]) == colab.first_cell(seed=number)
        assert len(found["cells"]) == len(LESSON.cells) + 1
        assert not any(cell.get("outputs") for cell in found["cells"])
    assert len(set(texts.values())) == 4
    source = texts.pop("source")
    assert SECRETS and not [line for line in SECRETS if line not in source]
    for text in texts.values():
        assert not [line for line in SECRETS if line in text]
        assert "raise NotImplementedError()" in text and "SOLUTION" not in text
        assert not pages.LINK.search(text)  # no other lesson lies beside it
    with gradebook(course) as book:
        assert {(s.id, s.first_name, s.last_name, s.email) for s in book.students} == {
            ("ada", "Ada", "Lovelace", "ada@example.org"), ("zhu.shijie", "世杰", "朱", "Zhu@example.org")}
        assert book.find_assignment(NAME).max_score == LESSON.points
        cells = {cell.name: cell.max_score for cell in book.find_notebook(LESSON.name, NAME).grade_cells}
    assert cells == {f"check-{exercise.name}": exercise.points for exercise in LESSON.exercises}


def test_nbgrader_gives_a_full_submission_all_points_and_an_empty_one_none(course):
    """ada answers her own notebook; eve, whom the roster does not know, hands in what all students got."""
    full = answered(notebook(course / "students" / "ada" / NAME / FILE), SOLUTIONS)
    full["cells"][0]["source"] = "SEED = 1"  # graded with her own all the same
    empty = notebook(course / "release" / NAME / FILE)
    empty["cells"] = empty["cells"][1:]
    for student, handed_in in (("ada", full), ("eve", empty)):
        place = course / "submitted" / student / NAME
        place.mkdir(parents=True)
        (place / FILE).write_text(json.dumps(handed_in), encoding="utf-8")
    done = subprocess.run([sys.executable, "-m", "nbgrader", "autograde", NAME], cwd=course, timeout=280,
                          capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(package_root())})
    assert done.returncode == 0, done.stderr
    with gradebook(course) as book:
        scores = {student: book.find_submission(NAME, student).score for student in ("ada", "eve")}
        pending = [book.find_submission(NAME, student).needs_manual_grade for student in scores]
    assert scores == {"ada": LESSON.points, "eve": 0} and pending == [False, False]
    for student in scores:
        graded = notebook(course / "autograded" / student / NAME / FILE)
        assert "".join(graded["cells"][0]["source"]) == f"SEED = {roster.seed(student)}"
        failed = {output["ename"] for cell in graded["cells"] for output in cell.get("outputs", ())
                  if output["output_type"] == "error"}
        assert failed == (set() if student == "ada" else {"NotImplementedError"})

    # A later release, with another roster and a configuration that the teacher changed, takes nothing away.
    config = course / "nbgrader_config.py"
    config.write_text(config.read_text(encoding="utf-8") + "\n# the teacher's\n", encoding="utf-8")
    release.release([LESSON], course, (1,), [roster.Student("bob")], with_gradescope=False)
    with gradebook(course) as book:
        assert book.find_submission(NAME, "ada").score == LESSON.points
        assert {student.id for student in book.students} == {"ada", "zhu.shijie", "eve", "bob"}
    assert config.read_text(encoding="utf-8").endswith("# the teacher's\n")
    assert all((course / folder / NAME / FILE).is_file() for folder in ("students/bob", "submitted/eve"))


def package_root():
    return Path(release.__file__).resolve().parents[2]


def test_what_nbgrader_refuses_is_said_in_one_line(course, tmp_path):
    shutil.copytree(course, tmp_path / "course", ignore=shutil.ignore_patterns("autograded", "submitted"))
    broken = tmp_path / LESSON.path.name
    broken.write_text(LESSON.path.read_text(encoding="utf-8").replace('"grade_id": "check-', '"grade_id": "'),
                      encoding="utf-8")
    with pytest.raises(RuntimeError, match="nbgrader could not release lesson 1: Duplicate grade id: backward; `nbgr"):
        release.release([lessons.read(broken)], tmp_path / "course", with_gradescope=False)
    (tmp_path / "course" / "nbgrader_config.py").write_text("1/0", encoding="utf-8")
    with pytest.raises(RuntimeError, match="nbgrader_config.py fails: ZeroDivisionError: .*mend it, or move it away"):
        release.release([LESSON], tmp_path / "course", with_gradescope=False)


# --- Gradescope -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    try:
        return gradescope.build_wheel(tmp_path_factory.mktemp("wheel"))
    except RuntimeError as error:
        if gradescope._setuptools() < 77:
            pytest.skip(f"needs setuptools>=77 or a network: {error}")
        raise


@pytest.fixture(scope="module")
def archive(wheel):
    path = wheel.parent / f"{NAME}.zip"
    gradescope.write(LESSON, wheel, path, [roster.Student("ada", email="ada@example.org"), roster.Student("bob")])
    return path


def test_the_zip_for_gradescope_holds_what_it_needs_and_no_solution(archive, wheel):
    found = zipfile.ZipFile(archive)
    modes = {info.filename: info.external_attr >> 16 for info in found.infolist()}
    assert modes == {"setup.sh": 0o755, "run_autograder": 0o755, LESSON.path.name: 0o644, "seeds.json": 0o644,
                     wheel.name: 0o644}
    texts = {name: found.read(name).decode() for name in modes if name != wheel.name}
    assert all(text.startswith("#!/usr/bin/env bash\n") for name, text in texts.items() if modes[name] == 0o755)
    assert not [line for line in SECRETS for text in texts.values() if line in text]
    assert "ada" not in texts["seeds.json"] and list(json.loads(texts["seeds.json"]).values()) == [roster.seed("ada")]
    again = archive.with_name("again.zip")
    gradescope.write(LESSON, wheel, again, [roster.Student("ada", email="Ada@Example.org ")])
    assert again.read_bytes() == archive.read_bytes()


def unpacked(archive, root, file=FILE, content=None, email=None):
    """What Gradescope makes of a zip and a submission."""
    zipfile.ZipFile(archive).extractall(root / "source")
    for folder in ("submission", "results"):
        (root / folder).mkdir()
    if content is not None:
        (root / "submission" / file).write_text(content, encoding="utf-8")
    if email:
        (root / "submission_metadata.json").write_text(json.dumps({"users": [{"email": email, "name": "A"}]}))
    return root


def points(found):
    assert set(found) == {"output", "output_format", "tests"}
    assert all(test["status"] == ("passed" if test["score"] == test["max_score"] else "failed")
               for test in found["tests"])
    assert [test["name"] for test in found["tests"]] == [exercise.name for exercise in LESSON.exercises]
    assert sum(test["max_score"] for test in found["tests"]) == LESSON.points
    return sum(test["score"] for test in found["tests"])


def test_the_zip_runs_in_a_root_of_its_own(archive, tmp_path):
    """As Gradescope runs it, with nothing of this checkout. What tinyres needs is linked: no network is used."""
    bash = shutil.which("bash")
    if bash is None or os.name != "posix":
        pytest.skip("needs bash, as on Gradescope")
    needs, libraries = tmp_path / "needs", Path(np.__file__).resolve().parents[1]
    needs.mkdir()
    for path in libraries.iterdir():
        if path.suffix != ".pth" and not path.name.startswith(("tinyres", "__editable__", "pip", "setuptools")):
            (needs / path.name).symlink_to(path)
    root = unpacked(archive, tmp_path / "root", content=json.dumps(answered(unsolved(), SOLUTIONS)))
    environment = {name: value for name, value in os.environ.items()
                   if not name.startswith(("PYTHON", "PIP_", "VIRTUAL"))}
    environment |= {"AUTOGRADER_ROOT": str(root), "PYTHONPATH": str(needs), "PIP_NO_INDEX": "1", "PIP_NO_DEPS": "1",
                    "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])}
    shutil.copy(root / "source" / "run_autograder", root)
    for script in ("source/setup.sh", "run_autograder"):
        done = subprocess.run([bash, str(root / script)], cwd=tmp_path, env=environment, timeout=280,
                              capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    (installed,) = (root / "venv").glob("lib/python*/site-packages/tinyres/teach/check.py")
    assert installed.is_file() and not installed.is_symlink()
    found = json.loads((root / "results" / "results.json").read_text(encoding="utf-8"))
    assert points(found) == LESSON.points, found
    assert found["output"] == f"{FILE}: {LESSON.points} of {LESSON.points} points"


def test_gradescope_shows_the_misconception_of_a_wrong_answer(archive, tmp_path):
    from tinyres.teach.check import wrong_answers

    wrong = wrong_answers(LESSON)[0]
    handed_in = answered(unsolved(), SOLUTIONS | {wrong.exercise: wrong.code})
    found = gradescope.grade(unpacked(archive, tmp_path, "my_answers.ipynb", json.dumps(handed_in)))
    lost = [test for test in found["tests"] if test["status"] == "failed"]
    assert [(test["name"], test["score"], test["tags"]) for test in lost] == [(wrong.exercise, 0, [wrong.tag])]
    assert len(lost[0]["output"]) > 40 and points(found) == LESSON.points - lost[0]["max_score"]
    json.dumps(found)


def test_gradescope_grades_an_empty_submission_with_the_students_own_seed(archive, tmp_path):
    name = LESSON.exercises[0].name
    tells = f"def {name}(*inputs):\n    from tinyres.teach import seed\n    raise AssertionError(f'seed {{seed()}}')"
    handed_in = {**unsolved()}
    handed_in["cells"] = [{"cell_type": "code", "metadata": {}, "source": "SEED = 3"}, *handed_in["cells"]]
    for place, answers, email, says in (
            ("empty", {}, None, "not done yet"),
            ("known", {name: tells}, "ADA@example.org", f"seed {roster.seed('ada')}"),
            ("unknown", {name: tells}, "b@example.org", "seed 3")):
        (tmp_path / place).mkdir()
        content = json.dumps(answered(handed_in, answers))
        found = gradescope.grade(unpacked(archive, tmp_path / place, FILE, content, email))
        assert points(found) == 0 and found["tests"][0]["output"].startswith(says), found


@pytest.mark.parametrize("files, says", [
    ({}, f"holds no notebook and no .py file; expected {FILE}"),
    ({"a.ipynb": "{}", "b.py": ""}, f"holds a.ipynb, b.py; expected {FILE}"),
    ({FILE: "not JSON"}, f"{FILE} is no notebook"),
    ({FILE: '{"cells": 3}'}, f"{FILE} is no notebook"),
])
def test_a_submission_that_cannot_be_read_has_no_points_and_says_why(archive, tmp_path, files, says):
    root = unpacked(archive, tmp_path)
    for name, content in files.items():
        (root / "submission" / name).write_text(content)
    gradescope.main(root)
    found = json.loads((root / "results" / "results.json").read_text())
    assert points(found) == 0 and says in found["output"] and str(tmp_path) not in json.dumps(found)


def test_which_file_of_a_submission_is_graded(tmp_path):
    def chosen(*names):
        place = tmp_path / str(len(list(tmp_path.iterdir())))
        for name in names:
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_text("")
        return gradescope.submitted(place, LESSON).relative_to(place).as_posix()

    script = LESSON.path.name
    assert chosen(FILE, script, "notes.py", "data.csv") == FILE
    assert chosen(script, "notes.ipynb") == script
    assert chosen(f"work/{FILE}", f".ipynb_checkpoints/{FILE}", "__MACOSX/x.py") == f"work/{FILE}"
    assert chosen("mine.py", "readme.md") == "mine.py"


def test_a_wheel_without_the_checks_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "tinyres-0.0-py3-none-any.whl", "w") as empty:
        empty.writestr("tinyres/teach/gradescope.py", "")
    with pytest.raises(ValueError, match="has no tinyres/teach/checks/lesson_01.py, so it cannot grade lesson 1"):
        gradescope.write(LESSON, tmp_path / "tinyres-0.0-py3-none-any.whl", tmp_path / "x.zip")
    assert not (tmp_path / "x.zip").exists()


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_releases_a_course(tinyres_command, tmp_path, wheel):
    pytest.importorskip("nbgrader", reason='needs the extra teach: pip install -e ".[teach]"')
    write_roster(tmp_path, ROSTER)
    status, out, err = tinyres_command(f"teach release 1 --roster roster.csv --to a/course --wheel {wheel} "
                                       "--install 'tinyres @ https://example.org/tinyres.whl' --json")
    assert status == 0 and err == f"lesson 1: {LESSON.title}\n", err
    assert json.loads(out) == {"to": "a/course", "assignments": [NAME], "students": 2,
                               "autograders": [f"a/course/gradescope/{NAME}.zip"]}
    own = notebook(tmp_path / "a" / "course" / "students" / "ada" / NAME / FILE)
    assert '" @ https://example.org/tinyres.whl"' in "".join(own["cells"][0]["source"])


@pytest.mark.parametrize("line, words", [
    ("99", ["NN", "no lesson 99"]),
    ("1 --roster no.csv", ["--roster", "no.csv is not there"]),
    ("1 --roster roster.csv", ["--roster", "the id is '.'", "expected letters"]),
    ("1 --install numpy", ["--install", "cannot install 'numpy'", "expected tinyres"]),
    ("1 --to roster.csv", ["--to", "is a file; give a folder"]),
])
def test_the_command_refuses_before_it_writes(tinyres_command, tmp_path, line, words):
    write_roster(tmp_path, "id\n.\n")
    status, out, err = tinyres_command(f"teach release {line}")
    assert (status, out) == (2, "") and [path.name for path in tmp_path.iterdir()] == ["roster.csv"]
    assert not [word for word in words if word not in err], err
