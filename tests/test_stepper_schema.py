"""trace.schema.json against the dataclasses, field by field, and against what is really recorded."""

import copy
import dataclasses
import json
import types
import typing
from pathlib import Path

import numpy as np
import pytest

import tinyres as tr
from tinyres import data, models, nn
from tinyres.stepper import schema as classes
from tinyres.stepper.example import EXAMPLES
from tinyres.stepper.trace import record

SCHEMA = json.loads((Path(tr.__file__).parent / "stepper" / "trace.schema.json").read_text(encoding="utf-8"))
DEFS = SCHEMA["$defs"]
DATACLASSES = {name: thing for name, thing in vars(classes).items() if dataclasses.is_dataclass(thing)}
TYPES = {int: "integer", float: "number", str: "string", bool: "boolean", type(None): "null"}


def schema_of(name):
    return SCHEMA if name == "Trace" else DEFS[name]


def form_of_type(annotation):
    """A type as a set of forms: of list[int | None] it is {("array", {"integer", "null"})}, frozen."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return frozenset().union(*map(form_of_type, inner))
    if origin is dict:
        assert inner[0] is str
        return frozenset({("object", form_of_type(inner[1]))})
    if origin is tuple and inner[-1] is not Ellipsis:
        return frozenset({("tuple", *map(form_of_type, inner))})
    if origin in (list, tuple):
        return frozenset({("array", form_of_type(inner[0]))})
    return frozenset({annotation.__name__ if annotation in DATACLASSES.values() else TYPES[annotation]})


def form_of_schema(part):
    """The same of a part of the schema; a reference to a dataclass is its name."""
    if "$ref" in part:
        name = part["$ref"].removeprefix("#/$defs/")
        return frozenset({name}) if name in DATACLASSES else form_of_schema(DEFS[name])
    if "oneOf" in part:
        return frozenset().union(*map(form_of_schema, part["oneOf"]))
    if "enum" in part:
        return frozenset(TYPES[type(value)] for value in part["enum"])
    kinds = [part["type"]] if isinstance(part["type"], str) else part["type"]
    return frozenset(map(lambda kind: _form(kind, part), kinds))


def _form(kind, part):
    if kind == "object":
        return "object", form_of_schema(part["additionalProperties"])
    if kind == "array" and "prefixItems" in part:
        assert part["items"] is False and part["minItems"] == len(part["prefixItems"])
        return "tuple", *map(form_of_schema, part["prefixItems"])
    return ("array", form_of_schema(part["items"])) if kind == "array" else kind


@pytest.mark.parametrize("name", DATACLASSES)
def test_the_schema_has_every_field_with_its_type_and_no_other(name):
    found, hints = schema_of(name), typing.get_type_hints(DATACLASSES[name])
    fields = [field.name for field in dataclasses.fields(DATACLASSES[name])]
    listed = list(found["properties"])
    assert listed == (["format", *fields] if name == "Trace" else fields)
    assert found["required"] == listed and found["additionalProperties"] is False and found["description"]
    for field in fields:
        assert form_of_schema(found["properties"][field]) == form_of_type(hints[field]), f"{name}.{field}"


def test_the_schema_names_the_format_and_has_nothing_that_is_not_used():
    text = json.dumps(SCHEMA)
    assert SCHEMA["title"] == SCHEMA["properties"]["format"]["const"] == classes.FORMAT
    assert [name for name in DEFS if f'"#/$defs/{name}"' not in text] == []
    assert DEFS["Summary"]["properties"]["values"]["maxItems"] == classes.LISTED


def test_a_type_that_differs_is_seen():
    assert form_of_type(list[int | None]) != form_of_type(list[int])
    assert form_of_type(tuple[int, ...]) != form_of_type(tuple[int, str])
    assert form_of_type(float) != form_of_type(int) != form_of_type(bool)


# --- what is really recorded ------------------------------------------------------------------------------------------


def digits_loss(make, **options):
    x, y = data.digits("train").batch(2)
    tr.manual_seed(0)
    network = make(in_channels=1, **options)
    return lambda: tr.cross_entropy(network(tr.Tensor(x)), y)


def without_modules():
    x = tr.tensor(np.random.default_rng(0).standard_normal((3, 4)), requires_grad=True)
    return (x + tr.tanh(x)).sum()


def shapes_that_do_not_fit():
    block = models.blocks.BasicBlock(4, 8, stride=2)
    block.downsample = nn.Identity()
    return block(tr.randn((2, 4, 6, 6))).sum()


def not_a_number():
    x = tr.tensor([0.0, 1.0], requires_grad=True)
    return (x + tr.log(x - 1.0)).sum()


RUNS = {**{f"example {name}": make for name, make in EXAMPLES.items()},
        "resnet8": lambda: digits_loss(models.resnet8), "bare tensors": lambda: without_modules,
        "a small DenseNet": lambda: digits_loss(models.densenet.cifar_densenet, depth=10),
        "a projected concatenation": lambda: digits_loss(models.chain_bottleneck, blocks=3),
        "stopped": lambda: shapes_that_do_not_fit, "not a number": lambda: not_a_number}


@pytest.fixture(scope="module")
def recorded():
    """{name: the JSON of a recording}, each made once."""
    made = {}

    def get(name):
        if name not in made:
            with tr.use_kernels("reference"), np.errstate(all="ignore"):
                trace = record(RUNS[name](), details=True).trace
            made[name] = json.loads(json.dumps(trace.as_dict(), allow_nan=False))
        return made[name]

    return get


@pytest.fixture(scope="module")
def validator():
    jsonschema = pytest.importorskip("jsonschema", reason="recordings were not validated: pip install jsonschema")
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    return jsonschema.Draft202012Validator(SCHEMA)


def complaints(validator, trace):
    return [f"{error.json_path}: {error.message[:200]}" for error in validator.iter_errors(trace)]


@pytest.mark.parametrize("name", RUNS)
def test_a_recording_is_as_the_schema_says(name, recorded, validator):
    trace = recorded(name)
    assert trace["nodes"] and (trace["stopped"] is None) == (name != "stopped")
    assert complaints(validator, trace) == []


@pytest.mark.parametrize("name", RUNS)
def test_ids_lead_somewhere(name, recorded):
    """What a schema cannot say: an id is a place in a list, and a step is a place in an order."""
    trace = recorded(name)
    nodes, groups = trace["nodes"], trace["groups"]
    assert [node["id"] for node in nodes] == list(range(len(nodes)))
    assert [group["id"] for group in groups] == list(range(len(groups)))
    for things, order in ((nodes, trace["backward"]), (groups, trace["block_steps"])):
        assert [things[id]["step"] for id in order] == list(range(len(order)))
        assert sum(thing["step"] is not None for thing in things) == len(order)
    for node in nodes:
        assert all(given["source"] is None or given["source"] < node["id"] for given in node["inputs"])
        assert node["group"] is None or node["id"] in groups[node["group"]]["nodes"]
        assert all(nodes[consumer]["step"] < node["step"] for consumer in node["consumers"])
    for group in groups:
        assert group["output"] in group["nodes"] and group["nodes"] == sorted(group["nodes"])
        assert all(given["source"] not in group["nodes"] for given in group["inputs"])
    for block in trace["blocks"]:
        assert block["join"] is None or block["fork"] < block["join"]
        assert set(block["groups"]) <= set(range(len(groups)))


def test_recordings_have_forks_joins_and_both_routes(recorded):
    """So that the tests above have seen them."""
    nodes = [node for name in RUNS for node in recorded(name)["nodes"]]
    joins = {node["join"]["kind"] for node in nodes if node["join"]}
    routes = {arrival["route"] for node in nodes if node["fork"] for arrival in node["fork"]["arrivals"]}
    assert joins == {"addition", "concatenation", "projection"} and routes == {"shortcut", "branch", ""}
    assert any(summary["bad"] and summary["mean"] is None for node in nodes if (summary := node["value"]))


@pytest.mark.parametrize("change", [
    lambda trace: trace.pop("loss"),
    lambda trace: trace.update(format="tinyres-trace/2"),
    lambda trace: trace.update(mood="good"),
    lambda trace: trace["nodes"][0].update(id=-1),
    lambda trace: trace["nodes"][0].update(kind="weight"),
    lambda trace: trace["nodes"][0].update(shape=[1.5]),
    lambda trace: trace["nodes"][0]["value"]["map"].append([0] * 9),
    lambda trace: trace["nodes"][0]["value"].update(zeros=1.1),
    lambda trace: trace["nodes"][0]["value"].update(norm=-1.0),
    lambda trace: trace["nodes"][-1]["inputs"][0].update(route="main"),
    lambda trace: trace["nodes"][-1]["inputs"][0].pop("passed_on"),
    lambda trace: trace["groups"][0].update(lane="left"),
    lambda trace: trace["groups"][0].update(nodes=[]),
    lambda trace: trace.update(stopped={"op": "add"}),
    lambda trace: trace["versions"].update(tinyres=1),
], ids=range(15))
def test_what_is_no_recording_is_refused(change, recorded, validator):
    trace = copy.deepcopy(recorded("example fork"))
    change(trace)
    assert len(complaints(validator, trace)) >= 1
