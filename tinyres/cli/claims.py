"""`tinyres claims`: what the library and the papers claim, measured anew.

`tinyres claims proof` makes the proof table; `run` and `show` are for the claim cards.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tinyres.cli import setup, table

if TYPE_CHECKING:
    from tinyres.analysis.proof import Case

CLAIMS = {"proof": "networks' sizes, gradients against finite differences, parity with PyTorch"}
BUDGETS = ("small", "gpu")
RECORDS = (Path("claims"), Path("benchmarks/results/claims"))  # where `show` looks, the latter in a checkout
SIMD = {"avx512f": "AVX-512", "avx2": "AVX2", "asimd": "NEON"}  # the system's names, the widest first

Models = Annotated[list[str] | None, typer.Option("--model", help="Only this network, like resnet20, in all forms that "
                                                  "the table knows; may be given several times.", show_default=False)]
Out = Annotated[Path | None, typer.Option(help="Write the table into this .md file, too.")]

app = typer.Typer(rich_markup_mode=None)


@app.callback(invoke_without_command=True)
def claims(context: typer.Context, json: setup.Json = False) -> None:
    """List what the library and the papers claim, or measure a claim anew."""
    if context.invoked_subcommand is not None and json:
        raise typer.BadParameter(f"give it after {context.invoked_subcommand}.", param_hint="--json")
    if context.invoked_subcommand is None:
        from tinyres.analysis import cards

        found = [cards.named(name) for name in cards.names()]
        listed = [f"tinyres claims {name}: {words}" for name, words in CLAIMS.items()]
        listed += ["", "Claims of papers, each with a prediction: tinyres claims run NAME, tinyres claims show NAME"]
        listed += [f"  {card.name:17} {card.claim} ({card.source})" for card in found]
        setup.report({"claims": [{"name": name, "claim": words} for name, words in CLAIMS.items()],
                      "cards": [{"name": card.name, "claim": card.claim, "source": card.source} for card in found]},
                     "\n".join(listed), json)


@app.command("proof")
def prove_networks(
    model: Models = None,
    every: Annotated[bool, typer.Option("--all", help="All networks, in about 18 minutes.")] = False,
    seed: Annotated[int, setup.whole("Of weights, images and directions.", 0)] = 0,
    kernels: setup.Kernels = "fast",
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the table in Markdown.")] = False,
    out: Out = None,
    json: setup.Json = False,
    quiet: setup.Quiet = False,
) -> None:
    """Make the proof table, a row a network.

    Parameters beside the published number; gradients and Hessian-vector products against finite differences in float64;
    and, where PyTorch is installed, outputs, gradients, running statistics and trained weights against PyTorch's.

    Exit status 1 if a row exceeds a bound.
    """
    from tinyres.analysis import proof
    from tinyres.analysis.twins import pytorch
    from tinyres.files import write_atomically

    cases = _cases(model or [], every)
    if out is not None and (out.suffix.lower() != ".md" or not out.parent.is_dir()):
        raise typer.BadParameter(f"{out} is not a .md file in a folder that exists.", param_hint="--out")
    setup.use_kernels(kernels)
    if proof.has_pytorch():
        pytorch().set_num_threads(1)  # several wait for each other by spinning, which a busy machine pays for tenfold
    else:
        setup.say(f"{proof.MISSING}, so nothing is compared with it: pip install torch==2.13.0", quiet)
    began, rows = time.perf_counter(), []
    for number, row in enumerate(proof.prove_all(cases, seed), 1):
        setup.say(f"{number}/{len(cases)} {row.name}: {row.verdict} ({time.perf_counter() - began:.0f} s)", quiet)
        rows.append(row)
    command = " ".join(["tinyres claims proof", *(["--all"] if every else [f"--model {name}" for name in model or []])])
    made = {"command": command, **_conditions(kernels, seed), "seconds": round(time.perf_counter() - began, 1)}
    page = proof.markdown(rows, _in_words(made))
    if out is not None:
        write_atomically(out, page.encode())
    passed = all(row.verdict == "passed" for row in rows)
    if json:
        bounds = {"gradcheck": proof.GRADCHECK, "parity": proof.PARITY, "ratio": proof.RATIO}
        setup.report({"passed": passed, "rows": [row.as_dict() for row in rows], "bounds": bounds, **made}, "", True)
    elif markdown:
        print(page, end="", flush=True)
    else:
        table.show(proof.COLUMNS, [proof.cells(row) for row in rows])
        print("\n".join([proof.summary(rows), *proof.failures(rows)]), flush=True)
    if not passed:
        raise typer.Exit(1)


@app.command("run")
def run_card(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A claim card, like degradation; `tinyres claims` lists "
                                        "them.")],
    budget: Annotated[str, typer.Option(help="small: within three minutes on two cores; gpu: the papers' depths on "
                                             "CIFAR-10 and an NVIDIA GPU, which has never been run.")] = "small",
    seeds: Annotated[int, setup.whole("How many seeds, from 0 on.", 1, 100)] = 3,
    out: Annotated[Path, typer.Option(help="Folder for the record NAME.json and the figure NAME.png.")] = RECORDS[0],
    kernels: setup.Kernels = "fast",
    json: setup.Json = False,
    quiet: setup.Quiet = False,
) -> None:
    """Run a claim card's experiment and decide by its rule.

    The prediction and the rule stand in the card and were written before it was run for the first time.
    """
    from datetime import date

    from tinyres.analysis import cards, machine

    with setup.option("NAME"):
        card = cards.named(name)
    if budget not in cards.BUDGETS:
        raise typer.BadParameter(f"{budget!r} is none of {', '.join(BUDGETS)}.", param_hint="--budget")
    if out.is_file() or (len(out.parts) > 1 and not out.parent.is_dir()):
        raise typer.BadParameter(f"{out} is not a folder that is there or can be made.", param_hint="--out")
    setup.use_kernels(kernels)
    device = "cuda" if budget == "gpu" else "cpu"
    setup.use_device(device)  # its error says what is missing
    made = {"versions": setup.versions(device), "machine": f"{machine.cpu_name()}, {os.cpu_count()} cores",
            "kernels": kernels, "threads": setup.threads(), "date": date.today().isoformat(),
            "command": f"tinyres claims run {card.name} --budget {budget} --seeds {seeds}"}
    setup.say(f"{card.claim}\nPrediction ({card.expected}): {card.prediction}", quiet)
    with setup.telling_of_compilation(quiet or json):
        record = cards.run(card, budget, range(seeds), out, made, lambda line: setup.say(line, quiet))
    if json:
        return setup.report(record, "", True)
    _show(record)
    setup.say(f"written: {out / card.name}.json, {out / card.name}.png", quiet)


@app.command("show")
def show_card(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A claim card, or a record's .json file.")],
    out: Annotated[Path | None, typer.Option(help="Folder of the record. Default: claims, else a checkout's "
                                                  "benchmarks/results/claims.")] = None,
    json: setup.Json = False,
) -> None:
    """Print a card with its recorded result, or without one if it has not been run."""
    from tinyres.analysis import cards

    if name.endswith(".json"):
        record = cards.read(name)
        return setup.report(record, "", True) if json else _show(record)
    with setup.option("NAME"):
        card = cards.named(name)
    places = [folder / f"{card.name}.json" for folder in ((out,) if out is not None else RECORDS)]
    found = next((path for path in places if path.is_file()), None)
    if found is None and out is not None:
        raise typer.BadParameter(f"there is no {places[0]}; run it: tinyres claims run {card.name} --out {out}.",
                                 param_hint="--out")
    record = card.as_dict() | {"verdict": None} if found is None else cards.read(found)
    if json:
        return setup.report(record, "", True)
    _show(record)
    if found is None:
        print(f"No record in {' or '.join(map(str, RECORDS))}; make one: tinyres claims run {card.name}")
    elif (record["prediction"], record["rule"]) != (card.prediction, card.rule):
        print(f"The card has changed since this was recorded: {found} keeps the prediction and the rule of its time.")


def _show(record: dict[str, Any]) -> None:
    """A record, or a card without a result, as text."""
    from tinyres.analysis.published import Number

    quoted = [f"  {Number(**number)}" for number in record["quoted"]]
    lines = [f"{record['name']}: {record['claim']}", f"Source: {record['source']}. Quoted:", *quoted,
             *([f"Not the first version: {record['revised']}"] if record.get("revised") else []),
             f"Prediction ({record['expected']}): {record['prediction']}", f"Rule: {record['rule']}"]
    if "results" in record:
        lines.append(f"Experiment ({record['budget']}, seeds {', '.join(map(str, record['seeds']))}): "
                     f"{record['experiment']}")
    print("\n".join(map(table.printable, lines)), flush=True)
    if "results" not in record:
        return
    scalars = {variant: {q: m for q, m in quantities.items() if not isinstance(m, list)}
               for variant, quantities in record["mean"].items()}
    columns = list(dict.fromkeys(q for quantities in scalars.values() for q in quantities))
    rows = [[variant, *(_with_range(quantities.get(q), record["range"][variant].get(q)) for q in columns)]
            for variant, quantities in scalars.items()]
    table.show([("variant", "left"), *((q, "right") for q in columns)], rows, "mean (lowest to highest)")
    for part in record.get("parts", ()):
        found = ", ".join(f"{difference:.3g}" for difference in part["differences"])
        print(table.printable(f"- {part['expected']}: {part['verdict']}; differences {found}"))
    as_said = "as predicted" if record["as_predicted"] else f"predicted was: {record['expected']}"
    print(f"Verdict: {record['verdict']} ({as_said}). {record['seconds']:.0f} s"
          + "".join(f", {record[key]}" for key in ("machine", "date") if key in record))


def _with_range(value: float | None, span: list[float] | None) -> str:
    from tinyres.analysis.published import readable

    if value is None or span is None:
        return "-"
    low, high = span
    return readable(value) if low == high else f"{readable(value)} ({readable(low)} to {readable(high)})"


def _cases(names: list[str], every: bool) -> list[Case]:
    """The rows that are asked for."""
    from tinyres import models
    from tinyres.analysis.proof import CASES

    with setup.option("--model"):
        for name in names:
            if name not in models.names():
                models.build(name)  # its error suggests the nearest name
    if names and every:
        raise typer.BadParameter("give --all or --model, not both.", param_hint="--all")
    return [case for case in CASES if (case.network in names if names else every or case.usual)]


def _conditions(kernels: str, seed: int) -> dict[str, Any]:
    """When, with what and on what the table was made."""
    from datetime import date

    from tinyres.analysis import machine, proof
    from tinyres.analysis.twins import pytorch

    versions = setup.versions()
    if proof.has_pytorch():
        versions["torch"] = str(pytorch().__version__)
    simd = [words for name, words in SIMD.items() if name in machine.cpu_flags()]
    processor = ", ".join([f"{os.cpu_count()} cores", *simd[:1]])
    return {"date": date.today().isoformat(), "machine": f"{machine.cpu_name()}, {processor}", "versions": versions,
            "kernels": kernels, "threads": setup.threads(), "seed": seed}


def _in_words(made: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in made["versions"].items())
    return (f"Made by `{made['command']}` on {made['date']} in {made['seconds']:.0f} s.\n"
            f"{made['machine']}; kernel set {made['kernels']} on {made['threads']} threads, PyTorch on one; "
            f"seed {made['seed']}.\n{versions}.")
