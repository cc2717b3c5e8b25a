// Charts as SVG: lines with bands and points over one axis, and bars.

import { element, svgElement } from './dom.js';
import { saveFile, svgText } from './export.js';
import { known, shortened } from './format.js';
import { hideTip, showTip } from './tip.js';

const LEGEND_LINE = 16;
const MOST_NAMES = 12;
const MARGIN = { left: 56, right: 16, top: 14, bottom: 40 };

// spec: title, x {label, format, from, to, log}, y {label, format, from, to, within: what is shown at most},
// series [{name, points [{x, y, low, high, text}], dots, line: false for dots alone, style: number of its colour}],
// levels [{y, name}], height. Returns a function that draws another spec at the same place.
export function lineChart(place, spec) {
  return keepDrawn(place, spec, drawLines);
}

// spec: title, y {label}, groups [name], series [{name, style, values}], height. Returns likewise.
export function barChart(place, spec) {
  return keepDrawn(place, spec, drawBars);
}

// Draws at the place's width, and again when that changes.
function keepDrawn(place, spec, draw) {
  const caption = element('figcaption', {}, spec.title);
  const figure = element('figure', {}, caption);
  const save = element('button', { type: 'button', class: 'csv' }, 'SVG of this view');
  let drawing = element('div');
  figure.append(drawing, save);
  place.replaceChildren(figure);
  let [shown, width] = [spec, 0];
  const redraw = () => {
    const next = draw(width, shown);
    drawing.replaceWith(next);
    drawing = next;
  };
  const fit = () => {
    const now = Math.floor(place.clientWidth);
    if (now === width || now < 50) return;
    width = now;
    redraw();
  };
  save.addEventListener('click', () =>
    saveFile(`${shown.title.replaceAll(/[^\w]+/g, '_')}.svg`, 'image/svg+xml', svgText(drawing)),
  );
  new ResizeObserver(fit).observe(place);
  fit();
  return (next) => {
    shown = next;
    caption.textContent = next.title;
    if (width) redraw();
  };
}

// above: lines of a legend, which stand above the drawing's own space.
function frame(width, height, title, above = 0) {
  const drawing = svgElement('svg', {
    width,
    height,
    viewBox: `0 0 ${width} ${height}`,
    role: 'img',
    'aria-label': title,
  });
  return {
    drawing,
    right: width - MARGIN.right,
    top: MARGIN.top + LEGEND_LINE * above,
    bottom: height - MARGIN.bottom,
  };
}

