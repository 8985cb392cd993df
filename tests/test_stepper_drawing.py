"""The stepper's drawing: no box lies on another and no wire passes through one, whatever the network; the SVG stands
alone and takes any name; the DOT can be read back; the PNG is a picture. Boxes, wires and routes are those of the
trace."""

import re
import time
from xml.etree import ElementTree

import numpy as np
import pytest

import tinyres as tr
from tinyres import models, nn, ops
from tinyres.stepper import drawing
from tinyres.stepper.layout import layout
from tinyres.stepper.trace import record

SVG = "{http://www.w3.org/2000/svg}"
NETWORKS = ["resnet8", "resnet20", "resnet56", "resnet110", "plain20", "preact_resnet20", "preact_resnet50", "resnet50",
            "densenet40", "article_prose", "article_prose_parallel", "article_prose_series", "article_prose_four_step",
            "chain_addition", "chain_concatenation", "chain_bottleneck", "residual_mlp", "learned_scale_mlp",
            "shared_mlp", "shared_residual_mlp", "shared_resnet20",
            "exclusive_gate_resnet", "shortcut_gate_resnet", "fixup_resnet20",
            "dropout_shortcut_resnet", "stochastic_depth_resnet"]
known = {}


@pytest.fixture(autouse=True)
def plain_kernels():
    with tr.use_kernels("reference"):
        yield


def traced(name):
    """The trace of a small pass through a network of the library."""
    if name not in known:
        tr.manual_seed(0)
        generator = np.random.default_rng(0)
        flat = "mlp" in name
        model = models.build(name, in_features=16) if flat else models.build(name, in_channels=1)
        images = generator.standard_normal((2, 16) if flat else (2, 1, 8, 8)).astype("float32")
        known[name] = record(lambda: tr.cross_entropy(model(tr.tensor(images)), np.array([1, 2])), title=name).trace
    return known[name]


def functions(name):
    """Graphs that no module made."""
    x = tr.tensor(np.linspace(-1, 1, 6).reshape(2, 3), requires_grad=True)
    w = tr.tensor(np.linspace(-1, 1, 9).reshape(3, 3), requires_grad=True)

    def many():
        routes = [ops.relu(x @ w), x * 2.0, ops.tanh(x), x]
        return ops.concat(routes, 1).sum() + (routes[0] * routes[2]).sum()

    graphs = {"x + f(x)": lambda: (x + ops.relu(x @ w)).sum(), "x + x * x": lambda: (x + x * x).sum(), "many": many,
              "x + x": lambda: (x + x).sum(), "w thrice": lambda: (x @ w @ w @ w).sum(), "one op": lambda: x.sum()}
    return record(graphs[name], title=name).trace


def crosses(a, b, box, into):
    """Whether a piece of wire is inside a box; at a circle the last piece ends on the line, within its square."""
    if into and box.outline == "plus":
        return False
    low, high = np.minimum(a, b), np.maximum(a, b)
    return (high[0] > box.x + 0.6 and low[0] < box.x + box.width - 0.6 and high[1] > box.y + 0.6
            and low[1] < box.y + box.height - 0.6)


def faults(drawn):
    """Boxes that overlap, wires through boxes, slanted wires, and anything outside of the drawing."""
    found = []
    boxes = sorted(drawn.boxes, key=lambda box: box.y)
    for i, a in enumerate(boxes):
        for b in boxes[i + 1:]:
            if b.y >= a.y + a.height:
                break
            if a.x < b.x + b.width - 0.2 and b.x < a.x + a.width - 0.2:
                found.append(("overlap", a, b))
        if not (0 <= a.x and a.x + a.width <= drawn.width and 0 <= a.y and a.y + a.height <= drawn.height):
            found.append(("outside", a))
    tops = np.array([box.y for box in boxes])
    feet = np.array([box.y + box.height for box in boxes])
    for wire in drawn.wires:
        for place, (a, b) in enumerate(zip(wire.points, wire.points[1:], strict=False)):
            if abs(a[0] - b[0]) > 0.15 and abs(a[1] - b[1]) > 0.15:
                found.append(("slanted", wire))
            near = np.flatnonzero((tops < max(a[1], b[1])) & (feet > min(a[1], b[1])))
            for box in (boxes[i] for i in near):
                into = place == len(wire.points) - 2 and (box.id, box.leaf) == (wire.target, False)
                if crosses(a, b, box, into):
                    found.append(("through", wire, box))
    return found


