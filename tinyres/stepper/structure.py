"""What the recorded ops form: layers, joins, the forks that belong to them, and the routes from fork to join.

A join is an addition of two tensors, or a concatenation, that come from a common tensor: there a residual block's
shortcut and branch meet, and batch norm's shift, which is added too, is none. Its fork is the last tensor that both
sides come from. In a `Block` the shortcut is what its shortcut module makes of the fork; elsewhere it is the fork
itself, or what scaling, slicing and padding alone make of it. All of it is read off the edges, without running
anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tinyres.stepper.observe import Observer
from tinyres.stepper.schema import BRANCH, SHORTCUT, BlockSpan, Group, GroupInput, Join, Node
from tinyres.stepper.seen import Call

ADDITIONS, CONCATENATIONS = ("add", "add_"), ("concat",)
ACTIVATIONS = ("relu", "relu_")
PROJECTIONS = ("conv2d", "matmul", "permute")
PLAIN = ("alias", "get_item", "pad", "reshape", "permute", "channels_last")  # they move elements or scale them


def find_joins(observer: Observer) -> None:
    """Set `join` of every node that is one, and the routes of the inputs at forks and joins."""
    nodes = observer.nodes
    masks = ancestors(nodes)
    for node in nodes:
        places = [i for i, x in enumerate(node.inputs) if x.source is not None and masks[x.source]]
        same = all(nodes[_source(node, i)].shape == node.shape for i in places)
        if len(places) < 2 or not (node.op in CONCATENATIONS or (node.op in ADDITIONS and same)):
            continue
        common = masks[_source(node, places[0])]
        for i in places[1:]:
            common &= masks[_source(node, i)]
        if common:
            kind = "addition" if node.op in ADDITIONS else "concatenation"
            node.join = Join(kind, common.bit_length() - 1, [(i, "") for i in places])
    for call in observer.calls.values():
        if call.node.join is not None:
            call.node.join = _with_routes(call, nodes)
    _block_forks(observer)
    users: dict[int, list[Node]] = {}
    for node in nodes:
        for x in node.inputs:
            users.setdefault(-1 if x.source is None else x.source, []).append(node)
    for node in nodes:
        if node.join is not None and node.join.kind == "concatenation":
            after = users.get(node.id, [])
            if after and all(user.op in PROJECTIONS for user in after):
                node.join = Join("projection", node.join.fork, node.join.routes)
        if node.join is not None and any(route for _, route in node.join.routes):
            _mark(node, nodes, masks)


def ancestors(nodes: Sequence[Node]) -> list[int]:
    """Per node a number whose bit i says that node i leads to it; parameters, and what is made of them alone, count for
    nothing."""
    masks: list[int] = []
    for node in nodes:
        mask = 0
        for x in node.inputs:
            if x.source is not None:
                mask |= masks[x.source]
        own = node.kind in ("input", "constant") or (node.kind == "op" and mask)
        masks.append(mask | (1 << node.id) if own else mask)
    return masks


def _source(node: Node, place: int) -> int:
    return int(node.inputs[place].source or 0)


def _with_routes(call: Call, nodes: Sequence[Node]) -> Join:
    """The join with the route by which each input comes, where one of them is a shortcut."""
    node = call.node
    assert node.join is not None
    block = call.block
    routes = []
    for i, _ in node.join.routes:
        source = _source(node, i)
        behind = block is not None and (node.inputs[i].route == SHORTCUT or source in block.on_shortcut)
        routes.append((i, SHORTCUT if behind else BRANCH))
    if block is None or not {SHORTCUT, BRANCH} <= {route for _, route in routes}:
        plain = [_plainly_from(nodes, _source(node, i), node.join.fork) for i, _ in node.join.routes]
        if sum(plain) != 1:  # two identities, as in x + x, or two branches
            return node.join
        routes = [(i, SHORTCUT if p else BRANCH) for (i, _), p in zip(node.join.routes, plain, strict=True)]
    elif block is not None and block.join is None and block.fork is not None:
        block.join = node.id
        node.name = f"{block.name} join {node.op}"
        return Join(node.join.kind, block.fork, routes)
    return Join(node.join.kind, node.join.fork, routes)


def _plainly_from(nodes: Sequence[Node], at: int, fork: int | None) -> bool:
    """Whether `at` is the fork, or made of it by moving and scaling alone."""
    while at != fork:
        node = nodes[at]
        sources = [x.source for x in node.inputs if x.source is not None]
        scaled = node.op == "mul" and len(sources) == 2 and any(nodes[s].kind != "op" for s in sources)
        inner = [s for s in sources if nodes[s].kind == "op" or s == fork]
        if len(inner) != 1 or not (node.op in PLAIN or scaled or (node.op == "mul" and len(sources) == 1)):
            return False
        at = inner[0]
    return True


def _block_forks(observer: Observer) -> None:
    """In a block, what its shortcut module reads at the fork is the shortcut's, and all else that reads the fork there
    the branch's."""
    for block in observer.blocks:
        for id in block.nodes:
            node = observer.nodes[id]
            past = {i for i, route in node.join.routes if route == SHORTCUT} if node.join is not None else set()
            for i, x in enumerate(node.inputs):
                if x.source is not None and x.source == block.fork:
                    x.route = SHORTCUT if x.route == SHORTCUT or i in past or id in block.on_shortcut else BRANCH
        if block.join is None and block.fork is not None:
            joins = [id for id in block.nodes if observer.nodes[id].join is not None]
            block.join = joins[-1] if joins else None


