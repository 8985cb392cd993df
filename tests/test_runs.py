"""`tinyres runs`: folders in every state, what sets runs apart, groups of seeds, the table and the figure."""

import json
import math
import os
import shlex

import pytest

from tinyres.analysis import curves
from tinyres.analysis.curves import Curve, draw_comparison
from tinyres.analysis.runs import differing, find_runs, group_runs, label, read_run, sort_runs
from tinyres.cli import table
from tinyres.cli.main import app

CONFIG = {"data": "digits", "data_dir": None, "recipe": "digits", "model": "resnet8", "epochs": 2, "batch": 64,
          "lr": 0.1, "iterations": None, "mixup": 0.0, "clip_norm": None, "augment": True, "freeze": [], "seed": 0,
          "kernels": "fast", "threads": 2, "network": {}, "versions": {"numpy": "2.1.2"},
          "provenance": {"began": "2026-01-02T03:04:05+00:00", "data_sha256": "d1"}}


def row(epoch, loss=1.0, **more):
    return {"epoch": epoch, "iterations": 22 * epoch, "lr": 0.1, "train_loss": loss, "train_accuracy": 0.75,
            "seconds": 1.5, "images_per_second": 100.0 * epoch, **more}


def make(folder, accuracy=0.9, rows=2, result=True, **options):
    """A run's folder, written as `tinyres train` does."""
    folder.mkdir(parents=True)
    config = CONFIG | options
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    (folder / "log.jsonl").write_text("".join(json.dumps(row(epoch)) + "\n" for epoch in range(1, rows + 1)))
    if result:
        (folder / "result.json").write_text(json.dumps({
            "accuracy": accuracy, "correct": 9, "n": 10, "loss": 0.25, "seed": config["seed"], "epochs": rows,
            "seconds": 4.5, "images_per_second": 321.0, "out": str(folder)}))
    return folder


@pytest.fixture
def command(capsys, monkeypatch, tmp_path):
    """command("runs --json") -> (exit status, stdout, stderr), in tmp_path."""
    monkeypatch.chdir(tmp_path)

    def call(line):
        with pytest.raises(SystemExit) as end:
            app(shlex.split(line), prog_name="tinyres")
        text = capsys.readouterr()
        return end.value.code, text.out, text.err

    return call


# --- reading ----------------------------------------------------------------------------------------------------------


def test_a_finished_run_is_read(tmp_path):
    run = read_run(make(tmp_path / "run", 0.95, seed=7))
    assert (run.state, run.note, run.accuracy, run.epochs, run.seconds) == ("finished", "", 0.95, 2, 4.5)
    assert (run.images_per_second, run.config["seed"], len(run.rows)) == (321.0, 7, 2)
    assert run.began == 1767323045  # 2026-01-02T03:04:05 UTC


def test_unfinished_runs_say_how_far_they_came(tmp_path):
    run = read_run(make(tmp_path / "a", rows=1, result=False))
    assert (run.state, run.note, run.accuracy, run.epochs) == ("unfinished", "epoch 1 of 2", None, 1)
    assert (run.seconds, run.images_per_second) == (1.5, 100.0)
    run = read_run(make(tmp_path / "b", rows=0, result=False))
    assert (run.state, run.note, run.epochs, run.seconds) == ("unfinished", "epoch 0 of 2", None, None)
    run = read_run(make(tmp_path / "c", rows=1, result=False, epochs=None, iterations=64_000))
    assert (run.state, run.note) == ("unfinished", "iteration 22 of 64000")
    with open(tmp_path / "a" / "log.jsonl", "a") as file:
        file.write('{"epoch": 2, "train')  # cut short by a kill
    assert read_run(tmp_path / "a").note == "epoch 1 of 2"
    (tmp_path / "a" / "log.jsonl").unlink()
    assert read_run(tmp_path / "a").note == "epoch 0 of 2"


