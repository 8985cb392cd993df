"""The stepper in a terminal: driven by keys in a pseudo-terminal, and printed where there is none."""

import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

import tinyres as tr
from tinyres import data, models, nn
from tinyres.stepper import words
from tinyres.stepper.keys import Decoder, LineKeys, windows_key
from tinyres.stepper.lanes import lanes, neighbourhood
from tinyres.stepper.lines import Paper, cells, unstyled
from tinyres.stepper.schema import Stop, Trace
from tinyres.stepper.session import Session
from tinyres.stepper.short import number, percent
from tinyres.stepper.terminal import plain, window
from tinyres.stepper.trace import record

NETWORK = """
import sys
import numpy as np
import tinyres as tr
from tinyres import data, models
from tinyres.stepper.terminal import run
from tinyres.stepper.trace import record

tr.manual_seed(0)
x, y = data.digits("train").batch(2)
model = models.resnet8(in_channels=1)
with tr.use_kernels("reference"):
    recording = record(lambda: tr.cross_entropy(model(x), y), title="resnet8")
    {before}
    run(recording, *sys.argv[1:])
"""


def program(before=""):
    return [sys.executable, "-c", NETWORK.format(before=before or "pass")]


@pytest.fixture(scope="module")
def trace():
    """The same pass as the program's."""
    tr.manual_seed(0)
    x, y = data.digits("train").batch(2)
    model = models.resnet8(in_channels=1)
    with tr.use_kernels("reference"):
        return record(lambda: tr.cross_entropy(model(x), y), title="resnet8").trace


@pytest.fixture
def terminal():
    """Begins a program in a pseudo-terminal: terminal(columns, rows, before="", TERM="dumb")."""
    pytest.importorskip("pty", reason="pseudo-terminals are of Unix")
    from screen import Terminal

    begun = []

    def begin(columns=80, rows=24, before="", arguments=(), **environment):
        begun.append(Terminal([*program(before), *arguments], columns, rows, **environment))
        begun[-1].wait_for("step 1 of ")
        return begun[-1]

    yield begin
    for one in begun:
        one.close()


# --- keys sent, screen asserted --------------------------------------------------------------------------------------


def test_f_goes_to_the_fork_and_shows_the_running_sum_of_the_trace(terminal, trace):
    t = terminal()
    t.keys("f")
    place, group = next((i, trace.groups[g]) for i, g in enumerate(trace.block_steps) if trace.groups[g].fork)
    shortcut, branch = group.fork.arrivals
    shown = t.wait_for(f"step {place + 1} of {len(trace.block_steps)}", "= the sum", "O───┘")
    assert f"norm {number(shortcut.norm)}, share {percent(shortcut.share)}" in shown
    assert f"norm {number(branch.norm)}, cosine {number(branch.cosine)}, share {percent(branch.share)}" in shown
    assert re.search(rf"= the sum\n +█+ norm {number(branch.sum.norm)}$", shown, re.M)
    longest = max(line.count("█") for line in shown.splitlines())
    assert [line.count("█") for line in shown.splitlines() if "█" in line][:2] == [
        round(longest * shortcut.norm / branch.sum.norm), round(longest * branch.norm / branch.sum.norm)]


def test_keys_move_and_q_leaves_the_terminal_as_it_was(terminal, trace):
    t, n = terminal(), len(trace.block_steps)
    for keys, step in (("n", 2), ("\x1b[C", 3), ("b", 2), ("\x1b[D", 1), ("\x1b[F", n), ("\x1b[H", 1), ("\r", 2),
                       ("\x1bOC", 3)):
        t.keys(keys)
        t.wait_for(f"step {step} of {n}")
    t.keys("\x1b[H")
    t.wait_for(f"step 1 of {n}")
    t.keys("b")
    t.wait_for("this is the first step")
    t.keys("F")
    t.wait_for("there is no fork before this step")
    t.keys("j")
    t.wait_for("the join of layer3.0", "(+)──┐", "the very array that arrived")
    assert not t.is_as_before()
    t.keys("q")
    assert t.end() == 0 and t.is_as_before()
    assert "the join of layer3.0" in t.screen.text(), "the last view stays"