def touches(point, box):
    return -0.2 <= point[0] - box.x <= box.width + 0.2 and -0.2 <= point[1] - box.y <= box.height + 0.2


def check_drawing(trace, view):
    start = time.perf_counter()
    drawn = layout(trace, view)
    assert time.perf_counter() - start < 3  # far below it on a quiet machine: 0.4 s for 110 layers
    assert faults(drawn) == []
    boxes = {(box.id, box.leaf): box for box in drawn.boxes}
    assert len(boxes) == len(drawn.boxes)
    for wire in drawn.wires:
        assert touches(wire.points[0], boxes[wire.source, wire.leaf]), wire
        assert touches(wire.points[-1], boxes[wire.target, False]), wire
    return drawn


@pytest.mark.parametrize("name", NETWORKS)
def test_no_box_lies_on_another_and_no_wire_passes_through_one(name):
    trace = traced(name)
    check_drawing(trace, "blocks")
    drawn = check_drawing(trace, "ops")
    wanted = {(x.source, node.id, slot) for node in trace.nodes for slot, x in enumerate(node.inputs)
              if x.source is not None}
    assert {(wire.source, wire.target, wire.slot) for wire in drawn.wires} == wanted
    assert {box.id for box in drawn.boxes} >= set(trace.backward)


@pytest.mark.parametrize("name", ["x + f(x)", "x + x * x", "many", "x + x", "w thrice", "one op"])
def test_graphs_without_modules_are_drawn_too(name):
    trace = functions(name)
    for view in ("blocks", "ops"):
        drawn = check_drawing(trace, view)
        uses = sum(x.source is not None for node in trace.nodes for x in node.inputs)
        assert len(drawn.wires) == uses or view == "blocks"


def test_the_test_of_wires_finds_a_box_put_on_a_wire():
    drawn = layout(traced("resnet8"), "blocks")
    long = max(drawn.wires, key=lambda wire: wire.points[-1][1] - wire.points[0][1])
    box = drawn.boxes[-1]
    (x, y), *_ = long.points[1:]
    moved = type(box)(**{**vars(box), "id": 9999, "x": x - 5, "y": y + 20})
    assert [fault[0] for fault in faults(type(drawn)(**{**vars(drawn), "boxes": [*drawn.boxes, moved]}))]


@pytest.mark.parametrize("name", ["resnet8", "resnet20", "preact_resnet20", "resnet50", "article_prose"])
@pytest.mark.parametrize("view", ["blocks", "ops"])
def test_the_shortcut_runs_beside_its_branch(name, view):
    trace = traced(name)
    drawn = layout(trace, view)
    spine = drawn.lanes[0]
    for block in trace.blocks:
        join = next(box for box in drawn.boxes if box.node == block.join and not box.leaf)
        assert abs(join.x + join.width / 2 - spine) < 0.1 and join.outline == "plus"
        arriving = {wire.route: wire for wire in drawn.wires if wire.target == join.id}
        assert set(arriving) == {"shortcut", "branch"}
        assert max(x for x, _ in arriving["branch"].points) <= spine + 0.1
        assert max(x for x, _ in arriving["shortcut"].points) >= spine + 40
        inside = [box for box in drawn.boxes if not box.leaf
                  and (box.id if view == "blocks" else trace.nodes[box.id].group) in block.groups]
        lanes = {trace.groups[box.id if view == "blocks" else trace.nodes[box.id].group].lane for box in inside
                 if box.x > max(spine, arriving["shortcut"].points[-2][0] - 200) + 60}
        assert lanes <= {"shortcut"} or view == "ops"