@pytest.mark.parametrize("file, content, note", [
    ("config.json", None, "no config.json"),
    ("config.json", b"", "config.json: Expecting value"),
    ("config.json", b"[1]", "config.json: a list, expected an object"),
    ("config.json", b"\xff\xfe\0", "config.json: "),
    ("config.json", b"[" * 100_000, "config.json: "),
    ("config.json", b'{"model": "resnet8", "data": 3, "seed": true}', "config.json: no data, no seed"),
    ("config.json", b'{"model": "a", "data": "b", "seed": 0, "lr": [1e999]}', "config.json: Out of range float values"),
    ("log.jsonl", json.dumps(row(1)).encode() + b"\n{\n", "log.jsonl, line 2: "),
    ("log.jsonl", b'{"epoch": 1, "lr": "x", "train_loss": 1, "train_accuracy": 1}\n', "log.jsonl, line 1: not a row"),
    ("log.jsonl", b'{"epoch": 1, "train_loss": 1e999, "train_accuracy": 1}\n', "log.jsonl, line 1: Out of range"),
    ("log.jsonl", b'{"epoch": 1, "train_loss": 1' + b"0" * 400 + b', "train_accuracy": 1}\n', "log.jsonl, line 1: "),
    ("log.jsonl", b'{"epoch": 1.5, "train_loss": 1, "train_accuracy": 1}\n', "log.jsonl, line 1: not a row"),
    ("log.jsonl", b'{"epoch": 1}\n', "log.jsonl, line 1: not a row"),
    ("result.json", b'{"accuracy": 0.9', "result.json: "),
    ("result.json", b'{"accuracy": NaN, "loss": 1, "seconds": 1}', "result.json: Out of range"),
    ("result.json", b'{"accuracy": "0.9", "loss": 1, "seconds": true}', "result.json: no accuracy, no seconds"),
    ("result.json", b'{"accuracy": 0.9}', "result.json: no loss, no seconds"),
])
def test_damaged_runs_are_listed_with_the_reason(command, tmp_path, file, content, note):
    make(tmp_path / "runs" / "good", seed=1)
    bad = make(tmp_path / "runs" / "bad")
    (bad / file).unlink() if content is None else (bad / file).write_bytes(content)
    run = read_run(bad)
    assert run.state == "damaged" and note in run.note and "\n" not in run.note
    status, out, err = command("runs")
    assert (status, err) == (0, "") and f"{os.path.join('runs', 'bad')} is damaged: {run.note}\n" in out
    states = {found["folder"]: found["state"] for found in json.loads(command("runs --json")[1])["runs"]}
    assert states == {os.path.join("runs", "bad"): "damaged", os.path.join("runs", "good"): "finished"}


def test_a_folder_in_place_of_a_file_is_damage(command, tmp_path):
    run = make(tmp_path / "runs" / "a\nb")
    for name in ("result.json", "log.jsonl"):
        (run / name).unlink()
        (run / name).mkdir()
    found = read_run(run)
    assert found.state == "damaged" and found.note == "log.jsonl: Is a directory; result.json: Is a directory"
    assert command("runs")[1].splitlines()[2].startswith(f"{os.path.join('runs', 'a')}\\nb is damaged: log.jsonl")


def test_what_is_no_run_is_left_out(tmp_path):
    runs = tmp_path / "runs"
    make(runs / "seeds" / "seed10")
    make(runs / "seeds" / "seed2")
    (runs / "seeds" / "seeds.json").write_text("{}")
    (runs / "seeds" / "result.json").write_text("{}")
    make(runs / ".hidden")
    (runs / "foreign").mkdir()
    (runs / "foreign" / "config.json").write_text('{"model": "bert"}')
    (runs / "lost").mkdir()
    (runs / "lost" / "checkpoint.json").write_text("{}")
    (runs / "again").symlink_to(runs / "seeds" / "seed2", target_is_directory=True)
    make(runs / "new", rows=0, result=False)
    (runs / "new" / "log.jsonl").unlink()  # killed before it wrote anything else
    seed2, seed10 = (os.path.join("seeds", name) for name in ("seed2", "seed10"))
    rest = [("lost", "damaged"), ("new", "unfinished")]
    for folders, names in (([runs, runs / "seeds", runs / "again"], [*rest, (seed2, "finished"), (seed10, "finished")]),
                           ([runs / "again", runs], [("again", "finished"), *rest, (seed10, "finished")])):
        assert [(str(run.folder.relative_to(runs)), run.state) for run in find_runs(folders)] == names


