// Where the reader is, and how to get on: steps, views, keys, search, the address bar, predict first, theme.

const state = {view: "blocks", direction: "backward", step: 0};
const actions = {};
const quiet = (act) => { try { return act(); } catch { return undefined; } };  // storage and history, in a sandbox

function current() {
  const order = steps(state.view, state.direction), id = order[state.step];
  return {...state, order, id, node: nodeOf(state.view, id), places: places(state.view, state.direction)};
}

const memory = new Map();

function remember(key, make) {
  if (!memory.has(key)) memory.set(key, make());
  return memory.get(key);
}

const places = (view, direction) => remember(`places ${view} ${direction}`, () =>
  new Map(steps(view, direction).map((id, i) => [id, i])));

const stops = (kind) => remember(`${kind} ${state.view} ${state.direction}`, () => {
  const of = kind === "fork" ? forkOf : joinOf;
  return steps(state.view, state.direction).flatMap((id, i) => of(state.view, id) ? [i] : []);
});

// --- the graph -------------------------------------------------------------------------------------------------------

let drawn = null;  // the graph that stands in the page: its view, boxes and wires

function drawGraph(now) {
  if (!drawn || drawn.view !== now.view) {
    const copy = $(`graph-${now.view}`).content.cloneNode(true), svg = copy.querySelector("svg");
    const by = (selector) => svg ? [...svg.querySelectorAll(selector)] : [];
    drawn = {view: now.view, svg, zoom: 1, shown: null, states: new Map(),
             boxes: by("g[data-id], circle[data-id]").map((element) => [Number(element.dataset.id), element]),
             wires: by("[data-from]").map((element) => [Number(element.dataset.from), Number(element.dataset.to), element])};
    $("graph").replaceChildren(copy);
    drawn.boxes.filter(([, element]) => element.tagName === "circle").forEach(([, dot]) => dot.classList.add("dot"));
    if (svg) drawn.size = [Number(svg.getAttribute("width")) || svg.viewBox.baseVal.width, Number(svg.getAttribute("height")) || svg.viewBox.baseVal.height];
    fit();
  }
  const put = (element, name) => {
    if (drawn.states.get(element) === name) return;
    const old = drawn.states.get(element);
    if (old) element.classList.remove(old);
    if (name) element.classList.add(name);
    drawn.states.set(element, name);
  };
  if (drawn.svg) drawn.svg.classList.toggle("backward", now.direction === "backward");
  const at = (id) => now.places.has(id) ? now.places.get(id) : -1, backward = now.direction === "backward";
  for (const [id, element] of drawn.boxes) {
    const place = at(id);
    const come = element.tagName === "circle" && backward && place > now.step && partly(now, id);
    put(element, place < 0 ? "" : place === now.step ? "current" : place < now.step ? "done" : come ? "partly" : "waiting");
  }
  for (const [from, to, element] of drawn.wires) {
    const [giver, taker] = backward ? [to, from] : [from, to];
    const place = at(giver);
    put(element, taker === now.id ? "arriving" : giver === now.id ? "leaving" : place >= 0 && place < now.step ? "done" : "waiting");
  }
  follow(now);
}

// Whether some, but not all, have brought a fork what they bring.
function partly(now, id) {
  const arrivals = forkOf(now.view, id)?.arrivals || [];
  return arrivals.length > 1 && arrivals.some((arrival) => now.places.get(arrival.consumer) <= now.step);
}

function follow(now) {
  const found = drawn.boxes.find(([id, element]) => id === now.id && element.tagName === "g");
  if (!found) return;
  const box = $("graph"), outer = box.getBoundingClientRect(), inner = found[1].getBoundingClientRect();
  const calm = matchMedia("(prefers-reduced-motion: reduce)").matches || !drawn.moved;
  drawn.moved = true;
  box.scrollTo({left: box.scrollLeft + inner.left - outer.left - (outer.width - inner.width) / 2,
                top: box.scrollTop + inner.top - outer.top - (outer.height - inner.height) / 2,
                behavior: calm ? "instant" : "smooth"});
}

function zoom(factor) {
  if (!drawn || !drawn.svg) return;
  drawn.zoom = Math.max(0.1, Math.min(4, factor));
  drawn.svg.setAttribute("width", Math.round(drawn.size[0] * drawn.zoom));
  drawn.svg.setAttribute("height", Math.round(drawn.size[1] * drawn.zoom));
}

