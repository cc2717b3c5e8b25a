// The map of all channels on one canvas: K and V side by side (one above the other where there is no room), a row per
// KV head, a cell per channel.

import { svgElement, themeColour } from './dom.js';

const GUTTER = 44;
const GAP = 26;
const TITLE = 22;
const NARROW = 640;

export class ChannelMap {
  constructor(canvas, frame, channels) {
    this.canvas = canvas;
    this.frame = frame;
    this.channels = channels;
    this.rows = [];
    channels.layers.forEach((layer, position) => {
      for (let head = 0; head < Math.max(layer.k[0], layer.v[0]); head += 1)
        this.rows.push({ position, head });
    });
    this.wide = Math.max(...channels.blocks.map((block) => block.width));
    this.byLayer = true;
    this.selected = -1;
    this.cursor = null;
    this.palettes = {};
    this.paint = () => ['r', 0];
    this.titles = { k: 'K', v: 'V' };
    this.arrange(null, null);
  }

  // rowValue, cellValue: what rows and a row's cells are sorted by, the highest first; null for their numbers.
  arrange(rowValue, cellValue) {
    const { channels, rows, wide } = this;
    this.byLayer = rowValue === null;
    this.order = rows.map((_, i) => i);
    if (rowValue) this.order.sort((a, b) => rowValue(rows[b]) - rowValue(rows[a]) || a - b);
    this.slots = {};
    this.placeOf = new Int32Array(channels.total);
    for (const kind of ['k', 'v']) {
      const slots = new Int32Array(rows.length * wide).fill(-1);
      this.order.forEach((index, r) => {
        const block = channels.block(rows[index].position, kind);
        if (rows[index].head >= block.heads) return;
        const first = block.start + rows[index].head * block.width;
        const cells = Array.from({ length: block.width }, (_, c) => first + c);
        if (cellValue) cells.sort((a, b) => cellValue(b) - cellValue(a) || a - b);
        cells.forEach((i, c) => {
          slots[r * wide + c] = i;
          this.placeOf[i] = r * wide + c;
        });
      });
      this.slots[kind] = slots;
    }
  }

  // Reads the colours of the style; each palette has 256 steps between three colours.
  readColours() {
    for (const name of ['k', 'v', 'r', 'a', 'b', 'c', 'd']) {
      const stops = [0, 1, 2].map((i) => rgb(themeColour(`${name}${i}`) || themeColour(`${name}0`)));
      this.palettes[name] = Uint32Array.from({ length: 256 }, (_, step) =>
        packed(between(stops, step / 255)),
      );
    }
    this.ink = themeColour('ink');
    this.quiet = themeColour('quiet');
    this.ground = themeColour('ground');
  }

  measure() {
    const { rows, wide } = this;
    const width = Math.max(200, this.frame.clientWidth);
    this.stacked = width < NARROW;
    const room = this.stacked ? width - GUTTER - 2 : (width - GUTTER - GAP - 2) / 2;
    this.cell = Math.max(1, Math.min(16, Math.floor(room / wide)));
    this.tall = Math.max(2, Math.min(16, Math.floor(560 / rows.length)));
    const heads = rows.length / this.channels.layers.length;
    const gap = this.byLayer && heads > 1 ? Math.max(1, Math.min(6, this.tall / 2)) : 0;
    this.tops = new Float64Array(rows.length + 1);
    let top = 0;
    this.order.forEach((index, r) => {
      if (this.byLayer && r && rows[index].position !== rows[this.order[r - 1]].position) top += gap;
      this.tops[r] = top;
      top += this.tall;
    });
    this.tops[rows.length] = top;
    this.panels = {
      k: { x: GUTTER, y: TITLE },
      v: this.stacked
        ? { x: GUTTER, y: 2 * TITLE + top + 10 }
        : { x: GUTTER + wide * this.cell + GAP, y: TITLE },
    };
    this.width = this.panels.v.x + wide * this.cell + 2;
    this.height = this.panels.v.y + top + 2;
  }

  draw() {
    this.measure();
    const { canvas, width, height } = this;
    const ratio = Math.max(1, window.devicePixelRatio || 1);
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    canvas.style.width = `${width}px`;
    canvas.style.height = `${height}px`;
    const pen = canvas.getContext('2d');
    pen.scale(ratio, ratio);
    pen.imageSmoothingEnabled = false;
    for (const kind of ['k', 'v']) this.drawPanel(pen, kind);
    if (this.selected >= 0) this.outline(pen, this.selected, 2);
    if (this.cursor !== null) this.outline(pen, this.cursor, 1);
  }