# --- comparing --------------------------------------------------------------------------------------------------------


def test_only_the_options_that_differ_are_named(tmp_path):
    make(tmp_path / "a", lr=0.2)
    make(tmp_path / "b", seed=3, augment=False, epochs=5, provenance={}, versions={}, data_dir="x")
    old = make(tmp_path / "c")
    config = {name: value for name, value in CONFIG.items() if name not in ("mixup", "clip_norm", "freeze")}
    (old / "config.json").write_text(json.dumps(config))  # of a version that did not know these options
    (make(tmp_path / "d", batch=1) / "log.jsonl").write_text("?\n")  # damaged: not compared
    assert differing(find_runs([tmp_path])) == ["lr", "augment"]
    make(tmp_path / "e", mixup=0.2, threads=1)
    assert differing(find_runs([tmp_path])) == ["lr", "mixup", "augment", "threads"]
    assert label(read_run(tmp_path / "e"), find_runs([tmp_path])) == "resnet8, lr 0.1, mixup 0.2, augment yes"
    make(tmp_path / "f", data="cifar10", freeze=["conv", "bn"])
    words = "resnet8, cifar10, lr 0.1, mixup 0, augment yes, freeze conv bn"
    assert label(read_run(tmp_path / "f"), find_runs([tmp_path])) == words


def test_runs_that_differ_in_the_seed_only_make_a_group(tmp_path):
    for seed, accuracy in enumerate((0.9, 0.92, 0.97)):
        make(tmp_path / f"a{seed}", accuracy, seed=seed, threads=1 + seed)
    make(tmp_path / "a3", seed=3, result=False)
    config = {name: value for name, value in CONFIG.items() if name != "mixup"}  # as before there was one
    (tmp_path / "a3" / "config.json").write_text(json.dumps(config | {"seed": 3}))
    make(tmp_path / "b0", 0.5, lr=0.2)
    make(tmp_path / "b1", 0.5, lr=0.2, seed=1, provenance=CONFIG["provenance"] | {"data_sha256": "d2"})
    groups = group_runs(find_runs([tmp_path]))
    assert [[run.folder.name for run in group.runs] for group in groups] == [["a0", "a1", "a2", "a3"], ["b0"], ["b1"]]
    total = groups[0].as_dict()
    assert (total["n"], total["seeds"], total["worst"]) == (3, [0, 1, 2, 3], 0.9)
    assert total["accuracy"] == pytest.approx(0.93)
    assert total["deviation"] == pytest.approx(math.sqrt((0.03**2 + 0.01**2 + 0.04**2) / 2))
    assert groups[1].as_dict()["deviation"] is None


def test_a_seed_counts_once(tmp_path):
    make(tmp_path / "first", 0.5, provenance={"began": "2026-01-01T00:00:00+00:00"})
    make(tmp_path / "again", 0.7, provenance={"began": "2026-01-03T00:00:00+00:00"})
    make(tmp_path / "other", 0.9, seed=1, provenance={"began": "2026-01-02T00:00:00+00:00"})
    make(tmp_path / "unfinished", seed=1, result=False, provenance={"began": "2026-01-05T00:00:00+00:00"})
    group, = group_runs(find_runs([tmp_path]))
    assert [run.folder.name for run in group.finished] == ["again", "other"]
    assert group.as_dict()["accuracy"] == pytest.approx(0.8)


