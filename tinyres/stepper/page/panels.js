// The panels of a step. Each function fills one panel for the step that `now` describes, or hides it.

const trace = JSON.parse(document.getElementById("trace").textContent);
const $ = (id) => document.getElementById(id);

// Summaries are written once each, as lists in the order of these fields; maps as two hexadecimal digits an element.
const FIELDS = ["shape", "dtype", "norm", "min", "mean", "max", "zeros", "bad", "map", "top", "maps", "maps_top", "values"];
const unpacked = new Map();

function summary(place) {
  if (place === null || place === undefined) return null;
  if (!unpacked.has(place)) {
    const packed = trace.summaries[place], found = {bad: 0, map: null, top: 0, maps: [], maps_top: 0, values: []};
    packed.forEach((value, i) => { found[FIELDS[i]] = value; });
    const rows = ([columns, digits]) => Array.from({length: digits.length / 2 / columns}, (_, y) =>
      Array.from({length: columns}, (_, x) => parseInt(digits.substr(2 * (y * columns + x), 2), 16) - 99));
    found.map = found.map && found.map.length ? rows(found.map) : null;
    found.maps = (found.maps || []).map(rows);
    unpacked.set(place, found);
  }
  return unpacked.get(place);
}

const steps = (view, direction) => trace.views[view][direction];
const said = (view, id) => trace.views[view].steps[id] || {};
const nodeOf = (view, id) => trace.nodes[view === "blocks" ? trace.groups[id].output : id];
const forkOf = (view, id) => (view === "blocks" ? trace.groups[id] : trace.nodes[id]).fork || null;
const inputsOf = (view, id) => (view === "blocks" ? trace.groups[id] : trace.nodes[id]).inputs || [];

function joinOf(view, id) {
  if (view === "ops") return trace.nodes[id].join || null;
  if (trace.groups[id].kind !== "join") return null;  // inside of a loss things are added, too
  const node = trace.groups[id].nodes.find((n) => trace.nodes[n].join);
  return node === undefined ? null : trace.nodes[node].join;
}

// What a step is in the view: the id of the layer or node that `source` belongs to, and its name.
function target(view, input) {
  const id = view === "blocks" ? input.group : input.source;
  const name = id === null || id === undefined ? nodeName(input.source) : said(view, id).label || nodeName(input.source);
  return {id: id === undefined ? null : id, name};
}

function nodeName(id) {
  const node = trace.nodes[id];
  if (!node) return "";
  if (node.kind === "op") return node.name || node.op;
  return node.kind === node.name ? node.name : `${node.kind} ${node.name || ""}`.trim();
}

// A link that goes to the step of `id`, where there is one in this view and direction.
function link(now, id, name) {
  const at = id === null || id === undefined ? undefined : now.places.get(id);
  if (at === undefined) return h("span", {class: "name"}, name);
  return h("a", {class: "ref", href: `#view=${now.view}&direction=${now.direction}&step=${at}`, "data-go": at}, name, " ",
    h("span", {class: "number"}, `step ${at + 1}`));
}

const route = (name) => name ? h("span", {class: `route-name ${name}`}, sign(name), name) : null;
const body = (id) => $(id).querySelector(".body");

function show(id, children) {
  $(id).hidden = !children;
  if (children) body(id).replaceChildren(...[children].flat(3).filter(Boolean));
}

// --- the step itself -------------------------------------------------------------------------------------------------

function stepPanel(now) {
  const text = said(now.view, now.id), node = now.node;
  const group = now.view === "blocks" ? trace.groups[now.id] : null;
  $("step-title").textContent = text.title || "";
  const kinds = [];
  if (forkOf(now.view, now.id)) kinds.push("fork");
  if (joinOf(now.view, now.id)) kinds.push("join");
  const kind = group ? group.kind : node.kind;
  if (kind !== "join" && kind !== "other") kinds.push(kind);
  $("step-kind").textContent = `step ${now.step + 1} of ${now.order.length}` + (kinds.length ? ` · ${kinds.join(" · ")}` : "");
  const facts = [];
  const place = group ? [group.module, group.type] : [node.module, node.module_type];
  if (place[0] && place[0] !== text.title) facts.push(place[0]);
  if (!group && place[1]) facts.push(place[1]);
  for (const [name, value] of Object.entries(group && group.nodes.length > 1 ? {} : node.options || {})) facts.push(`${name}=${value}`);
  if (group && group.nodes.length > 1) facts.push(`${group.nodes.length} ops`);
  facts.push(`output ${shape(node.shape || [])} ${node.dtype || ""}`);
  if (node.line) facts.push(node.line);
  if (node.fused) facts.push("part of a fused op");
  $("step-facts").textContent = facts.join("  ·  ");
  const why = now.direction === "backward" ? text.why : text.why_forward;
  $("why").replaceChildren(h("span", {class: "lead"}, "why now: "), why || "");
  $("announce").textContent = (now.direction === "backward" ? text.said : text.said_forward) || "";
}