function fit() {
  if (!drawn || !drawn.svg) return;
  const box = $("graph"), [wide, high] = drawn.size;  // all of its width; of a small graph all of its height too
  zoom(Math.max(0.85, Math.min((box.clientWidth - 16) / wide, Math.max(1.1, (box.clientHeight - 16) / high), 1.6)));
}

// --- the timeline ----------------------------------------------------------------------------------------------------

let line = null;

function drawTimeline(now) {
  const key = `${now.view} ${now.direction}`;
  if (!line || line.key !== key) {
    const list = $("timeline"), backward = now.direction === "backward";
    const norms = now.order.map((id) => summary(backward ? nodeOf(now.view, id).gradient : nodeOf(now.view, id).value)?.norm || 0);
    const logs = norms.map((x) => x > 0 ? Math.log10(x) : null), known = logs.filter((x) => x !== null);
    const low = Math.min(...known), span = Math.max(...known) - low || 1;
    const seen = new Set();
    let before = "";
    line = {key, at: null, buttons: now.order.map((id, i) => {
      const text = said(now.view, id), block = (now.view === "blocks" ? trace.groups[id].block : nodeOf(now.view, id).block) || "";
      const kinds = [forkOf(now.view, id) && "fork", joinOf(now.view, id) && "join"].filter(Boolean);
      const high = logs[i] === null ? 0 : 1 + Math.round(15 * (logs[i] - low) / span);
      const name = `step ${i + 1}: ${text.title || ""}${kinds.length ? `, ${kinds.join(", ")}` : ""}, norm ${number(norms[i])}`;
      const button = h("button", {type: "button", "data-step": i, "data-high": high, class: kinds.join(" "), tabindex: "-1",
                                  "aria-label": name, title: name}, h("span", {class: "bar"}));
      const first = block !== before && (block !== "" || now.view === "blocks");  // in the op view leaves come in between
      before = first ? block : before;
      const named = first && block && !seen.has(block);  // in the op view the order leaves a block and enters it again
      if (named) seen.add(block);
      return [button, first && (now.view === "blocks" || named), named ? block : ""];
    })};
    list.classList.toggle("dense", line.buttons.length > 160);
    list.replaceChildren(...line.buttons.map(([button, first, block]) =>
      h("li", {class: first ? "begins" : "", "data-block": block || null}, button)));
    line.buttons = line.buttons.map(([button]) => button);
    let end = -1;  // of the last name: one that finds no room is left out
    for (const item of list.querySelectorAll("[data-block]")) {
      const left = item.offsetLeft;
      if (left < end) item.removeAttribute("data-block");
      else end = left + Math.min(100, 7 * item.dataset.block.length) + 8;
    }
  }
  const old = line.at === null ? null : line.buttons[line.at], button = line.buttons[now.step];
  if (old) { old.removeAttribute("aria-current"); old.tabIndex = -1; }
  const [from, to] = line.at === null ? [0, line.buttons.length] : [Math.min(line.at, now.step), Math.max(line.at, now.step) + 1];
  for (let i = from; i < to; i += 1) line.buttons[i].classList.toggle("done", i < now.step);
  button.setAttribute("aria-current", "step");
  button.tabIndex = 0;
  line.at = now.step;
  const list = $("timeline"), place = button.parentElement;
  list.scrollLeft = place.offsetLeft - list.clientWidth / 2;
}

// --- predict first ---------------------------------------------------------------------------------------------------

const game = {on: false, answers: {}};
const store = `tinyres stepper ${trace.title} ${trace.loss} ${trace.nodes.length}`;
const questionKey = (now) => `${now.view} ${now.id}`;
const questionOf = (now) => now.direction === "backward" ? said(now.view, now.id).question : undefined;

function drawQuestion(now) {
  const question = game.on ? questionOf(now) : undefined, given = game.answers[questionKey(now)];
  document.body.toggleAttribute("data-asking", Boolean(question) && given === undefined);
  $("score").hidden = !game.on;
  const keys = Object.keys(game.answers), right = keys.filter((key) => {
    const [view, id] = key.split(" ");
    return said(view, id).question && game.answers[key] === said(view, id).question.answer;
  }).length;
  Object.assign($("score").dataset, {right, asked: keys.length});
  $("score").textContent = `score ${right} of ${keys.length}`;
  if (!question) {
    show("question", game.on && now.direction === "backward" ? h("p", {class: "remark"}, "No question here: go on.") : null);
    return;
  }
  show("question", [h("p", {class: "ask"}, question.ask),
    h("ol", {class: "choices"}, question.choices.map((choice, i) => {
      const mine = given === i, correct = given !== undefined && i === question.answer;
      return h("li", {}, h("button", {type: "button", "data-answer": i, disabled: given !== undefined,
                                      class: correct ? "right" : mine ? "wrong" : ""},
        h("kbd", {}, String(i + 1)), " ", choice, correct ? " ✓" : mine ? " ✗" : ""));
    })),
    given === undefined ? null : h("p", {class: "because"}, h("strong", {}, given === question.answer ? "Right: " : "Not so: "), question.because)]);
}

