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
  if (isMap(layer)) {
    $("said").textContent = `${layer.name}: where ${isolated(queriesOf(layer).labels[0])} comes from.`;
  }
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
