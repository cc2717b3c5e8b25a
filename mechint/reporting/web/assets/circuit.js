// The circuit of a task: its curve, the diagram of its heads, and how they attend.

import { showAttention } from './attention.js';
import { lineChart } from './chart.js';
import { Diagram } from './diagram.js';
import { byId, element } from './dom.js';
import { saveFile, svgText } from './export.js';
import { count, fixed, known, percent } from './format.js';

export const CIRCUIT_STATE = { part: '', prompt: '0', head: '0' };

const READERS = { k: 'kept keys', q: 'queries for kept keys', v: 'kept values' };
const [MOST_TOLD, MOST_CHANNELS] = [8, 24]; // of a head's kept channels, beside the pointer and in the card

// open: called with the number of a channel, to show its card.
export function showCircuit(info, channels, state, open) {
  const { circuit, noun } = info;
  drawCurve(circuit.curve);
  showAttention(circuit.examples, state);
  if (!byId('diagram') || !circuit.nodes.length) return;
  const median = known(circuit.chance) ? `; median of all pairs ${fixed(circuit.chance)}` : '';
  const heads = circuit.nodes.map(([layer, head]) => ({ name: `h.${layer}.${head}`, layer, head }));
  const nodes = new Map(heads.map((one) => [one.name, { ...one, kept: keptOf(channels, one) }]));
  const edges = circuit.edges.map(([layer, head, toLayer, toHead, kind, score]) => ({
    name: `e.${layer}.${head}.${toLayer}.${toHead}.${kind}`,
    from: nodes.get(`h.${layer}.${head}`),
    to: nodes.get(`h.${toLayer}.${toHead}`),
    kind,
    score,
  }));
  const diagram = new Diagram(byId('diagram'), [...nodes.values()], edges, {
    describe,
    choose: (name) => state.set({ part: state.get('part') === name ? '' : name }),
  });
  const rows = [...document.querySelectorAll('table[data-name=edges] tbody tr')];
  for (const row of rows) row.addEventListener('click', () => state.set({ part: row.dataset.part }));

  function describe(part) {
    if (part.kept) {
      const { k, v } = part.kept;
      const uses = edges.filter((edge) => edge.from === part || edge.to === part).length;
      return [
        title(part),
        `keeps ${count(k.length)} K ${noun}s${numbers(k)}`,
        `keeps ${count(v.length)} V ${noun}s${numbers(v)}`,
        `${uses} of the strongest arrows begin or end here`,
      ];
    }
    return [
      `${title(part.from)} → ${title(part.to)}`,
      `what its kept values write is read by ${READERS[part.kind]}`,
      `composition score ${fixed(part.score)}${median}`,
    ];
  }

  function numbers(kept) {
    const shown = kept.slice(0, MOST_TOLD).map((i) => channels.place(i).channel);
    return shown.length ? `: ${shown.join(', ')}${kept.length > MOST_TOLD ? ', …' : ''}` : '';
  }

  function drawPart() {
    const name = state.get('part');
    const part = nodes.get(name) ?? edges.find((edge) => edge.name === name);
    diagram.mark(part ?? null);
    for (const row of rows) row.classList.toggle('chosen', row.dataset.part === name);
    if (!part) {
      const hint = 'Click a head or an arrow to read about it here.';
      byId('part').replaceChildren(element('p', { class: 'note' }, hint));
      return;
    }
    const [heading, ...blocks] = part.kept ? nodeCard(part) : edgeCard(part);
    const parts = blocks.map((block) => element('div', {}, ...block));
    byId('part').replaceChildren(closing(), heading, element('div', { class: 'parts' }, ...parts));
  }

  function closing() {
    const close = element('button', { type: 'button', class: 'close', 'aria-label': 'Close' }, '×');
    close.addEventListener('click', () => {
      const name = state.get('part');
      state.set({ part: '' });
      diagram.focus(name);
    });
    return close;
  }

  function nodeCard(node) {
    const arrows = (wanted, other) => {
      const found = edges.filter((edge) => edge[wanted] === node);
      const items = found.map((edge) =>
        element(
          'li',
          {},
          link(`${title(edge[other])}, ${fixed(edge.score, 3)}`, () => state.set({ part: edge.name })),
          ` by ${READERS[edge.kind]}`,
        ),
      );
      return items.length
        ? element('ul', {}, ...items)
        : element('p', { class: 'note' }, 'none of the strongest arrows');
    };
    return [
      element('h3', {}, title(node)),
      keptList(node, 'k'),
      keptList(node, 'v'),
      [element('h4', {}, 'Reads what these write'), arrows('to', 'from')],
      [element('h4', {}, 'Is read by'), arrows('from', 'to')],
    ];
  }

  function edgeCard(edge) {
    const to = (node) =>
      element(
        'p',
        {},
        link(title(node), () => state.set({ part: node.name })),
      );
    return [
      element('h3', {}, `Composition score ${fixed(edge.score)}${median}`),
      [element('h4', {}, 'Writes'), to(edge.from), ...keptList(edge.from, 'v')],
      [
        element('h4', {}, `Reads, by ${READERS[edge.kind]}`),
        to(edge.to),
        ...keptList(edge.to, edge.kind === 'v' ? 'v' : 'k'),
      ],
    ];
  }

  // A head's kept channels; each opens its own card.
  function keptList(node, kind) {
    const kept = node.kept[kind];
    const shown = kept
      .slice(0, MOST_CHANNELS)
      .flatMap((i, n) => [n ? ', ' : '', link(String(channels.place(i).channel), () => open(i))]);
    const rest = kept.length > MOST_CHANNELS ? ` and ${count(kept.length - MOST_CHANNELS)} more` : '';
    return [
      element('h4', {}, `Kept ${kind.toUpperCase()} ${noun}s: ${count(kept.length)}`),
      kept.length ? element('p', { class: 'links' }, ...shown, rest) : null,
    ].filter(Boolean);
  }

  byId('zoom-in').addEventListener('click', () => diagram.zoom(1.4));
  byId('zoom-out').addEventListener('click', () => diagram.zoom(1 / 1.4));
  byId('zoom-reset').addEventListener('click', () => diagram.reset());
  byId('diagram-svg').addEventListener('click', () =>
    saveFile('circuit.svg', 'image/svg+xml', svgText(diagram.drawing)),
  );
  drawPart();
  state.onChange((keys) => {
    if (keys.has('part')) drawPart();
  });
}

