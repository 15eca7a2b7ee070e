// Lines between tokens, at most 60 a side, and the patches of an image.

const MOST_LINES = 60;
const WEAK = 0.02; // weights below get no line
let lineView = { first: 0, firstKey: 0, count: 0, keys: 0, step: 1 };

async function drawLines(turn) {
  const layer = layerOf();
  const weights = await weightsOf(state.layer, state.head);
  if (turn !== drawn) return;
  const pen = fitStage($("map"));
  fitStage($("over"));
  const [queries, keys] = [queriesOf(layer), keysOf(layer)];
  lineView = {
    first: around(state.query, queries.labels.length),
    firstKey: around(keys === queries ? state.query : state.key, keys.labels.length),
    count: Math.min(MOST_LINES, queries.labels.length),
    keys: Math.min(MOST_LINES, keys.labels.length),
  };
  lineView.step = (size.height - 40) / Math.max(lineView.count, lineView.keys);
  const [left, right] = [size.width * 0.3, size.width * 0.7];
  if (weights) {
    for (let t = lineView.first; t < lineView.first + lineView.count; t++) {
      if (t !== state.query) strokeLines(pen, layer, weights, t, left, right, 0.25);
    }
    strokeLines(pen, layer, weights, state.query, left, right, 1);
  }
  nameLines(pen, layer, left, right);
  const cut = queries.labels.length > MOST_LINES || keys.labels.length > MOST_LINES;
  $("said").textContent = "Queries left, keys right; weights from 0.02 on"
    + (cut ? `; ${MOST_LINES} tokens around the query of ${queries.labels.length}` : "") + ".";
  $("map").setAttribute("aria-label", `${described()}: lines from queries to the keys they read`);
}

function around(place, count) {
  return clamp(place - (MOST_LINES >> 1), 0, Math.max(0, count - MOST_LINES));
}

const lineY = (number) => 20 + (number + 0.5) * lineView.step;

function strokeLines(pen, layer, weights, t, left, right, strength) {
  const row = shownRow(weights.tile(t, t + 1, 0, weights.keys), layer.signed);
  const table = tableOf(true);
  for (let key = lineView.firstKey; key < lineView.firstKey + lineView.keys; key++) {
    const weight = row[key] / (layer.signed ? layer.peak : 1);
    if (!(Math.abs(weight) >= WEAK)) continue;
    pen.globalAlpha = clamp(Math.abs(weight) * 1.2, 0.06, 1) * strength;
    pen.lineWidth = strength === 1 ? 1 + 4 * Math.abs(weight) : 1.2;
    pen.strokeStyle = layer.signed ? css(table, weight > 0 ? 1 : 0) : variable("--accent");
    pen.beginPath();
    const [from, to] = [lineY(t - lineView.first), lineY(key - lineView.firstKey)];
    pen.moveTo(left + 8, from);
    pen.bezierCurveTo(left + (right - left) * 0.4, from, left + (right - left) * 0.6, to, right - 8, to);
    pen.stroke();
  }
  pen.globalAlpha = 1;
}

function nameLines(pen, layer, left, right) {
  const height = clamp(lineView.step - 1, 7, 14);
  pen.font = `${height}px system-ui, sans-serif`;
  for (let i = 0; i < lineView.count; i++) {
    const t = lineView.first + i;
    pen.fillStyle = variable(t === state.query ? "--accent" : "--text");
    pen.textAlign = "right";
    pen.fillText(fittedName(pen, queriesOf(layer), t, true, left - 16), left, lineY(i));
  }
  pen.fillStyle = variable("--text");
  pen.textAlign = "left";
  for (let i = 0; i < lineView.keys; i++) {
    const name = fittedName(pen, keysOf(layer), lineView.firstKey + i, true, size.width - right - 16);
    pen.fillText(name, right, lineY(i));
  }
}

function lineAt(x, y) {
  const place = Math.floor((y - 20) / lineView.step);
  return place >= 0 && place < lineView.count ? lineView.first + place : null;
}

// The image under the weights of one query; the special positions before the patches as a row.
const picture = new Image();
if (facts.image) picture.src = facts.image;
let patches = { x: 0, y: 0, side: 0, rows: 0, columns: 0, first: 0 };