function drawLines(width, { title, x, y, series, levels = [], height = 260 }) {
  const above = series.length > 1 ? Math.min(series.length, MOST_NAMES + 1) : 0;
  const { drawing, right, top, bottom } = frame(width, height + LEGEND_LINE * above, title, above);
  const drawn = series.map((one, number) => ({
    ...one,
    style: `s${(one.style ?? number) % 6}`,
    points: one.points.filter((p) => known(p.x) && known(p.y)),
  }));
  const points = drawn.flatMap((one) => one.points);
  if (!points.length) return drawing;
  const scale = x.log ? Math.log10 : (value) => value;
  const xs = span([...points.map((p) => p.x), x.from, x.to].filter(known).map(scale), x.log ? 0.03 : 0);
  const inside = (value) => Math.max(y.within?.[0] ?? -Infinity, Math.min(y.within?.[1] ?? Infinity, value));
  const ys = span(
    [...points.flatMap((p) => [p.y, p.low, p.high]), ...levels.map((level) => level.y), y.from, y.to]
      .filter(known)
      .map(inside),
    0.06,
  );
  const across = (value) => MARGIN.left + ((scale(value) - xs[0]) / (xs[1] - xs[0])) * (right - MARGIN.left);
  const up = (value) => bottom - ((value - ys[0]) / (ys[1] - ys[0])) * (bottom - top);
  axes(drawing, { right, top, bottom, x: x.log ? { ...x, ticks: powers(xs) } : x, y, xs, ys, across, up });
  // A window of its own cuts off what lies beyond an axis that shows a part only.
  const field = {
    x: MARGIN.left - 6,
    y: top - 6,
    width: right - MARGIN.left + 12,
    height: bottom - top + 12,
  };
  const pane = y.within
    ? svgElement('svg', { ...field, viewBox: Object.values(field).join(' '), overflow: 'hidden' })
    : drawing;
  for (const { y: at, name } of levels.filter((level) => known(level.y))) {
    drawing.append(
      svgElement('line', { class: 'level', x1: MARGIN.left, x2: right, y1: up(at), y2: up(at) }),
    );
    drawing.append(
      svgElement('text', { class: 'quiet', x: right, y: up(at) - 4, 'text-anchor': 'end' }, name),
    );
  }
  drawn.forEach((one) => {
    const band = one.points.filter((p) => known(p.low) && known(p.high));
    if (band.length > 1) {
      const there = band.map((p) => `${across(p.x)} ${up(p.high)}`);
      const back = band.map((p) => `${across(p.x)} ${up(p.low)}`).reverse();
      pane.append(
        svgElement('path', { class: `band ${one.style}`, d: `M${[...there, ...back].join('L')}Z` }),
      );
    }
    const path = one.points.map((p) => `${across(p.x).toFixed(1)} ${up(p.y).toFixed(1)}`).join('L');
    if (one.line !== false) pane.append(svgElement('path', { class: `line ${one.style}`, d: `M${path}` }));
    if (!one.dots) return;
    for (const p of one.points) {
      if (known(p.low) && known(p.high)) {
        pane.append(
          svgElement('line', {
            class: `line ${one.style}`,
            x1: across(p.x),
            x2: across(p.x),
            y1: up(p.low),
            y2: up(p.high),
          }),
        );
      }
      const dot = svgElement('circle', { class: `dot ${one.style}`, cx: across(p.x), cy: up(p.y), r: 4 });
      pane.append(dot);
    }
  });
  if (pane !== drawing) drawing.append(pane);
  if (drawn.length > 1) legend(drawing, drawn, right);
  pointNearest(drawing, drawn, across, up);
  return drawing;
}

function drawBars(width, { title, y, groups, series, height = 200 }) {
  const { drawing, right, top, bottom } = frame(width, height, title);
  const most = Math.max(1, ...series.flatMap((one) => one.values));
  const ys = [0, most * 1.08];
  const up = (value) => bottom - (value / ys[1]) * (bottom - top);
  const slot = (right - MARGIN.left) / groups.length;
  const across = (value) => MARGIN.left + (value + 0.5) * slot;
  const every = Math.max(1, Math.ceil(24 / slot));
  axes(drawing, {
    right,
    top,
    bottom,
    x: { label: 'layer', ticks: [] },
    y,
    xs: [0, groups.length],
    ys,
    across,
    up,
  });
  groups.forEach((name, g) => {
    if (g % every === 0) {
      drawing.append(
        svgElement('text', { class: 'quiet', x: across(g), y: bottom + 16, 'text-anchor': 'middle' }, name),
      );
    }
    series.forEach((one, s) => {
      const wide = Math.max(1, (slot * 0.8) / series.length);
      const left = across(g) - slot * 0.4 + s * wide;
      const bar = svgElement('rect', {
        class: `bar ${one.style}`,
        x: left,
        y: up(one.values[g]),
        width: Math.max(1, wide - 1),
        height: Math.max(0, bottom - up(one.values[g])),
      });
      bar.append(svgElement('title', {}, `${one.name}, layer ${name}: ${one.values[g]}`));
      drawing.append(bar);
    });
  });
  return drawing;
}

