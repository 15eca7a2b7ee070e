// Tables: the heaviest keys of each query, for screen readers too, and the figures of all heads.

const QUERIES_SHOWN = 25;
const KEYS_SHOWN = 5;
let sorted = { column: 0, down: false };

async function drawKeys(turn) {
  const layer = layerOf();
  const weights = await weightsOf(state.layer, state.head);
  if (turn !== drawn) return;
  const [queries, keys] = [queriesOf(layer), keysOf(layer)];
  const first = clamp(state.query - (QUERIES_SHOWN >> 1), 0,
    Math.max(0, queries.labels.length - QUERIES_SHOWN));
  const table = make("table");
  table.append(make("caption", `${described()}: the heaviest keys of each query`));
  const head = make("tr");
  head.append(make("th", "Query", { scope: "col" }));
  for (let i = 1; i <= KEYS_SHOWN; i++) head.append(make("th", `Key ${i}`, { scope: "col" }));
  table.append(make("thead"), make("tbody"));
  table.tHead.append(head);
  const end = Math.min(first + QUERIES_SHOWN, queries.labels.length);
  for (let t = first; t < end; t++) {
    table.tBodies[0].append(keysRow(layer, weights, t));
  }
  $("table").replaceChildren(table);
  const all = queries.labels.length;
  $("said").textContent = weights
    ? `Queries ${first} to ${end - 1} of ${all}; choose a query to move on.`
    : "The page carries no single weights of this head.";
}

function keysRow(layer, weights, t) {
  const row = make("tr");
  if (t === state.query) row.setAttribute("aria-current", "true");
  const name = make("th", `${t} `, { scope: "row" });
  name.append(tokenOf(queriesOf(layer), t));
  row.append(name);
  const found = weights ? topOf(shownRow(weights.row(t), layer.signed), KEYS_SHOWN) : [];
  for (const [key, weight] of found) {
    const cellOf = make("td", `${key} `);
    cellOf.append(tokenOf(keysOf(layer), key), make("span", " " + shown(weight), { class: "figure" }));
    row.append(cellOf);
  }
  for (let i = found.length; i < KEYS_SHOWN; i++) row.append(make("td", "–"));
  row.addEventListener("click", () => choose({ query: t }, true));
  return row;
}

function drawStatistics() {
  const columns = [["layer", "Layer", ""], ["head", "Head", ""], ["letter", "Class", ""]];
  columns.push(...facts.statistics);
  const rows = facts.layers.flatMap((layer, number) =>
    Array.from({ length: layer.heads }, (_, head) => rowOfHead(layer, number, head)));
  const by = columns[sorted.column][0];
  rows.sort((one, other) => (sorted.down ? -1 : 1) * compared(one[by], other[by], sorted.down));
  const table = make("table", null, { class: "figures" });
  table.append(make("caption", "Figures of all heads, means over queries"), make("thead"), make("tbody"));
  const head = make("tr");
  columns.forEach(([, title, meaning], number) => head.append(heading(title, meaning, number)));
  table.tHead.append(head);
  for (const values of rows) table.tBodies[0].append(statisticsRow(columns, values));
  $("table").replaceChildren(table);
  $("said").textContent = "Choose a heading to sort by it, a row to see its head.";
}

function rowOfHead(layer, number, head) {
  const values = { layer: number, head, letter: layer.letters[head] || "" };
  for (const [name] of facts.statistics) values[name] = layer.statistics[name]?.[head] ?? null;
  return values;
}

// Missing values last, whichever way.
function compared(one, other, down) {
  if (one === other) return 0;
  if (one === null || other === null) return (one === null ? 1 : -1) * (down ? -1 : 1);
  return one < other ? -1 : 1;
}

function heading(title, meaning, number) {
  const way = sorted.down ? "descending" : "ascending";
  const sort = number === sorted.column ? way : "none";
  const holder = make("th", null, { scope: "col", "aria-sort": sort });
  const button = make("button", title, { type: "button", id: "sort-" + number });
  if (meaning) button.title = meaning;
  button.addEventListener("click", () => {
    sorted = { column: number, down: number === sorted.column ? !sorted.down : number > 2 };
    drawStatistics();
    $("sort-" + number).focus();
  });
  holder.append(button);
  return holder;
}

function statisticsRow(columns, values) {
  const row = make("tr");
  if (values.layer === state.layer && values.head === state.head) {
    row.setAttribute("aria-current", "true");
  }
  for (const [name] of columns) {
    const value = values[name];
    const holder = make("td");
    if (name === "layer") holder.textContent = numberOf(value);
    else if (name === "letter" && facts.classes[value]) {
      holder.append(badge(value), make("span", " " + facts.classes[value].name, { class: "unseen" }));
      holder.title = facts.classes[value].name;
    } else if (value === null) holder.textContent = "–";
    else holder.textContent = Number.isInteger(value) ? String(value) : value.toPrecision(3);
    row.append(holder);
  }
  row.addEventListener("click", () => choose({ layer: values.layer, head: values.head }, true));
  return row;
}
