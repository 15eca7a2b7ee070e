// Further views: sentences, tables, shades, lines and times, of what was found beside the heads.

const FORMS = {
  sentences: sentencesOf, table: tableOfSection, shades: shadesOf, lines: chartsOf, timeline: timelineOf,
};

function drawFurther(view) {
  const parts = view.sections.map((section, number) =>
    FORMS[section.form](section, `${view.name}-${number}`));
  const top = $("table").dataset.view === view.name ? $("table").scrollTop : 0;
  $("table").replaceChildren(...parts);
  $("table").dataset.view = view.name;
  $("table").scrollTop = top;
  $("said").textContent = view.ofHeads ? "The chosen head is marked; choose another among all heads, or here." : "";
}

// A word or a token, isolated; one of nothing but blanks is made visible.
function wordOf(text) {
  return make("bdi", text.trim() ? text : text.replaceAll(" ", "\u2423"), { class: "token" });
}

function sentencesOf(section) {
  const holder = make("div", null, { class: "sentences" });
  for (const line of section.lines) {
    const paragraph = make("p");
    paragraph.append(make("bdi", line));
    holder.append(paragraph);
  }
  return holder;
}

function tableOfSection(section, name) {
  const columns = section.columns.map((column, place) => ({
    title: column.title, meaning: column.meaning, downFirst: column.kind === "number",
    of: (row) => sortKey(column.kind, row[place]), cell: (row) => cellOf(column.kind, row[place]),
  }));
  const place = section.columns.findIndex((column) => column.kind === "head");
  const isHead = (row) => place >= 0 && row[place];
  return sortedTable(name, section.caption, columns, section.rows, {
    marked: (row) => isHead(row) && row[place][0] === state.layer && row[place][1] === state.head,
    choice: (row) => (isHead(row) ? { layer: row[place][0], head: row[place][1] } : null),
  });
}

function sortKey(kind, value) {
  if (value === null) return null;
  if (kind === "head") return value[0] * 1e6 + value[1];
  if (kind === "pairs") return value.length ? value[0][0] : null;
  return value;
}

function cellOf(kind, value) {
  if (value === null) return "\u2013";
  if (kind === "head") return headCell(value);
  if (kind === "text") return wordOf(value);
  if (kind === "number") return figure(value);
  const holder = make("span", null, { class: "pairs" });
  for (const [text, share] of value) {
    const pair = make("span");
    pair.append(wordOf(text));
    pair.append(make("span", ` ${(100 * share).toFixed(0)} %`, { class: "figure" }));
    holder.append(pair);
  }
  return holder;
}

// A head by its name, as a button, so that the keyboard chooses it too.
function headCell([place, head]) {
  const holder = make("span");
  const button = make("button", `${numberOf(place)}.${head}`, { type: "button", class: "plain" });
  button.setAttribute("aria-label", `Head ${button.textContent}`);
  holder.append(button);
  const letter = facts.layers[place]?.letters[head];
  if (facts.classes[letter]) holder.append(" ", classCell(letter));
  return holder;
}

// A table whose cells are coloured by a share of the section's largest.
function shadesOf(section) {
  const table = make("table", null, { class: "shades" });
  table.append(make("caption", section.caption), make("thead"), make("tbody"));
  const head = make("tr");
  head.append(make("th", section.corner, { scope: "col" }));
  for (const name of section.columns) {
    const cell = make("th", null, { scope: "col" });
    cell.append(wordOf(name));
    head.append(cell);
  }
  table.tHead.append(head);
  section.rows.forEach((name, row) => table.tBodies[0].append(shadedRow(section, name, row)));
  const holder = make("div", null, { class: "wide", tabindex: "0", role: "group" });
  holder.setAttribute("aria-label", section.caption);
  holder.append(table);
  return holder;
}

function shadedRow(section, name, row) {
  const line = make("tr");
  const head = make("th", null, { scope: "row" });
  head.append(wordOf(name));
  line.append(head);
  const table = tableOf(false);
  section.values[row].forEach((value, column) => {
    const cell = make("td");
    const text = section.texts ? section.texts[row][column] : shareName(value);
    cell.append(wordOf(text));
    if (value !== null) {
      const level = clamp(value / section.most, 0, 1);
      cell.style.backgroundColor = css(table, level);
      cell.style.color = inkOn(table, level);
      cell.title = `${section.columns[column]}: ${figure(value)}`;
      if (section.texts) cell.append(make("span", ` ${shareName(value)}`, { class: "unseen" }));
    }
    line.append(cell);
  });
  return line;
}

const shareName = (value) => (value === null ? "" : `${(100 * value).toFixed(value < 0.0995 ? 1 : 0)} %`);
