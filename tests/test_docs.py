"""The documentation's pages: their code runs, what they claim about PyTorch is so, and their commands exist."""

import ast
import inspect
import re
import shlex
import tokenize
from importlib.util import find_spec
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import typer

import tinyres as tr
from tinyres import data, nn, optim, weights
from tinyres.cli.main import app
from tinyres.kernels.cuda import emulator

ROOT = Path(__file__).resolve().parents[1]
PYTORCH = ROOT / "tutorials" / "from_pytorch.md"
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "tutorials").rglob("*.md"))]
FENCE = re.compile(r"^```([^\n`]*)\n(.*?)^```$", re.S | re.M)
PLAIN, CELL = "python", "{code-cell} python"  # a cell runs when the site is built, a plain block does not
SAME_NUMBERS, SAME_JOB = "tinyres: the same numbers", "tinyres: the same job"  # headers of the tables
SITE_IS_BUILT = all(find_spec(name) for name in ("sphinx", "myst_nb", "furo"))  # by tests/test_site.py


def name_of(page):
    return page.relative_to(ROOT).as_posix()


def blocks(text, *languages):
    """The code of the fenced blocks in these languages, without the options of a cell."""
    return [re.sub(r"^:\w+:.*\n", "", code, flags=re.M) for language, code in FENCE.findall(text)
            if language.strip() in languages]


def read(page):
    return page.read_text(encoding="utf-8")


# --- code -------------------------------------------------------------------------------------------------------------


def run(codes, name):
    """Run blocks one after the other; returns how many numbers in comments were compared with what they describe."""
    variables, compared = {"__name__": "__main__"}, 0
    for code in codes:
        exec(compile(code, name, "exec"), variables)
        for expression, numbers in claims(code):
            np.testing.assert_allclose(np.asarray(eval(expression, variables)), numbers, rtol=1e-4)
            compared += 1
    return compared


def claims(code):
    """(expression, numbers) of each line like `x.grad  # the sum = [1.0, 2.0]`."""
    comments = {token.start[0]: token.string for token in tokenize.generate_tokens(StringIO(code).readline)
                if token.type == tokenize.COMMENT}
    for statement in ast.parse(code).body:
        numbers = re.search(r"= \[([-\d., ]+)\]$", comments.get(statement.end_lineno, ""))
        if isinstance(statement, ast.Expr) and numbers:
            yield ast.unparse(statement), [float(number) for number in numbers[1].split(",")]


RUN_HERE = [page for page in PAGES if page != PYTORCH and blocks(read(page), PLAIN, *([] if SITE_IS_BUILT else [CELL]))]


@pytest.mark.parametrize("page", RUN_HERE, ids=name_of)
def test_the_code_of_a_page_runs(page, monkeypatch, tmp_path):
    if page.name == "gpu.md" and emulator.missing():
        pytest.skip(f"its code was not run: {emulator.missing()}")
    if "from IPython" in read(page):
        pytest.importorskip("IPython", reason="its code shows figures by IPython: pip install 'tinyres[docs]'")
    monkeypatch.chdir(tmp_path)
    compared = run(blocks(read(page), PLAIN, CELL), name_of(page))
    assert compared > 0 or page.name not in ("README.md", "index.md")


