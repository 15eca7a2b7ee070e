// One head's matrix on one canvas: queries down, keys across; zoom, pan, hover.

const NAMED = 13; // CSS pixels of a weight from which on its token is named
let LEFT = 48; // room for names of queries, and above for those of keys
let TOP = 40;
const AHEAD = 1e8; // multiplications that are done for a head that may be chosen next
const IN_ALL = 3e9; // those that are done piece by piece; beyond, the map shows blocks
const view = { x: 0, y: 0, scale: 0, corner: () => [LEFT, TOP] }; // the key and query at the corner; CSS pixels of a weight
let whole_ = true;
let size = { width: 0, height: 0 };
const sheet = document.createElement("canvas");

function fitStage(canvas) {
  const box = $("stage").getBoundingClientRect();
  const ratio = devicePixelRatio || 1;
  size = { width: Math.floor(box.width), height: Math.floor(box.height) };
  const [width, height] = [Math.floor(size.width * ratio), Math.floor(size.height * ratio)];
  if (canvas.width !== width || canvas.height !== height) {
    canvas.width = width;
    canvas.height = height;
    canvas.style.width = size.width + "px";
    canvas.style.height = size.height + "px";
  }
  const pen = canvas.getContext("2d");
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.clearRect(0, 0, size.width, size.height);
  pen.imageSmoothingEnabled = false;
  pen.textBaseline = "middle";
  pen.direction = "ltr";
  return pen;
}

// Room for numbers, or for the names of the tokens that are seen where they are named.
function margins(pen, layer) {
  [LEFT, TOP] = [48, 40];
  const scale = whole_ ? Math.min(smallest(layer), 40) : view.scale;
  if (scale < NAMED) return;
  pen.font = "12px system-ui, sans-serif";
  const { a, b, c, d } = seen(layer);
  const widest = (side, from, to) => Math.max(...side.labels.slice(from, Math.min(to, from + 200))
    .map((label) => pen.measureText(label.slice(0, 40) + "\u2423").width), 20);
  LEFT = clamp(widest(queriesOf(layer), a, b) + 16, 48, 150);
  TOP = clamp(widest(keysOf(layer), c, d) + 16, 40, 130);
}

function smallest(layer) {
  const across = (size.width - LEFT - 8) / keysOf(layer).labels.length;
  return Math.min(across, (size.height - TOP - 8) / queriesOf(layer).labels.length);
}

// Show all of the matrix: at the start, and where the layer before had other sides.
function fitted(before) {
  const [one, other] = [facts.layers[before], layerOf()];
  if (one.queries !== other.queries || one.keys !== other.keys) whole_ = true;
}

function kept(layer) {
  const least = smallest(layer);
  view.scale = whole_ ? Math.min(least, 40) : clamp(view.scale, least, 64);
  const across = keysOf(layer).labels.length - (size.width - LEFT - 8) / view.scale;
  const down = queriesOf(layer).labels.length - (size.height - TOP - 8) / view.scale;
  view.x = clamp(view.x, 0, Math.max(0, across));
  view.y = clamp(view.y, 0, Math.max(0, down));
}

function zoom(factor, x, y) {
  const layer = layerOf();
  const [over, down] = [x ?? LEFT + (size.width - LEFT) / 2, y ?? TOP + (size.height - TOP) / 2];
  const [key, query] = [view.x + (over - LEFT) / view.scale, view.y + (down - TOP) / view.scale];
  whole_ = factor < 1 && view.scale * factor <= smallest(layer);
  view.scale = clamp(view.scale * factor, smallest(layer), 64);
  view.x = key - (over - LEFT) / view.scale;
  view.y = query - (down - TOP) / view.scale;
  draw();
}

function pan(across, down) {
  view.x += across / view.scale;
  view.y += down / view.scale;
  draw();
}

