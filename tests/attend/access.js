// What a page's present view has against being used by all, as a list of sentences.
(() => {
  const faults = [];
  const seen = (x) => x.checkVisibility() && !x.closest("[aria-hidden=true]");
  const all = (selector) => Array.from(document.querySelectorAll(selector)).filter(seen);
  const tell = (what, x) => faults.push(what + ": " + x.outerHTML.slice(0, 120));
  const byId = (id) => document.getElementById(id);
  const labelOf = (x) => x.labels?.[0]?.textContent.trim() || byId(x.getAttribute("aria-labelledby"));
  const nameOf = (x) => x.getAttribute("aria-label") || x.textContent.trim() || labelOf(x);

  const named = "button, input, select, dialog, section, [role=img], [role=grid], [role=tabpanel]";
  for (const x of all(named)) if (!nameOf(x)) tell("no name", x);
  for (const x of all("th")) if (!x.scope) tell("no scope", x);
  for (const x of all("table")) if (!x.caption?.textContent) tell("no caption", x);
  for (const x of all("[role=row]")) if (!x.closest("[role=grid]")) tell("a row outside of a grid", x);
  for (const x of all("[role=tab]")) if (!byId(x.getAttribute("aria-controls"))) tell("no panel", x);
  const ids = Array.from(document.querySelectorAll("[id]"), (x) => x.id);
  if (new Set(ids).size !== ids.length) faults.push("an id comes twice");
  for (const x of all("*")) {
    const scrolls = /auto|scroll/.test(getComputedStyle(x).overflowY) && x.scrollHeight > x.clientHeight + 1;
    const reached = x.tabIndex >= 0 || x.querySelector("button, [tabindex], select, input");
    if (scrolls && !reached) tell("scrolls by the pointer alone", x);
  }

  // WCAG 2.2, 1.4.3: text on the nearest ground that has a colour.
  const part = (x) => (x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
  const light = ([red, green, blue]) =>
    0.2126 * part(red / 255) + 0.7152 * part(green / 255) + 0.0722 * part(blue / 255);
  const colour = (text) => (text.match(/[\d.]+/g) || []).map(Number);
  const ground = (x) => {
    for (let y = x; y; y = y.parentElement) {
      const found = colour(getComputedStyle(y).backgroundColor);
      if (found.length === 3 || found[3] === 1) return found;
    }
    return [255, 255, 255];
  };
  for (const x of all("body *")) {
    const own = Array.from(x.childNodes).some((n) => n.nodeType === 3 && n.data.trim());
    if (!own || x.closest(".unseen")) continue;
    const style = getComputedStyle(x);
    const ink = light(colour(x.closest("svg") ? style.fill : style.color));
    const back = light(ground(x));
    if ((Math.max(ink, back) + 0.05) / (Math.min(ink, back) + 0.05) < 4.5) tell("contrast", x);
  }
  return faults;
})();
