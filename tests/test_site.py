"""The site: it is built without a warning, shows its results, needs no network, and its links lead somewhere."""

import importlib.util
import os
import re
import subprocess
import sys
import zlib
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

import tinyres as tr
from tinyres import data, models, nn, optim
from tinyres.kernels.cuda import emulator

ROOT = Path(__file__).resolve().parents[1]
LACKING = [name for name in ("sphinx", "myst_nb", "furo") if importlib.util.find_spec(name) is None]
needs_sphinx = pytest.mark.skipif(bool(LACKING), reason=f"{', '.join(LACKING)} not installed, so the site was not "
                                  "built: pip install 'tinyres[docs]'")
LOADING = {"script": "src", "img": "src", "source": "src", "iframe": "src", "video": "src", "audio": "src",
           "embed": "src", "object": "data", "use": "href", "link": "href"}  # tags whose target a browser fetches
FETCHING = re.compile(r"""(?:url\(["']?|(?:import|from|fetch\(|importScripts\(|\.src ?=) ?["'`])(?:https?:)?//.*""")


class Page(HTMLParser):
    """What a page loads, where its links lead, and the names of its places."""

    def __init__(self, text):
        super().__init__()
        self.loads, self.links, self.places = [], [], {""}
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.places |= {found.get("id"), found.get("name")}
        self.loads += [found[name] for name in (LOADING.get(tag),) if found.get(name)]
        self.loads += [part.split()[0] for part in (found.get("srcset") or "").split(",") if part.strip()]
        if tag == "a" and found.get("href"):
            self.links.append(found["href"])


def needs_network(site):
    """What a browser would fetch from elsewhere: "page: address"."""
    problems = []
    for path in sorted(site.rglob("*")):
        if path.suffix in (".html", ".css", ".js", ".svg"):
            text = path.read_text(encoding="utf-8")
            loads = Page(text).loads if path.suffix == ".html" else []
            problems += [f"{path.name}: {found}" for found in loads if re.match(r"(?:https?:)?//", found)]
            if path.suffix == ".html":  # only what runs: the listings of source code are text
                text = " ".join(re.findall(r"<(?:script|style)[^>]*>(.*?)</", text, re.S))
            problems += [f"{path.name}: {found}" for found in FETCHING.findall(text)]
    return problems


def broken_links(site):
    """Links to a page or a place on a page that is not there: "page: link"."""
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}
    problems = []
    for path, page in pages.items():
        for link in (*page.links, *page.loads):
            if re.match(r"\w+:", link):
                continue
            file, _, place = unquote(link).partition("#")
            file = re.sub(r"\?.*", "", file)
            target = (path.parent / file).resolve() if file else path
            if not target.is_file() or (target in pages and place not in pages[target].places):
                problems.append(f"{path.relative_to(site)}: {link}")
    return problems


def listed_names(site):
    """The dotted names that the reference has, from the inventory that other sites would link by."""
    content = (site / "objects.inv").read_bytes().split(b"\n", 4)[4]
    return {line.split()[0] for line in zlib.decompress(content).decode().splitlines() if " py:" in line}


def public_names():
    """What a user imports: everything in __all__ of the main modules, and the names of tinyres itself."""
    for prefix, module in (("tinyres", tr.ops), ("tinyres.nn", nn), ("tinyres.optim", optim),
                           ("tinyres.models", models), ("tinyres.data", data)):
        yield from (f"{prefix}.{name}" for name in module.__all__ if callable(getattr(module, name)))
    yield from (f"tinyres.{name}" for name in ("Event", "Function", "Tensor", "debug", "enable_grad", "grad",
                "gradcheck", "hvp", "is_grad_enabled", "manual_seed", "no_grad", "step", "summary", "unfused",
                "use_kernels", "why"))
    yield from ("tinyres.train.train", "tinyres.train.evaluate", "tinyres.weights.load", "tinyres.weights.save",
                "tinyres.checkpoint.save_checkpoint", "tinyres.checkpoint.load_checkpoint")