def test_the_orders(tmp_path):
    make(tmp_path / "run2", 0.8, provenance={"began": "2026-01-03T00:00:00+00:00"})
    make(tmp_path / "run10", 0.9, provenance={"began": "2026-01-01T00:00:00+00:00"})
    make(tmp_path / "run1", result=False, provenance={"began": "2026-01-02T00:00:00+00:00"})
    found = find_runs([tmp_path])
    orders = {by: [run.folder.name for run in sort_runs(found, by)] for by in ("accuracy", "time", "name")}
    assert orders == {"accuracy": ["run10", "run2", "run1"], "time": ["run2", "run1", "run10"],
                      "name": ["run1", "run2", "run10"]}


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_table_in_a_pipe_holds_whole_names(command, tmp_path):
    long = "a-folder-with-a-name-that-is-far-longer-than-any-terminal-is-wide-" + "x" * 100
    make(tmp_path / "runs" / long, 0.9875, seed=1, lr=0.25)
    make(tmp_path / "runs" / "[red]odd\nname", 0.5, rows=1, result=False)
    status, out, err = command("runs")
    lines = out.splitlines()
    assert (status, err, len(lines)) == (0, "", 3)
    assert lines[0].split() == "run model data lr seed accuracy loss epochs seconds images/s state".split()
    assert lines[1].split() == [os.path.join("runs", long), "resnet8", "digits", "0.25", "1", "98.75%", "0.2500", "2",
                                "4.5", "321", "finished"]
    assert lines[2].split(maxsplit=10) == [os.path.join("runs", "[red]odd\\nname"), "resnet8", "digits", "0.1", "0",
                                           "-", "-", "1", "1.5", "100", "unfinished (epoch 1 of 2)"]
    places = [line.index(part) for line, part in zip(lines, ("model", "resnet8", "resnet8"), strict=True)]
    assert places == [len(long) + 7] * 3


def test_seeds_get_a_table_of_their_own(command, tmp_path):
    for seed in range(3):
        make(tmp_path / "runs" / f"a{seed}", 0.9 + 0.01 * seed, seed=seed)
    make(tmp_path / "runs" / "b", 0.5, lr=0.2)
    lines = command("runs --sort name")[1].splitlines()
    assert lines[6] == "runs that differ in the seed only: means" and len(lines) == 9
    assert lines[8].split() == "resnet8 digits 0.1 0 1 2 3 91.00% 1.00% 90.00% 0.2500 4.5".split()
    found = json.loads(command("runs --json")[1])
    assert [run["folder"] for run in found["runs"]] == [os.path.join("runs", name) for name in ("a2", "a1", "a0", "b")]
    group, = found["groups"]
    assert (group["n"], group["options"], round(group["deviation"], 6)) == (3, {"lr": 0.1}, 0.01)


@pytest.mark.parametrize("line, status, message", [
    ("runs", 1, "runs: there is no folder runs: name folders that hold runs, or train a network first"),
    ("runs here nowhere", 1, "there is no folder nowhere"),
    ("runs here --sort speed", 2, "--sort: 'speed' is none of accuracy, time, name"),
    ("runs here --plot curves.jpg", 2, "--plot: curves.jpg does not end in .png"),
    ("runs empty --plot curves.png", 1, "no run has an epoch in its log yet"),
    ("runs here --plot nowhere/curves.png", 2, "--plot: there is no folder nowhere for curves.png"),
])
def test_errors_are_plain(command, tmp_path, line, status, message):
    make(tmp_path / "here" / "run")
    (tmp_path / "empty").mkdir()
    found, out, err = command(line)
    assert (found, out, len(err.splitlines())) == (status, "", 1) and message in err
    assert not list(tmp_path.glob("*.png"))


def test_no_runs_and_files_among_the_folders_are_told(command, tmp_path):
    (tmp_path / "empty").mkdir()
    assert command("runs empty") == (0, "no runs in empty\n", "")
    assert json.loads(command("runs empty --json")[1]) == {"runs": [], "groups": [], "plot": None}
    make(tmp_path / "run")
    (tmp_path / "curves.png").write_bytes(b"")
    status, out, err = command("runs run curves.png")
    assert (status, err) == (0, "not folders, so not read: curves.png\n") and "finished" in out