  colours(kind) {
    const slots = this.slots[kind];
    const found = new Uint32Array(slots.length);
    for (let s = 0; s < slots.length; s += 1) {
      if (slots[s] < 0) continue;
      const [palette, level] = this.paint(slots[s], kind);
      found[s] = this.palettes[palette][Math.max(0, Math.min(255, Math.round(255 * level)))];
    }
    return found;
  }

  drawPanel(pen, kind) {
    const { x, y } = this.panels[kind];
    const { wide, rows, cell, tall } = this;
    const image = new ImageData(new Uint8ClampedArray(this.colours(kind).buffer), wide, rows.length);
    const small = document.createElement('canvas');
    small.width = wide;
    small.height = rows.length;
    small.getContext('2d').putImageData(image, 0, 0);
    for (let r = 0; r < rows.length; r += 1) {
      pen.drawImage(small, 0, r, wide, 1, x, y + this.tops[r], wide * cell, tall);
    }
    pen.fillStyle = this.ground;
    if (cell >= 5)
      for (let c = 1; c < wide; c += 1) pen.fillRect(x + c * cell - 0.5, y, 1, this.tops[rows.length]);
    if (tall >= 5)
      for (let r = 1; r < rows.length; r += 1) pen.fillRect(x, y + this.tops[r] - 0.5, wide * cell, 1);
    pen.font = '600 13px system-ui, sans-serif';
    pen.fillStyle = this.ink;
    pen.fillText(this.titles[kind], x, y - 7);
    pen.font = '11px system-ui, sans-serif';
    pen.fillStyle = this.quiet;
    if (kind === 'k' || this.stacked) {
      pen.textAlign = 'right';
      for (const { text, middle } of this.labels()) pen.fillText(text, x - 6, y + middle + 4);
      pen.textAlign = 'left';
    }
  }

  // What stands before the rows: layers, or layer and head where rows are sorted; so many that they do not touch.
  labels() {
    const found = [];
    let last = -Infinity;
    const add = (text, middle) => {
      if (middle - last < 12) return;
      found.push({ text, middle });
      last = middle;
    };
    this.order.forEach((index, r) => {
      const { position, head } = this.rows[index];
      const layer = this.channels.layers[position];
      if (!this.byLayer) add(`${layer.index}.${head}`, this.tops[r] + this.tall / 2);
      else if (head === 0) {
        const heads = Math.max(layer.k[0], layer.v[0]);
        add(
          found.length ? `${layer.index}` : `layer ${layer.index}`,
          (this.tops[r] + this.tops[r + heads - 1] + this.tall) / 2,
        );
      }
    });
    return found;
  }

  kindOf(i) {
    return this.channels.place(i).block.kind;
  }

  box(i) {
    const kind = this.kindOf(i);
    const place = this.placeOf[i];
    const { x, y } = this.panels[kind];
    const r = Math.floor(place / this.wide);
    return {
      x: x + (place % this.wide) * this.cell,
      y: y + this.tops[r],
      width: this.cell,
      height: this.tall,
    };
  }

  outline(pen, i, weight) {
    const { x, y, width, height } = this.box(i);
    pen.strokeStyle = this.ground;
    pen.lineWidth = weight + 3;
    pen.strokeRect(x - 1, y - 1, width + 2, height + 2);
    pen.strokeStyle = this.ink;
    pen.lineWidth = weight;
    pen.strokeRect(x - 1, y - 1, width + 2, height + 2);
  }

  // The channel at a point of the canvas, in its CSS pixels; -1 where there is none.
  at(px, py) {
    for (const kind of ['k', 'v']) {
      const { x, y } = this.panels[kind];
      const c = Math.floor((px - x) / this.cell);
      const down = py - y;
      if (c < 0 || c >= this.wide || down < 0 || down >= this.tops[this.rows.length]) continue;
      let low = 0;
      let high = this.rows.length - 1;
      while (low < high) {
        const middle = (low + high + 1) >> 1;
        if (this.tops[middle] <= down) low = middle;
        else high = middle - 1;
      }
      return down < this.tops[low] + this.tall ? this.slots[kind][low * this.wide + c] : -1;
    }
    return -1;
  }

