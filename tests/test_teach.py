"""The lessons' tools on a made-up lesson: how it is read, what of it is run, how any answer is graded."""

import json

import pytest
from made_up_lesson import HEADER, TEXT, folder, lesson

from tinyres import teach
from tinyres.teach import answers, check, header, lint, process
from tinyres.teach import lesson as reading
from tinyres.teach.answers import Step
from tinyres.teach.misconception import Misconception
from tinyres.teach.needed import binds, needed, uses

RIGHT = {"double": "def double(x):\n    return 2 * x\n", "halve": "def halve(x):\n    return x / 2\n"}


def notebook(*cells):
    """Bytes of a notebook; a cell is its text, or its grade id and its text."""
    made = []
    for cell in cells:
        id, source = (None, cell) if isinstance(cell, str) else cell
        graded = {"nbgrader": {"grade_id": id, "solution": not id.startswith("check-"),
                               "grade": id.startswith("check-")}} if id else {}
        made.append({"cell_type": "code", "source": source.splitlines(keepends=True), "metadata": graded, "outputs": [],
                     "execution_count": None})
    return json.dumps({"cells": made, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}).encode()


def graded(tmp_path, *cells, limit=20.0):
    """The verdicts by exercise."""
    path = tmp_path / "mine.ipynb"
    path.write_bytes(notebook(*cells))
    report = check.grade_file(lesson(), path, limit)
    return {verdict.exercise: verdict for verdict in report.verdicts}


def graded_double(tmp_path, source, limit=20.0):
    found = graded(tmp_path, ("double", source), ("halve", RIGHT["halve"]), limit=limit)
    assert found["halve"].kind == "right", found["halve"]  # whatever the other one does
    assert found["double"].earned == (2 if found["double"].kind == "right" else 0)
    return found["double"]


# --- reading ----------------------------------------------------------------------------------------------------------


def test_a_lesson_is_read():
    found = lesson()
    assert (found.number, found.title, found.minutes, found.seconds, found.needs) == (42, "Twice", 5, 2, (1, 3))
    assert found.objectives == ("double a number", "halve it, too")
    assert [(e.name, e.points) for e in found.exercises] == [("double", 2), ("halve", 2)] and found.points == 4
    assert [cell.kind for cell in found.cells] == ["markdown", *["code"] * 7, "markdown"]
    assert found.cells[2].metadata == {"tags": ["a"]} and found.cells[0].source.startswith("# Twice\n\nA sum")
    lines = TEXT.split("\n")
    assert all(cell.source.split("\n")[0] in lines[cell.line - 1] for cell in found.cells)


def test_other_libraries_read_the_same():
    jupytext = pytest.importorskip("jupytext", reason="pip install 'tinyres[teach]'")
    yaml = pytest.importorskip("yaml", reason="it comes with jupytext")
    theirs = [cell for cell in jupytext.reads(TEXT, fmt="py:percent").cells if cell.cell_type != "raw"]
    for cell, ours in zip(theirs, lesson().cells, strict=True):
        cell.metadata.pop("lines_to_next_cell", None)
        assert (cell.source, json.dumps(cell.metadata)) == (ours.source, json.dumps(ours.metadata))
    content = "".join(line[2:] for line in HEADER.splitlines(keepends=True)[1:-1])
    assert yaml.safe_load(content)["tinyres"] == header.read(header.split(TEXT, "")[0], "")


@pytest.mark.parametrize("text", [
    "[]", "[a]", "[a b, c]", '["a, b", c]', "['it''s', \"x # y\"]  # z", "\n#     - a b\n#     - \"c: d\"",
    "[a,\n#     b c, \"d,\n#     e\"]"])
def test_lists_are_read_as_yaml_reads_them(text):
    yaml = pytest.importorskip("yaml", reason="it comes with jupytext")
    changed = HEADER.replace('[double a number, "halve it, too"]', text)
    content = "".join(line[2:] for line in changed.splitlines(keepends=True)[1:-1])
    expected = yaml.safe_load(content)["tinyres"]["objectives"]
    assert header.read(header.split(changed, "")[0], "")["objectives"] == expected


