// What the page carries: values as JSON, arrays as deflated base64 that are unpacked when needed.

const $ = (id) => document.getElementById(id);
const facts = JSON.parse($("data").textContent);
const unpacked = new Map();
const MOST_UNPACKED = 24; // heads whose numbers are kept

function bytesOf(text) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text);
  const letters = atob(text);
  const bytes = new Uint8Array(letters.length);
  for (let i = 0; i < letters.length; i++) bytes[i] = letters.charCodeAt(i);
  return bytes;
}

async function inflated(number) {
  const stream = new DecompressionStream("deflate-raw");
  const writer = stream.writable.getWriter(); // a Blob would cost 10 ms more at its first use
  const fed = writer.write(bytesOf($("b" + number).textContent)).then(() => writer.close());
  const [buffer] = await Promise.all([new Response(stream.readable).arrayBuffer(), fed]);
  return buffer;
}

// The weights of a head: `tile` gives those of rows a..b and columns c..d, NaN where a query sees
// nothing. Query t stands at key position keys - queries + t.
class Weights {
  constructor(head) {
    Object.assign(this, head.facts);
    this.offset = this.keys - this.queries;
  }

  // The first key that query t may see by its place, and the end of them.
  span(t) {
    const own = t + this.offset;
    let first = 0;
    let end = this.keys;
    if (this.window !== null) {
      first = Math.max(0, own - this.window + 1);
      end = Math.min(this.keys, own + this.window);
    }
    return [first, this.causal ? own + 1 : end];
  }

  at(t, key) {
    return this.tile(t, t + 1, key, key + 1)[0];
  }

  row(t) {
    return this.tile(t, t + 1, 0, this.keys);
  }
}

class Codes extends Weights {
  static async of(head) {
    const made = new Codes(head);
    made.codes = new Uint8Array(await inflated(head.arrays.codes));
    made.starts = new Float64Array(made.queries + 1);
    for (let t = 0; t < made.queries; t++) {
      const [first, end] = made.span(t);
      made.starts[t + 1] = made.starts[t] + Math.max(0, end - first);
    }
    made.values = new Float32Array(256);
    for (let code = 0; code < 256; code++) {
      const root = made.signed ? (code - 128) / (made.steps ?? 127) : code / (made.steps ?? 255);
      made.values[code] = Math.sign(root) * root * root * made.peak;
    }
    made.cost = 1;
    return made;
  }

  tile(a, b, c, d) {
    const out = new Float32Array((b - a) * (d - c)).fill(NaN);
    for (let t = a; t < b; t++) {
      const [first, end] = this.span(t);
      const from = Math.max(c, first);
      const to = Math.min(d, end);
      const place = this.starts[t] - first;
      const base = (t - a) * (d - c) - c;
      for (let key = from; key < to; key++) {
        out[base + key] = this.values[this.codes[place + key]];
      }
    }
    return out;
  }
}

class Difference extends Weights {
  constructor(head, one, other) {
    super(head);
    Object.assign(this, { one, other, factor: head.factor, signed: true, peak: 1 });
    this.cost = one.cost + other.cost;
  }

  tile(a, b, c, d) {
    const out = this.one.tile(a, b, c, d);
    const less = this.other.tile(a, b, c, d);
    for (let i = 0; i < out.length; i++) out[i] -= this.factor * less[i];
    return out;
  }
}

async function unpack(head) {
  const one = await (head.form === "map" ? Codes : Scores).of(head);
  return head.minus ? new Difference(head, one, await unpack(head.minus)) : one;
}

// The weights of a head, or null where the page carries only its blocks.
function weightsOf(layer, head) {
  const name = layer + "." + head;
  const found = facts.layers[layer].details[head];
  if (!found) return Promise.resolve(null);
  if (!unpacked.has(name)) {
    if (unpacked.size >= MOST_UNPACKED) unpacked.delete(unpacked.keys().next().value);
    unpacked.set(name, unpack(found));
  }
  return unpacked.get(name);
}

// Work for when nothing else is to be done.
const later = (work) => (globalThis.requestIdleCallback ?? ((idle) => setTimeout(idle, 100)))(work);
const idle = () => new Promise((done) => later(done));

// Make ready the heads beside the chosen one, the nearest first, until another is chosen.
let prepared = 0;
async function prepare(layer, head) {
  const turn = ++prepared;
  const beside = [];
  for (let step = 1; step <= 6; step++) beside.push([layer, head + step], [layer, head - step]);
  beside.splice(2, 0, [layer + 1, head], [layer - 1, head]);
  for (const [place, other] of beside) {
    if (!facts.layers[place] || other < 0 || other >= facts.layers[place].heads) continue;
    await idle();
    if (turn !== prepared) return;
    await readyMap(place, other, () => turn === prepared);
  }
}

// Codes of blocks of one layer (heads x rows x columns), 255 where nothing is seen.
const blocksUnpacked = new Map();
function blocksOf(number) {
  if (!blocksUnpacked.has(number)) {
    blocksUnpacked.set(number, inflated(number).then((buffer) => new Uint8Array(buffer)));
  }
  return blocksUnpacked.get(number);
}

function blockValue(code, signed, peak) {
  if (code === 255) return NaN;
  const root = signed ? (code - 127) / 127 : code / 254;
  return Math.sign(root) * root * root * peak;
}
