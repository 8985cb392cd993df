"""What is built from a made-up lesson: notebooks, pages, and the command `tinyres teach`."""

import importlib.util
import json
import re
import threading
import urllib.error
import urllib.request

import pytest
from made_up_lesson import TEXT, folder, lesson
from test_site import broken_links, needs_network

from tinyres.teach import build as building
from tinyres.teach import figures, notebooks, pages
from tinyres.teach import lesson as reading

LACKING = [name for name in pages.NEEDS if importlib.util.find_spec(name) is None]
needs_extra = pytest.mark.skipif(bool(LACKING), reason=f"{', '.join(LACKING)} not installed, so nothing was built: pip "
                                 "install 'tinyres[teach]'")


@pytest.fixture(scope="module")
def executed():
    """The executed solution, once for all tests that only read it."""
    return notebooks.solution(lesson())


# --- notebooks --------------------------------------------------------------------------------------------------------


@needs_extra
def test_grading_metadata_is_in_the_notebook_byte_for_byte(tmp_path):
    import nbformat

    notebooks.write(notebooks.source(lesson()), tmp_path / "a.ipynb")
    found = nbformat.read(tmp_path / "a.ipynb", as_version=4)
    theirs = [json.dumps(cell.metadata["nbgrader"]) for cell in found.cells if "nbgrader" in cell.metadata]
    assert theirs == re.findall(r"^# %% nbgrader=(.*)$", TEXT, re.M)
    assert "jupytext" not in json.dumps(found.metadata)  # never paired: solutions would come back
    notebooks.write(notebooks.source(lesson()), tmp_path / "b.ipynb")
    assert (tmp_path / "a.ipynb").read_bytes() == (tmp_path / "b.ipynb").read_bytes()


@needs_extra
def test_three_versions_of_a_notebook(executed):
    student, page = notebooks.student(lesson()), notebooks.page(lesson(), executed)
    place = lesson().exercises[0].solution
    assert "NotImplementedError" in student.cells[place].source and "FACTOR * x" not in json.dumps(student)
    assert executed.cells[place].source.endswith("total = FACTOR * x\n    return total")
    assert all(cell.get("outputs", []) == [] for cell in student.cells)
    assert executed.cells[place + 1].outputs[0].text == "double: right on one number, seed 0\n"
    assert page.cells[place + 1].outputs == executed.cells[place + 1].outputs
    assert [cell.source for cell in page.cells] == [cell.source for cell in student.cells]
    (figure,) = page.cells[place + 2].outputs
    assert figure.data["image/png"] and page.cells[place + 2].metadata["mystnb"]["image"]["alt"] == (
        "Plot: Is it a line?; x: x; y: 2x, logarithmic; curves: twice.")
    assert "mystnb" not in executed.cells[place + 2].metadata


@needs_extra
@pytest.mark.parametrize("old, new, words", [
    ("    return x / 2", "    return x / 0", "42_twice.py, the cell of line 84 failed: ZeroDivisionError"),
    ("plt.close(figure)\n", "", "shows a figure twice"),
    ('axes.set(title="Is it a line?", xlabel="x", ylabel="2x", yscale="log")\naxes.legend()\n', "axes.clear()\n",
     "says in no words what it shows"),
])
def test_a_lesson_whose_notebook_does_not_come_out(old, new, words):
    assert old in TEXT
    with pytest.raises(RuntimeError) as error:
        notebooks.page(lesson(TEXT.replace(old, new)))
    assert words in str(error.value)


@needs_extra
def test_work_in_a_students_notebook_is_noticed(tmp_path):
    path = tmp_path / "a.ipynb"
    student = notebooks.student(lesson())
    notebooks.write(student, path)
    assert not notebooks.has_work(path)
    student.cells[3].outputs = []
    notebooks.write(student, path)
    assert not notebooks.has_work(path)
    before = student.cells[2].source
    student.cells[2].source = "print(1)"  # no answer, but somebody's own
    notebooks.write(student, path)
    assert notebooks.has_work(path)
    student.cells[2].source = before
    student.cells[lesson().exercises[1].solution].source += "\nx = 1"
    notebooks.write(student, path)
    assert notebooks.has_work(path)
    path.write_bytes(b"{}")
    assert notebooks.has_work(path)


