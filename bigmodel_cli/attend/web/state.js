// What is chosen, and what is drawn anew when it changes.

const HEADS = [ // views of one head, or of all
  ["map", "Matrix"],
  ["lines", "Lines"],
  ["text", "Text"],
  ["image", "Image"],
  ["keys", "Top keys"],
  ["statistics", "Statistics"],
];
const FURTHER = Object.fromEntries(facts.views.map((view) => [view.name, view]));
const VIEWS = [...HEADS, ...facts.views.map((view) => [view.name, view.title])];
const state = { layer: 0, head: 0, query: 0, key: 0, view: "map", sink: false, mode: "most" };
let drawn = 0; // counts calls of `draw`: one that waits for numbers gives up when a later one began
let drawing = null; // the promise of the last one

const layerOf = () => facts.layers[state.layer];
const queriesOf = (layer) => facts.sides[layer.queries];
const keysOf = (layer) => facts.sides[layer.keys];
// What the scale depends on: the number of keys, 0 for a map of the class, which is linear.
const scaleOf = (layer) => (isMap(layer) ? 0 : keysOf(layer).labels.length);
const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
const numberOf = (place) => facts.layers[place].number ?? place;

// A map of where a class comes from is no head: it lies over its image, and that is all.
const isMap = (layer) => layer.kind.startsWith("map");

function views() {
  const layer = layerOf();
  return VIEWS.filter(([name]) => {
    if (FURTHER[name]) return true;
    if (!layer) return false;
    if (isMap(layer)) return name === "image";
    if (name === "statistics") return layer.kind !== "difference";
    return name !== "image" || keysOf(layer).grid;
  });
}

function make(tag, text, attributes = {}) {
  const element = document.createElement(tag);
  if (text !== undefined && text !== null) element.textContent = text;
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

// A token for the eye: isolated, so that its direction of writing changes nothing around it.
function tokenOf(side, place) {
  return make("bdi", side.labels[place], { class: "token" });
}

const isolated = (text) => "\u2068" + text + "\u2069";
const quoted = (side, place) => `${place} \u201c${isolated(side.labels[place] ?? "")}\u201d`;

function choose(change, spoken = false) {
  const before = { ...state };
  Object.assign(state, change);
  state.layer = clamp(state.layer, 0, Math.max(0, facts.layers.length - 1));
  const layer = layerOf();
  if (!views().some(([name]) => name === state.view)) state.view = views()[0][0];
  if (!layer) return (drawing = draw());
  state.head = clamp(state.head, 0, layer.heads - 1);
  state.query = clamp(state.query, 0, queriesOf(layer).labels.length - 1);
  state.key = clamp(state.key, 0, keysOf(layer).labels.length - 1);
  if (before.layer !== state.layer) fitted(before.layer);
  drawing = draw();
  if (spoken) say();
  prepare(state.layer, state.head);
  return drawing;
}

// The sentence on the head for the live region and the line under its name.
function described() {
  const layer = layerOf();
  const letter = layer.letters[state.head];
  if (isMap(layer)) return layer.name;
  const named = letter && facts.classes[letter] ? `, ${facts.classes[letter].name}` : "";
  return `Layer ${numberOf(state.layer)}, head ${state.head}${named}`;
}

async function say() {
  if (!layerOf()) return;
  const weights = await weightsOf(state.layer, state.head);
  const layer = layerOf();
  let text = `${described()}. Query ${quoted(queriesOf(layer), state.query)}`;
  if (weights) {
    const top = topOf(weights.row(state.query), 3);
    text += " reads " + top.map(([key, weight]) =>
      `${quoted(keysOf(layer), key)}: ${shown(weight)}`).join(", ");
  }
  $("live").textContent = text;
}

// The row of a query as it is shown: without the first key where that is asked for.
function shownRow(row, signed) {
  if (!state.sink || signed) return row;
  const rest = 1 - (row[0] || 0);
  const out = row.map((weight) => (rest > 1e-9 ? weight / rest : 0));
  out[0] = NaN;
  return out;
}

// The largest entries of a row, by size, as [key, weight].
function topOf(row, count) {
  const found = [];
  for (let key = 0; key < row.length; key++) {
    const weight = row[key];
    if (Number.isNaN(weight) || weight === 0) continue;
    if (found.length === count && Math.abs(weight) <= Math.abs(found[count - 1][1])) continue;
    let place = found.length;
    while (place > 0 && Math.abs(found[place - 1][1]) < Math.abs(weight)) place--;
    found.splice(place, 0, [key, weight]);
    if (found.length > count) found.pop();
  }
  return found;
}

function draw() {
  const turn = ++drawn;
  const further = FURTHER[state.view];
  markTabs();
  show("text", state.view === "text");
  show("table", Boolean(further) || ["keys", "statistics"].includes(state.view));
  show("stage", ["map", "lines", "image"].includes(state.view));
  show("tools", !further && state.view !== "statistics" && !isMap(layerOf()));
  show("firsts", Boolean(layerOf()) && !layerOf().signed);
  show("zooms", state.view === "map");
  show("reduced", state.view === "map");
  show("asking", !further && !isMap(layerOf()));
  if (facts.layers.length) markHead();
  const ofHead = facts.layers.length && (!further || further.ofHeads);
  $("title").textContent = ofHead ? described() : further.title;
  $("summary").replaceChildren(...(ofHead ? summaryOf(layerOf()) : []));
  if (further) return drawFurther(further);
  const layer = layerOf();
  if (document.activeElement !== $("query")) $("query").value = state.query;
  drawBar(scaleOf(layer), layer.signed, layer.peak, state.view === "image" && facts.image !== null);
  const ways = {
    map: drawMap, lines: drawLines, text: drawText, image: drawImage, keys: drawKeys,
    statistics: drawStatistics,
  };
  return ways[state.view](turn);
}

function show(id, shown) {
  $(id).hidden = !shown;
}

function markTabs() {
  const known = new Set(views().map(([name]) => name));
  for (const [name] of VIEWS) {
    const tab = $("tab-" + name);
    tab.hidden = !known.has(name);
    tab.setAttribute("aria-selected", String(name === state.view));
    tab.tabIndex = name === state.view ? 0 : -1;
  }
  $("panel").setAttribute("aria-labelledby", "tab-" + state.view);
}

function summaryOf(layer) {
  if (isMap(layer)) {
    return [make("span", `${layer.name}, 1 at its largest; not the weights of a head`)];
  }
  const detail = layer.details[state.head];
  const bare = detail ? [] : ["blocks only: name it with --heads for single weights"];
  if (layer.kind === "difference") {
    return [`${layer.name}: the second's weights less the first's`, ...bare].map((text) =>
      make("span", text));
  }
  const parts = [layer.kind === "mixing" ? `${layer.name} (implied matrix, signed)`
    : `${layer.name} (${layer.kind} attention)`];
  const sink = layer.statistics.sink?.[state.head];
  if (typeof sink === "number") parts.push(`first key ${(100 * sink).toFixed(0)} %`);
  parts.push(`rebuilt within ${layer.difference.toExponential(1)} of the kernel's output`, ...bare);
  if (detail?.form === "scores") {
    parts.push(`weights computed here, each within ${detail.facts.error.toPrecision(1)}`);
  }
  if (detail?.facts.steps) parts.push(`weights in ${detail.facts.steps} steps`);
  return parts.map((text) => make("span", text));
}