def test_a_wide_terminal_gets_a_frame_and_a_narrow_one_whole_lines(monkeypatch, capsys):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    for columns, framed in ((29, True), (28, False)):
        monkeypatch.setenv("COLUMNS", str(columns))
        table.show([("name", "left"), ("value", "right")], [["\u9ce5" * 6 + "[red]", "1"]])
        out = capsys.readouterr().out
        assert "\u9ce5" * 6 + "[red]" in out and (len(out.splitlines()) > 3) == framed


def test_train_makes_what_runs_reads(command):
    quick = "train --batch 400 --quiet --out"
    assert command(f"{quick} runs/a --epochs 1")[0] == 0
    assert command(f"{quick} runs/b --iterations 3 --seeds 2 --validate")[0] == 0
    found = json.loads(command("runs --json")[1])
    assert {run["state"] for run in found["runs"]} == {"finished"} and len(found["runs"]) == 3
    assert [group["n"] for group in found["groups"]] == [2]
    assert found["runs"][0]["options"].keys() == {"iterations", "validate"}
    status, _, err = command("runs --plot all.png")
    assert (status, err) == (0, "drawn: all.png\n")


# --- the figure -------------------------------------------------------------------------------------------------------


@pytest.fixture
def drawn(monkeypatch):
    """drawn(curves) -> (left axes, right axes, labels of the legend)"""
    figures = []
    monkeypatch.setattr(curves, "write_png", lambda figure, path: figures.append(figure))

    def draw(some):
        draw_comparison(some, "nowhere.png")
        return (*figures[-1].axes, [text.get_text() for text in figures[-1].legends[0].get_texts()])

    return draw


def test_a_group_is_a_mean_line_in_a_band(drawn):
    logs = [[row(1, 1.0), row(2, 0.5)], [row(1, 3.0), row(2, 0.7)], [row(1, 2.0)], []]
    left, right, labels = drawn([Curve("a", logs, [0.9, 0.8]), Curve("b$x$", [[row(1), row(2), row(3)]], []),
                                 Curve("none", [[]], [])])
    assert not any(text.get_parse_math() for text in left.figure.legends[0].get_texts())
    assert labels == ["a", "b$x$"] and left.get_yscale() == right.get_yscale() == "log"
    lines = [(line.get_xdata().tolist(), line.get_ydata().tolist()) for line in left.lines]
    assert lines == [([1, 2], [2.0, pytest.approx(0.6)]), ([1, 2, 3], [1.0] * 3)]
    low, high = left.collections[0].get_datalim(left.transData).intervaly
    assert len(left.collections) == 1 and (low, high) == (0.5, 3.0)
    star = right.lines[1]
    assert star.get_marker() == "*" and star.get_xdata()[0] == 2 and star.get_ydata()[0] == pytest.approx(15)
    colors = [right.lines[number].get_color() for number in range(3)]
    assert colors[0] == colors[1] != colors[2] and left.lines[0].get_linestyle() == "-"
    assert right.lines[0].get_ydata().tolist() == [25, 25]


def test_validation_is_drawn_apart_from_training(drawn):
    log = [row(epoch, validation_loss=2.0, validation_accuracy=1.0) for epoch in (1, 2)]
    left, right, _ = drawn([Curve("a", [log], []), Curve("b", [[row(1)]], [])])
    assert [line.get_linestyle() for line in left.lines] == ["--", "-", "--"]
    assert [line.get_ydata().tolist() for line in left.lines] == [[1, 1], [2, 2], [1]]
    assert all(value > 0 for line in right.lines for value in line.get_ydata())  # an error of 0 has no logarithm


def test_thirty_runs_have_thirty_colors(drawn):
    left, _, labels = drawn([Curve(str(number), [[row(1), row(2)]], []) for number in range(30)])
    assert len({line.get_color() for line in left.lines}) == len(labels) == 30
