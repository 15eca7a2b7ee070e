// All heads as small maps on one canvas, under a grid of buttons: a row is a layer.

const buttons = [];
let cell = 44; // CSS pixels of one map

function buildOverview() {
  const most = Math.max(1, ...facts.layers.map((layer) => layer.heads));
  const stacked = matchMedia("(max-width: 860px)").matches; // as in the style: nothing stands beside
  const available = stacked ? innerWidth - 60 : Math.max(220, Math.min(520, innerWidth * 0.36));
  cell = clamp(Math.floor((available - 26) / most) - 4, 14, 56);
  const grid = $("grid");
  const held = grid.contains(document.activeElement); // keys go on where they were
  grid.style.setProperty("--cell", cell + "px");
  grid.style.setProperty("--heads", most);
  grid.replaceChildren();
  buttons.length = 0;
  facts.layers.forEach((layer, number) => {
    const row = make("div", null, { role: "row", class: "row" });
    row.append(make("span", String(numberOf(number)), { role: "rowheader", title: layer.name }));
    buttons.push([]);
    for (let head = 0; head < layer.heads; head++) row.append(headButton(layer, number, head));
    grid.append(row);
  });
  if (held) buttons[state.layer][state.head].focus();
}

function headButton(layer, number, head) {
  const letter = layer.letters[head] || "";
  const known = facts.classes[letter];
  const holder = make("span", null, { role: "gridcell" });
  const button = make("button", null, { type: "button", tabindex: "-1" });
  const name = `Layer ${numberOf(number)}, head ${head}` + (known ? `, ${known.name}` : "");
  button.setAttribute("aria-label", name);
  button.title = name;
  if (known) button.append(badge(letter));
  button.addEventListener("click", () => choose({ layer: number, head }, true));
  buttons[number].push(button);
  holder.append(button);
  return holder;
}

function badge(letter) {
  const mark = make("span", letter, { class: "badge", "aria-hidden": "true" });
  const [red, green, blue] = facts.classes[letter].colour;
  mark.style.backgroundColor = `rgb(${red} ${green} ${blue})`;
  mark.style.color = 0.299 * red + 0.587 * green + 0.114 * blue > 120 ? "#000" : "#fff";
  return mark;
}

function buildLegend() {
  const used = new Set(facts.layers.flatMap((layer) => [...layer.letters]));
  for (const letter of Object.keys(facts.classes)) {
    if (!used.has(letter)) continue;
    const item = make("li", null);
    item.append(badge(letter), make("span", " " + facts.classes[letter].rule));
    $("classes").append(item);
  }
}

function markHead() {
  buttons.flat().forEach((button) => {
    button.tabIndex = -1;
    button.removeAttribute("aria-current");
  });
  const chosen = buttons[state.layer][state.head];
  chosen.tabIndex = 0;
  chosen.setAttribute("aria-current", "true");
  if (document.activeElement?.closest?.("#grid")) chosen.focus();
}

// The small maps, from blocks that the page carries for all heads: a layer at a time, so that a
// click does not wait for them.
let thumbnailed = 0;
async function drawThumbnails() {
  const turn = ++thumbnailed;
  const canvas = $("thumbnails");
  const frame = $("frame").getBoundingClientRect();
  const ratio = devicePixelRatio || 1;
  canvas.width = Math.ceil(frame.width * ratio);
  canvas.height = Math.ceil($("grid").scrollHeight * ratio);
  canvas.style.width = frame.width + "px";
  canvas.style.height = $("grid").scrollHeight + "px";
  const pen = canvas.getContext("2d");
  pen.imageSmoothingEnabled = false;
  for (const [number, layer] of facts.layers.entries()) {
    const codes = await blocksOf(layer.thumbnails.codes);
    if (number > 0) await idle();
    if (turn !== thumbnailed) return;
    const corner = $("frame").getBoundingClientRect();
    for (let head = 0; head < layer.heads; head++) {
      drawThumbnail(pen, layer, head, codes, buttons[number][head].getBoundingClientRect(), corner);
    }
  }
}

function drawThumbnail(pen, layer, head, codes, place, corner) {
  const { rows, columns, tall, wide } = layer.thumbnails;
  const small = document.createElement("canvas");
  small.width = columns;
  small.height = rows;
  const own = codes.subarray(head * rows * columns, (head + 1) * rows * columns);
  const values = Float32Array.from(own, (code) => blockValue(code, layer.signed, layer.peak));
  paint(small, values, rows, columns, layer);
  const ratio = devicePixelRatio || 1;
  const [x, y] = [place.left - corner.left, place.top - corner.top];
  const token = place.width / Math.max(rows * tall, columns * wide);
  const across = Math.max(3, columns * wide * token);
  const down = Math.max(3, rows * tall * token);
  pen.drawImage(small, x * ratio, y * ratio, across * ratio, down * ratio);
}

// Fill a canvas of one pixel a weight; what is not seen stays clear.
function paint(canvas, values, rows, columns, layer) {
  const image = new ImageData(columns, rows);
  const pixels = new Uint32Array(image.data.buffer);
  const colours = coloursOf(tableOf(layer.signed), scaleOf(layer), layer.signed);
  const share = 1 / layer.peak;
  for (let i = 0; i < pixels.length; i++) {
    const value = values[i] * share;
    if (value !== value) continue;
    const root = Math.sqrt(Math.min(1, Math.abs(value))) * ROOTS + 0.5;
    pixels[i] = colours[ROOTS + (value < 0 ? -root | 0 : root | 0)];
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
}
