// Everything by keyboard.

const HELP = [
  ["← →", "the head before, the next", { ArrowLeft: () => head(-1), ArrowRight: () => head(1) }],
  ["↑ ↓, k j", "the layer before, the next", {
    ArrowUp: () => layer(-1), ArrowDown: () => layer(1), k: () => layer(-1), j: () => layer(1) }],
  ["p n", "the query before, the next", { p: () => query(-1), n: () => query(1) }],
  [", .", "the key before, the next (matrix)", { ",": () => key(-1), ".": () => key(1) }],
  ["/", "choose a query: a position, or text to search for", { "/": askQuery }],
  ["m l t i", "matrix, lines, text, image", {
    m: () => choose({ view: "map" }), l: () => choose({ view: "lines" }),
    t: () => choose({ view: "text" }), i: () => choose({ view: "image" }) }],
  ["h s", "heaviest keys of queries, statistics of heads", {
    h: () => choose({ view: "keys" }), s: () => choose({ view: "statistics" }) }],
  ["1 … 9", "the view of this number", {}],
  ["+ − 0", "zoom in, out, show all", {
    "+": () => zoom(1.5), "=": () => zoom(1.5), "-": () => zoom(1 / 1.5), 0: wholeMap }],
  ["Shift + arrows", "move over the matrix", {}],
  ["x", "with and without the first key", { x: () => setSink(!state.sink) }],
  ["b", "blocks: the largest, the mean", { b: () => setMode(state.mode === "most" ? "mean" : "most") }],
  ["d", "dark and light", { d: turnTheme }],
  ["?", "this help; Escape closes it", { "?": () => $("help").showModal() }],
];
const ACTIONS = Object.assign({}, ...HELP.map(([, , actions]) => actions));
const PANS = { ArrowLeft: [-80, 0], ArrowRight: [80, 0], ArrowUp: [0, -80], ArrowDown: [0, 80] };

for (let number = 1; number <= 9; number++) {
  ACTIONS[number] = () => choose({ view: views()[number - 1]?.[0] ?? state.view });
}

function head(step) {
  if (!facts.layers.length) return;
  const count = layerOf().heads;
  choose({ head: (state.head + step + count) % count }, true);
}

function layer(step) {
  choose({ layer: state.layer + step }, true);
}

function query(step) {
  textPage = null;
  choose({ query: state.query + step }, true);
}

function key(step) {
  choose({ key: state.key + step });
  say();
}

function askQuery() {
  $("query").focus();
  $("query").select();
}

function wholeMap() {
  whole_ = true;
  draw();
}

function setSink(sink) {
  $("sink").checked = sink;
  choose({ sink });
}

function setMode(mode) {
  $("mode").value = mode;
  choose({ mode });
}

function turnTheme() {
  document.documentElement.dataset.theme = dark() ? "light" : "dark";
  themed();
}

function themed() {
  $("theme").textContent = dark() ? "Light" : "Dark";
  draw();
  drawThumbnails();
}

// A position, or the next token after the present one that contains the text.
function answerQuery() {
  const side = queriesOf(layerOf());
  const asked = $("query").value;
  const place = /^\s*\d+\s*$/.test(asked) ? Number(asked) : found(side.labels, asked);
  if (place === null || place >= side.labels.length) {
    $("live").textContent = $("said").textContent = `Not found: ${isolated(asked)}`;
    return;
  }
  textPage = null;
  $("query").blur();
  $("map").focus({ preventScroll: true });
  choose({ query: place }, true);
}

function found(labels, text) {
  for (let step = 1; step <= labels.length; step++) {
    const place = (state.query + step) % labels.length;
    if (text && labels[place].toLowerCase().includes(text.toLowerCase())) return place;
  }
  return null;
}

function pressed(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || $("help").open) return;
  if (event.target === $("query")) {
    if (event.key === "Enter") answerQuery();
    else if (event.key === "Escape") $("query").blur();
    return;
  }
  if (event.target.tagName === "SELECT") return;
  if (document.activeElement === $("table") || document.activeElement === $("text")) {
    if (event.key in PANS && (event.key === "ArrowUp" || event.key === "ArrowDown")) return; // scrolls
  }
  if (event.shiftKey && event.key in PANS && state.view === "map") {
    event.preventDefault();
    whole_ = false;
    pan(...PANS[event.key]);
    return;
  }
  const action = Object.hasOwn(ACTIONS, event.key) ? ACTIONS[event.key] : null;
  if (action === null) return;
  event.preventDefault();
  if (event.target.getAttribute?.("role") === "tab" && event.key.startsWith("Arrow")) {
    moveTab(event.key === "ArrowLeft" || event.key === "ArrowUp" ? -1 : 1);
  } else action();
}

function moveTab(step) {
  const names = views().map(([name]) => name);
  const place = (names.indexOf(state.view) + step + names.length) % names.length;
  choose({ view: names[place] });
  $("tab-" + names[place]).focus();
}

function buildHelp() {
  const list = make("dl");
  for (const [keys, meaning] of HELP) {
    const holder = make("dt");
    for (const name of keys.split(" ")) holder.append(make("kbd", name), " ");
    list.append(holder, make("dd", meaning));
  }
  const close = make("button", "Close", { type: "button" });
  close.addEventListener("click", () => $("help").close());
  $("help").append(make("h2", "Keys"), list, close);
  $("help-button").addEventListener("click", () => $("help").showModal());
}