def test_the_code_of_both_libraries_runs(torch, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    run(blocks(read(PYTORCH), PLAIN, CELL), name_of(PYTORCH))
    assert "loss 2." in capsys.readouterr().out


def test_a_number_in_a_comment_must_be_right():
    code = "import numpy as np\nx = np.arange(1, 3)\nx**2  # squares = [1.0, {}]\n"
    assert run([code.format(4)], "made up") == 1
    with pytest.raises(AssertionError):
        run([code.format(4.1)], "made up")


# --- what is said about PyTorch ---------------------------------------------------------------------------------------


def tables(text):
    """{header of the second column: [(expression for PyTorch, expression for tinyres)]} of a page's tables."""
    found, rows = {}, None
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")] if line.startswith("|") else []
        if cells[:1] == ["PyTorch"]:
            rows = found[cells[1].strip("| ")] = []
        elif cells and rows is not None and not set(cells[0]) <= set("- "):
            rows.append(tuple(re.match(r"`([^`]+)`", cell)[1] for cell in cells))
        elif not cells:
            rows = None
    return found


def stand_ins(library, layers, optimizers, path):
    """What the tables' letters stand for, from the same numbers; `library` makes a tensor of an array."""
    rng = np.random.default_rng(0)

    def tensor(*shape):
        return library(rng.standard_normal(shape).astype("float32"))

    a, b, x, w, logits = tensor(4, 3), tensor(4, 3), tensor(2, 3, 8, 8), tensor(5, 3, 3, 3), tensor(6, 10)
    a.requires_grad_(True)
    x.requires_grad_(True)
    net = layers.Linear(3, 2)
    return {"array": np.arange(6.0), "a": a, "b": b, "x": x, "w": w, "logits": logits, "net": net, "path": path,
            "labels": library(np.array([0, 3, 9, 1, 2, 3])), "bn": layers.BatchNorm2d(3),
            "f": lambda a: (a * a * a).sum(), "opt": optimizers.SGD(net.parameters(), lr=0.1),
            "dataset": data.digits("test")}


def plain(result):
    """The array of either library's tensor."""
    return result if isinstance(result, np.ndarray) else result.detach().numpy()


@pytest.mark.filterwarnings("ignore")
def test_the_tables_pair_what_does_the_same(torch, tmp_path):
    found = tables(read(PYTORCH))
    assert {header: len(rows) for header, rows in found.items()} == {SAME_NUMBERS: 16, SAME_JOB: 12}
    theirs = {"torch": torch, "F": torch.nn.functional,
              **stand_ins(torch.from_numpy, torch.nn, torch.optim, tmp_path / "w.pth")}
    ours = {"tr": tr, "nn": nn, "optim": optim, "data": data, "weights": weights,
            **stand_ins(tr.tensor, nn, optim, tmp_path / "w.safetensors")}
    for expression, twin in found[SAME_NUMBERS]:
        expected, got = plain(eval(expression, theirs)), plain(eval(twin, ours))
        assert got.shape == expected.shape and got.dtype == expected.dtype, f"{expression} and {twin}"
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5, err_msg=f"{expression} and {twin}")
    for expression, twin in found[SAME_JOB]:
        eval(expression, theirs)
        eval(twin, ours)


def listed(title):
    """The `names` in the paragraph of the page that begins with this bold title."""
    paragraph = re.search(rf"^\*\*{title}\*\*.*?(?=\n\n)", read(PYTORCH), re.S | re.M)
    return re.findall(r"`(\w+)`", paragraph[0])


def test_layers_of_the_same_name_take_the_same_arguments(torch):
    assert listed("Layers") == sorted(name for name in nn.__all__ if isinstance(getattr(nn, name), type)
                                      and hasattr(torch.nn, name))
    for name in set(listed("Layers")) - {"Module", "ModuleList", "Sequential", "Parameter", "Identity"}:
        theirs = inspect.signature(getattr(torch.nn, name)).parameters
        ours = {p.name: p.default for p in inspect.signature(getattr(nn, name)).parameters.values()}
        ours.pop("dtype", None)  # theirs is None
        assert ours == {argument: p.default for argument, p in theirs.items() if argument in ours}, name
        assert list(ours) == [argument for argument in theirs if argument in ours], name


def test_names_that_are_said_to_be_the_same_are(torch):
    pairs = {"Optimizers": (optim, torch.optim), "Schedules": (optim, torch.optim.lr_scheduler),
             "Tensors": (tr.ones(1, 1), torch.ones(1, 1)), "Modules": (nn.Module(), torch.nn.Module()),
             "Switches": (tr, torch)}
    for title, places in pairs.items():
        assert listed(title)
        for name in listed(title):
            assert all(hasattr(place, name) for place in places), name
    for name in ("view", "contiguous", "LSTM", "Embedding", "LayerNorm"):
        assert name in listed("Not there")
        assert not any(hasattr(place, name) for place in (tr, nn, tr.Tensor)), name