function answer(i) {
  const now = current(), question = questionOf(now);
  if (!game.on || !question || game.answers[questionKey(now)] !== undefined || i >= question.choices.length) return;
  game.answers[questionKey(now)] = i;
  quiet(() => localStorage.setItem(store, JSON.stringify(game.answers)));
  drawQuestion(now);
  $("announce").textContent = `${i === question.answer ? "Right" : "Not so"}: ${question.because}`;
}

// --- everything ------------------------------------------------------------------------------------------------------

function render() {
  const now = current();
  Object.assign(document.body.dataset, {view: state.view, direction: state.direction, step: state.step});
  if (now.id === undefined) return;
  drawGraph(now);
  drawTimeline(now);
  stepPanel(now);
  drawQuestion(now);
  forkPanel(now);
  joinPanel(now);
  rulePanel(now);
  flowPanel(now);
  workedPanel(now);
  checkPanel(now);
  valuePanel(now);
  keptPanel(now);
  $("place").textContent = `${now.step + 1} / ${now.order.length}`;
  const end = now.order.length - 1;
  const off = {first: state.step === 0, back: state.step === 0, next: state.step === end, last: state.step === end,
               fork: !stops("fork").some((i) => i > state.step), join: !stops("join").some((i) => i > state.step)};
  for (const [name, value] of Object.entries(off)) buttons[name].setAttribute("aria-disabled", String(value));
  for (const name of ["view", "direction"]) {
    const other = {blocks: "ops", ops: "blocks", backward: "forward", forward: "backward"}[state[name]];
    buttons[name].setAttribute("aria-label", `${name}: ${state[name]}, change to ${other}`);
    for (const part of buttons[name].children) part.toggleAttribute("data-on", part.dataset.choice === state[name]);
  }
  address();
}

// The address follows when the reader rests: a browser takes only so many changes in a while.
let resting = null;

function address() {
  if (embedded) return;
  clearTimeout(resting);
  resting = setTimeout(() => quiet(() => history.replaceState(null, "",
    `#view=${state.view}&direction=${state.direction}&step=${state.step}`)), 150);
}

function go(step) {
  const end = steps(state.view, state.direction).length - 1;
  if (!Number.isInteger(step) || end < 0) return;
  const old = state.step;
  state.step = Math.max(0, Math.min(end, step));
  if (old !== state.step) render();
}

// The step of another view or direction that shows the same, or else what uses it, or else what came before it.
function nearest(view, direction, now) {
  const there = places(view, direction), group = (node) => view === "blocks" ? node.group : node.id;
  const users = trace.nodes.filter((node) => (node.inputs || []).some((input) => input.source === now.node.id));
  const found = [now.node, ...users].map((node) => there.get(group(node))).find((at) => at !== undefined);
  if (found !== undefined) return found;
  const earlier = now.order.slice(0, now.step).reverse().map((id) => there.get(group(nodeOf(now.view, id))));
  return earlier.find((at) => at !== undefined) ?? 0;
}

// Change view or direction and stay at the same layer, as far as it has a step there.
function look(view, direction) {
  const now = current();
  if (!steps(view, direction).length) return;
  const step = nearest(view, direction, now);
  Object.assign(state, {view, direction, step});
  names();
  render();
  tabulate();
}

// What a step may be asked for: its module's dotted name, title, label, op, block.
function called(id) {
  const text = said(state.view, id), node = nodeOf(state.view, id), own = state.view === "blocks" ? trace.groups[id] : node;
  return [own.module, text.title, text.label, state.view === "ops" ? node.name : "", state.view === "ops" ? node.op : "",
          own.block].map((name) => name || "");
}

function names() {
  const order = steps(state.view, state.direction), seen = new Set(order.map((id) => called(id)[0]));
  order.forEach((id) => seen.add(called(id)[1]));
  seen.delete("");
  $("names").replaceChildren(...[...seen].slice(0, 600).map((value) => h("option", {value})));
}