// The part that is seen: rows a..b, columns c..d.
function seen(layer) {
  const rows = queriesOf(layer).labels.length;
  const columns = keysOf(layer).labels.length;
  return {
    a: Math.floor(view.y), b: Math.min(rows, Math.ceil(view.y + (size.height - TOP) / view.scale)),
    c: Math.floor(view.x), d: Math.min(columns, Math.ceil(view.x + (size.width - LEFT) / view.scale)),
  };
}

async function drawMap(turn) {
  const layer = layerOf();
  const pen = fitStage($("map"));
  margins(pen, layer);
  kept(layer);
  drawBlank(pen, layer);
  drawAxes(pen, layer);
  // Seen at once, while the weights are unpacked; blocks hold the first key, which may be left out.
  const blocks = await blocksOf(layer.blocks ? layer.blocks[state.mode] : layer.thumbnails.codes);
  if (turn !== drawn) return;
  const without = state.sink && !layer.signed;
  let what = without ? "" : placeBlocks(pen, layer, blocks);
  const weights = await weightsOf(state.layer, state.head);
  if (turn !== drawn) return;
  const part = seen(layer);
  const step = stepOf();
  const work = (part.b - part.a) * (part.d - part.c) * (weights ? weights.cost : 0);
  if (weights && (work <= IN_ALL || !layer.blocks)) {
    await placeWeights(pen, layer, weights, part, step, turn);
    if (turn !== drawn) return;
    what = step > 1 ? `blocks of ${step} x ${step}: ${modeName()}` : "single weights";
  } else if (without) {
    what = placeBlocks(pen, layer, blocks) + ", with the first key";
  }
  frameMap(pen, layer);
  $("said").textContent = `Queries down, keys across; ${what}.`;
  $("map").setAttribute("aria-label", `${described()}: matrix of weights, ${what}`);
  drawHover();
}

const modeName = () => (state.mode === "most" ? "the largest weight" : "the mean");

function placed(pen, rows, columns, a, c, height, width) {
  pen.save();
  pen.beginPath();
  pen.rect(LEFT, TOP, size.width - LEFT, size.height - TOP);
  pen.clip();
  pen.imageSmoothingEnabled = false;
  const [x, y] = [LEFT + (c - view.x) * view.scale, TOP + (a - view.y) * view.scale];
  pen.clearRect(x, y, width * view.scale, height * view.scale);
  pen.drawImage(sheet, 0, 0, columns, rows, x, y, width * view.scale, height * view.scale);
  pen.restore();
}

// The blocks of the look, or where all heads have their weights those of the small maps.
function placeBlocks(pen, layer, codes) {
  const blocks = layer.blocks ?? layer.thumbnails;
  const { rows, columns } = blocks;
  const from = state.head * rows * columns;
  const values = Float32Array.from(codes.subarray(from, from + rows * columns), (code) =>
    blockValue(code, layer.signed, layer.peak));
  sheet.width = columns;
  sheet.height = rows;
  paint(sheet, values, rows, columns, layer);
  placed(pen, rows, columns, 0, 0, rows * blocks.tall, columns * blocks.wide);
  const value = layer.blocks ? modeName() : "the largest weight";
  return `blocks of ${blocks.tall} x ${blocks.wide}: ${value}`;
}

// The part's blocks (or weights) of a head, whole once they are all made.
const made = new WeakMap();
function partOf(weights, { a, b, c, d }, step) {
  const [start, first] = [a - (a % step), c - (c % step)];
  const [rows, columns] = [Math.ceil((b - start) / step), Math.ceil((d - first) / step)];
  const name = [start, first, b, d, step, state.mode, state.sink].join();
  if (made.get(weights)?.name !== name) {
    const values = new Float32Array(rows * columns).fill(NaN);
    made.set(weights, { name, start, first, b, d, step, rows, columns, values, done: start });
  }
  return made.get(weights);
}