// --- the rule --------------------------------------------------------------------------------------------------------

function ruleOf(node) {
  return trace.rules[node.rule === undefined ? node.op : node.rule];
}

function ruleLines(node, backward) {
  const rule = ruleOf(node);
  if (!rule) return [];
  const lines = [h("p", {class: "maths"}, h("span", {class: "direction"}, "forward "), rule.forward)];
  if (!backward) return lines;
  const inputs = node.inputs || [];
  rule.backward.forEach((text, i) => {
    const wanted = inputs[i] && inputs[i].contribution !== undefined;
    const who = inputs[i] && inputs[i].name ? `to ${inputs[i].name} ` : "";
    lines.push(h("p", {class: wanted ? "maths" : "maths unwanted"}, h("span", {class: "direction"}, `back ${who}`), text,
      wanted ? null : h("span", {class: "remark"}, "  (no gradient wanted)")));
  });
  return lines;
}

function opLink(now, node) {
  const at = steps("ops", now.direction).indexOf(node.id);
  if (at < 0) return h("span", {class: "name"}, node.op);
  return h("a", {class: "ref", href: `#view=ops&direction=${now.direction}&step=${at}`, "data-op": node.id}, node.op);
}

function rulePanel(now) {
  const group = now.view === "blocks" ? trace.groups[now.id] : null, backward = now.direction === "backward";
  const ids = group ? group.nodes : [now.id];
  const ops = ids.map((id) => trace.nodes[id]).filter((node) => node.kind === "op");
  if (!ops.length) {
    show("rule", now.node.kind === "op" ? null : h("p", {}, backward
      ? "A leaf: the gradient ends here and is added to .grad."
      : "A leaf: no op made it."));
    return;
  }
  if (ops.length === 1) {
    const [node] = ops, rule = ruleOf(node);
    show("rule", [ruleLines(node, backward),
      backward && node.shapes && node.shapes.length ? h("div", {class: "reveal"}, h("h4", {}, "with the shapes of this step"),
        h("ul", {class: "shapes"}, node.shapes.map((line) => h("li", {class: "maths"}, line)))) : null,
      rule && rule.note ? h("p", {class: "note"}, rule.note) : null]);
    return;
  }
  const ordered = backward ? [...ops].sort((a, b) => (a.step ?? Infinity) - (b.step ?? Infinity)) : ops;
  show("rule", [
    h("p", {}, `This layer ran as ${ops.length} ops. `, backward ? "The gradient goes through them in this order:" : "In this order:"),
    h("ol", {class: "ops"}, ordered.map((node) => {
      const rule = ruleOf(node);
      const lines = !rule ? [] : backward ? rule.backward.filter((_, i) => (node.inputs || [])[i]?.contribution !== undefined)
        : [rule.forward];
      return h("li", {}, opLink(now, node),
        h("span", {class: "maths"}, [...new Set(lines)].join(";  ")),
        node.fork ? h("span", {class: "badge"}, "fork") : null);
    })),
    h("p", {class: "note"}, "Choose an op to see its own step in the op view.")]);
}

// --- what comes and what goes on -------------------------------------------------------------------------------------

