// Lines over steps as small charts, and words over a recording's seconds; tables say the same.

const SVG = $("drawing").namespaceURI; // its name is an address, and the page has none
const CHART = { width: 380, height: 200, left: 56, right: 12, top: 10, bottom: 26 };
const MOST_WORDS = 400; // that are drawn; the table has all

function drawn_(tag, attributes, text) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

function chartsOf(section, name) {
  const holder = make("div");
  const charts = make("div", null, { class: "charts" });
  for (const panel of section.panels) charts.append(chartOf(section, panel));
  holder.append(make("h3", section.caption), charts, tableOfSteps(section, name));
  return holder;
}

const isChosen = (series) => series.head !== null && series.head[0] === state.layer && series.head[1] === state.head;

function chartOf(section, panel) {
  const figureOf = make("figure");
  figureOf.append(make("figcaption", panel.title));
  const { width, height, left, right, top, bottom } = CHART;
  const svg = drawn_("svg", { viewBox: `0 0 ${width} ${height}`, role: "img" });
  const [low, high] = [panel.low, panel.high > panel.low ? panel.high : panel.low + 1];
  const [start, end] = [section.steps[0], section.steps.at(-1)];
  const x = (step) => left + ((step - start) / (end - start || 1)) * (width - left - right);
  const y = (value) => height - bottom - ((value - low) / (high - low)) * (height - top - bottom);
  for (const tick of [low, (low + high) / 2, high]) {
    svg.append(drawn_("line", { x1: left, x2: width - right, y1: y(tick), y2: y(tick), class: "rule" }));
    svg.append(drawn_("text", { x: left - 6, y: y(tick) + 4, "text-anchor": "end" }, brief(tick)));
  }
  for (const [step, anchor] of [[start, "start"], [end, "end"]]) {
    svg.append(drawn_("text", { x: x(step), y: height - 6, "text-anchor": anchor }, brief(step)));
  }
  svg.append(drawn_("text", { x: (left + width) / 2, y: height - 6, "text-anchor": "middle" }, section.across));
  const chosen = panel.series.filter((series) => series.head === null || isChosen(series));
  for (const series of panel.series) if (!chosen.includes(series)) svg.append(lineOf(section, series, x, y, "curve"));
  chosen.forEach((series, number) => svg.append(lineOf(section, series, x, y, `curve chosen dash${number}`)));
  svg.setAttribute("aria-label", `${panel.title}: ${chosen.map((series) => chartName(section, series)).join("; ")}`);
  figureOf.append(svg);
  if (chosen.length > 1) figureOf.append(legendOf(chosen));
  return figureOf;
}

// What is read out: a line's first and last value.
function chartName(section, series) {
  const known = series.values.filter((value) => value !== null);
  return `${series.name} from ${figure(known[0])} to ${figure(known.at(-1))}`;
}

function legendOf(chosen) {
  const list = make("ul", null, { class: "legend" });
  chosen.forEach((series, number) => {
    const item = make("li");
    const svg = drawn_("svg", { viewBox: "0 0 26 8", width: 26, height: 8, "aria-hidden": "true" });
    svg.append(drawn_("line", { x1: 0, x2: 26, y1: 4, y2: 4, class: `curve chosen dash${number}` }));
    item.append(svg, make("span", " " + series.name));
    list.append(item);
  });
  return list;
}

function lineOf(section, series, x, y, kind) {
  let path = "";
  let pen = "M";
  series.values.forEach((value, place) => {
    if (value === null) pen = "M";
    else {
      path += `${pen}${x(section.steps[place]).toFixed(1)} ${y(value).toFixed(1)}`;
      pen = "L";
    }
  });
  const line = drawn_("path", { d: path, class: kind });
  line.append(drawn_("title", {}, series.name));
  if (series.head !== null) {
    line.addEventListener("click", () => choose({ layer: series.head[0], head: series.head[1] }, true));
  }
  return line;
}

const brief = (value) => (Math.abs(value) >= 1000 ? String(Math.round(value)) : String(+value.toPrecision(3)));

// The same as figures: of each chart its one line, or that of the chosen head.
function tableOfSteps(section, name) {
  const shown = section.panels.flatMap((panel) => panel.series
    .filter((series) => series.head === null || isChosen(series))
    .map((series) => [panel.series.length > 1 && series.head === null ? series.name : panel.title, series]));
  const columns = [{ title: section.across, of: (row) => section.steps[row], cell: (row) => figure(section.steps[row]) }];
  for (const [title, series] of shown) {
    columns.push({ title, of: (row) => series.values[row], cell: (row) => figure(series.values[row]), downFirst: true });
  }
  const caption = facts.layers.length && section.panels.some((panel) => panel.series[0].head)
    ? `${described()}: its values` : section.caption;
  return sortedTable(name, caption, columns, section.steps.map((_, place) => place));
}

// Words, each from when to when it is said, one below the other.
function timelineOf(section) {
  const words = section.words.slice(0, MOST_WORDS);
  const end = Math.max(0.01, ...words.map(([, , to]) => to));
  const [width, row, top] = [760, 22, 24];
  const height = top + words.length * row + 6;
  const x = (second) => 10 + (second / end) * (width - 190);
  const svg = drawn_("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", class: "timeline" });
  svg.setAttribute("aria-label", `${section.caption}: ${words.length} words in ${figure(end)} seconds`);
  for (const tick of secondsOf(end)) {
    svg.append(drawn_("line", { x1: x(tick), x2: x(tick), y1: top - 6, y2: height, class: "rule" }));
    svg.append(drawn_("text", { x: x(tick), y: top - 10, "text-anchor": "middle" }, brief(tick)));
  }
  words.forEach(([word, from, to], number) => {
    const y = top + number * row;
    const wide = Math.max(2, x(to) - x(from));
    svg.append(drawn_("rect", { x: x(from), y: y + 3, width: wide, height: row - 8, rx: 2, class: "word" }));
    svg.append(drawn_("text", { x: x(to) + 6, y: y + 15 }, isolated(word.slice(0, 40))));
  });
  const holder = make("div");
  holder.append(make("h3", section.caption), svg);
  if (section.words.length > MOST_WORDS) holder.append(make("p", `The first ${MOST_WORDS} of ${section.words.length} words.`));
  return holder;
}

function secondsOf(end) {
  const step = [0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 300].find((size) => end / size <= 12) ?? end / 10;
  return Array.from({ length: Math.floor(end / step + 1e-9) + 1 }, (_, place) => +(place * step).toFixed(2));
}