function title({ layer, head }) {
  return `layer ${layer}, KV head ${head}`;
}

function link(text, act) {
  const button = element('button', { type: 'button', class: 'link' }, text);
  button.addEventListener('click', act);
  return button;
}

// The channels of a head that the run's mask keeps, by kind.
function keptOf(channels, { layer, head }) {
  const position = channels.layers.findIndex((one) => one.index === layer);
  const of = (kind) => {
    const { start, width } = channels.block(position, kind);
    const all = Array.from({ length: width }, (_, c) => start + head * width + c);
    return all.filter((i) => channels.columns.kept[i]);
  };
  return { k: of('k'), v: of('v') };
}

function drawCurve(curve) {
  const place = byId('circuit-chart');
  if (!place) return;
  const series = [
    ['faithfulness', 'kept units (faithfulness)'],
    ['completeness', 'all other units (completeness)'],
  ].map(([name, words]) => ({
    name: words,
    dots: true,
    points: curve
      .filter((point) => point.kept)
      .map((point) => ({
        x: point.kept,
        ...point[name],
        text: [`${count(point.kept)} units kept (${percent(point.share)})`, `${name} ${spread(point[name])}`],
      })),
  }));
  lineChart(place, {
    title: 'Faithfulness of the logit difference, with 95 % intervals over prompts',
    x: { label: 'units kept (logarithmic)', log: true, format: count },
    y: { label: 'faithfulness', within: [-1, 2] },
    levels: [
      { y: 1, name: 'dense' },
      { y: 0, name: 'empty' },
    ],
    series,
    height: 300,
  });
}

function spread({ y, low, high }) {
  return known(low) && known(high) ? `${fixed(y, 3)} (${fixed(low, 3)} to ${fixed(high, 3)})` : fixed(y, 3);
}