@pytest.mark.parametrize("old, new, words", [
    ("# ---\n", "", "has no header"),
    ("#   minutes: 5 ", "#   minutes: five ", "minutes is 'five', expected a whole number"),
    ("#   needs: [1, 3]\n", "", "expected exactly lesson, title"),
    ("#   needs: [1, 3]", "#   needs: [1, b]", "expected whole numbers in brackets"),
    ("#   needs: [1, 3]", "#   needs: 1", "needs is '1'"),
    ("percent}", "light}", "must begin with exactly"),
    ("#   title: Twice", "# title: Twice", "is not understood"),
    ("#   title: Twice", "#   title:", "title is '', expected a text"),
    ('tags=["a"]', "tags=[a]", "line 53: the cell's tags is '[a]'"),
])
def test_what_is_no_lesson_is_refused_in_words(old, new, words):
    assert old in TEXT
    with pytest.raises(ValueError, match="42_twice.py") as error:
        lesson(TEXT.replace(old, new))
    assert words in str(error.value)


def test_solutions_are_cleared_as_nbgrader_does_it():
    student, solved = lesson().student(), lesson().solved()
    place = lesson().exercises[0].solution
    assert student.cells[place].source == ('def double(x):\n    """x twice."""\n    # YOUR CODE HERE\n'
                                           "    raise NotImplementedError()")
    assert solved.cells[place].source.endswith("    total = FACTOR * x\n    return total")
    assert reading.solutions(lesson().cells[place].source) == ["total = FACTOR * x", "return total"]
    nbformat = pytest.importorskip("nbformat", reason="pip install 'tinyres[teach]'")
    preprocessors = pytest.importorskip("nbgrader.preprocessors", reason="pip install 'tinyres[teach]'")
    kernel = {"language": "python", "name": "python3", "display_name": "Python 3"}
    made = nbformat.v4.new_notebook(metadata={"kernelspec": kernel}, cells=[
        nbformat.v4.new_code_cell(cell.source, metadata=json.loads(json.dumps(cell.metadata)))
        for cell in lesson().cells])
    theirs, _ = preprocessors.ClearSolutions().preprocess(made, {})
    assert [cell.source for cell in theirs.cells] == [cell.source for cell in student.cells]


def test_where_the_lessons_are(tmp_path, monkeypatch):
    assert reading.folder().name == "tutorials" and reading.folder(folder(tmp_path / "a")) == tmp_path / "a"
    assert [found.number for found in reading.all_in(tmp_path / "a")] == [42]
    with pytest.raises(FileNotFoundError, match="holds no lessons; expected a folder with files like"):
        reading.folder(tmp_path)
    monkeypatch.setattr(reading, "__file__", str(tmp_path / "site-packages" / "tinyres" / "teach" / "lesson.py"))
    with pytest.raises(FileNotFoundError, match="not part of an installed tinyres.*by --lessons"):
        reading.folder()
    with pytest.raises(ValueError, match="there is no lesson 2 yet; there are 42"):
        reading.one_of([lesson()], 2)


# --- what is run ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source, bound, used", [
    ("import a.b, c as d", {"a", "d"}, set()),
    ("x = y", {"x"}, {"y"}),
    ("def f(a):\n    b = a\n    return g(b)", {"f"}, {"g"}),
    ("x.y = 1", {"x"}, {"x"}),
    ("x[0] += y", {"x"}, {"x", "y"}),
    ("tr.use_kernels('reference')", {"tr"}, {"tr"}),
    ("for i in range(3):\n    x.append(i)", {"i", "x"}, {"range", "x", "i"}),
    ("print(x)", set(), {"print", "x"}),
    ("[f(i) for i in x]", set(), {"f", "x"}),
    ("def (", set(), set()),
    ("return 1", set(), set()),
])
def test_what_a_cell_binds_and_uses(source, bound, used):
    assert binds(source) - {"i"} == bound - {"i"}
    assert uses(source) - {"i", "f"} == used - {"i", "f"}


def test_only_what_a_check_needs_is_run():
    sources = ["import a", "slow = a.f()", "b = a.g()", "def h():\n    return b", "print(slow)", "check(h)", "late = 1"]
    assert needed(sources, {5}) == [0, 2, 3, 5]
    steps = answers.steps(lesson(), None)[0]
    kept = needed([step.source for step in steps], {i for i, step in enumerate(steps) if step.exercise})
    assert [steps[i].label for i in kept] == ["1", "double", "check-double", "halve", "check-halve"]