def _mark(join: Node, nodes: Sequence[Node], masks: Sequence[int]) -> None:
    """At the fork of a join outside of blocks, the route of everything between the two."""
    assert join.join is not None
    fork = join.join.fork
    if fork is None or any(x.route for node in nodes[fork:join.id + 1] for x in node.inputs if x.source == fork):
        return
    behind: set[int] = {fork}
    stack = [_source(join, i) for i, route in join.join.routes if route == SHORTCUT]
    while stack:
        at = stack.pop()
        if at not in behind:
            behind.add(at)
            stack += [x.source for x in nodes[at].inputs if x.source is not None and masks[x.source] >> fork & 1]
    direct = {i for i, route in join.join.routes if route == SHORTCUT and _source(join, i) == fork}
    for node in nodes[fork + 1:join.id + 1]:
        if node is not join and not masks[join.id] >> node.id & 1:
            continue
        for i, x in enumerate(node.inputs):
            if x.source == fork:
                short = i in direct if node is join else node.id in behind
                x.route = SHORTCUT if short else BRANCH


def spans(observer: Observer, groups: Sequence[Group]) -> list[BlockSpan]:
    """The calls of residual blocks, in the order in which they began."""
    group_of = {id: group.id for group in groups for id in group.nodes}
    found = []
    for block in observer.blocks:
        if block.fork is not None:
            inside = sorted({group_of[id] for id in block.nodes if id in group_of})
            found.append(BlockSpan(block.name, type(block.block).__name__, block.fork, block.join, inside,
                                   type(block.block.shortcut).__name__))
    return found


def find_groups(observer: Observer, loss: int | None) -> list[Group]:
    """The layers, in forward order; every op is in one of them."""
    groups: list[Group] = []
    layers: dict[Any, Group] = {}  # the last group of each layer, which an op inside continues
    cuts: dict[Any, int] = {}
    keys: dict[int, Any] = {}
    for id, call in observer.calls.items():
        base = _whose(call)
        keys[id] = base
        if _stands_alone(call, keys):
            cuts[base] = cuts.get(base, 0) + 1
            key: Any = ("op", id)
        else:
            key = (base, cuts.get(base, 0))
        group = layers.get(key)
        if group is None or (call.scope is None and groups[-1] is not group):
            group = layers[key] = _new_group(len(groups), call, key[0] == "op")
            groups.append(group)
        group.nodes.append(id)
        group.output = id
    groups = _exploded(groups, observer)
    groups = _with_leaves(groups, observer)
    for group in groups:
        if group.kind == "other" and len(group.nodes) == 1:
            group.title = observer.nodes[group.output].op
        if loss in group.nodes and group.kind == "other" and set(observer.nodes[group.output].shape) <= {1}:
            group.kind = "loss"
        for id in group.nodes:
            observer.nodes[id].group = group.id
    _connect(groups, observer.nodes)
    return groups


