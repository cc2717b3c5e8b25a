// A diagram of heads and arrows as SVG, which moves and zooms: layers along one side, KV heads along the other.

import { svgElement } from './dom.js';
import { hideTip, showTip } from './tip.js';

const UPRIGHT_BELOW = 560;
const RADIUS = 17;
const EDGE_ROOM = 66; // around the outermost heads, for labels and bent arrows
const MOST_BEND = 46;
const [LEAST_ZOOM, MOST_ZOOM] = [0.5, 12];
const LARGEST = 1.4; // a small circuit is not blown up beyond

export class Diagram {
  // nodes: {name, layer, head, kept: {k, v}}; edges: {name, from, to, kind, score}; describe: the lines of a part;
  // choose: called with the name of a part.
  constructor(place, nodes, edges, { describe, choose }) {
    Object.assign(this, { place, nodes, edges, describe, choose, chosen: null });
    this.layers = [...new Set(nodes.map((node) => node.layer))].sort((a, b) => a - b);
    this.heads = Math.max(...nodes.map((node) => node.head)) + 1;
    this.drawing = svgElement('svg', { class: 'heads' });
    this.groups = new Map();
    place.append(this.drawing);
    this.listen();
    new ResizeObserver(() => this.fit()).observe(place);
    this.fit();
  }

  // Draws anew where the place has another width.
  fit() {
    const width = Math.floor(this.place.clientWidth);
    if (width === this.width || width < 50) return;
    this.width = width;
    this.upright = width < UPRIGHT_BELOW;
    this.arrange();
    this.draw();
    this.reset();
    this.mark(this.chosen);
  }

  // Where heads are. Layers go to the right, or up where there is no room for that.
  arrange() {
    const [along, across] = this.upright ? [42, 84] : [44, 80];
    const [steps, rows] = [this.layers.length - 1, this.heads - 1];
    this.size = this.upright
      ? [rows * across + 2 * EDGE_ROOM, steps * along + 2 * EDGE_ROOM]
      : [steps * along + 2 * EDGE_ROOM, rows * across + 2 * EDGE_ROOM];
    this.spot = (layer, head) => {
      const step = this.layers.indexOf(layer) * along;
      return this.upright
        ? { x: EDGE_ROOM + head * across, y: this.size[1] - EDGE_ROOM - step }
        : { x: EDGE_ROOM + step, y: EDGE_ROOM + head * across };
    };
    for (const node of this.nodes) Object.assign(node, this.spot(node.layer, node.head));
  }

  draw() {
    const [wide, tall] = this.size;
    const needed = tall * Math.min(LARGEST, this.width / wide);
    const height = Math.round(Math.max(220, Math.min(this.upright ? 1000 : 620, needed)));
    const { drawing } = this;
    drawing.setAttribute('width', this.width);
    drawing.setAttribute('height', height);
    this.groups.clear();
    const most = Math.max(1e-9, ...this.edges.map((edge) => edge.score));
    // The strongest on top.
    const arrows = [...this.edges].reverse().map((edge) => this.edgeGroup(edge, edge.score / most));
    const circles = this.nodes.map((node) => this.nodeGroup(node));
    drawing.replaceChildren(...this.labels(), ...arrows, ...circles);
    this.stop(this.nodes[0]);
  }

  labels() {
    const write = (text, x, y, anchor) =>
      svgElement('text', { class: 'quiet', x, y, 'text-anchor': anchor }, text);
    const found = [];
    this.layers.forEach((layer, i) => {
      const { x, y } = this.spot(layer, 0);
      const text = i ? `${layer}` : `layer ${layer}`;
      found.push(
        this.upright
          ? write(text, x - RADIUS - 6, y + 4, 'end')
          : write(text, x, this.size[1] - 14, 'middle'),
      );
    });
    for (let head = 0; head < this.heads; head += 1) {
      const { x, y } = this.spot(this.layers[0], head);
      const text = head ? `${head}` : 'head 0';
      found.push(
        this.upright
          ? write(text, x, this.size[1] - 14, 'middle')
          : write(text, x - RADIUS - 6, y + 4, 'end'),
      );
    }
    return found;
  }

  nodeGroup(node) {
    const { x, y, kept } = node;
    const used = this.edges.some((edge) => edge.from === node || edge.to === node);
    const circle = svgElement('circle', { cx: x, cy: y, r: RADIUS });
    const text = svgElement(
      'text',
      { x, y: y + 4, 'text-anchor': 'middle' },
      `${kept.k.length}, ${kept.v.length}`,
    );
    return this.group(node, `head${used ? '' : ' unused'}`, circle, text);
  }

