// The start: what is built once, and what the page listens to.

function buildTabs() {
  for (const [name, title] of VIEWS) {
    const tab = make("button", title, {
      type: "button", role: "tab", id: "tab-" + name, "aria-controls": "panel" });
    tab.addEventListener("click", () => choose({ view: name }));
    $("tabs").append(tab);
  }
}

// A page without heads: beside its views stand the notes, if there are any.
function onlyNotes() {
  $("overview-title").textContent = "Notes";
  $("frame").hidden = true;
  $("overview").hidden = facts.notes.length === 0;
}

function start() {
  $("model").textContent = facts.model;
  $("facts").textContent = facts.facts;
  $("caution").textContent = facts.caution;
  show("caution", facts.caution !== "");
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
  if (facts.layers.every(isMap)) onlyNotes();
  choose({});
  later(drawThumbnails);
}

// For a console, and for tests.
globalThis.attend = {
  facts, state, choose, weights: weightsOf, view, patches: () => patches,
  drawing: () => drawing,
};
start();
