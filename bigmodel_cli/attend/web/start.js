// The start: what is built once, and what the page listens to.

function buildTabs() {
  for (const [name, title] of VIEWS) {
    const tab = make("button", title, {
      type: "button", role: "tab", id: "tab-" + name, "aria-controls": "panel" });
    tab.addEventListener("click", () => choose({ view: name }));
    $("tabs").append(tab);
  }
}

function start() {
  $("model").textContent = facts.model;
  $("facts").textContent = facts.facts;
  $("caution").textContent = facts.caution;
  for (const note of facts.notes) $("notes").append(make("p", note));
  buildTabs();
  buildHelp();
  buildLegend();
  buildOverview();
  listenToMap();
  $("theme").addEventListener("click", turnTheme);
  $("sink").addEventListener("change", () => choose({ sink: $("sink").checked }));
  $("mode").addEventListener("change", () => choose({ mode: $("mode").value }));
  $("in").addEventListener("click", () => zoom(1.5));
  $("out").addEventListener("click", () => zoom(1 / 1.5));
  $("all").addEventListener("click", wholeMap);
  document.addEventListener("keydown", pressed);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", themed);
  let waiting = 0;
  addEventListener("resize", () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => { buildOverview(); drawThumbnails(); draw(); }, 80);
  });
  Object.assign(state, facts.start);
  $("theme").textContent = dark() ? "Light" : "Dark";
  $("overview").hidden = facts.layers.length === 0;
  choose({});
  later(drawThumbnails);
}

// For a console, and for tests.
globalThis.attend = { facts, state, choose, weights: weightsOf, view, patches: () => patches };
start();
