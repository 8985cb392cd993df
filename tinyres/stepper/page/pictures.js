// Pictures: heat maps, matrices of numbers, bars, the triangle of a fork, the held bytes. Each returns one element.
// What comes from the trace becomes text or a number in an attribute, never markup.

const SVG = "http://www.w3.org/2000/svg";

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  for (const child of children.flat(3)) {
    if (child !== null && child !== undefined && child !== false) element.append(child);
  }
  return element;
}

const h = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
const s = (tag, attributes, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

// --- short texts, as tinyres/stepper/short.py writes them ------------------------------------------------------------

function number(x) {
  if (x === null || x === undefined) return "-";
  const size = Math.abs(x);
  if (Number.isInteger(x) && size < 1e6) return String(x);
  if (size >= 1e-3 && size < 999.95) return String(Number(x.toPrecision(4)));
  if (size >= 999.95 && size < 999999.5) return x.toFixed(0);
  const [mantissa, exponent] = x.toExponential(3).split("e");
  return `${Number(mantissa)}e${Number(exponent)}`;
}

function percent(share) {
  if (share === null || share === undefined) return "-";
  if (Math.abs(share) >= 1000) return `${number(100 * share)} %`;
  const text = (100 * share).toFixed(1);
  return `${text === "-0.0" ? "0.0" : text} %`;
}

function size(count) {
  if (count < 1024) return count === 1 ? "1 byte" : `${count} bytes`;
  const units = ["KiB", "MiB", "GiB", "TiB"];
  let value = count / 1024;
  while (value >= 1023.95 && units.length > 1) { value /= 1024; units.shift(); }
  return `${value.toFixed(1)} ${units[0]}`;
}

const shape = (sizes) => sizes.length === 0 ? "one number" : `(${sizes.join(", ")}${sizes.length === 1 ? "," : ""})`;

// --- arrays ----------------------------------------------------------------------------------------------------------

const LEVELS = 9;
const level = (x, top) => top > 0 && x !== 0 ? Math.max(1, Math.min(LEVELS, Math.round(LEVELS * Math.abs(x) / top))) : 0;

// A cell's colour says how large, orange or blue which sign; a dash in the cell says "negative" without the colour.
// side: of the whole picture, about, in pixels.
function heat(rows, top, what, side) {
  const columns = rows[0].length, areas = new Map();
  let dashes = "", negative = 0;
  rows.forEach((row, y) => row.forEach((x, column) => {
    if (x === 0) return;
    const key = (x < 0 ? "n" : "p") + level(x, 99);
    areas.set(key, (areas.get(key) || "") + `M${column * 10} ${y * 10}h10v10h-10z`);
    if (x < 0) { dashes += `M${column * 10 + 2.5} ${y * 10 + 5}h5`; negative += 1; }
  }));
  const label = `${what}: heat map of ${rows.length} by ${columns}, ${negative} of ${rows.length * columns} ` +
    `negative, the largest ${number(top)}`;
  const cell = Math.max(5, Math.min(24, Math.round((side || 128) / Math.max(columns, rows.length))));
  return s("svg", {class: "heat", viewBox: `-1 -1 ${columns * 10 + 2} ${rows.length * 10 + 2}`, role: "img",
                   "aria-label": label, width: columns * cell, height: rows.length * cell},
    s("title", {}, label),
    s("rect", {class: "ground", width: columns * 10, height: rows.length * 10}),
    [...areas].map(([key, path]) => s("path", {class: key, d: path})),
    dashes && s("path", {class: "dash", d: dashes}));
}

// All elements of a small array, as they would stand on paper.
function numbers(summary, what) {
  const top = Math.max(...summary.values.map((x) => Math.abs(x || 0)));
  const flat = summary.shape.filter((n) => n > 1).length <= 1;  // a row, whatever its dimensions are called
  const columns = flat ? summary.values.length : summary.shape[summary.shape.length - 1];
  const rows = flat ? 1 : summary.shape[summary.shape.length - 2];
  const outer = flat ? [] : summary.shape.slice(0, -2), each = rows * columns, tables = [];
  for (let start = 0; start < summary.values.length; start += each) {
    let rest = start / each;
    const index = outer.map((_, i) => {
      const inner = outer.slice(i + 1).reduce((a, b) => a * b, 1), here = Math.floor(rest / inner);
      rest -= here * inner;
      return here;
    });
    const body = h("tbody", {});
    for (let row = 0; row < rows; row += 1) {
      body.append(h("tr", {}, summary.values.slice(start + row * columns, start + (row + 1) * columns).map((x) =>
        h("td", {class: x ? (x < 0 ? "n" : "p") + level(x, top) : "z"}, x === null ? "NaN" : number(x)))));
    }
    tables.push(h("table", {class: "numbers", "aria-label": what + (index.length ? ` [${index.join(", ")}]` : "")},
      index.length ? h("caption", {}, `[${index.join(", ")}]`) : null, body));
  }
  return h("div", {class: "matrices"}, tables);
}

// An array as a reader can best see it: its numbers where they are few, else its map, or nothing. A vector of up to 64
// elements, as batch norm has one per channel, is a map of all its elements, row by row.
function picture(summary, what, side) {
  if (!summary) return null;
  const values = summary.values, sizes = summary.shape.filter((n) => n > 1), columns = sizes[sizes.length - 1] || 1;
  const blocks = sizes.slice(0, -2).reduce((a, b) => a * b, 1);
  if (values.length && columns <= 8 && blocks <= 4) return numbers(summary, what);
  if (values.length && sizes.length === 1) {
    const top = Math.max(...values.map((x) => Math.abs(x || 0))), rows = [];
    const wide = columns <= 16 ? columns : Math.ceil(columns / Math.ceil(columns / 16));
    for (let i = 0; i < values.length; i += wide) rows.push(values.slice(i, i + wide).map((x) => top ? 99 * x / top : 0));
    return heat(rows, top, what, Math.max(side || 0, 160));
  }
  if (!summary.map || (summary.map.length === 1 && summary.map[0].length === 1 && sizes.length)) return null;
  return heat(summary.map, summary.top, what, side);
}

function statistics(summary) {
  const list = h("dl", {class: "facts"});
  const add = (name, value) => list.append(h("div", {}, h("dt", {}, name), h("dd", {}, value)));
  add("shape", shape(summary.shape));
  if (summary.norm !== null) {
    add("norm", number(summary.norm));
    if (summary.shape.length) {
      add("least", number(summary.min));
      add("mean", number(summary.mean));
      add("largest", number(summary.max));
    }
  }
  if (summary.zeros > 0) add("zeros", percent(summary.zeros));
  if (summary.bad) add("NaN or Inf", String(summary.bad));
  return list;
}

// The first channels of the first image.
function features(summary, what) {
  return h("div", {class: "features"}, summary.maps.map((rows, channel) =>
    h("figure", {}, heat(rows, summary.maps_top, `${what}, channel ${channel}`, 112),
      h("figcaption", {}, `channel ${channel}`))));
}

// --- the fork --------------------------------------------------------------------------------------------------------

const routeOf = (arrival, i) => arrival.route || (i % 2 ? "other" : "one");

function mark(route, x, y) {
  if (route === "shortcut" || route === "one") return s("rect", {class: `mark ${route}`, x: x - 4, y: y - 4, width: 8, height: 8});
  return s("path", {class: `mark ${route}`, d: `M${x} ${y - 5}l5 9h-10z`});
}

const sign = (route) => s("svg", {class: "sign", viewBox: "0 0 12 12", "aria-hidden": "true"}, mark(route, 6, 6));

// The shares as a staircase from 0 to 1: each arrival's bar begins where the last one ended.
function staircase(arrivals) {
  let at = 0, lowest = 0, highest = 1;
  const spans = arrivals.map((arrival) => {
    const from = at;
    at += arrival.share;
    lowest = Math.min(lowest, at);
    highest = Math.max(highest, at);
    return [from, at];
  });
  const width = 200, place = (x) => 4 + (width - 8) * (x - lowest) / (highest - lowest);
  return spans.map(([from, to], i) => {
    const left = place(Math.min(from, to)), long = Math.max(1, Math.abs(place(to) - place(from)));
    const label = `from ${percent(from)} to ${percent(to)} of the sum`;
    return s("svg", {class: "stair", viewBox: `0 0 ${width} 20`, role: "img", "aria-label": label}, s("title", {}, label),
      s("path", {class: "axis", d: `M${place(0)} 0v20M${place(1)} 0v20`}),
      s("rect", {class: `bar ${routeOf(arrivals[i], i)}`, x: left, y: 5, width: long, height: 10}),
      from > to && s("path", {class: "against", d: `M${place(to) + 5} 7l-4 3l4 3`}));
  });
}

// Two contributions and their sum lie in one plane: norms and shares say where. The sum points to the right.
function triangle(arrivals) {
  const [first, second] = arrivals, total = second.sum.norm;
  const along = first.share * total, across = Math.sqrt(Math.max(0, first.norm ** 2 - along ** 2));
  const left = Math.min(0, along), right = Math.max(total, along), wide = right - left || 1;
  const unit = Math.min(250 / wide, across > 0 ? 84 / across : Infinity), base = 26 + across * unit;
  const x = (value) => 40 + (value - left) * unit + (250 - wide * unit) / 2;
  const O = [x(0), base], A = [x(along), base - across * unit], T = [x(total), base];
  const arrow = (from, to, route) => {
    const [dx, dy] = [to[0] - from[0], to[1] - from[1]], long = Math.hypot(dx, dy);
    if (long < 1) return null;
    const [ux, uy] = [dx / long, dy / long], head = Math.min(9, long);
    const back = [to[0] - ux * head, to[1] - uy * head];
    return s("g", {class: `vector ${route}`}, s("path", {class: "shaft", d: `M${from}L${back}`}),
      s("path", {class: "head", d: `M${to}L${back[0] - uy * 4} ${back[1] + ux * 4}L${back[0] + uy * 4} ${back[1] - ux * 4}z`}));
  };
  const names = arrivals.map((arrival, i) => arrival.route || ["first", "second"][i]);
  const label = `The ${names[0]}, of norm ${number(first.norm)}, and the ${names[1]}, of norm ${number(second.norm)}, laid ` +
    `end to end, give the sum, of norm ${number(total)}. The share of the ${names[0]} is where its tip stands over the sum: ` +
    `${percent(first.share)}.`;
  const flat = across * unit < 14;
  return s("svg", {class: "triangle", viewBox: `0 0 330 ${base + 44}`, role: "img", "aria-label": label},
    s("title", {}, label), s("path", {class: "drop", d: `M${A}V${base + 10}`}),
    arrow(O, T, "sum"), arrow(O, A, routeOf(first, 0)), arrow(A, T, routeOf(second, 1)),
    s("text", {x: Math.max(6 + 7.5 * names[0].length, (O[0] + A[0]) / 2 - 8), y: flat ? base - 12 : (O[1] + A[1]) / 2 - 6, "text-anchor": "end",
               class: routeOf(first, 0)}, names[0]),
    s("text", {x: Math.min(324 - 7.5 * names[1].length, (A[0] + T[0]) / 2 + 8), y: flat ? base - 12 : (A[1] + T[1]) / 2 - 6,
               class: routeOf(second, 1)}, names[1]),
    s("text", {x: Math.max(24, Math.min(306, A[0])), y: base + 22, "text-anchor": "middle"}, percent(first.share)),
    s("text", {x: (O[0] + T[0]) / 2, y: base + 38, "text-anchor": "middle", class: "sum"}, `sum, norm ${number(total)}`));
}

// --- memory ----------------------------------------------------------------------------------------------------------

// Bytes held after each step, as stairs; `move(step)` puts the mark on a step.
function ledger(values, start) {
  const top = Math.max(start, ...values, 1), wide = 300, high = 64, n = values.length;
  const x = (i) => 4 + (wide - 8) * i / Math.max(1, n), y = (bytes) => 6 + (high - 10) * (1 - bytes / top);
  let path = `M${x(0)} ${y(start)}`;
  values.forEach((bytes, i) => { path += `H${x(i + 1).toFixed(1)}V${y(bytes).toFixed(1)}`; });
  const dot = s("circle", {class: "here", r: 4}), line = s("path", {class: "drop"}), title = s("title", {});
  const svg = s("svg", {class: "ledger", viewBox: `0 0 ${wide} ${high}`, role: "img"}, title,
    s("path", {class: "area", d: `${path}V${y(0)}H${x(0)}z`}), s("path", {class: "edge", d: path}), line, dot);
  const move = (step) => {
    const bytes = values[step];
    const label = `Held bytes over the steps: ${size(start)} at the beginning, ${size(bytes)} after this step`;
    dot.setAttribute("cx", x(step + 1));
    dot.setAttribute("cy", y(bytes));
    line.setAttribute("d", `M${x(step + 1)} ${y(bytes)}V${y(0)}`);
    title.textContent = label;
    svg.setAttribute("aria-label", label);
  };
  return {svg, move};
}