async function drawImage(turn) {
  const layer = layerOf();
  const side = keysOf(layer);
  const weights = await weightsOf(state.layer, state.head);
  if (facts.image && !picture.complete) await picture.decode().catch(() => {});
  if (turn !== drawn) return;
  const pen = fitStage($("map"));
  fitStage($("over"));
  const [rows, columns] = side.grid;
  const across = (size.width - 16) / columns;
  const each = Math.min(across, (size.height - 76) / rows);
  patches = { x: (size.width - each * columns) / 2, y: 60, side: each, rows, columns, first: side.first };
  const row = weights ? shownRow(weights.row(state.query), layer.signed) : null;
  if (facts.image && picture.naturalWidth) {
    pen.imageSmoothingEnabled = true;
    pen.drawImage(picture, patches.x, patches.y, each * columns, each * rows);
  }
  if (row) shadePatches(pen, layer, row, Boolean(facts.image));
  nameSpecials(pen, layer, row);
  const name = quoted(queriesOf(layer), state.query);
  const own = queriesOf(layer) === side;
  $("said").textContent = `What ${own ? "query " : ""}${name} reads`
    + (own ? "; choose a patch to ask for another." : ".");
  $("map").setAttribute("aria-label", `${described()}: patches that query ${name} reads`);
  if (layer.kind.startsWith("map")) $("said").textContent = `${layer.name}: where ${isolated(queriesOf(layer).labels[0])} comes from.`;
  if (!own) return;
  const [x, y] = placeOfPatch(state.query);
  pen.strokeStyle = variable("--accent");
  pen.lineWidth = 3;
  const outline = special(state.query) ? Math.min(each, 32) : each;
  pen.strokeRect(x, y, outline, outline);
}

function placeOfPatch(position) {
  const { x, y, side, first, columns } = patches;
  if (special(position)) return [x + specialNumber(position) * (Math.min(side, 32) + 44), 22];
  const patch = position - first;
  return [x + (patch % columns) * side, y + Math.floor(patch / columns) * side];
}

// Positions without a place in the image: before the patches (a class token), after (registers).
function special(position) {
  return position < patches.first || position >= patches.first + patches.rows * patches.columns;
}

function specialNumber(position) {
  return position < patches.first ? position : position - patches.rows * patches.columns;
}

function shadePatches(pen, layer, row, over) {
  const table = tableOf(layer.signed, over);
  for (let position = 0; position < row.length; position++) {
    if (Number.isNaN(row[position])) continue;
    const level = levelOf(row[position], scaleOf(layer), layer.signed, layer.peak);
    const strength = layer.signed ? Math.abs(level - 0.5) * 2 : level;
    const [x, y] = placeOfPatch(position);
    pen.globalAlpha = over && !special(position) ? 0.12 + 0.68 * strength : 1;
    pen.fillStyle = css(table, level);
    const side = special(position) ? Math.min(patches.side, 32) : patches.side;
    const [left, top] = [Math.round(x), Math.round(y)]; // neighbours neither overlap nor part
    pen.fillRect(left, top, Math.round(x + side) - left, Math.round(y + side) - top);
  }
  pen.globalAlpha = 1;
}

function nameSpecials(pen, layer, row) {
  pen.font = "11px system-ui, sans-serif";
  pen.textAlign = "left";
  pen.fillStyle = variable("--soft");
  for (let position = 0; position < keysOf(layer).labels.length; position++) {
    if (!special(position)) continue;
    const [x] = placeOfPatch(position);
    pen.fillText(fittedName(pen, keysOf(layer), position, true, 72), x, 10);
  }
}

function patchAt(x, y) {
  const { side, rows, columns, first } = patches;
  if (queriesOf(layerOf()) !== keysOf(layerOf())) return null;
  if (y < patches.y) {
    const place = Math.floor((x - patches.x) / (Math.min(side, 32) + 44));
    const count = queriesOf(layerOf()).labels.length - rows * columns;
    if (place < 0 || place >= count) return null;
    return place < first ? place : place + rows * columns;
  }
  const [across, down] = [Math.floor((x - patches.x) / side), Math.floor((y - patches.y) / side)];
  const inside = across >= 0 && across < columns && down >= 0 && down < rows;
  return inside ? first + down * columns + across : null;
}