  // The channel that an arrow key leads to.
  step(i, key) {
    const kind = this.kindOf(i);
    const place = this.placeOf[i];
    const r = Math.floor(place / this.wide);
    const c = place % this.wide;
    const slot = (of, row, column) => this.slots[of][row * this.wide + column] ?? -1;
    const last = (of, row) => {
      let column = this.wide - 1;
      while (column > 0 && slot(of, row, column) < 0) column -= 1;
      return column;
    };
    let next = i;
    if (key === 'ArrowUp' && r > 0) next = slot(kind, r - 1, Math.min(c, last(kind, r - 1)));
    if (key === 'ArrowDown' && r < this.rows.length - 1)
      next = slot(kind, r + 1, Math.min(c, last(kind, r + 1)));
    if (key === 'ArrowLeft')
      next = c > 0 ? slot(kind, r, c - 1) : kind === 'v' ? slot('k', r, last('k', r)) : i;
    if (key === 'ArrowRight')
      next = c < last(kind, r) ? slot(kind, r, c + 1) : kind === 'k' ? slot('v', r, 0) : i;
    if (key === 'Home') next = slot(kind, r, 0);
    if (key === 'End') next = slot(kind, r, last(kind, r));
    return next < 0 ? i : next;
  }

  // The view as vectors: one path per colour.
  svg() {
    const drawing = svgElement('svg', {
      width: this.width,
      height: this.height,
      viewBox: `0 0 ${this.width} ${this.height}`,
    });
    for (const kind of ['k', 'v']) {
      const { x, y } = this.panels[kind];
      const paths = new Map();
      this.colours(kind).forEach((colour, place) => {
        if (!colour) return;
        const left = x + (place % this.wide) * this.cell;
        const top = y + this.tops[Math.floor(place / this.wide)];
        if (!paths.has(colour)) paths.set(colour, []);
        paths.get(colour).push(`M${left} ${top}h${this.cell}v${this.tall}h-${this.cell}z`);
      });
      for (const [colour, steps] of paths)
        drawing.append(svgElement('path', { d: steps.join(''), fill: hex(colour) }));
      drawing.append(
        svgElement(
          'text',
          { x, y: y - 7, fill: this.ink, 'font-size': 13, 'font-weight': 600 },
          this.titles[kind],
        ),
      );
      if (kind === 'v' && !this.stacked) continue;
      for (const { text, middle } of this.labels()) {
        drawing.append(
          svgElement(
            'text',
            { x: x - 6, y: y + middle + 4, fill: this.quiet, 'font-size': 11, 'text-anchor': 'end' },
            text,
          ),
        );
      }
    }
    return drawing;
  }
}

function rgb(text) {
  const digits = text.replace('#', '');
  return [0, 2, 4].map((i) => parseInt(digits.slice(i, i + 2), 16) || 0);
}

function between(stops, level) {
  const [from, to] = level < 0.5 ? [stops[0], stops[1]] : [stops[1], stops[2]];
  const share = level < 0.5 ? 2 * level : 2 * level - 1;
  return from.map((value, i) => Math.round(value + (to[i] - value) * share));
}

function packed([red, green, blue]) {
  return ((255 << 24) | (blue << 16) | (green << 8) | red) >>> 0;
}

function hex(colour) {
  const parts = [colour & 255, (colour >> 8) & 255, (colour >> 16) & 255];
  return `#${parts.map((part) => part.toString(16).padStart(2, '0')).join('')}`;
}

// Pointing, clicking and arrow keys. point: called with a channel and a place of the window, or null; choose: likewise.
export function listenTo(map, point, choose) {
  const { canvas } = map;
  const under = (event) => {
    const frame = canvas.getBoundingClientRect();
    return map.at(event.clientX - frame.left, event.clientY - frame.top);
  };
  canvas.addEventListener('pointermove', (event) => {
    const i = under(event);
    canvas.style.cursor = i < 0 ? 'default' : 'pointer';
    point(i < 0 ? null : i, event.clientX, event.clientY);
  });
  canvas.addEventListener('pointerleave', () => point(null));
  canvas.addEventListener('click', (event) => {
    const i = under(event);
    if (i >= 0) choose(i);
  });
  canvas.addEventListener('keydown', (event) => {
    if (event.key === 'Escape') point(null);
    if ((event.key === 'Enter' || event.key === ' ') && map.cursor !== null) {
      event.preventDefault();
      choose(map.cursor);
    }
    if (!/^(Arrow(Up|Down|Left|Right)|Home|End)$/.test(event.key)) return;
    event.preventDefault();
    map.cursor = map.cursor === null ? Math.max(0, map.selected) : map.step(map.cursor, event.key);
    map.draw();
    const frame = canvas.getBoundingClientRect();
    const { x, y } = map.box(map.cursor);
    point(map.cursor, frame.left + x, frame.top + y);
  });
  canvas.addEventListener('blur', () => {
    map.cursor = null;
    map.draw();
    point(null);
  });
}
