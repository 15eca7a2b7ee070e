// Tables: the heaviest keys of each query, for screen readers too, and the figures of all heads.

const QUERIES_SHOWN = 25;
const KEYS_SHOWN = 5;

async function drawKeys(turn) {
  const layer = layerOf();
  const weights = await weightsOf(state.layer, state.head);
  if (turn !== drawn) return;
  const [queries, keys] = [queriesOf(layer), keysOf(layer)];
  const first = clamp(state.query - (QUERIES_SHOWN >> 1), 0,
    Math.max(0, queries.labels.length - QUERIES_SHOWN));
  const table = make("table", null, { class: "keys" });
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
  const rows = facts.layers.flatMap((layer, number) =>
    Array.from({ length: isMap(layer) ? 0 : layer.heads }, (_, head) => rowOfHead(layer, number, head)));
  const of = (name) => (row) => row[name];
  const columns = [
    { title: "Layer", of: of("layer"), cell: (row) => String(numberOf(row.layer)) },
    { title: "Head", of: of("head"), cell: (row) => String(row.head) },
    { title: "Class", of: of("letter"), cell: (row) => classCell(row.letter) },
    ...facts.statistics.map(([name, title, meaning]) =>
      ({ title, meaning, of: of(name), cell: (row) => figure(row[name]), downFirst: true })),
  ];
  const table = sortedTable("statistics", "Figures of all heads, means over queries", columns, rows, {
    marked: (row) => row.layer === state.layer && row.head === state.head,
    choice: ({ layer, head }) => ({ layer, head }),
  });
  $("table").replaceChildren(table);
  $("said").textContent = "Choose a heading to sort by it, a row to see its head.";
}

function rowOfHead(layer, number, head) {
  const values = { layer: number, head, letter: layer.letters[head] || "" };
  for (const [name] of facts.statistics) values[name] = layer.statistics[name]?.[head] ?? null;
  return values;
}

function classCell(letter) {
  const holder = make("span");
  if (!facts.classes[letter]) return holder;
  holder.append(badge(letter), make("span", " " + facts.classes[letter].name, { class: "unseen" }));
  holder.title = facts.classes[letter].name;
  return holder;
}

function figure(value) {
  if (value === null || value === undefined) return "\u2013";
  return Number.isInteger(value) ? String(value) : value.toPrecision(3);
}