def test_the_seed_of_the_checks(monkeypatch):
    import __main__

    monkeypatch.delattr(__main__, "SEED", raising=False)
    monkeypatch.delenv("TINYRES_SEED", raising=False)
    assert teach.seed() == 0
    monkeypatch.setenv("TINYRES_SEED", "7")
    assert teach.seed() == 7
    monkeypatch.setattr(__main__, "SEED", 2**32 - 1, raising=False)
    assert teach.seed() == 2**32 - 1
    for bad in (-1, "x", 1.5j):
        monkeypatch.setattr(__main__, "SEED", bad)
        with pytest.raises(ValueError, match="expected a whole number of at least 0: restore that cell"):
            teach.seed()


# --- grading ----------------------------------------------------------------------------------------------------------


def test_the_empty_exercise_and_the_solution():
    empty = check.grade(lesson(), None)
    assert [(v.kind, v.earned, v.points) for v in empty.verdicts] == [("empty", 0, 2)] * 2 and not empty.passed
    solved = check.grade(lesson(), lesson().solved().cells)
    assert [v.says for v in solved.verdicts] == ["double: right on one number, seed 0", "halve: right on one number"]
    assert solved.passed and solved.earned == 4 and solved.notes == ()
    assert json.loads(json.dumps(solved.as_dict()))["of"] == 4


def test_a_wrong_answer_is_told_its_misconception(tmp_path):
    verdict = graded_double(tmp_path, "def double(x):\n    return x ** 2")
    assert (verdict.kind, verdict.tag) == ("misconception", "squares")
    assert verdict.says == "double(3) gave 9, which is 3 * 3.\n\nLook at the operator."
    verdict = graded_double(tmp_path, "def double(x):\n    return x")
    assert (verdict.kind, verdict.tag, verdict.says) == ("wrong", None, "double(3) gave 3")


BAD_CODE = [
    ("def double(x:\n    pass", "error", "SyntaxError: ", "(line 1 of the cell double)"),
    ("def double(x):\n    return x + y", "error", "NameError: name 'y' is not defined", "line 2 of the cell double"),
    ("def double(x):\n    return double(x)", "error", "RecursionError", "line 2"),
    ("1 / 0\ndef double(x):\n    return 2 * x\n", "error", "ZeroDivisionError", "line 1"),
    ("def dobule(x):\n    return 2 * x", "error", "NameError: name 'double' is not defined", ""),
    ("def double(x):\n    return None", "wrong", "double(3) gave None", ""),
    ("def double(x):\n    exit()", "ended", "leave out exit()", ""),
    ("import sys\nsys.exit('bye')", "ended", "leave out exit()", ""),
    ("def double(x):\n    return input('x?')", "error", "EOFError", "line 2"),
    ("def double(x):\n    raise KeyboardInterrupt", "error", "KeyboardInterrupt", "line 2"),
    ("class Odd(Exception):\n    def __str__(self):\n        raise self\ndef double(x):\n    raise Odd", "error",
     "Odd: it cannot say why", ""),
    ("def double(x):\n    import os\n    os._exit(3)", "ended", "exit status 3", "os._exit()"),
    ("import os\nos.kill(os.getpid(), 9)\ndef double(x):\n    return 2 * x", "ended", "ended the whole program", ""),
    ("def double(x):\n    while True:\n        print('x' * 1000)", "printed", "more than 2,000,000 characters",
     "print()"),
]


@pytest.mark.parametrize("source, kind, says, more", BAD_CODE)
def test_code_that_cannot_be_graded_is_reported_as_what_it_is(source, kind, says, more, tmp_path):
    verdict = graded_double(tmp_path, source)
    assert verdict.kind == kind and says in verdict.says and more in verdict.says, verdict


@pytest.mark.parametrize("source", [
    "def double(x):\n    while True:\n        pass",
    "while True:\n    try:\n        while True:\n            pass\n    except BaseException:\n        pass",
    "def double(x):\n    import time\n    time.sleep(1e6)",
])
def test_code_that_never_ends_is_stopped(source, tmp_path):
    verdict = graded_double(tmp_path, source, limit=1.0)
    assert verdict.kind == "stuck" and "not done after 1 seconds" in verdict.says and "--limit" in verdict.says