def test_a_figure_in_words():
    from matplotlib.figure import Figure

    figure = Figure()
    left, right = figure.subplots(1, 2)
    left.plot([1, 2], label="$a_1$")
    left.legend()
    left.set_title("one\ntwo")
    right.imshow([[1]])
    figure.suptitle("Why?")
    assert figures.alternative(figure) == "Why?. Plot: one two; curves: a_1."
    assert figures.alternative(Figure()) == ""


# --- pages ------------------------------------------------------------------------------------------------------------


@needs_extra
def test_a_page_needs_no_network_and_hides_the_solution(executed, tmp_path):
    (tmp_path / "student").mkdir()
    (tmp_path / "solution").mkdir()
    for name in ("student", "solution"):
        (tmp_path / name / "42_twice.ipynb").write_text("{}")
    pages.build({"42_twice": notebooks.page(lesson(), executed)}, [lesson()], tmp_path / "html")
    text = (tmp_path / "html" / "42_twice.html").read_text(encoding="utf-8")
    assert needs_network(tmp_path / "html") == [] and broken_links(tmp_path / "html") == []
    assert text.count("<math") >= 2 and 'display="block"' in text and "MathJax" not in text
    assert "<details><summary>Answer</summary>" in text and 'alt="Plot: Is it a line?' in text
    plain = re.sub("<[^>]+>", "", text)
    assert "double: right on one number" in plain and "NotImplementedError" in plain and "FACTOR * x" not in plain
    assert "tinyres teach check 42" in plain and "See the first lesson, and that" in plain
    index = (tmp_path / "html" / "index.html").read_text(encoding="utf-8")
    assert 'href="42_twice.html"' in index and "../student/42_twice.ipynb" in index and "1, 3" in index
    assert "STIX Two Math" in text and "STIX Two Math" in index  # formulas are legible without a font for them


@needs_extra
def test_a_page_with_a_formula_that_does_not_come_out_is_refused(executed, tmp_path):
    page = notebooks.page(lesson(), executed)
    page.cells[0].source += "\n\n$\\nonsense$\n"
    with pytest.raises(RuntimeError, match=r"the pages do not come out: .*nonsense"):
        pages.build({"42_twice": page}, [lesson()], tmp_path / "html")
    assert list(tmp_path.iterdir()) == []


@needs_extra
def test_links_between_lessons():
    notebook = notebooks.source(lesson())
    found = pages.with_links(notebook, lambda name: f"{name}.html" if name == "01_forks_and_order" else None)
    assert found.cells[-1].source == "See [the first lesson](01_forks_and_order.html), and that."
    assert pages.with_links(notebook, lambda name: None).cells[-1].source == "See the first lesson, and that."
    assert notebook.cells[-1].source == "See [the first lesson](01_forks_and_order.py), and [that](../README.md)."


@needs_extra
def test_the_site_shows_the_same_page():
    found = pages.for_site(TEXT)
    assert "tinyres teach build 42" in found.cells[1].source and "FACTOR * x" not in json.dumps(found)


# --- building and serving ---------------------------------------------------------------------------------------------