function search(text) {
  const wanted = text.trim().toLowerCase(), order = steps(state.view, state.direction);
  if (!wanted) return;
  const matching = (fits) => order.flatMap((id, i) => called(id).some((name) => fits(name.toLowerCase())) ? [i] : []);
  let hits = matching((name) => name === wanted);
  if (!hits.length) hits = matching((name) => name.startsWith(wanted));
  if (!hits.length) hits = matching((name) => name.includes(wanted));
  if (!hits.length) { $("found").textContent = "nothing has this name"; return; }
  const later = hits.find((i) => i > state.step), hit = later === undefined ? hits[0] : later;
  $("found").textContent = hits.length === 1 ? "found" : `${hits.indexOf(hit) + 1} of ${hits.length}, Enter for the next`;
  if (hit !== state.step) go(hit);
}

function theme(name) {
  document.documentElement.dataset.theme = name;
  buttons.theme.setAttribute("aria-label", `theme: ${name}, change to ${name === "dark" ? "light" : "dark"}`);
}

// All steps in one table, for paper; filled when the page has been quiet for a while.
let waiting = null, tabled = "";

function fillTable() {
  const now = current(), key = `${now.view} ${now.direction}`;
  if (now.id === undefined || tabled === key) return;
  tabled = key;
  const backward = now.direction === "backward", table = $("all").querySelector("table");
  table.tHead.replaceChildren(h("tr", {}, ["", "step", "", "shape", backward ? "norm of the gradient" : "norm of the value", "held after"].map((name) => h("th", {scope: "col"}, name))));
  table.tBodies[0].replaceChildren(...now.order.map((id, i) => {
    const node = nodeOf(now.view, id), array = summary(backward ? node.gradient : node.value), fork = forkOf(now.view, id);
    const kind = [fork && (fork.identity_share ?? null) !== null ? `fork, shortcut ${percent(fork.identity_share)}` : fork && "fork", joinOf(now.view, id) && "join"].filter(Boolean);
    const held = said(now.view, id).held;
    return h("tr", {}, h("td", {}, String(i + 1)), h("th", {scope: "row"}, said(now.view, id).title || ""), h("td", {}, kind.join(", ")),
      h("td", {}, shape(node.shape || [])), h("td", {}, array ? number(array.norm) : "-"), h("td", {}, backward && held ? size(held[1]) : ""));
  }));
}

function tabulate() {
  clearTimeout(waiting);
  waiting = setTimeout(fillTable, 800);
}

// --- hands and keys --------------------------------------------------------------------------------------------------

const embedded = location.protocol === "about:" || location.href.startsWith("data:");
const buttons = Object.fromEntries([...document.querySelectorAll("[data-action]")].map((b) => [b.dataset.action, b]));
const jump = (kind) => {
  const next = stops(kind).find((i) => i > state.step);
  if (next === undefined) $("announce").textContent = `No later ${kind}.`; else go(next);
};

Object.assign(actions, {
  first: () => go(0), back: () => go(state.step - 1), next: () => go(state.step + 1),
  last: () => go(steps(state.view, state.direction).length - 1),
  fork: () => jump("fork"), join: () => jump("join"),
  view: () => look(state.view === "blocks" ? "ops" : "blocks", state.direction),
  direction: () => look(state.view, state.direction === "backward" ? "forward" : "backward"),
  predict: () => {
    game.on = !game.on;
    buttons.predict.setAttribute("aria-pressed", String(game.on));
    drawQuestion(current());
  },
  theme: () => {
    const name = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
    theme(name);
    quiet(() => localStorage.setItem("tinyres theme", name));
  },
  help: () => { if ($("help").open) $("help").close(); else $("help").showModal(); },
  smaller: () => { zoom(drawn.zoom / 1.25); follow(current()); },
  larger: () => { zoom(drawn.zoom * 1.25); follow(current()); },
  fit: () => { fit(); follow(current()); },
});

const KEYS = {n: "next", ArrowRight: "next", b: "back", ArrowLeft: "back", Home: "first", End: "last", f: "fork", j: "join",
              v: "view", d: "direction", p: "predict", t: "theme", "?": "help", "+": "larger", "=": "larger", "-": "smaller"};

$("skip").addEventListener("click", (event) => { event.preventDefault(); $("step-title").focus(); });

