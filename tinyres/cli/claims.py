"""`tinyres claims`: what the library claims, measured anew. `tinyres claims proof` makes the proof table."""

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
SIMD = {"avx512f": "AVX-512", "avx2": "AVX2", "asimd": "NEON"}  # the system's names, the widest first

Models = Annotated[list[str] | None, typer.Option("--model", help="Only this network, like resnet20, in all forms that "
                                                  "the table knows; may be given several times.", show_default=False)]
Out = Annotated[Path | None, typer.Option(help="Write the table into this .md file, too.")]

app = typer.Typer(rich_markup_mode=None)


@app.callback(invoke_without_command=True)
def claims(context: typer.Context, json: setup.Json = False) -> None:
    """List what the library claims, or measure a claim anew."""
    if context.invoked_subcommand is not None and json:
        raise typer.BadParameter(f"give it after {context.invoked_subcommand}.", param_hint="--json")
    if context.invoked_subcommand is None:
        listed = [f"tinyres claims {name}: {words}" for name, words in CLAIMS.items()]
        setup.report({"claims": [{"name": name, "claim": words} for name, words in CLAIMS.items()]},
                     "\n".join(listed), json)


@app.command("proof")
def prove_networks(
    model: Models = None,
    every: Annotated[bool, typer.Option("--all", help="All networks, also those of a thousand layers.")] = False,
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