  edgeGroup(edge, strength) {
    const { from, to } = edge;
    const [dx, dy] = [to.x - from.x, to.y - from.y];
    const length = Math.hypot(dx, dy) || 1;
    const bend = Math.min(MOST_BEND, 0.18 * length) * (from.head <= to.head ? 1 : -1);
    const middle = {
      x: (from.x + to.x) / 2 - (dy / length) * bend,
      y: (from.y + to.y) / 2 + (dx / length) * bend,
    };
    const start = towards(from, middle, RADIUS + 1);
    const tip = towards(to, middle, RADIUS + 2);
    const neck = towards(to, middle, RADIUS + 9);
    const side = { x: ((neck.y - tip.y) / 7) * 4, y: ((tip.x - neck.x) / 7) * 4 };
    const d = `M${at(start)}Q${at(middle)} ${at(neck)}`;
    const corner = (sign) => at({ x: neck.x + sign * side.x, y: neck.y + sign * side.y });
    const head = `M${at(tip)}L${corner(1)}L${corner(-1)}Z`;
    return this.group(
      edge,
      `arrow ${edge.kind}`,
      svgElement('path', { class: 'halo', d }),
      svgElement('path', { class: 'shaft', d, 'stroke-width': (0.8 + 2.6 * strength).toFixed(2) }),
      svgElement('path', { class: 'barb', d: head }),
    );
  }

  group(part, style, ...children) {
    const label = this.describe(part).join('; ');
    const group = svgElement('g', {
      class: style,
      tabindex: -1,
      role: 'button',
      'aria-label': label,
      'data-part': part.name,
    });
    group.append(...children);
    this.groups.set(part.name, group);
    return group;
  }

  // The one head that the Tab key leads to.
  stop(node) {
    for (const one of this.nodes) this.groups.get(one.name).setAttribute('tabindex', one === node ? 0 : -1);
  }

  partOf(event) {
    const name = event.target.closest?.('[data-part]')?.dataset.part;
    return this.nodes.find((one) => one.name === name) ?? this.edges.find((one) => one.name === name) ?? null;
  }

  // What a part has to do with is shown, the rest is dimmed; null shows everything.
  light(part) {
    const near = new Set();
    if (part?.kept) {
      near.add(part);
      for (const edge of this.edges) {
        if (edge.from === part || edge.to === part)
          for (const one of [edge, edge.from, edge.to]) near.add(one);
      }
    } else if (part) {
      for (const one of [part, part.from, part.to]) near.add(one);
    }
    for (const one of [...this.nodes, ...this.edges])
      this.groups.get(one.name).classList.toggle('dim', near.size > 0 && !near.has(one));
  }

  mark(part) {
    this.chosen = part;
    for (const [name, group] of this.groups) {
      group.classList.toggle('chosen', name === part?.name);
      group.setAttribute('aria-pressed', String(name === part?.name));
    }
    this.light(part);
  }

  focus(name) {
    this.groups.get(name)?.focus();
  }

  // --- moving and zooming

  reset() {
    const [wide, tall] = this.size;
    const [width, height] = [this.width, Number(this.drawing.getAttribute('height'))];
    const scale = Math.max(wide / width, tall / height, 1 / LARGEST);
    this.whole = { width: width * scale, height: height * scale };
    this.view = {
      x: (wide - this.whole.width) / 2,
      y: (tall - this.whole.height) / 2,
      ...this.whole,
    };
    this.look();
  }

  look() {
    const { x, y, width, height } = this.view;
    this.drawing.setAttribute('viewBox', [x, y, width, height].map((one) => one.toFixed(2)).join(' '));
  }

  // By a factor, around a point of the drawing, or its middle.
  zoom(factor, around) {
    const { x, y, width, height } = this.view;
    const now = this.whole.width / width;
    const by = Math.max(LEAST_ZOOM, Math.min(MOST_ZOOM, now * factor)) / now;
    const point = around ?? { x: x + width / 2, y: y + height / 2 };
    this.view = {
      x: point.x - (point.x - x) / by,
      y: point.y - (point.y - y) / by,
      width: width / by,
      height: height / by,
    };
    this.look();
  }

  // By shares of what is seen; the drawing stays in sight.
  move(across, down) {
    const { view } = this;
    const [wide, tall] = this.size;
    view.x = Math.max(-0.8 * view.width, Math.min(wide - 0.2 * view.width, view.x + across * view.width));
    view.y = Math.max(-0.8 * view.height, Math.min(tall - 0.2 * view.height, view.y + down * view.height));
    this.look();
  }

