"""The map of the lessons and the page for teachers say what the lessons themselves say."""

import re
from pathlib import Path

import pytest

from tinyres.teach import check
from tinyres.teach import lesson as reading

ROOT = Path(__file__).resolve().parents[1]
MAP, TEACHERS = ROOT / "tutorials" / "README.md", ROOT / "tutorials" / "teachers.md"
LESSONS = {lesson.number: lesson for lesson in reading.all_in(ROOT / "tutorials")}
PLANNED = range(1, 15)
RULE = re.compile(r"\|[|\- ]+")  # between a table's header and its rows


def section(page, title):
    """What stands under a heading, up to the next of its level or above."""
    level = title.split(" ")[0]
    text = page.read_text(encoding="utf-8")
    found = re.search(rf"^{re.escape(title)}\n(.*?)(?=^#{{1,{len(level)}}} |\Z)", text, re.S | re.M)
    assert found, f"{page.name} has no heading {title!r}"
    return found[1]


def rows(text):
    """The cells of the rows of the tables in a text, without their headers."""
    lines = text.splitlines()
    for i, line in enumerate(lines):
        if line.startswith("| ") and not any(RULE.fullmatch(near) for near in lines[i:i + 2]):
            yield [cell.strip() for cell in line.strip("|").split(" | ")]


def numbers(text):
    return [int(number) for number in re.findall(r"\d+", text)]


def words(lesson):
    """What a lesson tells a reader, on one line."""
    return " ".join(" ".join(cell.source for cell in lesson.cells if cell.kind == "markdown").split())


TEXTS = {number: words(lesson) for number, lesson in LESSONS.items()}
MAPPED = {int(number): tuple(cells) for number, *cells in rows(section(MAP, "## The fourteen"))}
GLOSSARY = list(rows(section(MAP, "## Glossary")))
PLANS = list(rows(section(MAP, "## Three plans")))


def occurs(term, text):
    """Whether a word stands in a text, also in the plural and as what has been done with it."""
    return re.search(rf"\b{re.escape(term)}(?:e?s|ed|ing)?\b", text, re.I) is not None


# --- the map ----------------------------------------------------------------------------------------------------------


def test_the_map_has_fourteen_and_those_that_are_there():
    assert list(MAPPED) == list(PLANNED)
    assert [number for number, row in MAPPED.items() if row[-1] == "there"] == list(LESSONS)
    assert {row[-1] for row in MAPPED.values()} == {"there", "comes"}
    text = " ".join(MAP.read_text(encoding="utf-8").split())
    assert f"So far there are {len(LESSONS)} lessons; {len(PLANNED) - len(LESSONS)} are to come." in text
    coming = re.findall(r"^(\d+)\. (\*Comes:\*)?", section(MAP, "## The fourteen"), re.M)
    assert {int(number): bool(comes) for number, comes in coming} == {n: n not in LESSONS for n in PLANNED}


@pytest.mark.parametrize("number", LESSONS)
def test_the_map_says_what_the_header_says(number):
    lesson = LESSONS[number]
    needs = ", ".join(map(str, lesson.needs)) or "none"
    assert MAPPED[number][:3] == (f"[{lesson.title}]({lesson.path.name})", needs, str(lesson.minutes))


def test_a_lesson_needs_only_lessons_before_it():
    for number, (_, needs, minutes, _) in MAPPED.items():
        assert needs == "none" or numbers(needs) == sorted(set(numbers(needs)) & set(range(1, number))), number
        assert int(minutes) > 0


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: plan[0])
def test_a_plan_names_lessons_that_are_there_after_what_they_need(plan):
    name, order, minutes, coming = plan
    done = numbers(order)
    assert set(done) <= set(LESSONS) and len(set(done)) == len(done), f"{name}: {done}; there are {list(LESSONS)}"
    for place, number in enumerate(done):
        assert set(LESSONS[number].needs) <= set(done[:place]), f"{name}: lesson {number} comes before what it needs"
    assert int(minutes) == sum(LESSONS[number].minutes for number in done), name
    assert set(numbers(coming)) <= set(PLANNED) - set(LESSONS), name


def test_a_term_takes_all_fourteen():
    plans = {plan[0]: set(numbers(plan[1])) | set(numbers(plan[3])) for plan in PLANS}
    assert list(plans) == ["one day", "three weeks", "a term"] and plans["a term"] == set(PLANNED)


# --- the glossary -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", GLOSSARY, ids=lambda row: row[0])
def test_a_term_first_occurs_where_the_glossary_says(row):
    term, chinese, meaning, where = row
    assert re.search("[\u4e00-\u9fff]", chinese) and meaning
    first, *about = numbers(where)
    found = [number for number, text in TEXTS.items() if occurs(term.split(" (")[0], text)]
    assert found, f"{term!r} is in no lesson: take it out of the glossary"
    assert first == found[0], f"{term!r} first occurs in lesson {found[0]}, the glossary says {first}"
    for number in about:
        assert first < number and (number not in LESSONS or number in found), f"{term!r}: lesson {number}"


def test_the_glossary_has_each_term_once_in_order():
    terms = [row[0].lower() for row in GLOSSARY]
    assert terms == sorted(set(terms)) and 30 <= len(terms) <= 50


# --- the page for teachers --------------------------------------------------------------------------------------------


def exercises(number):
    """{exercise: (points, its tags)} of a lesson's section of the page for teachers."""
    found = {}
    for name, points, text in re.findall(r"^`(\w+)`, (\d+) points:\n(.*?)(?=^`\w+`, |\Z)",
                                         section(TEACHERS, f"### Lesson {number}"), re.S | re.M):
        found[name] = int(points), [row[0].strip("`") for row in rows(text)]
    return found


@pytest.mark.parametrize("number", LESSONS)
def test_the_tags_for_teachers_are_those_of_wrong_answers(number):
    lesson, told = LESSONS[number], exercises(number)
    assert {name: points for name, (points, _) in told.items()} == {e.name: e.points for e in lesson.exercises}
    for name, (_, tags) in told.items():
        known = {wrong.tag for wrong in check.wrong_answers(lesson) if wrong.exercise == name}
        assert set(tags) <= known, f"{name}: no wrong answer has the tag {sorted(set(tags) - known)}"
        assert len(tags) == len(set(tags)) >= 4


def test_every_row_for_teachers_has_three_cells():
    for number in LESSONS:
        for row in rows(section(TEACHERS, f"### Lesson {number}")):
            assert len(row) == 3 and all(row), row
