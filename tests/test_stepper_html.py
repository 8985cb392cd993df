"""The page as a document, without a browser: what its policy allows, that nothing of a trace can become markup, that it
needs nothing from elsewhere, that its data are the trace's. How it behaves is in test_stepper_browser.py."""

import base64
import hashlib
import html
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from browser import Browser, missing

import tinyres as tr
from tinyres import data, models, nn
from tinyres.models.blocks import BasicBlock
from tinyres.stepper import page_data, words
from tinyres.stepper.html import FOLDER, iframe, page
from tinyres.stepper.short import number, percent, shape, size
from tinyres.stepper.trace import record

HOSTILE = ["</script><script>alert(1)</script>", "<img src=x onerror=alert(1)>", "<!--<script>", "a\"b'c&amp;<b>",
           "]]></title></style>", "@@script@@", "javascript:alert(1)", "\u2028\n\x00", "{{x}}"]


class Tags(HTMLParser):
    """Start tags with their attributes, and the text inside of each script and style."""

    def __init__(self, document: str):
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict]] = []
        self.inside: dict[str, list[str]] = {"script": [], "style": []}
        self.open = ""
        self.feed(document)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.open = tag if tag in self.inside else ""
        if self.open:
            self.inside[tag].append("")

    def handle_endtag(self, tag):
        self.open = ""

    def handle_data(self, text):
        if self.open:
            self.inside[self.open][-1] += text

    def of(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.tags if name == tag]


def small(names: tuple[str, str] = ("x", "w"), title: str = "small"):
    """x + relu(w x) x, recorded; the leaves have these names."""
    x = tr.tensor(np.array([[1.0, -2.0], [0.5, 3.0]]), requires_grad=True)
    w = tr.tensor(np.array([[2.0, 1.0], [-1.0, 0.25]]), requires_grad=True)
    return record(lambda: (x + tr.relu(w @ x) * x).sum(), title=title, details=True,
                  names=dict(zip(names, (x, w), strict=True)))


def network(name: str, **options):
    tr.manual_seed(0)
    x, y = data.digits("train").batch(2)
    model = models.build(name, in_channels=1, **options)
    return record(lambda: tr.cross_entropy(model(x), y), title=name)


@pytest.fixture(scope="module")
def resnet8():
    return network("resnet8")


@pytest.fixture(scope="module")
def document(resnet8) -> str:
    return page(resnet8)


def data_of(document: str) -> dict:
    """The JSON that the page holds."""
    (text,) = re.findall(r'<script type="application/json" id="trace">(.*?)</script>', document, re.S)
    return json.loads(text)


