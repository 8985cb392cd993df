"""Each kind of mistake: the exception's type, what its message names and offers, and that nothing has changed; and that
tutorials/errors.md says what they say."""

import copy
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from error_case import CASES, Case, chapter, images, leaf, snapshot, surroundings
from error_catalogue import PAGE, page

import tinyres as tr
from tinyres import nn, optim


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.title)
def test_error(case, tmp_path):
    message, changed = case.run(tmp_path)
    assert not changed
    missing = [part for part in (case.name, *case.values, case.fix) if part not in message]
    assert not missing, f"{missing} not in: {message}"


def test_there_are_enough_kinds_and_each_is_one():
    twice = [title for title, count in Counter(case.title for case in CASES).items() if count > 1]
    assert len(CASES) >= 90 and not twice
    assert all(case.name and case.fix for case in CASES)
    chapters = [case.category for case in CASES]
    assert len(set(chapters)) >= 12 and sorted(chapters, key=chapters.index) == chapters


def test_the_page_is_what_the_cases_make():
    assert PAGE.read_text(encoding="utf-8") == page(), "run: python tests/error_catalogue.py --write"


# --- the catalogue can fail -------------------------------------------------------------------------------------------


def made(exception, scene):
    return Case("a title", "a category", exception, "add", (), "reshape", scene, "")


def fails(error, *changes):
    """A scene in which something is changed before the error comes."""
    array, tensor, model = np.arange(3.0), leaf(3), nn.Linear(2, 2)
    optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    things = {"array": array, "tensor": tensor, "model": model, "optimizer": optimizer}

    def scene(folder):
        (folder / "file").write_text("as it was")
        things["folder"] = folder

        def wrong():
            for change in changes:
                change(**things)
            if error is not None:
                raise error

        return wrong, array, tensor, model, optimizer

    return scene


@pytest.mark.parametrize("change, found", [
    (lambda array, **_: array.__setitem__(0, 7.0), "ndarray 1"),
    (lambda array, **_: array.setflags(write=False), "ndarray 1"),
    (lambda tensor, **_: tensor.data.__setitem__(0, 7.0), "Tensor 2"),
    (lambda tensor, **_: tensor.bump("a test"), "Tensor 2"),
    (lambda tensor, **_: setattr(tensor, "grad", tr.ones(3)), "Tensor 2"),
    (lambda tensor, **_: tensor.register_hook(print), "Tensor 2"),
    (lambda tensor, **_: setattr(tensor, "requires_grad", False), "Tensor 2"),
    (lambda model, **_: model.eval(), "Linear 3"),
    (lambda model, **_: model.register_forward_hook(print), "Linear 3"),
    (lambda model, **_: model.weight.data.__imul__(2.0), "Linear 3"),
    (lambda optimizer, **_: optimizer.param_groups[0].update(lr=0.2), "SGD 4"),
    (lambda model, optimizer, **_: optimizer.state.update({model.bias: {"momentum_buffer": np.ones(2)}}), "SGD 4"),
    (lambda folder, **_: (folder / "file").write_text("other"), "PosixPath 0"),
    (lambda folder, **_: (folder / "new").mkdir(), "PosixPath 0"),
    (lambda folder, **_: (folder / "file").unlink(), "PosixPath 0"),
    (lambda **_: tr.randn(1), "surroundings"),
    (lambda **_: np.seterr(over="raise"), "surroundings"),
], ids=range(17))
def test_a_change_is_noticed(change, found, tmp_path):
    before = np.geterr()
    message, changed = made(ValueError, fails(ValueError("add: reshape"), change)).run(tmp_path)
    np.seterr(**before)
    assert message == "add: reshape" and found in changed


def test_a_scene_in_which_nothing_changes(tmp_path):
    case = made(ValueError, fails(ValueError("add")))
    cwd, state = Path.cwd(), tr.random.get_state()
    assert case.run(tmp_path) == ("add", [])
    assert Path.cwd() == cwd and tr.random.get_state() == state


@pytest.mark.parametrize("error, said", [(None, "no exception"), (IndexError("add"), "IndexError: add"),
                                         (UnicodeError("add"), "UnicodeError: add")])
def test_another_exception_is_no_answer(error, said, tmp_path):
    """A class below the expected one is another too."""
    with pytest.raises(AssertionError, match=said):
        made(ValueError, fails(error)).run(tmp_path)


@pytest.mark.parametrize("status, out, err", [(1, "", "add"), (2, "text", "add"), (2, "", "add\nmore"), (2, "", ""),
                                              (2, "", "Traceback")])
def test_a_command_says_one_line(status, out, err, tmp_path):
    with pytest.raises(AssertionError):
        made(2, lambda folder: (lambda: (status, out, err),)).run(tmp_path)


def test_a_snapshot_knows_each_thing_and_refuses_others():
    data, average = images(), optim.ExponentialMovingAverage(nn.Linear(2, 2), 0.9)
    schedule = optim.StepLR(optim.SGD(nn.Linear(2, 2).parameters()), 1)
    for thing in (data, average, schedule, {"a": [1, None, "b", 2.0, b"c"]}):
        assert snapshot(thing) == snapshot(thing) == snapshot(copy.copy(thing))
    schedule.step()
    assert snapshot(optim.StepLR(schedule.optimizer, 1)) != snapshot(schedule)
    with pytest.raises(TypeError, match="no snapshot of a set"):
        snapshot({1})


def test_surroundings_notice_the_environment(monkeypatch):
    before = surroundings()
    monkeypatch.setitem(os.environ, "TINYRES_ANYTHING", "1")
    assert surroundings() != before


def test_a_chapter_adds_to_the_table():
    count = len(CASES)
    chapter("a category")("a title", ValueError, "add", fix="reshape")(lambda folder: ())
    assert CASES.pop().category == "a category" and len(CASES) == count
