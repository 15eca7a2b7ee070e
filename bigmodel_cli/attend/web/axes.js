// What stands beside the matrix, and what follows the pointer.

function extent(layer) {
  const wide = Math.min(size.width - LEFT, keysOf(layer).labels.length * view.scale);
  const tall = Math.min(size.height - TOP, queriesOf(layer).labels.length * view.scale);
  return [wide, tall];
}

// The ground of the matrix: what no query sees stays so.
function drawBlank(pen, layer) {
  const [wide, tall] = extent(layer);
  pen.fillStyle = variable("--blank");
  pen.fillRect(LEFT, TOP, wide, tall);
}

function frameMap(pen, layer) {
  const [wide, tall] = extent(layer);
  pen.strokeStyle = variable("--line");
  pen.strokeRect(LEFT - 0.5, TOP - 0.5, wide + 1, tall + 1);
}

// Every n-th position so that names do not touch: 1, 2, 5, 10, 20, ...
function stride(least) {
  for (let power = 1; ; power *= 10) {
    for (const part of [1, 2, 5]) if (part * power >= least) return part * power;
  }
}

function drawAxes(pen, layer) {
  const { a, b, c, d } = seen(layer);
  const every = stride(view.scale < NAMED ? 18 / view.scale : 1);
  const named = every <= 1;
  pen.fillStyle = variable("--text");
  pen.font = "12px system-ui, sans-serif";
  pen.textAlign = "right";
  for (let t = Math.ceil(a / every) * every; t < b; t += every) {
    const y = TOP + (t + 0.5 - view.y) * view.scale;
    if (y < TOP) continue;
    pen.fillText(fittedName(pen, queriesOf(layer), t, named, LEFT - 12), LEFT - 6, y);
  }
  pen.textAlign = "left";
  for (let key = Math.ceil(c / every) * every; key < d; key += every) {
    const x = LEFT + (key + 0.5 - view.x) * view.scale;
    if (x < LEFT || x > size.width) continue;
    pen.save();
    pen.translate(x, TOP - 6);
    pen.rotate(-Math.PI / 2);
    pen.fillText(fittedName(pen, keysOf(layer), key, named, TOP - 12), 0, 0);
    pen.restore();
  }
}

// A name of at most `most` pixels; numbers where not all can be named.
function fittedName(pen, side, place, named, most) {
  if (!named) return String(place);
  const letters = Array.from(side.labels[place].replaceAll(" ", "␣"));
  if (pen.measureText(letters.join("")).width <= most) return isolated(letters.join(""));
  let count = Math.min(letters.length, 40);
  while (count > 1 && pen.measureText(letters.slice(0, count).join("") + "…").width > most) count--;
  return isolated(letters.slice(0, count).join("") + "…");
}

async function drawHover() {
  const pen = fitStage($("over"));
  if (state.view !== "map") return;
  const [layer, turn] = [layerOf(), drawn];
  const x = LEFT + (state.key - view.x) * view.scale;
  const y = TOP + (state.query - view.y) * view.scale;
  const thick = Math.max(2, view.scale);
  const [wide, tall] = extent(layer);
  pen.save();
  pen.beginPath();
  pen.rect(LEFT - 2, TOP - 2, wide + 4, tall + 4);
  pen.clip();
  pen.strokeStyle = variable("--accent");
  pen.lineWidth = 1.5;
  pen.strokeRect(LEFT, y, wide, thick);
  pen.strokeRect(x, TOP, thick, tall);
  pen.restore();
  const weights = await weightsOf(state.layer, state.head);
  if (turn !== drawn || !weights) return;
  const weight = weights.at(state.query, state.key);
  const line = make("span", "query ", { class: "pair" });
  line.append(`${state.query} `, tokenOf(queriesOf(layer), state.query), ` · key ${state.key} `);
  line.append(tokenOf(keysOf(layer), state.key), ` · weight ${shown(weight)}`);
  line.dataset.weight = weight;
  const said = $("said");
  said.querySelector(".pair")?.remove();
  said.prepend(line);
}

function pointed(event) {
  const box = $("stage").getBoundingClientRect();
  const [x, y] = [event.clientX - box.left, event.clientY - box.top];
  return { x, y, key: Math.floor(view.x + (x - LEFT) / view.scale),
    query: Math.floor(view.y + (y - TOP) / view.scale) };
}

let held = null;
function listenToMap() {
  const canvas = $("map");
  canvas.addEventListener("wheel", (event) => {
    if (state.view !== "map") return;
    event.preventDefault();
    const { x, y } = pointed(event);
    zoom(Math.exp(-event.deltaY / 400), Math.max(LEFT, x), Math.max(TOP, y));
  }, { passive: false });
  canvas.addEventListener("pointerdown", (event) => {
    held = { x: event.clientX, y: event.clientY, moved: false };
    canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointerup", (event) => {
    if (held && !held.moved) clicked(event);
    held = null;
  });
  canvas.addEventListener("pointermove", (event) => {
    if (state.view !== "map") return;
    if (held) {
      const [across, down] = [held.x - event.clientX, held.y - event.clientY];
      if (!held.moved && Math.hypot(across, down) < 4) return;
      held = { x: event.clientX, y: event.clientY, moved: true };
      whole_ = false;
      pan(across, down);
      return;
    }
    const { query, key } = pointed(event);
    const layer = layerOf();
    if (query < 0 || key < 0 || query >= queriesOf(layer).labels.length) return;
    if (key >= keysOf(layer).labels.length) return;
    if (query === state.query && key === state.key) return;
    Object.assign(state, { query, key });
    $("query").value = query;
    drawHover();
  });
}

function clicked(event) {
  if (state.view === "image") chooseThing(event, patchAt);
  else if (state.view === "lines") chooseThing(event, lineAt);
  else say();
}

function chooseThing(event, finder) {
  const { x, y } = pointed(event);
  const query = finder(x, y);
  if (query !== null) choose({ query }, true);
}