  // Moves so that a head is seen.
  reveal({ x, y }) {
    const { view } = this;
    const room = 2 * RADIUS;
    view.x = Math.min(x - room, Math.max(view.x, x + room - view.width));
    view.y = Math.min(y - room, Math.max(view.y, y + room - view.height));
    this.look();
  }

  pointOf(event) {
    const frame = this.drawing.getBoundingClientRect();
    const { x, y, width, height } = this.view;
    return {
      x: x + ((event.clientX - frame.left) / frame.width) * width,
      y: y + ((event.clientY - frame.top) / frame.height) * height,
    };
  }

  tell(part, x, y) {
    this.light(part ?? this.chosen);
    if (part) showTip(this.describe(part), x, y);
    else hideTip();
  }

  listen() {
    const { drawing } = this;
    let held = null;
    let dragged = false; // a click that ends a move chooses nothing
    drawing.addEventListener('pointerdown', (event) => {
      if (event.button === 0) held = { x: event.clientX, y: event.clientY, moved: false };
    });
    drawing.addEventListener('pointerup', () => {
      dragged = Boolean(held?.moved);
      held = null;
    });
    drawing.addEventListener('pointermove', (event) => {
      if (!held) {
        this.tell(this.partOf(event), event.clientX, event.clientY);
        return;
      }
      const [dx, dy] = [event.clientX - held.x, event.clientY - held.y];
      if (!held.moved && Math.hypot(dx, dy) < 4) return;
      if (!held.moved) drawing.setPointerCapture(event.pointerId);
      const frame = drawing.getBoundingClientRect();
      this.move(-dx / frame.width, -dy / frame.height);
      held = { x: event.clientX, y: event.clientY, moved: true };
      hideTip();
    });
    drawing.addEventListener('click', (event) => {
      const part = this.partOf(event);
      if (part && !dragged) this.choose(part.name);
    });
    for (const end of ['pointercancel', 'pointerleave'])
      drawing.addEventListener(end, () => {
        held = null;
        this.tell(null);
      });
    drawing.addEventListener(
      'wheel',
      (event) => {
        if (!event.ctrlKey && !event.metaKey) return; // the page goes on scrolling
        event.preventDefault();
        this.zoom(event.deltaY < 0 ? 1.15 : 1 / 1.15, this.pointOf(event));
      },
      { passive: false },
    );
    drawing.addEventListener('focusin', (event) => {
      const part = this.partOf(event);
      if (!part) return;
      for (const one of part.kept ? [part] : [part.from, part.to]) this.reveal(one);
      const { left, bottom } = this.groups.get(part.name).getBoundingClientRect();
      this.tell(part, left, bottom - 14);
    });
    drawing.addEventListener('focusout', () => this.tell(null));
    drawing.addEventListener('keydown', (event) => this.press(event));
  }

  press(event) {
    const part = this.partOf(event);
    const arrow = /^Arrow(Left|Right|Up|Down)$/.exec(event.key)?.[1];
    const [across, down] = { Left: [-1, 0], Right: [1, 0], Up: [0, -1], Down: [0, 1] }[arrow] ?? [0, 0];
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (arrow && event.shiftKey) this.move(across / 8, down / 8);
    else if (arrow && part?.kept) this.step(part, across, down);
    else if (event.key === '+' || event.key === '=') this.zoom(1.4);
    else if (event.key === '-') this.zoom(1 / 1.4);
    else if (event.key === '0') this.reset();
    else if (part && (event.key === 'Enter' || event.key === ' ')) this.choose(part.name);
    else if (event.key === 'Escape') hideTip();
    else return;
    event.preventDefault();
  }

  // To the nearest head in a direction; what lies aside counts twice.
  step(from, across, down) {
    const ahead = (one) => (one.x - from.x) * across + (one.y - from.y) * down;
    const aside = (one) => Math.abs((one.x - from.x) * down) + Math.abs((one.y - from.y) * across);
    const distance = (one) => ahead(one) + 2 * aside(one);
    const [next] = this.nodes.filter((one) => ahead(one) > 1).sort((a, b) => distance(a) - distance(b));
    if (!next) return;
    this.stop(next);
    this.focus(next.name);
  }
}

function towards(from, to, distance) {
  const length = Math.hypot(to.x - from.x, to.y - from.y) || 1;
  return {
    x: from.x + ((to.x - from.x) / length) * distance,
    y: from.y + ((to.y - from.y) / length) * distance,
  };
}

function at({ x, y }) {
  return `${x.toFixed(1)} ${y.toFixed(1)}`;
}