def _whose(call: Call) -> Any:
    """What an op is part of: the call of a layer, or else of a function of the library, like mean()."""
    if call.scope is not None and call.scope.module is not None:
        return "layer", call.scope.number
    return ("function", call.site, call.node.line) if call.called else ("op", call.node.id)


def _stands_alone(call: Call, keys: dict[int, Any]) -> bool:
    """ReLUs, and the joins that bring together what other layers made."""
    node = call.node
    if node.join is None:
        return node.op in ACTIVATIONS
    return any(keys.get(_source(node, i)) != keys[node.id] for i, _ in node.join.routes)


def _new_group(number: int, call: Call, alone: bool) -> Group:
    node, scope = call.node, call.scope
    block = call.block.name if call.block is not None else ""
    lane = SHORTCUT if call.on_shortcut and node.join is None else "main"
    if alone and node.join is not None:
        return Group(number, "join", "join", "", node.module, block, lane, [], 0)
    if alone:
        return Group(number, "relu", "activation", "ReLU", node.module, block, lane, [], 0)
    if scope is None or scope.module is None:
        return Group(number, call.called, "other", "", node.module, block, lane, [], 0)
    name = scope.name.removeprefix(f"{block}.") if block else scope.name
    return Group(number, name or scope.type, "layer", scope.type, scope.name, block, lane, [], 0)


def _exploded(groups: list[Group], observer: Observer) -> list[Group]:
    """Groups with one way out; one of whose inner results something outside makes use becomes a group an op."""
    group_of = {id: group for group in groups for id in group.nodes}
    leaky = set()
    for node in observer.nodes:
        for x in node.inputs:
            of = group_of.get(-1 if x.source is None else x.source)
            if of is not None and group_of[node.id] is not of and x.source != of.output:
                leaky.add(of.id)
    found: list[Group] = []
    for group in groups:
        parts = [[id] for id in group.nodes] if group.id in leaky else [group.nodes]
        for part in parts:
            title = group.title if len(parts) == 1 else f"{group.title}: {observer.nodes[part[0]].op}"
            found.append(Group(len(found), title, group.kind, group.type, group.module, group.block, group.lane, part,
                               part[-1]))
    return found


def _with_leaves(groups: list[Group], observer: Observer) -> list[Group]:
    """Inputs that want a gradient, and parameters that several layers share, are steps too: gradients add up there."""
    users: dict[int, set[int]] = {}
    first: dict[int, int] = {}
    for group in groups:
        for id in group.nodes:
            for i, x in enumerate(observer.nodes[id].inputs):
                if x.source in observer.leaves:
                    first.setdefault(int(x.source or 0), group.id)  # it stands before, also where it is detached
                    if observer.wants(id, i):
                        users.setdefault(int(x.source or 0), set()).add(group.id)
    leaves = [Group(0, observer.nodes[id].name, observer.nodes[id].kind, "", "", "", "main", [id], id)
              for id, by in users.items() if observer.nodes[id].kind == "input" or len(by) > 1]
    found = sorted(leaves + groups, key=lambda group: first.get(group.output, group.id))
    for number, group in enumerate(found):
        group.id = number
    return found


def _connect(groups: Sequence[Group], nodes: Sequence[Node]) -> None:
    for group in groups:
        inside = set(group.nodes)
        met: dict[int, GroupInput] = {}
        for id in group.nodes:
            for x in nodes[id].inputs:
                if x.source is None or x.source in inside:
                    continue
                link = met.setdefault(x.source, GroupInput(x.source, nodes[x.source].group, 0))
                link.uses += 1
                link.route = link.route or x.route
        group.inputs = list(met.values())
