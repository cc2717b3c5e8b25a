// Where every channel is, and what is kept at a threshold. Channels are numbered as in the blocks of numbers: layer by
// layer, K before V, head by head.

export class Channels {
  constructor(layers, columns) {
    this.layers = layers;
    this.columns = columns;
    this.blocks = [];
    let start = 0;
    layers.forEach((layer, position) => {
      for (const kind of ['k', 'v']) {
        const [heads, width] = layer[kind];
        this.blocks.push({ position, layer: layer.index, name: layer.name, kind, heads, width, start });
        start += heads * width;
      }
    });
    this.total = start;
  }

  // The place of channel number i.
  place(i) {
    let low = 0;
    let high = this.blocks.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (this.blocks[middle].start <= i) low = middle;
      else high = middle - 1;
    }
    const block = this.blocks[low];
    const inside = i - block.start;
    return { block, head: Math.floor(inside / block.width), channel: inside % block.width };
  }

  block(position, kind) {
    return this.blocks[2 * position + (kind === 'v' ? 1 : 0)];
  }
}

// Units: what one bit of the mask switches, one channel or several of one importance.
export class Units {
  constructor(channels) {
    const { importance, unit } = channels.columns;
    this.channels = channels;
    this.unitOf = unit ?? null;
    this.members = null;
    if (unit) {
      const number = new Map();
      this.members = [];
      for (let i = 0; i < unit.length; i += 1) {
        if (!number.has(unit[i])) {
          number.set(unit[i], this.members.length);
          this.members.push([]);
        }
        this.members[number.get(unit[i])].push(i);
      }
      this.index = Int32Array.from(unit, (value) => number.get(value));
    }
    this.total = this.members ? this.members.length : channels.total;
    this.importance = this.members
      ? Float32Array.from(this.members, (group) => importance[group[0]])
      : importance;
    this.order = ordered(this.importance); // the least important first
    this.descending = Float32Array.from(this.order, (unit) => this.importance[unit]).reverse();
  }

  // The unit of a channel, and a unit's channels.
  of(i) {
    return this.members ? this.index[i] : i;
  }

  channelsOf(unit) {
    return this.members ? this.members[unit] : [unit];
  }

  // How many units have at least this importance.
  countFrom(threshold) {
    let low = 0;
    let high = this.descending.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.descending[middle] >= threshold) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  // The importance that the wanted number of units reaches; units of equal importance are kept together.
  thresholdFor(wanted) {
    if (wanted <= 0) return Infinity;
    return this.descending[Math.min(wanted, this.total) - 1];
  }

  // 1 for the most important; equal ones share the best rank.
  rank(unit) {
    let low = 0;
    let high = this.descending.length;
    const value = this.importance[unit];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.descending[middle] > value) low = middle + 1;
      else high = middle;
    }
    return low + 1;
  }
}

// Which channels are kept: those of the mask, or all of at least a threshold.
export function keptAt(channels, threshold) {
  if (threshold === null) return channels.columns.kept;
  const { importance } = channels.columns;
  const kept = new Uint8Array(importance.length);
  for (let i = 0; i < importance.length; i += 1) kept[i] = importance[i] >= threshold ? 1 : 0;
  return kept;
}

// Kept channels of every block.
export function countBlocks(channels, kept) {
  return channels.blocks.map(({ start, heads, width }) => {
    let sum = 0;
    for (let i = start; i < start + heads * width; i += 1) sum += kept[i];
    return sum;
  });
}

// The numbers 0, 1, ... by their values, the least first; equal ones by number.
export function ordered(values) {
  return Uint32Array.from(values, (_, i) => i).sort((a, b) => values[a] - values[b] || a - b);
}

// For each channel its rank among those kept or those removed, 0 to 1; equal values share the lowest. order: of values.
export function shades(values, kept, order) {
  const found = new Float32Array(values.length);
  const sizes = [0, 0];
  for (let i = 0; i < kept.length; i += 1) sizes[kept[i]] += 1;
  const [next, rank, former] = [
    [0, 0],
    [0, 0],
    [NaN, NaN],
  ];
  for (const i of order) {
    const side = kept[i];
    if (values[i] !== former[side]) [rank[side], former[side]] = [next[side], values[i]];
    next[side] += 1;
    found[i] = sizes[side] > 1 ? rank[side] / (sizes[side] - 1) : 1;
  }
  return found;
}