// Some more rows of it: as many as take a few milliseconds.
function further(weights, part) {
  const { start, first, b, d, step, columns, done } = part;
  const each = Math.max(1, Math.floor(6e6 / ((d - first) * weights.cost * step))) * step;
  const end = Math.min(b, done + each);
  const values = reduced(weights, done, end, first, d, step, Math.ceil((end - done) / step), columns);
  part.values.set(values, ((done - start) / step) * columns);
  part.done = end;
}

// Row after row of the part, a few at a time so that the page stays alive.
async function placeWeights(pen, layer, weights, seenPart, step, turn) {
  const part = partOf(weights, seenPart, step);
  let painted = part.start;
  let pause = performance.now() + 4; // soon: until then the blocks that were placed are not seen
  for (;;) {
    while (part.done < part.b && performance.now() < pause) further(weights, part);
    placeRows(pen, layer, part, painted);
    painted = part.done;
    if (part.done >= part.b) return;
    await new Promise((resolve) => setTimeout(resolve));
    if (turn !== drawn) return;
    pause = performance.now() + 24;
  }
}

function placeRows(pen, layer, { start, first, done, step, columns, values }, from) {
  const [top, end] = [(from - start) / step, Math.ceil((done - start) / step)];
  if (end <= top) return;
  sheet.width = columns;
  sheet.height = end - top;
  paint(sheet, values.subarray(top * columns, end * columns), end - top, columns, layer);
  placed(pen, end - top, columns, from, first, (end - top) * step, columns * step);
}

// The same of a head that may be chosen next, in moments when nothing else is to be done.
async function readyMap(place, head, wanted) {
  const [layer, weights] = [facts.layers[place], await weightsOf(place, head)];
  const chosen = layerOf();
  if (!weights || !wanted() || state.view !== "map" || !whole_) return;
  if (layer.queries !== chosen.queries || layer.keys !== chosen.keys) return;
  const all = seen(layer);
  if ((all.b - all.a) * (all.d - all.c) * weights.cost > AHEAD) return;
  const part = partOf(weights, all, stepOf());
  while (part.done < part.b) {
    await idle();
    if (!wanted() || made.get(weights) !== part) return;
    further(weights, part);
  }
}

const stepOf = () => Math.max(1, Math.ceil(1 / (view.scale * (devicePixelRatio || 1)) - 1e-6));

// Blocks of `step` x `step` weights: the largest by size, or the mean of those that are seen.
function reduced(weights, a, b, c, d, step, rows, columns) {
  const tile = weights.tile(a, b, c, d);
  const width = d - c;
  if (state.sink && !weights.signed) withoutFirst(weights, tile, a, b, c, width);
  if (step === 1) return tile;
  const mean = state.mode === "mean";
  const out = new Float32Array(rows * columns).fill(NaN);
  const counts = new Float32Array(mean ? rows * columns : 0);
  for (let t = 0; t < b - a; t++) {
    const base = Math.floor(t / step) * columns;
    const [from, to] = weights.span(a + t); // outside of it nothing is seen
    for (let key = Math.max(0, from - c); key < Math.min(width, to - c); key++) {
      const value = tile[t * width + key];
      if (value !== value) continue;
      const place = base + Math.floor(key / step);
      const old = out[place];
      if (old !== old) out[place] = value;
      else if (mean) out[place] = old + value;
      else if (Math.abs(value) > Math.abs(old)) out[place] = value;
      if (mean) counts[place]++;
    }
  }
  if (mean) for (let i = 0; i < out.length; i++) out[i] /= counts[i];
  return out;
}

function withoutFirst(weights, tile, a, b, c, width) {
  for (let t = a; t < b; t++) {
    const first = weights.at(t, 0);
    const rest = 1 - (Number.isNaN(first) ? 0 : first);
    for (let i = (t - a) * width; i < (t - a + 1) * width; i++) tile[i] = rest > 1e-9 ? tile[i] / rest : 0;
    if (c === 0) tile[(t - a) * width] = NaN;
  }
}
