"""The app behind the command `tinyres`, and how its errors look: one line on stderr, no traceback.

Exit status 0: done; 1: the run failed (or a check did not pass); 2: an option is wrong; 130: interrupted. With the
environment variable TINYRES_TRACEBACK=1 a failed run shows its traceback.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import tinyres
from tinyres.cli.analyze import app as analyze_app
from tinyres.cli.bench import app as bench_app
from tinyres.cli.claims import app as claims_app
from tinyres.cli.data import app as data_app
from tinyres.cli.doctor import diagnose
from tinyres.cli.eval import evaluate_weights
from tinyres.cli.export import export_weights
from tinyres.cli.gradcheck import check_gradients
from tinyres.cli.runs import compare_runs
from tinyres.cli.step import step_through
from tinyres.cli.summary import summarise
from tinyres.cli.teach import app as teach_app
from tinyres.cli.train import train_network

# What the library raises when an input, a file or a run is at fault.
USERS_ERRORS = (ValueError, TypeError, OSError, ArithmeticError, RuntimeError, ImportError, MemoryError)
# Typer's, by name: some releases take the class from click, some bring their own.
USAGE_ERRORS: Any = tuple(base for base in typer.BadParameter.__mro__ if base.__name__ == "ClickException")


class Commands(TyperGroup):
    """The group of commands, with errors in one line."""

    def main(self, args: Any = None, prog_name: str | None = None, complete_var: str | None = None,
             standalone_mode: bool = True, windows_expand_args: bool = True, **extra: Any) -> Any:
        def run() -> Any:
            return super(Commands, self).main(args, prog_name, complete_var, False, windows_expand_args, **extra)

        if not standalone_mode:
            return run()
        try:
            status = run()
        except USAGE_ERRORS as error:
            where = getattr(getattr(error, "ctx", None), "command_path", "tinyres")
            _complain(f"{where}: {error.format_message()} (see {where} --help)")
            sys.exit(2)
        except (typer.Abort, KeyboardInterrupt):
            _complain("tinyres: interrupted")
            sys.exit(130)
        except BrokenPipeError:  # the reader of our output has gone, as in `tinyres summary ... | head`
            sys.stdout = open(os.devnull, "w")
            sys.exit(1)
        except USERS_ERRORS as error:
            if os.environ.get("TINYRES_TRACEBACK"):
                raise
            _complain(f"tinyres: {error}")
            sys.exit(1)
        sys.exit(status if isinstance(status, int) else 0)


def _complain(message: str) -> None:
    print(message, file=sys.stderr)


app = typer.Typer(cls=Commands, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.callback(invoke_without_command=True)
def start(context: typer.Context,
          version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False) -> None:
    """Residual networks from scratch: train them, read published weights, check gradients, count costs.

    "tinyres train" alone trains a small ResNet on the embedded digits. Every command takes --json and then prints one
    JSON object as its last line.
    """
    if version:
        print(f"tinyres {tinyres.__version__}")
    elif context.invoked_subcommand is None:
        print(context.get_help())


app.command("train")(train_network)
app.command("eval")(evaluate_weights)
app.command("step")(step_through)
app.command("gradcheck")(check_gradients)
app.command("summary")(summarise)
app.command("runs")(compare_runs)
app.command("export")(export_weights)
app.add_typer(analyze_app, name="analyze")
app.add_typer(data_app, name="data")
app.add_typer(claims_app, name="claims")
app.add_typer(bench_app, name="bench")
app.add_typer(teach_app, name="teach")
app.command("doctor")(diagnose)