// Where a contribution comes to a fork: how many have come with it, what they sum to, and whom the fork still waits for.
function awaited(now, id) {
  const fork = id === null ? null : forkOf(now.view, id), arrivals = fork ? fork.arrivals : [];
  const last = arrivals.map((arrival) => arrival.consumer).lastIndexOf(now.id);
  if (arrivals.length < 2 || last < 0) return null;
  const rest = [...new Set(arrivals.slice(last + 1).map((arrival) => arrival.consumer))];
  return h("p", {class: "waiting-for"}, h("strong", {}, `at the fork: ${last + 1} of ${arrivals.length}`),
    `, the sum so far has norm ${number(summary(arrivals[last].sum).norm)}`,
    rest.length ? [", it waits for ", rest.slice(0, 3).map((other, i) => [i ? ", " : "", link(now, other, said(now.view, other).label)]),
      rest.length > 3 ? ` and ${rest.length - 3} more` : ""] : ": it is whole now");
}

function flowPanel(now) {
  const backward = now.direction === "backward";
  $("flow").hidden = !backward;
  if (!backward) return;
  const came = summary(now.node.gradient);
  body("incoming").replaceChildren(...(came
    ? [statistics(came), picture(came, "incoming gradient")].filter(Boolean)
    : [h("p", {}, "No gradient came here.")]));
  const cards = [], join = joinOf(now.view, now.id), ways = new Map();
  if (join) (join.routes || []).forEach(([place, name]) => ways.set(joining(now).inputs[place]?.source, name));
  for (const input of inputsOf(now.view, now.id)) {
    const brought = summary(input.contribution);
    if (!brought || input.source === undefined) continue;
    const {id, name} = target(now.view, input);
    const way = input.route || ways.get(input.source) || "";
    const ratio = came && came.norm ? brought.norm / came.norm : null;
    cards.push(h("div", {class: `contribution ${way}`, "data-source": input.source, "data-norm": brought.norm},
      h("p", {class: "to"}, route(way), "to ", link(now, id, name),
        input.name ? h("span", {class: "remark"}, ` as ${input.name}`) : null,
        input.uses > 1 ? h("span", {class: "remark"}, ` from ${input.uses} of its ops`) : null),
      input.passed_on ? h("p", {class: "same"}, "passed on: the very array that came") : null,
      awaited(now, id),
      h("div", {class: "beside"}, picture(brought, `gradient to ${name}`, 112),
        h("dl", {class: "facts"},
          h("div", {}, h("dt", {}, "shape"), h("dd", {}, shape(brought.shape))),
          h("div", {}, h("dt", {}, "norm"), h("dd", {}, number(brought.norm))),
          ratio === null || input.passed_on ? null : h("div", {}, h("dt", {}, "of what came"), h("dd", {}, `× ${number(ratio)}`)),
          brought.zeros > 0 ? h("div", {}, h("dt", {}, "zeros"), h("dd", {}, percent(brought.zeros))) : null))));
  }
  const leaf = now.node.kind !== "op";
  $("contributions").replaceChildren(...(cards.length ? cards : [h("p", {class: "remark"},
    leaf ? "Nothing: this is a leaf, the gradient stays here." : "Nothing: no input of this step wants a gradient.")]));
}

// --- fork and join ---------------------------------------------------------------------------------------------------

// What each arrival brought, in the order of the arrivals; one consumer may bring several.
function brought(view, id, fork) {
  const source = nodeOf(view, id).id, seen = new Map();
  return fork.arrivals.map((arrival) => {
    const nth = seen.get(arrival.consumer) || 0;
    seen.set(arrival.consumer, nth + 1);
    const from = inputsOf(view, arrival.consumer).filter((i) => i.source === source && i.contribution !== undefined);
    return from.length ? summary(from[Math.min(nth, from.length - 1)].contribution) : null;
  });
}

