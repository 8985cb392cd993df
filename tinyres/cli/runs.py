"""`tinyres runs`: the runs below some folders, in a table and a plot."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tinyres.cli import setup, table

if TYPE_CHECKING:
    from tinyres.analysis.runs import Group, Run

Folders = Annotated[list[Path] | None, typer.Argument(metavar="[FOLDER ...]", help="Folders of runs, or folders that "
                                                      "hold them. Default: runs", show_default=False)]
Plot = Annotated[Path | None, typer.Option(help="Draw loss and error against the epoch into this .png: a colour for "
                                           "each run, or for all seeds of one.")]


def compare_runs(
    folders: Folders = None,
    sort: Annotated[str, typer.Option(help="accuracy, the best first; time, the latest first; or name.")] = "accuracy",
    plot: Plot = None,
    json: setup.Json = False,
) -> None:
    """List training runs and what sets them apart.

    The table has the options in which the runs differ. Runs that differ in the seed only get mean, deviation and worst
    accuracy in a second table. Unfinished and damaged runs are listed too.
    """
    from tinyres.analysis import runs as analysis

    if sort not in analysis.SORTS:
        raise typer.BadParameter(f"{sort!r} is none of {', '.join(analysis.SORTS)}.", param_hint="--sort")
    if plot is not None and plot.suffix.lower() != ".png":
        raise typer.BadParameter(f"{plot} does not end in .png, the only kind of picture drawn.", param_hint="--plot")
    if plot is not None and not plot.parent.is_dir():
        raise typer.BadParameter(f"there is no folder {plot.parent} for {plot.name}.", param_hint="--plot")
    given = folders or [Path("runs")]
    files = [path for path in given if path.is_file()]  # as in `tinyres runs runs/*`
    if files:
        setup.say(f"not folders, so not read: {', '.join(map(str, files))}")
    found = analysis.sort_runs(analysis.find_runs([path for path in given if path not in files]), sort)
    options, groups = analysis.differing(found), analysis.group_runs(found)
    several = [group for group in groups if len(group.seeds) > 1]
    if plot is not None:
        _draw(found, groups, plot)
    if json:
        result = {"runs": [run.as_dict(options) for run in found],
                  "groups": [group.as_dict(options) for group in several], "plot": None if plot is None else str(plot)}
        return setup.report(result, "", True)
    if not found:
        return setup.report({}, f"no runs in {', '.join(map(str, given))}", False)
    _show_runs(found, options)
    if several:
        _show_groups(several, options)
    if plot is not None:
        setup.say(f"drawn: {plot}")


def _show_runs(runs: list[Run], options: list[str]) -> None:
    from tinyres.analysis.runs import readable

    columns = [("run", "left"), ("model", "left"), ("data", "left"),
               *((name.replace("_", "-"), "left") for name in options), ("seed", "right"), ("accuracy", "right"),
               ("loss", "right"), ("epochs", "right"), ("seconds", "right"), ("images/s", "right"), ("state", "left")]
    rows = []
    for run in runs:
        config = run.config
        rows.append([str(run.folder), config.get("model", "-"), Path(config.get("data", "-")).name,
                     *(readable(config.get(name)) for name in options), readable(config.get("seed")),
                     _number(run.accuracy, ".2%"), _number(run.result.get("loss"), ".4f"), readable(run.epochs),
                     _number(run.seconds, ".1f"), _number(run.images_per_second, ",.0f"),
                     run.state if run.state != "unfinished" else f"unfinished ({run.note})"])
    table.show(columns, rows)
    for run in runs:
        if run.state == "damaged":
            print(table.printable(f"{run.folder} is damaged: {run.note}"))


def _show_groups(groups: list[Group], options: list[str]) -> None:
    from tinyres.analysis.runs import readable

    columns = [("model", "left"), ("data", "left"), *((name.replace("_", "-"), "left") for name in options),
               ("seeds", "left"), ("finished", "right"), ("accuracy", "right"), ("deviation", "right"),
               ("worst", "right"), ("loss", "right"), ("seconds", "right")]
    rows = []
    for group in groups:
        total = group.as_dict(options)
        rows.append([total["model"], Path(total["data"]).name, *map(readable, total["options"].values()),
                     readable(total["seeds"]), str(total["n"]),
                     *(_number(total[name], ".2%") for name in ("accuracy", "deviation", "worst")),
                     _number(total["loss"], ".4f"), _number(total["seconds"], ".1f")])
    print()
    table.show(columns, rows, "runs that differ in the seed only: means")


def _draw(runs: list[Run], groups: list[Group], path: Path) -> None:
    """A curve for each group; several of the same words, as of other threads or data, are told apart by a folder."""
    from tinyres.analysis.curves import Curve, draw_comparison
    from tinyres.analysis.runs import label

    names = [label(group.runs[0], runs) for group in groups]
    curves = []
    for group, name in zip(groups, names, strict=True):
        seeds = len(group.seeds)
        words = table.printable(name if names.count(name) == 1 else f"{name}, {group.runs[0].folder.name}")
        curves.append(Curve(f"{words} ({seeds} seeds)" if seeds > 1 else words, [run.rows for run in group.runs],
                            [run.result["accuracy"] for run in group.finished]))
    draw_comparison(curves, path)


def _number(value: Any, how: str) -> str:
    return "-" if value is None else format(value, how)