def test_g_completes_a_name_and_goes_to_the_layer(terminal, trace):
    t = terminal()
    t.keys("glayer2.0.co")
    t.wait_for("go to: layer2.0.co", "fits: layer2.0.conv2 and layer2.0.conv1")
    t.keys("\t2\r")
    t.wait_for("conv2 (Conv2d) of layer2.0")
    t.keys("gnowhere\r")
    t.wait_for("no step is called 'nowhere'")
    t.keys("g7x\x7f\r")
    t.wait_for("step 7 of ")
    t.keys("g99\r")
    t.wait_for("there is no step 99: they go from 1 to 29")
    t.keys("gab\x1b")
    t.wait_for("n next")
    t.keys("q")
    assert t.end() == 0


def test_v_and_d_change_the_view_and_the_direction_at_the_same_place(terminal, trace):
    t = terminal()
    t.keys("f")
    t.wait_for("= the sum")
    group = next(trace.groups[g] for g in trace.block_steps if trace.groups[g].fork)
    t.keys("v")
    t.wait_for(f"step {trace.nodes[group.output].step + 1} of {len(trace.backward)}, ops, backward", "= the sum")
    t.keys("d")
    shown = t.wait_for(", ops, forward", "its input is there", "feature maps", "channel 3")
    assert "gradient" not in shown
    t.keys("v")
    t.wait_for(f"step {group.id + 1} of {len(trace.groups)}, blocks, forward")
    t.keys("dq")
    assert t.end() == 0


def test_c_checks_the_shown_op_by_a_finite_difference_now(terminal):
    t = terminal()
    t.keys("f")
    t.wait_for("= the sum")
    t.keys("c")
    shown = t.wait_for("agrees with the engine")
    assert shown.count("they agree") == 2 and "finite difference" in shown
    t.keys("q")
    assert t.end() == 0


def test_predict_first_hides_the_step_and_keeps_the_score(terminal, trace):
    from tinyres.stepper.questions import questions

    asked = questions(trace, "blocks")
    first, second = (asked[id] for id in trace.block_steps[:2])
    t = terminal()
    t.keys("p")
    shown = t.wait_for(f"1 to {len(first.choices)} answer")
    assert "\ngradient " not in shown and first.choices[first.answer] in shown
    t.keys("9")
    t.wait_for("there are answers 1 to 3")
    t.keys(str(first.answer + 1))
    t.wait_for("Right.", "1 of 1 right", "\ngradient ")
    t.keys("n")
    t.wait_for("step 2 of", f"1 to {len(second.choices)} answer")
    t.keys(str((second.answer + 1) % len(second.choices) + 1))
    t.wait_for("No, it is:", "1 of 2 right")
    t.keys("n")
    t.wait_for("step 3 of", "question")
    t.keys("r")
    t.wait_for("step 3 of", "\ngradient ", "1 of 2 right")
    t.keys("q")
    assert t.end() == 0 and "Predictions: 1 of 2 right." in t.screen.text()


def test_a_window_of_60_by_20_scrolls_and_nothing_is_cut_off(terminal, trace):
    t = terminal(60, 20)
    t.keys("f")
    shown = t.wait_for("more below", "? help, q quit")  # the screen fails where a line is too wide
    seen = set(shown.splitlines())
    for _ in range(40):
        t.keys("\x1b[B")
        t.read(0.2)
        seen |= set(t.screen.lines())
    shown = t.wait_for("up: more above")
    id = next(g for g in trace.block_steps if trace.groups[g].fork)
    from tinyres.stepper import panels

    for line in panels.step(Paper(59), trace, "blocks", id):
        assert unstyled(line) in seen, "every line can be scrolled to"
    t.keys(" ")
    t.wait_for("step 13 of")
    t.keys("q")
    assert t.end() == 0


def test_a_wide_window_and_one_that_changes_its_size(terminal):
    t = terminal(200, 50)
    assert max(map(len, t.screen.lines())) <= 110
    t.resize(60, 24)
    t.signal(signal.SIGWINCH)
    t.wait_for("step 1 of 29", "? help, q quit")
    t.keys("n")
    t.wait_for("step 2 of 29")
    t.keys("q")
    assert t.end() == 0


def test_a_dumb_terminal_gets_lines_without_escape_sequences(terminal):
    t = terminal(TERM="dumb")
    t.keys("n")
    t.wait_for("> ", "fc (Linear)")
    t.keys("q")
    assert t.end() == 0 and "\x1b" not in t.raw and t.is_as_before()


def test_without_colour_the_screen_says_the_same(terminal):
    screens = []
    for environment in ({}, {"NO_COLOR": "1"}):
        t = terminal(**environment)
        t.keys("f")
        screens.append(t.wait_for("= the sum"))
        colours = re.findall(r"\x1b\[(?:[\d;]*;)?(?:3|4|9|10)\d(?:;[\d;]*)?m", t.raw)
        assert bool(colours) == (not environment)
        t.keys("q")
        t.end()
    assert screens[0] == screens[1]