@needs_extra
def test_build_keeps_answers_and_other_pages(tmp_path):
    (tmp_path / "lessons").mkdir()
    first = TEXT.replace("lesson: 42", "lesson: 41").replace("lesson_42", "lesson_41")
    (tmp_path / "lessons" / "41_once.py").write_text(first)
    (tmp_path / "lessons" / "42_twice.py").write_text(TEXT)
    lessons, to = reading.all_in(tmp_path / "lessons"), tmp_path / "built"
    done = building.build(lessons, to, [42])
    assert [path.relative_to(to).as_posix() for path in done.written] == [
        "student/42_twice.ipynb", "solution/42_twice.ipynb", "html/42_twice.html"]
    mine = building.student_notebook(to, lessons[1])
    notebook = json.loads(mine.read_bytes())
    assert "SEED = 0\n" in "".join(notebook["cells"][0]["source"]).replace("  #", "\n  #")
    answer = next(cell for cell in notebook["cells"]
                  if cell["metadata"].get("nbgrader", {}).get("grade_id") == "double")
    answer["source"] = "def double(x):\n    return 2 * x"
    mine.write_text(json.dumps(notebook))
    done = building.build(lessons, to)
    assert done.kept == (mine,) and "return 2 * x" in mine.read_text()
    assert sorted(path.name for path in (to / "html").glob("4*.html")) == ["41_once.html", "42_twice.html"]
    building.build(lessons, to, [42], overwrite=True)
    assert "return 2 * x" not in mine.read_text()
    notebook = json.loads(mine.read_bytes())
    notebook["cells"].append({"cell_type": "code", "metadata": {}, "source": "", "outputs": [],
                              "execution_count": None, "id": "empty"})  # as Jupyter adds
    mine.write_text(json.dumps(notebook))
    assert building.build(lessons, to, [42]).kept == ()
    notebook["cells"].insert(3, {"cell_type": "markdown", "metadata": {}, "source": "I predict 7.", "id": "mine"})
    mine.write_text(json.dumps(notebook))
    assert building.build(lessons, to, [42]).kept == (mine,) and "I predict 7." in mine.read_text()
    assert sorted(path.name for path in (to / "html").glob("4*.html")) == ["41_once.html", "42_twice.html"]
    assert sorted(path.name for path in to.iterdir()) == ["html", "solution", "student"]