def test_a_right_answer_with_a_cell_of_ones_own_that_fails(tmp_path):
    """The answer counts; what else was tried in its cell does not."""
    assert graded_double(tmp_path, RIGHT["double"] + "double(1, 2)\n").kind == "right"
    assert graded_double(tmp_path, "!pip list\n%timeit 1\n" + RIGHT["double"]).kind == "right"


def test_what_a_learner_changed_besides(tmp_path):
    """Locked cells come from the source; cells of one's own are run if an answer needs them."""
    found = graded(
        tmp_path, "import os; os._exit(1)  # a cell of my own that nothing needs", "def mine(x):\n    return 2 * x",
        ("double", "def double(x):\n    return mine(x)"), ("check-double", "print('double: right')"),
        ("halve", "def halve(x):\n    return x"), ("check-halve", "pass"), "this is no Python")
    assert found["double"].kind == "right" and found["halve"].kind == "wrong"
    assert "an assertion failed" in found["halve"].says


def test_cells_without_their_ids_are_found_by_what_they_define(tmp_path):
    found = graded(tmp_path, RIGHT["double"], RIGHT["halve"])
    assert {verdict.kind for verdict in found.values()} == {"right"}
    found = graded(tmp_path, RIGHT["halve"] + RIGHT["double"])
    assert {verdict.kind for verdict in found.values()} == {"right"}


def test_of_two_cells_for_one_exercise_the_later_counts(tmp_path):
    found = graded(tmp_path, ("double", RIGHT["double"]), ("double", "def double(x):\n    return 0"), ("halve", ""))
    assert found["double"].says == "double(3) gave 0"
    assert found["halve"].kind == "missing" and "define halve() in a cell" in found["halve"].says


def test_a_function_of_ones_own_may_stand_below_the_answer_that_calls_it(tmp_path):
    above = ("double", "def double(x):\n    return mine(x)"), "def mine(x):\n    return 2 * x", ("check-double", "pass")
    last = ("halve", "def halve(x):\n    return other(x)"), "def other(x):\n    return x / 2"
    found = graded(tmp_path, *above, *last)
    assert {name: verdict.kind for name, verdict in found.items()} == {"double": "right", "halve": "right"}


def test_commands_of_a_notebook_in_an_answers_cell_do_no_harm(tmp_path):
    source = "%matplotlib inline\n!ls\nfiles = !ls\nn = %time 1\n" + RIGHT["double"]
    assert graded_double(tmp_path, source).kind == "right"


def test_a_misconception_of_the_learners_own_is_a_failure_like_another(tmp_path):
    found = graded_double(tmp_path, "from tinyres.teach import Misconception\ndef double(x):\n"
                                    "    raise Misconception(object(), 'mine')")
    assert found.kind != "right" and "mine" in found.says and "os._exit" not in found.says


def test_files_of_python_are_read_too(tmp_path):
    path = tmp_path / "mine.py"
    solved = TEXT.replace("    ### BEGIN SOLUTION\n", "").replace("    ### END SOLUTION\n", "")
    for text in (solved, RIGHT["double"] + RIGHT["halve"], "\ufeff# mine\n" + RIGHT["halve"] + RIGHT["double"]):
        path.write_text(text, encoding="utf-8")
        assert check.grade_file(lesson(), path).passed


def test_the_seed_of_the_learners_notebook_reaches_the_checks(tmp_path):
    found = graded(tmp_path, "SEED = 12", ("double", RIGHT["double"]), ("halve", RIGHT["halve"]))
    assert found["double"].says.endswith("seed 12")


@pytest.mark.parametrize("name, content, words", [
    ("a.ipynb", b"{}", "no notebook of Jupyter's format 4 (KeyError"),
    ("a.ipynb", b"\x00", "no notebook"),
    ("a.ipynb", b"[" * 100_000, "no notebook"),
    ("a.txt", b"", "expected a name that ends in .ipynb or .py"),
    ("a.py", b"\xff", "not text in UTF-8"),
])
def test_files_that_cannot_be_graded(name, content, words, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError) as error:
        check.grade_file(lesson(), tmp_path / name)
    assert words in str(error.value)


