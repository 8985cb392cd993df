"""Mistakes with the lessons: the command, a learner's file, a lesson that is not built as one."""

from error_case import Command, chapter
from made_up_lesson import TEXT, folder, lesson

from tinyres import teach
from tinyres.teach import check, pages
from tinyres.teach import lesson as reading

case = chapter("The lessons")


def lessons(place, line):
    """`tinyres teach LINE` beside a folder with one lesson."""
    folder(place / "lessons")
    return Command(f"teach {line} --lessons lessons")


# --- the command ------------------------------------------------------------------------------------------------------


@case("A lesson that is not written", 2, "NN", "lesson 9", "there are 42", fix="there are 42")
def _(folder):
    return lessons(folder, "check 9"),


@case("Answers that are not there", 2, "FILE", "mine.ipynb", fix="check the path")
def _(folder):
    return lessons(folder, "check 42 mine.ipynb"),


@case("A folder in place of answers", 2, "FILE", "mine is a folder", fix="name a file")
def _(folder):
    (folder / "mine").mkdir()
    return lessons(folder, "check 42 mine"),


@case("Answers in a file of another kind", 2, "FILE", "mine.txt", fix="a name that ends in .ipynb or .py")
def _(folder):
    (folder / "mine.txt").write_text("")
    return lessons(folder, "check 42 mine.txt"),


@case("A damaged notebook", 2, "FILE", "mine.ipynb", "JSONDecodeError", fix="take back a copy of it")
def _(folder):
    (folder / "mine.ipynb").write_text("{")
    return lessons(folder, "check 42 mine.ipynb"),


@case("A folder without lessons", 2, "--lessons", "elsewhere holds no lessons", fix="files like 01_forks_and_order.py")
def _(folder):
    (folder / "elsewhere").mkdir()
    return Command("teach list --lessons elsewhere"),


@case("Building into a file", 2, "--to", "a file", fix="give a folder")
def _(folder):
    (folder / "out").write_text("")
    return lessons(folder, "build --to out"),


@case("Something else to install on Colab", 2, "--install", "'numpy'", fix="expected tinyres, tinyres==")
def _(folder):
    return lessons(folder, "build --install numpy"),


@case("A roster that is not there", 2, "--roster", "class.csv", fix="check the path")
def _(folder):
    return lessons(folder, "release --roster class.csv"),


@case("Pages that were not built", 1, "teach", "build/lessons", fix="run `tinyres teach build")
def _(folder):
    return Command("teach serve"),


# --- the library ------------------------------------------------------------------------------------------------------


@case("A lesson without a header", ValueError, "01_mine.py is no lesson", "it has no header", fix="# ---")
def _(folder):
    return lambda: lesson("# %%\nx = 1\n", "01_mine.py"),


@case("A lesson whose minutes are no number", ValueError, "minutes", "'ten'", fix="a whole number")
def _(folder):
    return lambda: lesson(TEXT.replace("minutes: 5 ", "minutes: ten ")),


@case("A cell's metadata that is no JSON", ValueError, "tags", "'[a]'", fix="expected JSON")
def _(folder):
    return lambda: lesson(TEXT.replace('tags=["a"]', "tags=[a]")),


@case("No lessons beside an installed tinyres", FileNotFoundError, "teach", "holds no lessons",
      fix="as tutorials/ of a checkout")
def _(folder):
    return lambda: reading.folder(folder),


@case("A lesson without wrong answers", FileNotFoundError, "lesson 42 has no wrong answers", "lesson_42.py",
      fix="expected them in")
def _(folder):
    return lambda: check.wrong_answers(lesson()),


@case("A seed that is none", ValueError, "SEED", "'mine'", fix="restore that cell")
def _(folder):
    import __main__

    def wrong():
        __main__.SEED = "mine"
        try:
            teach.seed()
        finally:
            del __main__.SEED

    return wrong,


@case("A server where nothing is built", FileNotFoundError, "teach", "holds no built lessons",
      fix="tinyres teach build")
def _(folder):
    return lambda: pages.server(folder, 0),
