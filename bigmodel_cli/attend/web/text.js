// The text shaded by what one query reads; long ones in pages.

const MOST_TOKENS = 1500;
let textPage = null; // of the keys; null: where the query stands

async function drawText(turn) {
  const layer = layerOf();
  const weights = await weightsOf(state.layer, state.head);
  if (turn !== drawn) return;
  const [queries, keys] = [queriesOf(layer), keysOf(layer)];
  let row = weights ? weights.row(state.query) : await carried(layer);
  if (turn !== drawn) return;
  if (row) row = shownRow(row, layer.signed);
  const parts = [];
  if (queries !== keys) {
    parts.push(make("h3", `${queries.name}: choose a token to see what it reads`));
    parts.push(tokens(queries, pageOf(queries, state.query), () => null));
    parts.push(make("h3", `${keys.name}: what ${quoted(queries, state.query)} reads`));
  } else {
    parts.push(make("h3", `What ${quoted(queries, state.query)} reads; choose another token`));
  }
  const page = textPage ?? pageOf(keys, queries === keys ? state.query : 0);
  if (keys.labels.length > MOST_TOKENS) parts.push(pages(keys, row, page));
  parts.push(tokens(keys, page, (place) => (row ? row[place] : NaN), layer));
  $("text").replaceChildren(...parts);
  $("said").textContent = row
    ? "Heaviest: " + topOf(row, 5).map(([key, weight]) =>
      `${quoted(keys, key)} ${shown(weight)}`).join(" · ")
    : "The page carries no single weights of this head.";
}

// The row that `attend` wrote down of a head whose weights the page does not carry.
async function carried(layer) {
  if (layer.read === null || state.query !== layer.query) return null;
  const count = keysOf(layer).labels.length;
  const codes = await blocksOf(layer.read);
  return Float32Array.from(codes.subarray(state.head * count, (state.head + 1) * count), (code) =>
    blockValue(code, layer.signed, layer.peak));
}

const pageOf = (side, place) => Math.floor(place / MOST_TOKENS);

function pages(side, row, page) {
  const label = make("label", "Part of the text ");
  const list = make("select", null, { id: "part", name: "part" });
  for (let number = 0; number * MOST_TOKENS < side.labels.length; number++) {
    const end = Math.min(side.labels.length, (number + 1) * MOST_TOKENS);
    let share = 0;
    for (let i = number * MOST_TOKENS; row && i < end; i++) share += Math.abs(row[i] || 0);
    const name = `${number * MOST_TOKENS} to ${end - 1}` + (row ? `: ${(100 * share).toFixed(1)} %` : "");
    list.append(make("option", name, { value: number }));
  }
  list.value = page;
  list.addEventListener("change", () => {
    textPage = Number(list.value);
    draw();
  });
  label.append(list);
  return label;
}

function tokens(side, page, weightOf, layer = layerOf()) {
  const spaced = side.labels.some((label) => label.startsWith(" "));
  const holder = make("p", null, { class: spaced ? "tokens" : "tokens apart", dir: "auto" });
  const table = tableOf(layer.signed);
  const end = Math.min(side.labels.length, (page + 1) * MOST_TOKENS);
  const asked = queriesOf(layer) === side;
  for (let place = page * MOST_TOKENS; place < end; place++) {
    const token = tokenOf(side, place);
    token.dataset.place = place;
    const weight = weightOf(place);
    if (!Number.isNaN(weight) && weight !== null) {
      const level = levelOf(weight, scaleOf(layer), layer.signed, layer.peak);
      token.style.backgroundColor = css(table, level);
      token.style.color = inkOn(table, level);
      token.title = `${place}: ${shown(weight)}`;
    }
    if (asked && place === state.query) token.setAttribute("aria-current", "true");
    holder.append(token);
    if (side.breaks && side.breaks.includes(place)) holder.append(make("br"));
  }
  if (asked) {
    holder.addEventListener("click", (event) => {
      const place = event.target.closest("bdi")?.dataset.place;
      if (place !== undefined) choose({ query: Number(place) }, true);
    });
  }
  return holder;
}
