// Tables that are sorted by a click on a heading, of which long ones are shown in parts.

const MOST_ROWS = 250;
const orders = new Map(); // by the table's name: the column, whether down, the part shown

// `columns` have a title, a meaning, `of(row)` to sort by and `cell(row)`, a node or text;
// `marked(row)` tells the chosen one, and `choice(row)` what a click on a row changes.
function sortedTable(name, caption, columns, rows, { marked = () => false, choice = null } = {}) {
  if (!orders.has(name)) orders.set(name, { column: null, down: false, part: 0 });
  const order = orders.get(name);
  const shown = order.column === null ? [...rows] : inOrder(rows, columns[order.column].of, order.down);
  const table = make("table", null, { class: "figures" });
  table.append(make("caption", caption), make("thead"), make("tbody"));
  const head = make("tr");
  const holder = make("div", null, { class: "sorted" });
  const again = () => holder.replaceWith(sortedTable(name, caption, columns, rows, { marked, choice }));
  columns.forEach((column, number) => head.append(heading(name, column, number, order, again)));
  table.tHead.append(head);
  const first = clamp(order.part, 0, Math.floor((rows.length - 1) / MOST_ROWS)) * MOST_ROWS;
  for (const row of shown.slice(first, first + MOST_ROWS)) {
    table.tBodies[0].append(rowOf(columns, row, marked, choice));
  }
  if (rows.length > MOST_ROWS) holder.append(selectPart(name, rows.length, order, again));
  holder.append(table);
  return holder;
}

function inOrder(rows, of, down) {
  return [...rows].sort((one, other) => (down ? -1 : 1) * compared(of(one), of(other), down));
}

// Missing values last, whichever way.
function compared(one, other, down) {
  if (one === other) return 0;
  if (one === null || other === null) return (one === null ? 1 : -1) * (down ? -1 : 1);
  return one < other ? -1 : 1;
}

function heading(name, column, number, order, again) {
  const way = order.down ? "descending" : "ascending";
  const sort = number === order.column ? way : "none";
  const holder = make("th", null, { scope: "col", "aria-sort": sort });
  const button = make("button", null, { type: "button", id: `sort-${name}-${number}` });
  button.append(wordOf(column.title));
  if (column.meaning) button.title = column.meaning;
  button.addEventListener("click", () => {
    order.down = number === order.column ? !order.down : Boolean(column.downFirst);
    order.column = number;
    again();
    $(button.id).focus();
  });
  holder.append(button);
  return holder;
}

function rowOf(columns, row, marked, choice) {
  const line = make("tr");
  if (marked(row)) line.setAttribute("aria-current", "true");
  columns.forEach((column, number) => {
    const cell = number === 0 ? make("th", null, { scope: "row" }) : make("td");
    cell.append(column.cell(row));
    line.append(cell);
  });
  if (choice && choice(row)) {
    line.classList.add("choice");
    line.addEventListener("click", () => choose(choice(row), true));
  }
  return line;
}

function selectPart(name, count, order, again) {
  const label = make("label", "Rows ");
  const list = make("select", null, { id: `part-${name}` });
  for (let part = 0; part * MOST_ROWS < count; part++) {
    const end = Math.min(count, (part + 1) * MOST_ROWS);
    list.append(make("option", `${part * MOST_ROWS + 1} to ${end} of ${count}`, { value: part }));
  }
  list.value = order.part;
  list.addEventListener("change", () => {
    order.part = Number(list.value);
    again();
    $(list.id).focus();
  });
  label.append(list);
  return label;
}
