// Lines between tokens, at most 60 a side.

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