function forkPanel(now) {
  const fork = now.direction === "backward" ? forkOf(now.view, now.id) : null;
  const panel = $("fork");
  if (!fork || !fork.arrivals.length) {
    panel.removeAttribute("data-total-norm");
    panel.removeAttribute("data-identity-share");
    show("fork", null);
    return;
  }
  const arrivals = fork.arrivals, sums = arrivals.map((arrival) => summary(arrival.sum)), parts = brought(now.view, now.id, fork);
  const total = sums[sums.length - 1], defined = arrivals.every((arrival) => arrival.share !== null && arrival.share !== undefined);
  const at = (arrival) => now.places.has(arrival.consumer) ? `, step ${now.places.get(arrival.consumer) + 1},` : "";
  const who = (arrival) => arrival.route || said(now.view, arrival.consumer).label + at(arrival);
  fill(panel, {"data-total-norm": total.norm, "data-identity-share": fork.identity_share ?? ""}, []);
  const stairs = defined ? staircase(arrivals) : [];
  const rows = arrivals.map((arrival, i) => h("tr", {class: "arrival", "data-consumer": arrival.consumer, "data-norm": arrival.norm,
                                                     "data-share": arrival.share ?? "", "data-cosine": arrival.cosine ?? "",
                                                     "data-sum-norm": sums[i].norm},
    h("th", {scope: "row"}, h("span", {class: "plus", "aria-hidden": "true"}, "+ "),
      route(arrival.route) || h("span", {class: "route-name"}, sign(routeOf(arrival, i))), " ",
      link(now, arrival.consumer, said(now.view, arrival.consumer).label)),
    h("td", {"data-label": "norm"}, number(arrival.norm)),
    h("td", {"data-label": "cosine to the sum so far"}, i ? number(arrival.cosine) : "–"),
    h("td", {"data-label": "norm of the sum so far"}, number(sums[i].norm)),
    h("td", {"data-label": "share"}, percent(arrival.share)),
    h("td", {class: "wide"}, stairs[i] || null)));
  const pictured = arrivals.length <= 4 && parts.every((part) => part && (part.map || part.values.length));
  const term = (operator, image, caption, name) => h("figure", {class: `term ${name || ""}`},
    h("span", {class: "operator"}, operator), h("div", {}, image, h("figcaption", {}, caption)));
  show("fork", [
    h("p", {class: "sentence"}, said(now.view, now.id).fork),
    pictured ? h("div", {class: "sum"},
      parts.map((part, i) => term(i ? "+" : "0 +", picture(part, `what the ${who(arrivals[i])} brings`, 136),
        [arrivals[i].route ? route(arrivals[i].route) : who(arrivals[i]), h("span", {class: "remark"}, ` norm ${number(arrivals[i].norm)}`)],
        arrivals[i].route)),
      term("=", picture(total, "the sum", 136), [h("strong", {}, "sum"), h("span", {class: "remark"}, ` norm ${number(total.norm)}`)], "total")) : null,
    h("table", {class: "arrivals"},
      h("caption", {class: "unseen"}, "The running sum, in the order in which the contributions came"),
      h("thead", {}, h("tr", {}, ["what came", "norm", "cosine to the sum so far", "norm of the sum so far", "share"].map((name) =>
        h("th", {scope: "col"}, name)), h("th", {scope: "col", class: "wide"}, "0 to 100 % of the sum"))),
      h("tbody", {}, h("tr", {class: "zero"}, h("th", {scope: "row"}, "0"), h("td", {}, ""), h("td", {}, ""), h("td", {"data-label": "norm of the sum so far"}, "0"), h("td", {}, ""), h("td", {class: "wide"})), rows)),
    arrivals.length === 2 && defined && total.norm ? triangle(arrivals.map((a, i) => ({...a, sum: sums[i]}))) : null,
    fork.identity_share === null || fork.identity_share === undefined ? null
      : h("p", {class: "share"}, route("shortcut"), " carries ", h("strong", {}, percent(fork.identity_share)),
          h("span", {class: "remark"}, "  ⟨g shortcut, g⟩ / ⟨g, g⟩"))]);
}

// The op that joins.
const joining = (now) => trace.nodes[(now.view === "blocks" ? trace.groups[now.id].nodes : [now.id]).find((n) => trace.nodes[n].join)];