document.addEventListener("click", (event) => {
  const button = event.target.closest("button, a[data-go], a[data-op], [data-id]");
  if (!button) return;
  const {action, step, go: at, op, answer: choice, id} = button.dataset;
  if (button.tagName === "A") {
    if (event.ctrlKey || event.metaKey || event.shiftKey) return;  // into another tab, by the browser
    event.preventDefault();
  }
  if (action) actions[action]();
  else if (step !== undefined) go(Number(step));
  else if (at !== undefined) { go(Number(at)); $("step-title").focus({preventScroll: true}); }
  else if (choice !== undefined) { answer(Number(choice)); }
  else if (op !== undefined) {
    if (steps("ops", state.direction).length) {
      look("ops", state.direction);
      go(places("ops", state.direction).get(Number(op)) ?? state.step);
      $("step-title").focus({preventScroll: true});
    }
  } else if (id !== undefined && drawn && drawn.svg.contains(button)) go(places(state.view, state.direction).get(Number(id)) ?? state.step);
});

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
  const typing = event.target === $("search");
  if (event.key === "Escape") {
    if (typing) { $("search").blur(); $("step-title").focus({preventScroll: true}); }
    return;
  }
  if (typing) {
    if (event.key === "Enter") { event.preventDefault(); search($("search").value); }
    return;
  }
  if ($("help").open) {
    if (event.key === "?") { event.preventDefault(); actions.help(); }
    return;
  }
  if (event.key === "/") { event.preventDefault(); $("search").focus(); $("search").select(); return; }
  if (game.on && /^[1-9]$/.test(event.key)) { answer(Number(event.key) - 1); return; }
  const action = KEYS[event.key];
  if (!action) return;
  event.preventDefault();
  const inLine = $("timeline").contains(document.activeElement);
  actions[action]();
  if (inLine) line.buttons[state.step].focus({preventScroll: true});
});

function fromAddress() {
  const asked = new URLSearchParams(location.hash.slice(1));
  if (!asked.has("step") && !asked.has("view") && !asked.has("direction")) return false;
  const view = asked.get("view") || state.view;
  const direction = asked.get("direction") || state.direction, step = asked.get("step") || "0";
  if (!["blocks", "ops"].includes(view) || !["backward", "forward"].includes(direction) || !/^\d+$/.test(step)) return false;
  if (Number(step) >= steps(view, direction).length) return false;
  Object.assign(state, {view, direction, step: Number(step)});
  return true;
}

addEventListener("hashchange", () => { if (fromAddress()) { names(); render(); tabulate(); } });
addEventListener("beforeprint", fillTable);
matchMedia("print").addEventListener("change", fillTable);
addEventListener("resize", () => remember("resizing", () => setTimeout(() => { memory.delete("resizing"); fit(); if (drawn) follow(current()); }, 150)));

const dark = matchMedia("(prefers-color-scheme: dark)");
const chosen = () => quiet(() => localStorage.getItem("tinyres theme"));
dark.addEventListener("change", () => { if (!chosen()) theme(dark.matches ? "dark" : "light"); });

// --- begin -----------------------------------------------------------------------------------------------------------

function begin() {
  theme(["dark", "light"].includes(chosen()) ? chosen() : dark.matches ? "dark" : "light");
  Object.assign(game.answers, quiet(() => JSON.parse(localStorage.getItem(store))) || {});
  $("title").textContent = trace.title || "A backward pass, step by step";
  const facts = [trace.loss === null || trace.loss === undefined ? null : `loss ${number(trace.loss)}`, trace.dtype, `${trace.kernels} kernels`,
    `${trace.nodes.filter((node) => node.kind === "op").length} ops`, trace.held ? `${size(trace.held)} held` : null];
  $("facts").textContent = facts.filter(Boolean).join("  ·  ");
  const made = Object.entries(trace.versions || {}).map(([name, version]) => `${name} ${version}`).join(", ");
  const notes = trace.notes || [];
  $("notes").replaceChildren(...(notes.length ? [h("h2", {}, "Notes")] : []), ...notes.map((note) => h("p", {}, note)),
    h("p", {}, `Recorded with ${made}.`));
  state.view = trace.opens || state.view;
  if (!steps("blocks", "backward").length) state.direction = "forward";
  if (!steps("blocks", state.direction).length && steps("ops", state.direction).length) state.view = "ops";
  if (!steps("ops", "backward").length) buttons.direction.disabled = buttons.predict.disabled = true;
  if (trace.stopped) state.step = Math.max(0, steps(state.view, state.direction).length - 1);  // what ran last
  if (!embedded) fromAddress();
  stopPanel();
  names();
  if (current().id === undefined) $("step").hidden = true;
  render();
  tabulate();
}

begin();
window.stepper = {go, look, state};
