// Heads whose weights the page computes itself, of whole numbers for queries and keys.

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