function joinPanel(now) {
  const join = joinOf(now.view, now.id), backward = now.direction === "backward";
  if (!join) { show("join", null); return; }
  const came = summary(now.node.gradient), inputs = inputsOf(now.view, now.id).filter((i) => i.source !== undefined);
  const node = joining(now);
  const routes = (join.routes || []).map(([place, name]) => ({input: node.inputs[place], name}));
  const words = {addition: "copied", concatenation: "split", projection: "split after a projection"};
  show("join", [
    h("p", {class: "sentence"}, said(now.view, now.id).join),
    backward && came ? h("div", {class: "copies"},
      h("figure", {class: "term"}, h("div", {}, picture(came, "the gradient that arrives", 96), h("figcaption", {}, "arrives, ",
        h("span", {class: "remark"}, `norm ${number(came.norm)}`)))),
      h("span", {class: "operator"}, h("span", {class: "unseen"}, "is "), words[join.kind] || join.kind, h("span", {"aria-hidden": "true"}, " ⟶")),
      h("div", {class: "ways"}, routes.map(({input, name}) => {
        const out = input ? summary(input.contribution) : null;
        return h("figure", {class: `term ${name}`}, h("div", {}, out ? picture(out, `what the ${name} gets`, 96) : null,
          h("figcaption", {}, route(name), h("span", {class: "remark"}, out ? ` norm ${number(out.norm)}` : " wants none"),
            input && input.passed_on ? h("span", {class: "badge"}, "the very array") : null)));
      }))) : null,
    join.fork === null || join.fork === undefined ? null : h("p", {}, "The routes parted at ",
      link(now, now.view === "ops" ? join.fork : trace.nodes[join.fork].group, nodeName(join.fork)), "."),
    !backward && inputs.length ? h("ul", {class: "shapes"}, routes.map(({input, name}) => h("li", {}, route(name), " ",
      shape(trace.nodes[input.source].shape || [])))) : null]);
}

// --- one element, its check, the value, what is kept -----------------------------------------------------------------

const single = (now) => {
  if (now.view === "ops") return now.node;
  const ops = trace.groups[now.id].nodes.map((id) => trace.nodes[id]).filter((node) => node.kind === "op");
  return ops.length === 1 ? ops[0] : now.node;
};

function workedPanel(now) {
  const node = single(now), list = now.direction === "backward" ? node.worked || [] : [];
  show("worked", !list.length ? null : list.map((worked) => h("div", {class: "by-hand"},
    h("p", {class: "maths"}, h("strong", {}, worked.element), " = ", worked.expression),
    (worked.terms || []).length === 1 && worked.terms[0] === number(worked.value) ? null
      : h("p", {class: "maths terms"}, "= ", (worked.terms || []).map((term, i) => [i ? " + " : null, h("span", {class: "one-term"}, term)]),
        worked.more ? ` + … (${worked.more} more)` : ""),
    h("p", {class: "maths"}, "= ", h("strong", {}, number(worked.value)),
      h("span", {class: "remark"}, `   the engine has ${number(worked.engine)}`)))));
}

function checkPanel(now) {
  const node = single(now), list = now.direction === "backward" ? node.checks || [] : [];
  show("check", !list.length ? null : [h("p", {}, "One element is moved by a small step, up and down; the slope is compared with the rule."),
    h("div", {class: "scroll", tabindex: "0", role: "region", "aria-label": "Finite differences"}, h("table", {class: "checks"}, h("thead", {}, h("tr", {}, ["element", "finite difference", "analytic", "relative error", "in", ""].map((name) =>
      h("th", {scope: "col"}, name)))),
    h("tbody", {}, list.map((check) => h("tr", {"data-numeric": check.numeric, "data-analytic": check.analytic, "data-ok": String(Boolean(check.ok))},
      h("th", {scope: "row"}, check.element), h("td", {}, number(check.numeric)), h("td", {}, number(check.analytic)),
      h("td", {}, number(check.error)), h("td", {}, `${check.dtype}, step ${number(check.step)}`),
      h("td", {class: check.ok ? "ok" : "bad"}, check.ok ? "✓ agrees" : "✗ differs"))))) ),
    list.filter((check) => check.note).map((check) => h("p", {class: "note"}, check.note))]);
}

function valuePanel(now) {
  const value = summary(now.node.value), forward = now.direction === "forward";
  $("value-heading").textContent = forward ? "What goes in and what comes out" : "The value of the forward pass";
  const parts = [];
  if (forward) {
    for (const input of inputsOf(now.view, now.id)) {
      if (input.source === null || input.source === undefined) {
        parts.push(h("div", {class: "operand"}, h("p", {class: "to"}, `${input.name || "input"} `, h("span", {class: "remark"}, input.text || ""))));
        continue;
      }
      const {id, name} = target(now.view, input), from = trace.nodes[input.source], given = summary(from.value);
      parts.push(h("div", {class: `operand ${input.route || ""}`},
        h("p", {class: "to"}, route(input.route), link(now, id, name), input.name ? h("span", {class: "remark"}, ` as ${input.name}`) : null,
          h("span", {class: "remark"}, `  ${shape(from.shape || [])}`)),
        given ? picture(given, name, 88) : null));
    }
  }
  const mapped = value && value.maps.length && !value.values.length;
  const shown = value ? h("div", {class: "output"}, forward ? h("h4", {}, "output") : null,
    h("div", {class: "beside"}, mapped ? null : picture(value, "value", 128), statistics(value)),
    mapped ? [features(value, "value"), h("p", {class: "remark"}, "the first channels of the first image")] : null)
    : h("p", {}, "Its value was not recorded.");
  show("value", [forward ? h("div", {class: "operands"}, parts) : null, shown]);
}

