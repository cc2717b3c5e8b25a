// Any two of a page's masks: over each other, side by side, and their curves.

import { Channels } from './channels.js';
import { lineChart } from './chart.js';
import { byId, onTheme, setOptions } from './dom.js';
import { saveFile, svgText } from './export.js';
import { count, fixed, percent, withError } from './format.js';
import { ChannelMap, listenTo } from './map.js';
import { hideTip, showTip } from './tip.js';

export const MASK_STATE = { first: '', second: '', rows: 'number' };

// curvePoints: called with the name of a curve, gives its points {x: sparsity, y: KL, low, high, text}.
export function showMasks(info, columns, state, curvePoints) {
  const { entries, layouts } = info;
  const names = entries.map(({ key, name }) => [key, name]);
  for (const id of ['first', 'second']) setOptions(byId(id), names);
  setOptions(byId('rows'), [
    ['number', 'by layer and head'],
    ['difference', 'by difference'],
    ['kept', 'by kept share'],
  ]);
  for (const id of ['first', 'second', 'rows']) {
    byId(id).addEventListener('change', () => state.set({ [id]: byId(id).value }));
  }
  const places = layouts.map((layers) => new Channels(layers, {}));
  const usual = { first: entries[0], second: entries[1] ?? entries[0] };
  const entry = (id) => entries.find(({ key }) => key === state.get(id)) ?? usual[id];
  let maps = [];
  const charts = {};

  function share(one, i) {
    return columns[one.column][i] / one.runs;
  }

  function describe(channels, i) {
    const { block, head, channel } = channels.place(i);
    const lines = [`layer ${block.layer} · KV head ${head} · ${block.kind.toUpperCase()} channel ${channel}`];
    for (const one of [entry('first'), entry('second')]) {
      if (places[one.layout] !== channels) continue;
      const kept = columns[one.column][i];
      const words = one.runs > 1 ? `kept by ${kept} of ${one.runs} runs` : kept ? 'kept' : 'removed';
      lines.push(`${one.name}: ${words}`);
    }
    return lines;
  }

  function makeMap(name, channels, paint, titles) {
    const old = byId(`${name}-canvas`);
    const canvas = old.cloneNode();
    old.replaceWith(canvas);
    const map = new ChannelMap(canvas, byId(`${name}-frame`), channels);
    map.paint = paint;
    map.titles = titles;
    const order = rowOrder(channels);
    map.arrange(order, null);
    map.readColours();
    map.draw();
    const point = (i, x, y) => (i === null ? hideTip() : showTip(describe(channels, i), x, y));
    listenTo(map, point, () => {});
    return map;
  }

  // What rows are sorted by; both masks have the same order where their shapes are the same.
  function rowOrder(channels) {
    const chosen = state.get('rows');
    if (chosen !== 'difference' && chosen !== 'kept') return null;
    const shown = [entry('first'), entry('second')].filter((one) => places[one.layout] === channels);
    const value = (i) => {
      const shares = shown.map((one) => share(one, i));
      return chosen === 'kept' ? Math.max(...shares) : Math.abs(shares[0] - shares[shares.length - 1]);
    };
    return ({ position, head }) => {
      let sum = 0;
      for (const kind of ['k', 'v']) {
        const block = channels.block(position, kind);
        if (head >= block.heads) continue;
        for (let c = 0; c < block.width; c += 1) sum += value(block.start + head * block.width + c);
      }
      return sum;
    };
  }

  function draw() {
    const [first, second] = [entry('first'), entry('second')];
    byId('rows').value = state.get('rows');
    byId('first').value = first.key;
    byId('second').value = second.key;
    byId('first-title').textContent = first.name;
    byId('second-title').textContent = second.name;
    maps = [];
    const same = first.layout === second.layout;
    byId('map-frame').hidden = !same;
    byId('map-svg').disabled = !same;
    if (same) {
      const channels = places[first.layout];
      const keeps = (one, i) => share(one, i) >= 0.5;
      const paint = (i) => ['dcba'[2 * keeps(first, i) + keeps(second, i)], 1];
      const numbers = { both: 0, first: 0, second: 0 };
      for (let i = 0; i < channels.total; i += 1) {
        const [a, b] = [keeps(first, i), keeps(second, i)];
        if (a && b) numbers.both += 1;
        else if (a) numbers.first += 1;
        else if (b) numbers.second += 1;
      }
      const either = numbers.both + numbers.first + numbers.second;
      const shared = fixed(either ? numbers.both / either : NaN, 3);
      byId('recount').textContent =
        `Both keep ${count(numbers.both)} of ${count(channels.total)} channels, only the first ` +
        `${count(numbers.first)}, only the second ${count(numbers.second)}: ${shared} of what either keeps is ` +
        'shared (IoU).';
      // 'd' neither, 'c' only the second, 'b' only the first, 'a' both
      maps.push(makeMap('map', channels, paint, { k: 'K', v: 'V' }));
    } else {
      byId('recount').textContent =
        'The two models have different shapes, so channels cannot be laid over each other.';
    }
    // Each by itself in its colour of the map above: 'k' is blue, 'v' orange.
    for (const [name, one, palette] of [
      ['first', first, 'k'],
      ['second', second, 'v'],
    ]) {
      const kept = columns[one.column];
      const paint = (i) => (kept[i] ? [palette, one.runs > 1 ? share(one, i) : 0.5] : ['r', 0]);
      maps.push(makeMap(name, places[one.layout], paint, { k: 'K', v: 'V' }));
    }
    drawPair(first === second ? [first] : [first, second]);
  }

  // The curves of both in the colours of the map: blue for the first, orange for the second.
  function drawPair(chosen) {
    const series = chosen.flatMap((one, style) => {
      const own = one.points.map((point) => ({
        x: point.sparsity,
        y: point.kl,
        text: [`sparsity ${percent(point.sparsity, 2)}`, `KL ${withError(point.kl, point.error)}`],
      }));
      const curve = curvePoints(one.curve);
      const alone = curve.length < 2 || (style && one.curve === chosen[0].curve);
      return [
        ...(alone ? [] : [{ name: `curve of ${one.curve}`, style, points: curve }]),
        { name: one.name, style, points: own, dots: true, line: false },
      ];
    });
    chartAt('pair-kl', {
      title: 'KL against sparsity of the two',
      x: { label: 'sparsity [fraction of units removed]' },
      y: { label: 'KL [nats/token]' },
      series,
    });
    const learned = chosen.map((one, style) => ({
      name: one.name,
      style,
      points: one.learning.map(({ step, mean, min, max, size }) => ({
        x: step,
        y: mean,
        low: size > 1 ? min : null,
        high: size > 1 ? max : null,
        text: [`step ${count(step)}`, size > 1 ? `mean ${fixed(mean)} of ${size} runs` : fixed(mean)],
      })),
    }));
    const objectives = [...new Set(chosen.flatMap((one) => one.objectives))];
    chartAt('pair-learning', {
      title: 'Objective on calibration data while the two were learned',
      x: { label: 'step' },
      y: { label: `${objectives.length === 1 ? objectives[0] : 'objective'} [nats/token]` },
      series: learned.filter(({ points }) => points.length),
    });
  }

  function chartAt(id, spec) {
    byId(id).hidden = !spec.series.some(({ points }) => points.length);
    if (charts[id]) charts[id](spec);
    else charts[id] = lineChart(byId(id), spec);
  }

  byId('map-svg').addEventListener('click', () => {
    saveFile('masks.svg', 'image/svg+xml', svgText(maps[0].svg()));
  });
  if (!entries.length) {
    byId('masks').hidden = true;
    return;
  }
  draw();
  state.onChange((keys) => {
    if (['first', 'second', 'rows'].some((key) => keys.has(key))) draw();
  });
  const redraw = () => {
    for (const map of maps) {
      map.readColours();
      map.draw();
    }
  };
  onTheme(redraw);
  new ResizeObserver(redraw).observe(byId('masks'));
}