# --- commands, options, variables -------------------------------------------------------------------------------------


def command_lines(text):
    """What stands behind `tinyres` in a page's shell blocks, code spans and calls of a page's own tinyres()."""
    prose = FENCE.sub("", text).replace("\n", " ")
    shell = [part for code in blocks(text, "bash") for line in code.splitlines() for part in line.split("&&")]
    called = [f"tinyres {line}" for code in blocks(text, CELL) for line in re.findall(r'tinyres\("([^"]+)"\)', code)]
    for line in (*shell, *re.findall(r"`([^`]+)`", prose), *called):
        words = shlex.split(line, comments=True) if re.match(r"\s*(\S+/)?tinyres( |$)", line) else []
        if words[1:] and words[1] != "COMMAND":
            yield words[1:]


def wrong_with(words):
    """What the command line does not understand in these words, "" if nothing. N, FILE and their like are values."""
    command = typer.main.get_command(app)
    words = ["1" if word.isupper() else word for word in words if word != "--help"]
    while hasattr(command, "commands") and words:
        if words[0] not in command.commands:
            return f"no command {words[0]!r}"
        command, words = command.commands[words[0]], words[1:]
    if not words:
        return ""  # the command is only mentioned
    try:
        command.make_context("tinyres", list(words))
    except Exception as error:  # typer's, whose class depends on its release
        return f"{words}: {error!r}"
    return ""


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_on_a_page_exist(page):
    assert [found for words in command_lines(read(page)) if (found := wrong_with(words))] == []


def test_commands_that_do_not_exist_are_found():
    text = "`tinyres trian`\n```bash\n.venv/bin/tinyres train --sede 3  # no\ntinyres data fecth fashion\n```\n"
    problems = [wrong_with(words) for words in command_lines(text)]
    assert len(problems) == 3 and all(problems)
    assert wrong_with(["train", "--resume", "FOLDER", "--checkpoint-every", "N"]) == ""
    assert sum(1 for page in PAGES for _ in command_lines(read(page))) > 15


def every_option(command):
    yield from (name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts))
    for below in getattr(command, "commands", {}).values():
        yield from every_option(below)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_options_and_variables_in_the_text_exist(page):
    options = {"--help", *every_option(typer.main.get_command(app))}
    assert set(re.findall(r"`(--[a-z-]+)", read(page))) <= options
    sources = [*ROOT.glob("tinyres/**/*.py"), *ROOT.glob("kernels/**/*.py")]
    known = set(re.findall(r"TINYRES_[A-Z_]+", " ".join(map(read, sources))))
    assert set(re.findall(r"TINYRES_[A-Z_]+", read(page))) <= known


# --- links, versions, numbers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_to_files_lead_somewhere(page):
    targets = re.findall(r"\]\(([^)\s#]+)", FENCE.sub("", read(page)))
    assert [target for target in targets if "://" not in target and not (page.parent / target).exists()] == []


def test_the_version_is_everywhere_the_same():
    assert f"\nversion: {tr.__version__}\n" in read(ROOT / "CITATION.cff")
    changelog = read(ROOT / "CHANGELOG.md")
    assert f"## [{tr.__version__}]" in changelog or ("## [Unreleased]" in changelog and tr.__version__ in changelog)


def test_the_picture_says_what_its_script_measures():
    from benchmarks.readme_picture import growths

    plain, residual = (f"{float(f'{growth:.2g}'):,.0f}" for growth in growths().values())
    text = read(ROOT / "tutorials" / "index.md").replace("\n", " ")
    for phrase in (f"to {plain} at the first", f"only to {residual}.", f"is {plain} times", f"them {residual} times"):
        assert phrase in text