def test_a_terminal_without_box_characters_gets_ascii(terminal):
    t = terminal(PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    t.keys("f")
    t.wait_for("O---+", "####")
    t.keys(" q")
    assert t.end() == 0 and t.raw.isascii()


@pytest.mark.parametrize("way", ["ctrl-c", "error", "sigterm"])
def test_the_terminal_is_as_it_was_after_ctrl_c_an_error_and_a_signal(terminal, way):
    before = "import sys\n    sys.tracebacklimit = 0"  # its lines are as long as the paths of the machine
    if way == "error":
        before += "\n    from tinyres.stepper import session\n    session._ACTIONS['x'] = lambda session: 1 / 0"
    t = terminal(before=before)
    assert not t.is_as_before()
    if way == "sigterm":
        t.signal(signal.SIGTERM)
    else:
        t.keys("\x03" if way == "ctrl-c" else "x")
    status = t.end()
    assert t.is_as_before()
    words_of_it = {"ctrl-c": "KeyboardInterrupt", "error": "ZeroDivisionError", "sigterm": ""}[way]
    assert status != 0 and words_of_it in t.raw


def test_it_goes_on_after_it_was_stopped(terminal):
    import termios

    t = terminal()
    termios.tcsetattr(t.slave, termios.TCSANOW, t.before)  # as a shell does meanwhile
    t.signal(signal.SIGCONT)
    t.wait_for("step 1 of 29")
    t.keys("n")  # without Enter
    t.wait_for("step 2 of 29")
    t.keys("q")
    assert t.end() == 0 and t.is_as_before()


# --- where there is no terminal --------------------------------------------------------------------------------------


def test_piped_it_is_plain_text_of_all_steps_in_80_columns(trace):
    done = subprocess.run([*program(), "ops"], capture_output=True, stdin=subprocess.DEVNULL, timeout=60,
                          env=os.environ | {"PYTHONIOENCODING": "utf-8"})
    text = done.stdout.decode()
    assert done.returncode == 0 and not done.stderr
    here = [line for line in plain(trace, "ops") if not line.startswith("line  ")]  # the user's file is another one
    assert [line for line in text.splitlines() if not line.startswith("line  ")] == here
    assert re.findall(r"^ *(\d+) of \d+  ", text, re.M) == [str(i + 1) for i in range(len(trace.backward))]
    assert max(map(cells, text.splitlines())) <= 80 and "\x1b" not in text


@pytest.mark.skipif(not shutil.which("bash"), reason="needs bash for the pipe")
def test_nobody_reads_and_it_ends_quietly():
    command = " ".join(f"'{part}'" if "\n" not in part else '"$PROGRAM"' for part in program())
    done = subprocess.run(["bash", "-c", f"{command} ops | head -1"], capture_output=True, timeout=60, text=True,
                          stdin=subprocess.DEVNULL, env=os.environ | {"PROGRAM": program()[2]})
    assert done.stdout == "resnet8\n" and done.stderr == ""


def test_plain_text_streams_and_names_a_view_that_there_is_not(trace):
    lines = plain(trace, "blocks")
    assert next(lines) == "resnet8" and next(lines).startswith("backward, 29 steps of blocks")
    with pytest.raises(ValueError, match="step: view must be 'blocks' or 'ops', got 'layers'"):
        plain(trace, "layers")
    with pytest.raises(ValueError, match="step: direction must be 'backward' or 'forward', got 'up'"):
        plain(trace, "ops", "up")


@pytest.mark.parametrize("encoding", ["ascii", "cp437", "latin-1"])
def test_plain_text_in_an_encoding_that_lacks_signs(trace, encoding):
    for view in ("blocks", "ops"):
        for direction in ("backward", "forward"):
            text = "\n".join(plain(trace, view, direction, encoding))
            assert text.encode(encoding) and "?" not in text


def test_hostile_names_stay_on_their_line():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(2, 2))

        def forward(self, x):
            return x + self.layers(x)

    net = Net()
    rec = record(lambda: net(tr.tensor(np.ones((1, 2), np.float32))).sum(), title="a\x1b[2J\nb [red]层层层层层层")
    for node in rec.trace.nodes:
        node.name = node.module = "\x1b]0;title\x07\r\nname[bold]" + "长" * 60
    for group in rec.trace.groups:
        group.title = "\x1b[31mtitle"
    for view in ("blocks", "ops"):
        for line in plain(rec.trace, view, width=40):
            assert line.isprintable() and cells(line) <= 40
        session = Session(rec.trace, view)
        shown, foot = session.lines(Paper(40), 20)
        assert all(unstyled(line).isprintable() and cells(unstyled(line)) <= 40 for line in shown + foot)


