// Scales of colours, in light and dark, and how a weight becomes a place on them.

const scales = {};
for (const theme of ["light", "dark"]) {
  scales[theme] = {};
  for (const kind of ["sequential", "diverging"]) {
    const bytes = bytesOf(facts.scales[theme][kind]);
    const table = new Uint32Array(bytes.length / 3);
    for (let i = 0; i < table.length; i++) {
      const [red, green, blue] = bytes.subarray(3 * i, 3 * i + 3);
      table[i] = ((255 << 24) | (blue << 16) | (green << 8) | red) >>> 0;
    }
    scales[theme][kind] = table;
  }
}

function dark() {
  const forced = document.documentElement.dataset.theme;
  return forced ? forced === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

// Over an image what is large is bright in both themes.
function tableOf(signed, over = false) {
  return scales[dark() || over ? "dark" : "light"][signed ? "diverging" : "sequential"];
}

// A weight's place 0..1: logarithmic above equal weights, as in colours.py; of signed ones by the root.
function levelOf(weight, keys, signed, peak) {
  if (keys === 0) return Math.min(1, Math.max(0, weight)); // a map of the class: as it is
  if (signed) {
    const root = Math.sqrt(Math.min(1, Math.abs(weight) / peak));
    return 0.5 + 0.5 * Math.sign(weight) * root;
  }
  return Math.log1p(Math.min(1, Math.max(0, weight)) * keys) / Math.log1p(keys);
}

function entry(table, level) {
  const last = table.length - 1;
  return Math.min(last, Math.max(0, Math.round(level * last)));
}

// The colours of weights by their root, so that a pixel takes a root and a look-up: 1/8192 of it
// is less than a colour's step at any length.
const ROOTS = 8192;
const byRoot = new Map();
function coloursOf(table, keys, signed) {
  const name = `${signed} ${keys}`;
  if (byRoot.get(name)?.table !== table) {
    const colours = new Uint32Array(2 * ROOTS + 1);
    for (let i = 0; i < colours.length; i++) {
      const root = (i - ROOTS) / ROOTS;
      colours[i] = table[entry(table, levelOf(Math.sign(root) * root * root, keys, signed, 1))];
    }
    byRoot.set(name, { table, colours });
  }
  return byRoot.get(name).colours;
}

function css(table, level) {
  const colour = table[entry(table, level)];
  return `rgb(${colour & 255} ${(colour >> 8) & 255} ${(colour >> 16) & 255})`;
}

// Black or white, whichever is easier to read on the colour (WCAG 2.2, relative luminance).
function inkOn(table, level) {
  const colour = table[entry(table, level)];
  const [red, green, blue] = [0, 8, 16].map((shift) => {
    const part = ((colour >> shift) & 255) / 255;
    return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.179 ? "#000" : "#fff";
}

function variable(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function shown(weight) {
  if (Number.isNaN(weight)) return "not seen";
  if (weight === 0) return "0";
  const size = Math.abs(weight);
  return size >= 0.001 ? weight.toFixed(4) : weight.toExponential(1);
}

// The bar of the scale with its ticks, beside the tools.
function drawBar(keys, signed, peak, over) {
  const canvas = $("bar");
  const [width, height, ratio] = [260, 34, devicePixelRatio || 1];
  canvas.width = width * ratio;
  canvas.height = height * ratio;
  canvas.style.width = width + "px";
  canvas.style.height = height + "px";
  const pen = canvas.getContext("2d");
  pen.scale(ratio, ratio);
  const [left, wide] = [14, width - 28];
  const table = tableOf(signed, over);
  for (let x = 0; x < wide; x++) {
    pen.fillStyle = css(table, x / (wide - 1));
    pen.fillRect(left + x, 2, 1.5, 12);
  }
  pen.strokeStyle = variable("--line");
  pen.strokeRect(left + 0.5, 2.5, wide - 1, 12);
  const evenly = keys === 0 ? [0, 0.5, 1] : [0, 1 / keys, 0.01, 0.1, 1];
  const ticks = signed ? [-peak, 0, peak] : evenly;
  pen.fillStyle = variable("--soft");
  pen.font = "11px system-ui, sans-serif";
  pen.textAlign = "center";
  let last = -Infinity;
  for (const tick of ticks.sort((a, b) => a - b)) {
    const x = left + levelOf(tick, keys, signed, peak) * wide;
    pen.fillRect(x, 14, 1, 4);
    const name = tick === 1 / keys && !signed && keys > 1 ? "1/" + keys : String(+tick.toPrecision(2));
    const half = pen.measureText(name).width / 2;
    if (x - half < last + 4) continue;
    pen.fillText(name, x, 30);
    last = x + half;
  }
  canvas.setAttribute("aria-label", "Scale of colours: " + (signed ? "by the root" : "logarithmic"));
}