def test_wrong_answers_are_graded_together_and_one_that_hangs_alone(tmp_path):
    (found,) = reading.all_in(folder(tmp_path / "a"))
    verdicts = check.reject(found, check.wrong_answers(found), limit=1.0)
    assert [(verdict.kind, verdict.tag) for verdict in verdicts] == [
        ("misconception", "squares"), ("stuck", None), ("wrong", None)]
    (tmp_path / "a" / "wrong_answers" / "lesson_42.py").unlink()
    with pytest.raises(FileNotFoundError, match="lesson 42 has no wrong answers; expected them in"):
        check.wrong_answers(found)


def test_a_process_that_cannot_begin_is_no_verdict(monkeypatch):
    monkeypatch.setattr(process.sys, "executable", "/bin/false")
    with pytest.raises(RuntimeError, match="could not begin"):
        process.run([Step("a", "x = 1")], 5.0)


def test_nothing_is_left_behind(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    outcomes = process.run([Step("a", "open('x', 'w').write('y'); import os; print(os.listdir())"),
                            Step("b", "import subprocess as s; s.Popen(['sleep', '60'])")], 5.0)
    assert outcomes[0].printed == "['x']\n" and outcomes[1].failure is None
    assert list(tmp_path.iterdir()) == []


def test_a_misconception_can_be_sent_elsewhere():
    import pickle

    error = pickle.loads(pickle.dumps(Misconception("tag", "words")))
    assert (error.tag, error.message, str(error)) == ("tag", "words", "words") and isinstance(error, AssertionError)


# --- lint -------------------------------------------------------------------------------------------------------------


def test_the_made_up_lesson_lacks_only_what_a_real_one_has():
    assert [problem.partition(", ")[2] for problem in lint.problems(lesson())] == [
        "there is not a step in the stepper: tr.step(...)", "there is not \"The paper says, we see, why it differs\"",
        "there is not a box for the teacher", "there is not the three quiz questions",
        "there are 1 folded boxes, expected at least 3, an answer each"]


@pytest.mark.parametrize("old, new, words", [
    ("lesson: 42", "lesson: 41", "its file another one"),
    ("minutes: 5 ", "minutes: 0 ", "minutes must be more than 0"),
    ("# # Twice", "# # Thrice", "the first cell must be Markdown"),
    ('"grade_id": "halve"', '"grade_id": "double"', "'double' is used more than once"),
    ('"grade_id": "check-halve"', '"grade_id": "check-half"', "halve is not followed by its check"),
    ('"points": 2, ', "", "gives None points"),
    ('"points": 2', '"points": 0', "gives 0 points"),
    ('"locked": false', '"locked": true', "nbgrader's metadata is"),
    ("lesson_42.halve(halve)", "pass", "does not call lesson_42.halve(...)"),
    ("def halve(x)", "def half(x)", "does not define halve"),
    ("    ### END SOLUTION\n", "", "must have its solution between"),
    ("unused.append(1)", "    ### BEGIN SOLUTION", "stands outside of a solution cell"),
    ("unused.append(1)", "total = FACTOR * x\nreturn total", "holds a piece of the solution of double"),
    ("unused.append(1)", "plt.show()", "must open no window"),
    ("unused.append(1)", "matplotlib.use('Agg')", "chooses the backend"),
    ("unused.append(1)", "%matplotlib inline", "a command of IPython"),
    ("unused.append(1)", "x" * 121, "longer than 120"),
    ('tr.use_kernels("reference")', "pass", "must call tr.use_kernels"),
    ("# </details>", "#", "is not closed"),
])
def test_the_lint_finds(old, new, words):
    assert old in TEXT
    assert any(words in problem for problem in lint.problems(lesson(TEXT.replace(old, new, 1))))


def test_prerequisites_and_links():
    assert lint.cycles({1: [], 2: [1], 3: [1, 2]}) == []
    assert lint.cycles({1: [2], 2: [1], 3: []}) == ["the lessons 1, 2 need each other in a circle"]
    assert lint.cycles({1: [9]}) == ["lesson 1 needs lesson 9, which is not there"]
    assert lint.pieces(["a = 1", "b = 2", "c = 3"], ["  a = 1", "", "b = 2"]) == ["a = 1\nb = 2"]
    assert lint.pieces(["return 1"], ["return 12"]) == [] and lint.pieces([], ["x"]) == []
    found = lint.dead_links(lesson())
    assert [problem.rpartition(" ")[2] for problem in found] == ["01_forks_and_order.py", "../README.md"]