def sha(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


# --- alone in the world ----------------------------------------------------------------------------------------------


def test_the_policy_allows_the_one_script_and_the_one_style_and_nothing_else(document):
    tags = Tags(document)
    (policy,) = [meta["content"] for meta in tags.of("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    run = [text for text, attributes in zip(tags.inside["script"], tags.of("script"), strict=True) if not attributes]
    (script,), (sheet,) = run, tags.inside["style"]
    assert rules == {"default-src": "'none'", "script-src": sha(script), "style-src": sha(sheet), "base-uri": "'none'",
                     "form-action": "'none'"}
    assert document.index(policy.split(";")[0]) < document.index("<style>") < document.index("<script")


def test_it_asks_nobody_for_anything(document):
    tags = Tags(document)
    for tag, attributes in tags.tags:
        assert not set(attributes) & {"src", "srcset", "data", "action", "formaction", "poster", "background", "ping"}
        assert all(value.startswith("#") for name, value in attributes.items() if name in ("href", "xlink:href"))
        assert "style" not in attributes and not [name for name in attributes if name.startswith("on")], tag
    assert not {"link", "iframe", "object", "embed", "img", "base", "video", "audio"} & {tag for tag, _ in tags.tags}
    addresses = set(re.findall(r"\w+://[^\s\"'<>)\\]+", document))
    assert addresses <= {"http://www.w3.org/2000/svg"}
    code = "".join(tags.inside["script"] + tags.inside["style"])
    for word in ("fetch(", "XMLHttpRequest", "WebSocket", "import(", "eval(", "new Function", "@import", "url(http",
                 "innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "sendBeacon"):
        assert word not in code, word


def test_it_has_what_the_tests_and_the_documentation_name(document):
    tags = Tags(document)
    ids = [attributes["id"] for _, attributes in tags.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {"graph", "timeline", "search", "step-title", "why", "rule", "incoming", "contributions", "fork", "join",
            "kept", "worked", "check", "value", "score", "announce", "help", "stop"} <= set(ids)
    actions = [button["data-action"] for button in tags.of("button") if "data-action" in button]
    assert len(actions) == len(set(actions))
    assert {"first", "back", "next", "last", "fork", "join", "view", "direction", "predict", "theme", "help"} \
        <= set(actions)
    assert [body["data-view"] for body in tags.of("body")] == ["blocks"]
    assert "@@" not in document


def test_the_same_trace_gives_the_same_page(document):
    assert page(network("resnet8")) == document


def test_resnet20_stays_under_2_mb():
    assert len(page(network("resnet20")).encode()) < 2_000_000


# --- hostile names ---------------------------------------------------------------------------------------------------


def test_names_cannot_become_markup():
    plain = Tags(page(small()))
    for name in HOSTILE:
        recording = small((name, name + "2"), title=name)
        for node in recording.trace.nodes:
            node.module, node.block, node.line = name, name, name
        for group in recording.trace.groups:
            group.title, group.block, group.module, group.type = name, name, name, name
        recording.trace.notes.append(name)
        document = page(recording)
        tags = Tags(document)
        assert [tag for tag, _ in tags.tags] == [tag for tag, _ in plain.tags], name
        assert [sorted(attributes) for _, attributes in tags.tags] == [sorted(a) for _, a in plain.tags], name
        assert tags.inside["style"] == plain.inside["style"]
        assert tags.inside["script"][1] == plain.inside["script"][1]
        held = data_of(document)
        assert held["groups"][0]["title"] == name and held["notes"][-1] == name  # as it is, but only as data


def test_half_a_surrogate_pair_can_be_written_to_a_file():
    assert "small" in page(small(("\ud800", "w"), title="small \udfff")).encode().decode()


# --- the data --------------------------------------------------------------------------------------------------------


def test_the_numbers_are_the_recordings_to_the_last_bit(resnet8, document):
    trace, held = resnet8.trace, data_of(document)

    def norm(place):
        return None if place is None else held["summaries"][place][2]

    assert held["loss"] == trace.loss
    assert len(held["nodes"]) == len(trace.nodes)
    for node, entry in zip(trace.nodes, held["nodes"], strict=True):
        assert norm(entry.get("gradient")) == (node.gradient and node.gradient.norm)
        assert norm(entry.get("value")) == (node.value and node.value.norm)
        assert entry.get("step") == node.step and entry["id"] == node.id
        assert [norm(i.get("contribution")) for i in entry.get("inputs", [])] == \
            [i.contribution and i.contribution.norm for i in node.inputs]
        assert [i.get("source") for i in entry.get("inputs", [])] == [i.source for i in node.inputs]
    for group, entry in zip(trace.groups, held["groups"], strict=True):
        assert bool(group.fork) == ("fork" in entry)
        if group.fork:
            assert entry["fork"].get("identity_share") == group.fork.identity_share
            assert [(a["consumer"], a["norm"], a["share"], norm(a["sum"])) for a in entry["fork"]["arrivals"]] == \
                [(a.consumer, a.norm, a.share, a.sum.norm) for a in group.fork.arrivals]
    assert held["views"]["blocks"]["backward"] == trace.block_steps
    assert held["views"]["ops"]["backward"] == trace.backward


def test_a_map_comes_back_as_it_was(resnet8, document):
    held, seen = data_of(document), 0
    for node, entry in zip(resnet8.trace.nodes, held["nodes"], strict=True):
        if node.gradient and node.gradient.map:
            columns, digits = held["summaries"][entry["gradient"]][8]
            flat = [int(digits[i:i + 2], 16) - 99 for i in range(0, len(digits), 2)]
            assert [flat[i:i + columns] for i in range(0, len(flat), columns)] == node.gradient.map
            seen += 1
    assert seen > 100


def test_a_gradient_that_is_handed_on_is_written_once(resnet8, document):
    held = data_of(document)
    join = next(node for node in resnet8.trace.nodes if node.join and node.op == "add" and node.block)
    entry = held["nodes"][join.id]
    assert {i["contribution"] for i in entry["inputs"]} == {entry["gradient"]}
    assert len({json.dumps(row) for row in held["summaries"]}) == len(held["summaries"])


def test_every_sentence_is_that_of_words(resnet8, document):
    trace, held = resnet8.trace, data_of(document)
    for view in words.VIEWS:
        for id in words.steps(trace, view):
            text = held["views"][view]["steps"][str(id)]
            assert text["title"] == words.step_title(trace, view, id)
            assert text["why"] == words.why_now(trace, view, id)
            assert text["said"] == words.announcement(trace, view, id)
            assert tuple(text["held"]) == words.held(trace, view, id)
        for id in words.steps(trace, view, "forward"):
            assert held["views"][view]["steps"][str(id)]["why_forward"] == words.why_now(trace, view, id, "forward")


def test_what_is_added_inside_of_the_loss_is_no_join_of_the_block_view(resnet8):
    trace = resnet8.trace
    loss = trace.block_steps[0]
    assert any(trace.nodes[n].join for n in trace.groups[loss].nodes)
    assert page_data.join_of(trace, "blocks", loss) is None
    joins = [id for id in trace.block_steps if page_data.join_of(trace, "blocks", id)]
    assert len(joins) == 3  # one a block


def test_a_gradient_of_zeros_has_its_zeros_written():
    x, w = tr.tensor(np.zeros((9, 9)), requires_grad=True), tr.tensor(np.ones((9, 9)))
    held = data_of(page(record(lambda: (x * w * 0.0).sum())))
    assert all(len(row) >= 7 for row in held["summaries"])
    assert [[9, 9], "float64", 0, 0, 0, 0, 1] in [row[:7] for row in held["summaries"]]


def test_numbers_that_are_not_finite_are_no_json_and_become_null():
    x = tr.tensor(np.array([1.0, np.inf, -1.0]), requires_grad=True)
    held = data_of(page(record(lambda: (x * x).sum())))
    assert held["loss"] is None and None in [row[2] for row in held["summaries"]]


def test_of_many_nodes_those_inside_of_layers_have_no_maps(resnet8, monkeypatch):
    monkeypatch.setattr(page_data, "MANY", 10)
    trace, document = resnet8.trace, page(resnet8)
    held, shown = data_of(document), {group.output for group in trace.groups}
    maps = {row[0]: row[1] for row in ((node["id"], held["summaries"][node["gradient"]][8:]) for node in held["nodes"]
                                       if "gradient" in node)}
    for node in trace.nodes:
        if node.id in shown:
            assert node.id not in maps or len(node.shape) < 2 or maps[node.id][0]
        elif node.id in maps and not (node.fork or node.join or node.gradient.values):
            assert not any(maps[node.id])
    assert len(document) < len(page_without_limit(resnet8, monkeypatch))


def page_without_limit(recording, monkeypatch) -> str:
    monkeypatch.setattr(page_data, "MANY", 10**9)
    return page(recording)


def test_a_forward_pass_that_stopped_gives_a_page_that_says_why():
    x, _ = data.digits("train").batch(2)
    block = BasicBlock(1, 4, 2, shortcut=nn.Identity())
    recording = record(lambda: block(x).sum(), title="broken")
    held = data_of(page(recording))
    assert held["stopped"]["message"] == recording.trace.stopped.message
    assert held["stopped"]["fixes"] and held["views"]["blocks"]["backward"] == []
    assert held["views"]["blocks"]["forward"]


# --- opening it ------------------------------------------------------------------------------------------------------


def test_it_opens_with_the_view_that_was_asked_for(resnet8):
    assert data_of(page(resnet8, view="ops"))["opens"] == "ops"
    with pytest.raises(ValueError, match="page: view must be 'blocks' .* got 'layers'"):
        page(resnet8, view="layers")


def test_a_trace_alone_will_do(resnet8, document):
    assert page(resnet8.trace) == document


def test_in_a_notebook_it_runs_its_script_and_reaches_nothing(document):
    frame = iframe(document, height=500)
    ((tag, attributes),) = Tags(frame).tags
    assert tag == "iframe" and attributes["sandbox"] == "allow-scripts" and attributes["height"] == "500"
    assert attributes["srcdoc"] == document and attributes["title"]
    assert html.unescape(re.search('srcdoc="([^"]*)"', frame)[1]) == document


@pytest.mark.skipif(bool(missing()), reason=missing() or "is there")
def test_the_script_writes_numbers_as_the_terminal_does():
    rng = np.random.default_rng(0)
    numbers = [0.0, -0.0, 1.0, -3.0, 0.1, 0.1 + 0.2, 999.94, 999.96, 1e6, 123456.7, -2e-9, 1e-3, 9.9994e-4, 5e22]
    numbers += [float(x) for x in rng.standard_normal(300) * 10.0 ** rng.integers(-12, 9, 300)]
    counts = [0, 1, 2, 1023, 1024, 1536, 2**20 - 1, 2**20, 3 * 2**30 + 12345]
    shapes = [[], [3], [1, 2], [2, 16, 8, 8]]
    source = (FOLDER / "pictures.js").read_text(encoding="utf-8")
    with Browser() as browser:
        tab = browser._chromium.new_page()
        got = tab.evaluate("([some, counts, shapes]) => {" + source + "return [some.map(number), some.map(percent), "
                           "counts.map(size), shapes.map(shape), number(null), percent(null)]; }",
                           [numbers, counts, shapes])
    assert got == [[number(x) for x in numbers], [percent(x) for x in numbers], [size(n) for n in counts],
                   [shape(s) for s in shapes], number(None), percent(None)]