@pytest.mark.parametrize("name", ["resnet20", "preact_resnet20", "densenet40", "chain_bottleneck", "fixup_resnet20"])
@pytest.mark.parametrize("view", ["blocks", "ops"])
def test_frames_hold_their_boxes_and_no_others(name, view):
    trace = traced(name)
    drawn = layout(trace, view)
    assert sum(frame.kind == "block" for frame in drawn.frames) == len(trace.blocks)
    for frame in drawn.frames:
        groups = set(trace.blocks[frame.id].groups) if frame.kind == "block" else {frame.id}
        for box in drawn.boxes:
            if not box.leaf:
                x, y = box.x + box.width / 2 - frame.x, box.y + box.height / 2 - frame.y
                within = 0 < x < frame.width and 0 < y < frame.height
                assert within == ((box.id if view == "blocks" else trace.nodes[box.id].group) in groups), (frame, box)


def test_every_residual_fork_has_a_dot_and_the_wires_start_there():
    trace = traced("resnet20")
    drawn = layout(trace, "blocks")
    forks = {trace.nodes[block.fork].group for block in trace.blocks}
    dots = {dot.source: dot for dot in drawn.dots if dot.residual}
    assert set(dots) == forks
    _, wires = drawn.parted()
    for wire in wires:
        if wire.route and wire.source in forks and trace.groups[wire.source].lane == "main":
            assert wire.points[0] == (dots[wire.source].x, dots[wire.source].y) or wire.route == "branch" \
                and trace.nodes[trace.groups[wire.target].output].join is not None


def test_batch_norm_keeps_its_direct_route_on_the_spine():
    trace = traced("resnet8")
    drawn = layout(trace, "ops")
    group = next(group for group in trace.groups if group.type == "BatchNorm2d")
    middle = {box.id: box.x + box.width / 2 for box in drawn.boxes}
    straight = [id for id in group.nodes if abs(middle[id] - drawn.lanes[0]) < 0.1]
    assert [trace.nodes[id].op for id in straight] == ["sub", "div", "mul", "add"]


# --- SVG --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("view", ["blocks", "ops"])
def test_the_svg_has_the_hooks_of_the_page_and_no_styles_of_its_own(view):
    trace = traced("resnet8")
    text = drawing.svg(trace, view, standalone=False)
    root = ElementTree.fromstring(text)
    elements = list(root.iter())
    assert not [e for e in elements if "style" in e.attrib or e.tag in (f"{SVG}style", f"{SVG}script")]
    boxes = [e for e in elements if e.tag == f"{SVG}g" and "box" in e.get("class", "").split()]
    steps = trace.block_steps if view == "blocks" else trace.backward
    ids = [int(e.get("data-id")) for e in boxes]
    assert len(ids) == len(set(ids)) and set(steps) <= set(ids)
    if view == "blocks":
        assert set(ids) == {group.id for group in trace.groups}
    wires = [e for e in elements if e.tag == f"{SVG}path" and "wire" in e.get("class").split() and e.get("data-to")]
    assert all(e.get("data-from") or e.get("data-leaf") for e in wires)
    assert {(e.get("data-from"), e.get("data-to")) for e in wires if e.get("data-from")} >= {
        (str(link.group), str(group.id)) for group in trace.groups for link in group.inputs
        if view == "blocks" and link.group is not None}
    marks = {f"url(#{e.get('id')})" for e in elements if e.tag == f"{SVG}marker"}
    assert {e.get("marker-end") for e in wires} - {None} <= marks
    assert root.find(f"{SVG}title").text and "shortcut" in root.find(f"{SVG}desc").text


def test_the_file_that_stands_alone_has_its_rules_for_light_and_dark():
    text = drawing.svg(traced("resnet8"), "blocks")
    style = ElementTree.fromstring(text).find(f"{SVG}style").text
    light, dark = style.split("@media (prefers-color-scheme: dark)")
    for name, rules in (("LIGHT", light), ("DARK", dark)):
        colours = getattr(drawing, name)
        assert all(colours[key] in rules for key in ("paper", "ink", "shortcut", "branch", "fill"))
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "") and "var(" not in text
    assert "{" not in re.sub(r"[^{}]*\{[^{}]*\}", "", light)  # the braces pair