let heldPlot = null;

function keptPanel(now) {
  const backward = now.direction === "backward", text = said(now.view, now.id);
  const ids = now.view === "blocks" ? trace.groups[now.id].nodes : [now.id];
  const kept = ids.flatMap((id) => (trace.nodes[id].kept || []).map((k) => [id, k]));
  const [before, after] = text.held || [trace.held, trace.held];
  fill($("kept"), {"data-held-before": before, "data-held-after": after}, []);
  if (backward && (!heldPlot || heldPlot.view !== now.view)) {
    const values = now.order.map((id) => (said(now.view, id).held || [0, trace.held])[1]);
    heldPlot = {view: now.view, ...ledger(values, trace.held)};
  }
  if (backward) heldPlot.move(now.step);
  const seen = new Set();
  show("kept", [
    backward ? text.kept && h("p", {class: "sentence"}, text.kept) : !kept.length && h("p", {}, "Its rule needs no array: nothing is kept."),
    kept.length ? h("div", {class: "scroll", tabindex: "0", role: "region", "aria-label": "Arrays kept"}, h("table", {class: "kept"}, h("thead", {}, h("tr", {}, ["array", "of", "shape", "bytes", backward ? "now" : "kept for the backward pass"].map((name) =>
      h("th", {scope: "col"}, name)))),
    h("tbody", {}, kept.map(([id, k]) => {
      const again = k.source !== undefined && seen.has(`${k.source} ${k.bytes}`);
      if (k.source !== undefined) seen.add(`${k.source} ${k.bytes}`);
      const state = k.stays ? "stays anyway" : !backward ? "yes" : k.freed ? "freed" : "still needed";
      return h("tr", {"data-node": id, class: k.freed ? "freed" : ""}, h("th", {scope: "row"}, ids.length > 1 ? `${k.name} of ${trace.nodes[id].op}` : k.name),
        h("td", {}, k.source === undefined ? "–" : nodeName(k.source)), h("td", {}, shape(k.shape || [])),
        h("td", {}, again ? "the same" : size(k.bytes || 0)), h("td", {}, state));
    })))) : null,
    backward ? h("p", {class: "held", "data-held": after, "data-held-before": before, "data-held-after": after}, "the graph holds ",
      h("strong", {}, size(before)), before === after ? ", before and after" : [" before, ", h("strong", {}, size(after)), " after"]) : null,
    backward ? heldPlot.svg : null]);
}

// --- a forward pass that stopped -------------------------------------------------------------------------------------

function stopPanel() {
  const stop = trace.stopped;
  if (!stop) { show("stop", null); return; }
  const sides = stop.sides || [], shapes = sides.map(([, sizes]) => sizes);
  const same = (sizes, i) => shapes.every((other) => other.length === sizes.length && other[i] === sizes[i]);
  show("stop", [
    h("p", {class: "message"}, h("strong", {}, stop.op), " refused: ", h("q", {}, stop.message)),
    h("div", {class: "sides"}, sides.map(([made, sizes]) => h("div", {class: "side"},
      h("p", {class: "shape"}, "(", sizes.map((n, i) => [i ? ", " : null, same(sizes, i) ? String(n) : h("strong", {class: "differs"}, String(n))]), sizes.length === 1 ? ",)" : ")"),
      h("p", {}, made)))),
    (stop.text || []).map((paragraph) => h("p", {}, paragraph)),
    (stop.fixes || []).length ? [h("h3", {}, "Ways out"), h("ol", {class: "fixes"}, stop.fixes.map((fix) => h("li", {}, fix)))] : null]);
}