function axes(drawing, { right, top, bottom, x, y, xs, ys, across, up }) {
  const write = (text, at) => drawing.append(svgElement('text', { class: 'quiet', ...at }, text));
  for (const value of ticks(ys, 5)) {
    drawing.append(
      svgElement('line', { class: 'grid', x1: MARGIN.left, x2: right, y1: up(value), y2: up(value) }),
    );
    write((y.format ?? tickText)(value), { x: MARGIN.left - 6, y: up(value) + 4, 'text-anchor': 'end' });
  }
  for (const value of x.ticks ?? ticks(xs, Math.max(2, Math.floor((right - MARGIN.left) / 80)))) {
    write((x.format ?? tickText)(value), { x: across(value), y: bottom + 16, 'text-anchor': 'middle' });
  }
  drawing.append(svgElement('line', { class: 'axis', x1: MARGIN.left, x2: right, y1: bottom, y2: bottom }));
  write(x.label, { x: (MARGIN.left + right) / 2, y: bottom + 34, 'text-anchor': 'middle' });
  const middle = (top + bottom) / 2;
  write(y.label, { x: 12, y: middle, 'text-anchor': 'middle', transform: `rotate(-90 12 ${middle})` });
}

function legend(drawing, series, right) {
  const hidden = series.length - MOST_NAMES;
  series.slice(0, MOST_NAMES).forEach(({ name, style, line }, i) => {
    const y = 8 + LEGEND_LINE * i;
    drawing.append(
      line === false
        ? svgElement('circle', { class: `dot mark ${style}`, cx: MARGIN.left + 13, cy: y, r: 4 })
        : svgElement('line', { class: `line ${style}`, x1: MARGIN.left, x2: MARGIN.left + 26, y1: y, y2: y }),
    );
    drawing.append(
      svgElement(
        'text',
        { class: 'legend', x: MARGIN.left + 32, y: y + 4 },
        shortened(name, (right - MARGIN.left - 50) / 6.2),
      ),
    );
  });
  if (hidden <= 0) return;
  const rest = `and ${hidden} more: point at a line to read its name`;
  drawing.append(
    svgElement('text', { class: 'legend', x: MARGIN.left + 32, y: 12 + LEGEND_LINE * MOST_NAMES }, rest),
  );
}

function pointNearest(drawing, series, across, up) {
  drawing.addEventListener('pointermove', (event) => {
    const place = drawing.getBoundingClientRect();
    const [px, py] = [event.clientX - place.left, event.clientY - place.top];
    let best = null;
    let least = 900;
    for (const one of series) {
      for (const p of one.points) {
        const distance = (across(p.x) - px) ** 2 + (up(p.y) - py) ** 2;
        if (distance < least) [least, best] = [distance, { one, p }];
      }
    }
    if (best)
      showTip(
        [best.one.name, ...(best.p.text ?? [`${tickText(best.p.x)}: ${tickText(best.p.y)}`])],
        event.clientX,
        event.clientY,
      );
    else hideTip();
  });
  drawing.addEventListener('pointerleave', hideTip);
}

export function span(values, margin = 0) {
  const finite = values.filter(known);
  const low = Math.min(...finite);
  const high = Math.max(...finite);
  const room = (high - low || Math.abs(high) || 1) * margin;
  const around = room || Math.abs(high) * 0.02 || 0.5; // so little that a share does not seem to go beyond 1
  return low === high ? [low - around, high + around] : [low - (low === 0 ? 0 : room), high + room];
}

export function ticks([low, high], wanted) {
  const rough = (high - low) / wanted;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((one) => one * power).find((one) => one >= rough * 0.999);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i += 1) found.push(i * step);
  return found;
}

// 1, 2, 5, 10, ... between two logarithms.
function powers([low, high]) {
  const found = [];
  for (let power = Math.floor(low); power <= high; power += 1)
    found.push(...[1, 2, 5].map((one) => one * 10 ** power));
  const seen = found.filter((value) => Math.log10(value) >= low && Math.log10(value) <= high);
  return seen.length > 8 ? seen.filter((value) => /^[1]/.test(value.toExponential())) : seen;
}

function tickText(value) {
  return String(Number(value.toPrecision(4)));
}