def test_a_stopped_pass_shows_what_met_what_and_the_ways_out(trace):
    stop = Stop("add", "cannot add (1, 8) to (1, 4)", ["The branch has 8 channels."],
                [("by conv2, the branch", (1, 8)), ("the shortcut", (1, 4))], ["PadShortcut(4, 8, 1)", "same width"])
    stopped = replace(trace, stopped=stop, backward=[], block_steps=[], loss=None)
    text = "\n".join(plain(stopped))
    assert "met       (1, 8), by conv2, the branch" in text and "fix 2     same width" in text
    session = Session(stopped)
    assert session.direction == "forward" and session.row == len(session.order) - 1
    assert any("The forward pass stopped at add." in unstyled(line) for line in session.lines(Paper())[0])
    session.press("d")
    assert "no backward pass" in session.message
    empty = Trace("nothing", None, "", "", True, {}, stopped=stop)
    session = Session(empty)
    for key in ("n", "b", "f", "j", "v", "d", "c", "p", "end", "home", "F", " ", "?", "n", "g", "a", "tab", "enter"):
        session.press(key)
        assert session.lines(Paper(), 24)


def test_notes_stand_at_the_first_step_and_above_the_plain_text(trace):
    noted = replace(trace, notes=["batch_norm ran fused"])
    session = Session(noted)
    assert "note      batch_norm ran fused" in map(unstyled, session.lines(Paper())[0])
    session.press("n")
    assert "note      batch_norm ran fused" not in map(unstyled, session.lines(Paper())[0])
    assert "note      batch_norm ran fused" in plain(noted)


def test_forks_and_joins_are_found_in_both_directions(trace):
    session = Session(trace)
    forks = [row for row, id in enumerate(session.order) if trace.groups[id].fork is not None]
    for key, rows in (("f", forks), ("F", forks[-2::-1])):
        for row in rows:
            session.press(key)
            assert session.row == row and not session.message
        session.press(key)
        assert session.message.startswith("there is no fork") and session.row == rows[-1]
    session.press("end")
    session.press("J")
    assert trace.groups[session.id].kind == "join"


def test_every_key_in_every_view_keeps_the_lines_within_the_window(trace):
    session = Session(trace)
    rng = np.random.default_rng(0)
    keys = ["n", "b", "f", "F", "j", "J", "v", "d", "p", "1", "2", "r", " ", "down", "up", "page down", "page up",
            "home", "end", "?", "c", "x", "resize", "g", "l", "enter", "tab", "backspace", "/"]
    for columns, rows in ((80, 24), (60, 20), (20, 6), (110, 60)):
        for key in rng.choice(keys, 80):
            session.press(str(key))
            shown, foot = session.lines(Paper(columns), rows)
            assert len(shown) + len(foot) <= rows
            wide = [unstyled(line) for line in shown + foot if cells(unstyled(line)) > columns]
            assert not wide
    assert not session.done


# --- parts -----------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform == "win32", reason="a Windows console gives keys another way")
def test_keys_are_put_together_from_bytes_that_come_late():
    read, write = os.pipe()
    decoder = Decoder(read)
    os.write(write, b"n\x1b[C\x1b[5~\x1b[1;5Q\xc3\xa9\r\x7f\x04" + "层".encode()[:2])
    assert [decoder.key() for _ in range(7)] == ["n", "right", "page up", "é", "enter", "backspace", "quit"]
    os.write(write, "层".encode()[2:])
    assert decoder.key() == "层"
    os.write(write, b"\x1b")
    assert decoder.key() == "escape"
    os.write(write, b"\x1bq")
    assert [decoder.key(), decoder.key()] == ["escape", "q"]
    os.close(write)
    assert decoder.key() == "quit"
    os.close(read)