def test_the_server_is_for_this_machine_alone(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no built lessons: run `tinyres teach build --to"):
        pages.server(tmp_path, 0)
    (tmp_path / "html").mkdir()
    (tmp_path / "html" / "index.html").write_text("<p>here")
    (tmp_path / "a.ipynb").write_text("{}")
    served = pages.server(tmp_path, 0)
    address = f"http://127.0.0.1:{served.server_address[1]}"
    assert served.server_address[0] == "127.0.0.1"
    thread = threading.Thread(target=served.serve_forever)
    thread.start()
    get = urllib.request.build_opener(urllib.request.ProxyHandler({})).open
    try:
        with get(f"{address}/") as answer:
            assert answer.url.endswith("/html/index.html") and answer.read() == b"<p>here"
            assert answer.headers["Cache-Control"] == "no-store"
        with get(f"{address}/a.ipynb") as answer:
            assert answer.headers["Content-Type"] == "application/x-ipynb+json"
        for outside in ("/../secret", "/%2e%2e/secret", "/nothing"):
            with pytest.raises(urllib.error.HTTPError):
                get(address + outside)
    finally:
        served.shutdown()
        thread.join()
        served.server_close()


# --- the command ------------------------------------------------------------------------------------------------------


def test_list_and_help(tinyres_command, tmp_path):
    folder(tmp_path / "l")
    status, out, err = tinyres_command("teach list --lessons l")
    assert (status, err) == (0, "") and "42  Twice" in out and "double, halve" in out
    status, out, err = tinyres_command("teach list --lessons l --json")
    (found,) = json.loads(out)["lessons"]
    assert found["exercises"] == {"double": 2, "halve": 2} and found["needs"] == [1, 3]
    status, out, err = tinyres_command("teach")
    assert (status, err) == (0, "") and all(name in out for name in ("build", "check", "list", "release", "serve"))


def test_check_says_what_is_wrong_and_its_status_tells(tinyres_command, tmp_path):
    folder(tmp_path / "l")
    status, out, err = tinyres_command("teach check 42 --lessons l")
    assert (status, err) == (1, "") and out.count("not done yet") == 2 and "0 of 4 points" in out
    (tmp_path / "a.py").write_text("def double(x):\n    return x * x\n\n\ndef halve(x):\n    return x / 2\n")
    status, out, err = tinyres_command("teach check 42 a.py --lessons l")
    assert (status, err) == (1, "")
    assert "double    0 of 2  squares" in out and "halve     2 of 2  right on one number" in out
    assert "double: squares\n    double(3) gave 9, which is 3 * 3.\n" in out and "\n\n2 of 4 points\n" in out
    status, out, err = tinyres_command("teach check 42 a.py --lessons l --json")
    found = json.loads(out)
    assert (status, found["points"], found["of"], found["file"]) == (1, 2, 4, "a.py")
    assert found["exercises"][0]["tag"] == "squares"
    (tmp_path / "a.py").write_text("def double(x):\n    return x + x\n\n\ndef halve(x):\n    return x / 2\n")
    assert tinyres_command("teach check 42 a.py --lessons l")[0] == 0
    (tmp_path / "build" / "lessons" / "student").mkdir(parents=True)
    (tmp_path / "a.py").rename(tmp_path / "build" / "lessons" / "student" / "42_twice.py")
    assert "as it is handed out" in tinyres_command("teach check 42 --lessons l")[1]  # a notebook is looked for


@pytest.mark.parametrize("line, words", [
    ("check 7 --lessons l", "Invalid value for NN: there is no lesson 7 yet; there are 42"),
    ("check 42 no.py --lessons l", "no.py is not there; check the path"),
    ("check 42 l/a.txt --lessons l", "expected a name that ends in .ipynb or .py"),
    ("check 42 --lessons .", "holds no lessons; expected a folder with files like"),
    ("check 42 --lessons l --limit 0", "'0' is not a number of at least 0.1"),
    ("build 7 --lessons l", "there is no lesson 7 yet"),
    ("build --lessons l --to l/a.txt", "l/a.txt is a file; give a folder"),
    ("build --lessons l --install numpy", "cannot install 'numpy' on Colab"),
    ("release --lessons l --roster no.csv", "no.csv is not there; check the path"),
    ("serve --port 70000", "not a whole number from 0 to 65535"),
])
def test_wrong_options_are_named(line, words, tinyres_command, tmp_path):
    (folder(tmp_path / "l") / "a.txt").write_text("")
    status, out, err = tinyres_command(f"teach {line}")
    assert (status, out) == (2, "") and words in err and len(err.splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["l"]


def test_serve_without_pages_says_how_to_get_them(tinyres_command):
    status, out, err = tinyres_command("teach serve")
    assert (status, out) == (1, "") and "run `tinyres teach build --to build/lessons`" in err


@needs_extra
def test_build_by_the_command(tinyres_command, tmp_path):
    folder(tmp_path / "l")
    status, out, err = tinyres_command("teach build 42 --lessons l --json --quiet")
    assert (status, err) == (0, "") and json.loads(out)["written"] == [
        "build/lessons/student/42_twice.ipynb", "build/lessons/solution/42_twice.ipynb",
        "build/lessons/html/42_twice.html"]
    status, out, err = tinyres_command("teach check 42 --lessons l")
    assert status == 1 and "build/lessons/student/42_twice.ipynb" in out and "0 of 4 points" in out
    status, out, err = tinyres_command("teach check 42 build/lessons/solution/42_twice.ipynb --lessons l")
    assert status == 0 and "4 of 4 points" in out


def test_without_the_extra_it_says_what_to_install(tinyres_command, tmp_path, monkeypatch):
    folder(tmp_path / "l")
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: None)
    status, out, err = tinyres_command("teach build --lessons l")
    assert (status, out) == (1, "") and 'pip install "tinyres[teach]"' in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["l"]
