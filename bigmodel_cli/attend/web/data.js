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
  const packed = bytesOf($("b" + number).textContent);
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
  return new Response(stream).arrayBuffer();
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
      const root = made.signed ? (code - 128) / 127 : code / 255;
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

class Scores extends Weights {
  static async of(head) {
    const made = new Scores(head);
    const names = Object.keys(head.arrays);
    const arrays = await Promise.all(names.map((name) => inflated(head.arrays[name])));
    const found = Object.fromEntries(names.map((name, i) => [name, arrays[i]]));
    const steps = new Float32Array(found.steps);
    made.q = whole(new Uint8Array(found.q), made.queries, made.channels, steps);
    made.k = whole(new Uint8Array(found.k), made.keys, made.channels, null);
    made.sums = Float32Array.from(joined(new Uint8Array(found.sums), made.queries, 3), (sum) =>
      ((sum << 8) >> 8) * made.sum_step);
    made.addSingles(new Int32Array(found.counts), found.places, found.values);
    made.bias = found.bias ? new Float32Array(found.bias) : null;
    made.segments = found.segments ? new Int32Array(found.segments) : null;
    made.mask = found.key_mask ? new Uint8Array(found.key_mask) : null;
    made.cost = made.channels;
    return made;
  }

  // Large weights, which are carried one by one: those of query t are starts[t] to starts[t + 1].
  addSingles(counts, places, values) {
    this.starts = new Int32Array(counts.length + 1);
    counts.forEach((count, t) => { this.starts[t + 1] = this.starts[t] + count; });
    const all = this.starts[counts.length];
    this.places = joined(new Uint8Array(places), all, 3);
    this.values = Float32Array.from(joined(new Uint8Array(values), all, 2), (x) => x / 65535);
  }

  tile(a, b, c, d) {
    const width = d - c;
    const out = new Float32Array((b - a) * width).fill(NaN);
    for (let t = a; t < b; t++) {
      const [first, end] = this.span(t);
      const [from, to] = [Math.max(c, first), Math.min(d, end)];
      const base = (t - a) * width - c;
      if (from < to) this.scores(out, base, t, from, to);
      for (let i = this.starts[t]; i < this.starts[t + 1]; i++) {
        const key = this.places[i];
        if (key >= from && key < to) out[base + key] = this.values[i];
      }
    }
    return out;
  }

  // Weights of query t and the keys `from` to `to`, into `out` from `base` on.
  scores(out, base, t, from, to) {
    const { segments, mask, bias, softcap, offset } = this;
    const sum = this.sums[t];
    products(out, base, this.q, t * this.channels, this.k, from, to, this.channels);
    if (softcap !== null) {
      for (let key = from; key < to; key++) {
        out[base + key] = softcap * Math.tanh(out[base + key] / softcap);
      }
    }
    const shift = this.queries - 1 - t;
    for (let key = from; key < to; key++) {
      const hidden = (segments !== null && segments[key] !== segments[t + offset])
        || (mask !== null && mask[key] === 0);
      const score = out[base + key] + (bias === null ? 0 : bias[key + shift]);
      out[base + key] = hidden ? NaN : Math.exp(score - sum);
    }
  }
}

// Scores of one query with the keys `from` to `to`: four keys at a time, the fastest in V8.
function products(out, base, q, row, k, from, to, channels) {
  let key = from;
  for (; key + 3 < to; key += 4) {
    const place = key * channels;
    const [second, third, fourth] = [place + channels, place + 2 * channels, place + 3 * channels];
    let one = 0, two = 0, three = 0, four = 0;
    for (let i = 0; i < channels; i++) {
      const x = q[row + i];
      one += x * k[place + i];
      two += x * k[second + i];
      three += x * k[third + i];
      four += x * k[fourth + i];
    }
    out[base + key] = one;
    out[base + key + 1] = two;
    out[base + key + 2] = three;
    out[base + key + 3] = four;
  }
  for (; key < to; key++) {
    let one = 0;
    for (let i = 0; i < channels; i++) one += q[row + i] * k[key * channels + i];
    out[base + key] = one;
  }
}

// Whole numbers from their lowest bytes, then the next ones.
function joined(bytes, count, parts) {
  const out = new Int32Array(count);
  for (let part = 0; part < parts; part++) {
    for (let i = 0; i < count; i++) out[i] += bytes[part * count + i] << (8 * part);
  }
  return out;
}

// (positions x channels) from such bytes, channel by channel, of signed numbers.
function whole(bytes, count, channels, steps) {
  const out = new Float32Array(count * channels);
  const folded = joined(bytes, count * channels, 2);
  for (let channel = 0; channel < channels; channel++) {
    const step = steps === null ? 1 : steps[channel];
    for (let place = 0; place < count; place++) {
      const number = folded[channel * count + place];
      out[place * channels + channel] = (number & 1 ? -((number + 1) >> 1) : number >> 1) * step;
    }
  }
  return out;
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

// Unpack the heads beside the chosen one while nothing else is to be done.
function prepare(layer, head) {
  const later = globalThis.requestIdleCallback ?? ((work) => setTimeout(work, 200));
  const count = facts.layers[layer].heads;
  later(() => {
    for (const other of [(head + 1) % count, (head + count - 1) % count]) weightsOf(layer, other);
  });
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