@pytest.mark.slow
@needs_sphinx
def test_the_site(tmp_path):
    """One test, as the build takes long. With -W every warning is an error, and with -n every dead reference one."""
    site = tmp_path / "site"
    command = [sys.executable, "-m", "sphinx", "-W", "-n", "-q", "-d", tmp_path / "doctrees", "-b", "html",
               ROOT / "tutorials", site]
    offline = {"HTTP_PROXY": "http://127.0.0.1:9", "HTTPS_PROXY": "http://127.0.0.1:9", "NO_PROXY": ""}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600,
                          env={**os.environ, **offline})
    assert done.returncode == 0, done.stdout + done.stderr
    assert needs_network(site) == []
    assert broken_links(site) == []
    assert sorted(set(public_names()) - listed_names(site)) == []
    how = (site / "how_it_works.html").read_text(encoding="utf-8")
    assert how.count("<math") == 4 and how.count('display="block"') == 1 and "MathJax" not in how
    assert "1000 skips:" in how and "Traceback" not in how
    fast = (site / "fast_kernels.html").read_text(encoding="utf-8")
    assert fast.count('display="block"') == 1 and "largest difference from NumPy" in fast
    gpu = (site / "gpu.html").read_text(encoding="utf-8")
    assert "pack = load&lt;V&gt;" in re.sub("<[^>]+>", "", gpu)  # the kernel's text, from its file
    if emulator.available():
        assert "reads shared memory that thread (0,0,0) wrote in module.cu:6" in gpu and "(Pdb) (14, 0, 14)" in gpu
    for path in sorted(ROOT.glob("tutorials/[0-9][0-9]_*.py")):
        lesson = (site / f"{path.stem}.html").read_text(encoding="utf-8")
        assert "BEGIN SOLUTION" not in lesson and "raise" in lesson and "<iframe" in lesson and 'alt=""' not in lesson
    for name in ("from_pytorch", "how_it_works", "fast_kernels", "gpu", "run"):
        assert "Warning:" not in (site / f"{name}.html").read_text(encoding="utf-8")
    commands = (site / "reference" / "commands.html").read_text(encoding="utf-8")
    assert "$ tinyres train --help" in commands and "--label-smoothing" in commands
    assert not list(ROOT.glob("tutorials/**/_build")) and not list(ROOT.glob("tutorials/**/.jupyter_cache"))


@pytest.mark.parametrize("name, text", [
    ("a.html", '<script src="https://cdn.example/x.js"></script>'),
    ("a.html", '<link rel="stylesheet" href="//fonts.example/css">'),
    ("a.html", '<img srcset="x.png 1x, http://a.example/x.png 2x">'),
    ("a.html", "<style>@font-face { src: url('https://a.example/f.woff2') }</style>"),
    ("a.css", '@import "https://a.example/x.css";'),
    ("a.js", 'import x from "https://a.example/x.mjs";'),
    ("a.js", "fetch('//a.example/x.json')"),
])
def test_what_needs_the_network_is_found(name, text, tmp_path):
    (tmp_path / name).write_text(text)
    assert len(needs_network(tmp_path)) == 1


def test_broken_links_are_found_and_others_are_not(tmp_path):
    (tmp_path / "a.html").write_text('<p id="here"><a href="#here"><a href="b.html#there"><a href="https://x.example/">')
    (tmp_path / "b.html").write_text('<p id="there"><a href="#nowhere"><a href="c.html"><img src="d.png">')
    assert [problem.split(": ")[1] for problem in broken_links(tmp_path)] == ["#nowhere", "c.html", "d.png"]


@needs_sphinx
def test_docstrings_are_shown_as_they_are_meant():
    spec = importlib.util.spec_from_file_location("site_configuration", ROOT / "tutorials" / "conf.py")
    environment, path = dict(os.environ), list(sys.path)
    try:
        conf = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(conf)
    finally:
        os.environ.clear()
        os.environ.update(environment)
        sys.path[:] = path
    shown = list(conf.rst("Sum of `a*b` and x_hat*2 over N: a line\nthat goes on.\n\nx: (N, C);\n   floats. w, b: "
                          "(C,)\nsize, step: ints.\n\n    a table   stays\n\n- one\n  item\n- two"))
    assert [line for line in shown if line] == [
        r"Sum of ``a*b`` and x\_hat\*2 over N: a line that goes on.",
        "| ``x``: (N, C); floats. w, b: (C,)", "| ``size``, ``step``: ints.", "::", "        a table   stays",
        "* one item", "* two"]