def test_a_shortcut_from_the_input_itself_is_drawn_as_a_shortcut():
    trace = functions("x + f(x)")
    for view in ("blocks", "ops"):
        root = ElementTree.fromstring(drawing.svg(trace, view))
        routes = {e.get("class"): e for e in root.iter(f"{SVG}path") if e.get("data-slot")}
        assert {"wire shortcut", "wire branch"} <= set(routes)
        assert routes["wire shortcut"].get("marker-end") == f"url(#{view}-shortcut)"


def contrast(a, b):
    def light(colour):
        parts = [int(colour[i:i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    high, low = sorted((light(a), light(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("colours", [drawing.LIGHT, drawing.DARK])
def test_texts_and_routes_stand_out_from_what_is_behind_them(colours):
    for behind in ("paper", "fill", "block", "parameter", "loss"):
        assert min(contrast(colours[text], colours[behind]) for text in ("ink", "soft")) >= 4.5
        assert min(contrast(colours[line], colours[behind]) for line in ("line", "shortcut", "branch")) >= 3


def test_any_name_is_drawn_as_text():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.add_module('<script>alert("1")</script>&\'\\', nn.Linear(4, 4))

        def forward(self, x):
            return x + next(self.children())(x)

    tr.manual_seed(0)
    model = Odd()
    trace = record(lambda: model(tr.tensor(np.ones((2, 4), "float32"))).sum(), title='a "b" </svg>\x01').trace
    for view in ("blocks", "ops"):
        text = drawing.svg(trace, view)
        assert "<script" not in text and not [e for e in ElementTree.fromstring(text).iter() if "script" in str(e.tag)]
        assert "script" in text
        read_dot(drawing.dot(trace, view))


def test_directions_steps_and_views_are_said_and_checked():
    trace = traced("resnet8")
    assert 'class="graph blocks backward"' in drawing.svg(trace, "blocks", direction="backward")
    done = ElementTree.fromstring(drawing.svg(trace, "blocks", steps=trace.block_steps[:3]))
    marked = {int(e.get("data-id")) for e in done.iter(f"{SVG}g") if "done" in e.get("class").split()}
    assert marked == set(trace.block_steps[:3])
    with pytest.raises(ValueError, match="svg: direction must be 'forward' or 'backward', got 'up'"):
        drawing.svg(trace, "blocks", direction="up")
    for draw in (drawing.svg, drawing.dot, layout):
        with pytest.raises(ValueError, match="view must be 'blocks' .* or 'ops' .*, got 'layers'"):
            draw(trace, "layers")


def test_the_same_trace_gives_the_same_drawing():
    trace = traced("chain_addition")
    for view in ("blocks", "ops"):
        assert drawing.svg(trace, view) == drawing.svg(trace, view)
        assert drawing.dot(trace, view) == drawing.dot(trace, view)


# --- DOT and PNG ------------------------------------------------------------------------------------------------------

TOKEN = re.compile(r'\s*("(?:[^"\\]|\\.)*"|->|[{}\[\];,=]|[A-Za-z_0-9.]+)', re.S)


def read_dot(text):
    """A reader of what DOT needs: (nodes with their cluster and attributes, edges, labels of clusters)."""
    tokens, place = [], 0
    while text[place:].strip():
        found = TOKEN.match(text, place)
        assert found, text[place:place + 60]
        tokens.append(found[1])
        place = found.end()
    nodes, edges, clusters, stack, i = {}, [], {}, [], 2
    assert tokens[:1] == ["digraph"] and tokens[2] == "{" and tokens[-1] == "}"
    i = 3
    while i < len(tokens):
        token = tokens[i]
        if token == "subgraph":
            stack.append(tokens[i + 1])
            i += 3
        elif token == "{":
            stack.append("")
            i += 1
        elif token == "}":
            i += 1
            assert stack or i == len(tokens)
            stack = stack[:-1]
        elif token == ";":
            i += 1
        elif tokens[i + 1] == "=":
            if token == "label" and stack:
                clusters[stack[-1]] = tokens[i + 2]
            i += 3
        else:
            path = [token]
            i += 1
            while tokens[i] == "->":
                path.append(tokens[i + 1])
                i += 2
            options = {}
            if tokens[i] == "[":
                i += 1
                while tokens[i] != "]":
                    assert tokens[i + 1] == "="
                    options[tokens[i]] = tokens[i + 2]
                    i += 3 + (tokens[i + 3] == ",")
                i += 1
            if len(path) == 2:
                edges.append((*path, options))
            elif options and token not in ("node", "edge"):
                assert token not in nodes
                nodes[token] = [part for part in stack if part], options
    assert not stack
    return nodes, edges, clusters


@pytest.mark.parametrize("name", ["resnet8", "preact_resnet20", "shared_mlp", "chain_concatenation"])
def test_the_dot_file_says_what_the_trace_says(name):
    trace = traced(name)
    nodes, edges, clusters = read_dot(drawing.dot(trace, "blocks"))
    assert {f"step{group.id}" for group in trace.groups} <= set(nodes)
    assert all(a in nodes and b in nodes for a, b, _ in edges)
    assert len(clusters) == len(trace.blocks)
    for group in trace.groups:
        home = [f"cluster_block{i}" for i, block in enumerate(trace.blocks) if group.id in block.groups]
        assert nodes[f"step{group.id}"][0] == home
        for link in group.inputs:
            if link.group is not None:
                assert (f"step{link.group}", f"step{group.id}") in [edge[:2] for edge in edges]
    dashed = sum(options.get("style") == "dashed" for *_, options in edges)
    assert dashed >= len(trace.blocks)
    nodes, edges, clusters = read_dot(drawing.dot(trace, "ops"))
    assert len(edges) == sum(x.source is not None for node in trace.nodes for x in node.inputs)


@pytest.mark.parametrize("view", ["blocks", "ops"])
def test_the_png_shows_each_box(view, tmp_path):
    image = pytest.importorskip("PIL.Image")
    trace = traced("resnet8")
    drawing.png(trace, view, tmp_path / "graph.png")
    drawn = layout(trace, view)
    with image.open(tmp_path / "graph.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    scale = pixels.shape[0] / drawn.height
    assert 1.9 < scale <= 2.01 and abs(pixels.shape[1] / drawn.width - scale) < 0.02
    for box in drawn.boxes:
        x0, y0, x1, y1 = (round(v * scale) for v in (box.x, box.y, box.x + box.width, box.y + box.height))
        assert (pixels[y0:y1, x0:x1].sum(2) < 380).any(), box  # something dark: its text


def test_the_picture_of_a_very_deep_network_is_kept_within_bounds(tmp_path):
    image = pytest.importorskip("PIL.Image")
    drawing.png(traced("resnet56"), "blocks", tmp_path / "graph.png")
    with image.open(tmp_path / "graph.png") as picture:
        assert max(picture.size) <= 30_000


def test_a_folder_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        drawing.png(traced("resnet8"), "blocks", tmp_path / "none" / "graph.png")


def test_a_pass_that_stopped_and_an_empty_one_are_drawn_as_far_as_they_came(tmp_path):
    class Broken(nn.Module):
        def __init__(self):
            super().__init__()
            self.wide, self.narrow = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 4, 3)

        def forward(self, x):
            h = self.wide(x)
            return h + self.narrow(h)

    model = Broken()
    stopped = record(lambda: model(tr.tensor(np.ones((2, 1, 8, 8), "float32"))).sum()).trace
    assert stopped.stopped is not None
    empty = type(stopped)("", None, "float32", "reference", True, {})
    for view in ("blocks", "ops"):
        assert {box.label for box in check_drawing(stopped, view).boxes} >= (
            {"wide", "narrow"} if view == "blocks" else {"conv2d"})
        assert layout(empty, view).boxes == []
        read_dot(drawing.dot(empty, view))
        drawing.png(empty, view, tmp_path / "empty.png")