def test_keys_from_lines_and_from_windows():
    lines = iter(["n\n", "\n", "gab\n", ""])
    keys = LineKeys(SimpleNamespace(readline=lambda: next(lines)))
    assert [keys.key() for _ in range(7)] == ["n", "enter", "g", "a", "b", "enter", "quit"]
    signs = iter("n\xe0M\0K\xe0\x99\r\x1b\x03")
    read = [windows_key(lambda: next(signs)) for _ in range(5)]
    assert read == ["n", "right", "left", "enter", "escape"]
    with pytest.raises(KeyboardInterrupt):
        windows_key(lambda: next(signs))


def test_wrapped_lines_fit_and_lose_no_word():
    rng = np.random.default_rng(1)
    for _ in range(200):
        parts = ["".join(rng.choice(list("ab层·é"), rng.integers(1, 30))) for _ in range(rng.integers(1, 12))]
        lines = Paper(24).wrap(" ".join(parts), "first   ", 8)
        assert all(cells(line) <= 24 for line in lines)
        assert "".join(lines).replace(" ", "") == "first" + "".join(parts)
        assert all(any(part in line for line in lines) for part in parts if cells(part) <= 16), "no word is broken"


def test_heat_maps_tell_signs_and_sizes_without_colour():
    rows = Paper().heat([[99, 1, 0], [-1, -50, -99]])
    assert ["".join(text for text, _ in row) for row in rows] == ["+█+░ ·", "-░-▓-█"]
    rows = Paper(80, "ascii").heat([[99, 1, 0]])
    assert ["".join(text for text, _ in row) for row in rows] == ["+#+. 0"]


def test_small_arrays_are_shown_number_by_number():
    x = tr.tensor(np.arange(8.0).reshape(2, 2, 2) - 2, requires_grad=True)
    trace = record(lambda: (x * x).sum()).trace
    node = next(n for n in trace.nodes if n.op == "mul")
    lines = [unstyled(line) for line in Paper().numbers(node.value)]
    assert lines == ["[0, :, :]", "   4   1", "   0   1", "[1, :, :]", "   4   9", "  16  25"]
    y = tr.tensor(np.arange(6.0).reshape(1, 3, 1, 2), requires_grad=True)
    node = next(n for n in record(lambda: (y * y).sum()).trace.nodes if n.op == "mul")
    assert [unstyled(line) for line in Paper().numbers(node.value)] == ["   0   1", "   4   9", "  16  25"]


def test_the_lane_runs_from_the_join_to_the_fork_where_the_routes_part(trace):
    order = words.steps(trace, "blocks")
    labels = [words.label(trace, "blocks", id) for id in order]
    expected = []
    for span in trace.blocks:
        expected.append((order.index(trace.nodes[span.join].group), order.index(trace.nodes[span.fork].group)))
    found = [(lane.start, lane.end) for lane in lanes(trace, "blocks", order)]
    assert found == sorted(expected) and len(found) == 3
    drawn = [unstyled(line) for line in neighbourhood(Paper(), trace, "blocks", order, found[0][0], 0, 7)]
    assert drawn[0].startswith(f"> {found[0][0] + 1:>2} (+)──┐  the join of layer3.0")
    assert "│   o  downsample" in drawn[1] and drawn[7].endswith("O───┘  relu of layer2.0")
    assert labels[found[0][1]] == "relu of layer2.0"


def test_where_a_join_is_the_next_fork_one_lane_ends_and_one_begins():
    x = tr.tensor(np.ones((2, 2)), requires_grad=True)

    def run():
        h = x
        for _ in range(3):
            h = h + h * h
        return h.sum()

    trace = record(run).trace
    drawn = [unstyled(line) for line in neighbourhood(Paper(), trace, "ops", words.steps(trace, "ops"), 4, 9, 9)]
    assert sum("┤" in line for line in drawn) == 2 and sum("┐" in line for line in drawn) == 1
    assert sum("┘" in line for line in drawn) == 1


def test_lanes_that_cross_are_told_apart():
    x = tr.tensor(np.ones((2, 2)), requires_grad=True)

    def run():
        h = x * 2.0
        return (h + (h + tr.relu(h)) * 3.0).sum()

    trace = record(run).trace
    drawn = [unstyled(line)[4:13] for line in neighbourhood(Paper(), trace, "ops", words.steps(trace, "ops"), 2, 0, 4)]
    assert drawn == ["(+)──┐   ", " o   │   ", "(+)──┼──┐", " o   │  │", " O───┴──┘"]


def test_a_window_without_a_size_is_80_by_24(monkeypatch):
    for name in ("COLUMNS", "LINES"):
        monkeypatch.delenv(name, raising=False)
    with open(os.devnull) as nowhere:
        assert window(nowhere) == (80, 24)
