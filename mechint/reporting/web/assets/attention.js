// How heads attend on prompts, in the dense and in the masked model: a row per token, a cell per token it looks at.

import { byId, element, setOptions, svgElement } from './dom.js';
import { saveFile, svgText } from './export.js';
import { fixed, shortened } from './format.js';
import { hideTip, showTip } from './tip.js';

const SIDES = ['dense', 'masked'];
const PARTS = 10000; // weights come as whole numbers of so many parts
const LONGEST = 12; // characters of a token on an axis
const [LEAST_CELL, MOST_CELL] = [5, 24];
const LABEL_CELL = 10; // smaller cells have no room for a label each

export function showAttention(examples, state) {
  if (!byId('attention-dense')) return;
  setOptions(
    byId('prompt'),
    examples.map(({ tokens }, i) => [String(i), `${i + 1}: ${shortened(tokens.join(''), 48)}`]),
  );
  setOptions(
    byId('head'),
    examples[0].patterns.map(({ layer, head }, i) => [String(i), `layer ${layer}, query head ${head}`]),
  );
  for (const id of ['prompt', 'head'])
    byId(id).addEventListener('change', () => state.set({ [id]: byId(id).value }));
  let drawings = [];
  let width = 0;

  function draw() {
    const example = examples[Number(state.get('prompt'))] ?? examples[0];
    const pattern = example.patterns[Number(state.get('head'))] ?? example.patterns[0];
    byId('prompt').value = String(examples.indexOf(example));
    byId('head').value = String(example.patterns.indexOf(pattern));
    drawings = SIDES.map((side) => grid(width, example.tokens, pattern, side));
    SIDES.forEach((side, i) => {
      byId(`attention-${side}`).replaceChildren(drawings[i].drawing);
      byId(`attention-${side}-head`).textContent = `, layer ${pattern.layer}, query head ${pattern.head}`;
    });
    for (const { drawing, at, size } of drawings) listen(drawing, at, size, example.tokens, pattern);
  }

  function listen(drawing, at, size, tokens, pattern) {
    let place = null;
    const point = (next, x, y) => {
      place = next;
      for (const one of drawings) one.outline(next);
      if (!next) {
        hideTip();
        return;
      }
      const [row, column] = next;
      const lines = SIDES.map((side) => `${side} ${fixed(pattern[side][row][column] / PARTS)}`);
      showTip([`${quoted(tokens[row])} attends to ${quoted(tokens[column])}`, ...lines], x, y);
    };
    drawing.addEventListener('pointermove', (event) => {
      const frame = drawing.getBoundingClientRect();
      const scale = size.width / frame.width;
      point(
        at((event.clientX - frame.left) * scale, (event.clientY - frame.top) * scale),
        event.clientX,
        event.clientY,
      );
    });
    drawing.addEventListener('pointerleave', () => point(null));
    drawing.addEventListener('blur', () => point(null));
    drawing.addEventListener('keydown', (event) => {
      const [down, right] =
        { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key] ?? [];
      if (event.key === 'Escape') point(null);
      if (down === undefined) return;
      event.preventDefault();
      const last = tokens.length - 1;
      const row = place ? Math.max(0, Math.min(last, place[0] + down)) : last;
      const column = Math.max(0, Math.min(row, place ? place[1] + right : 0));
      const frame = drawing.getBoundingClientRect();
      const { x, y } = at.corner(row, column);
      point([row, column], frame.left + x, frame.top + y);
    });
  }

  const fit = () => {
    const now = Math.floor(byId('attention-dense').clientWidth);
    if (now === width || now < 50) return;
    width = now;
    draw();
  };
  new ResizeObserver(fit).observe(byId('attention-dense'));
  fit();
  state.onChange((keys) => {
    if (keys.has('prompt') || keys.has('head')) draw();
  });
  byId('attention-svg').addEventListener('click', () =>
    saveFile('attention.svg', 'image/svg+xml', svgText(both(drawings))),
  );
}

function grid(room, tokens, pattern, side) {
  const names = tokens.map((token) => shortened(visible(token), LONGEST));
  const label = 14 + 6.2 * Math.max(...names.map((name) => name.length));
  const cell = Math.max(LEAST_CELL, Math.min(MOST_CELL, Math.floor((room - label - 4) / tokens.length)));
  const length = cell * tokens.length;
  const size = { width: label + length + 4, height: label + length + 4 };
  const whose = `layer ${pattern.layer}, query head ${pattern.head}`;
  const drawing = svgElement('svg', {
    ...size,
    viewBox: `0 0 ${size.width} ${size.height}`,
    tabindex: 0,
    role: 'img',
    'aria-label': `Attention of ${whose}, ${side} model; arrow keys read the weights`,
  });
  const every = Math.ceil(LABEL_CELL / cell);
  names.forEach((name, i) => {
    if (i % every) return;
    const middle = label + (i + 0.5) * cell;
    drawing.append(
      svgElement('text', { class: 'quiet', x: label - 5, y: middle + 4, 'text-anchor': 'end' }, name),
    );
    const turn = `rotate(-90 ${middle + 4} ${label - 5})`;
    drawing.append(
      svgElement('text', { class: 'quiet', x: middle + 4, y: label - 5, transform: turn }, name),
    );
  });
  const back = tokens.map(
    (_, row) => `M${label} ${label + row * cell}h${(row + 1) * cell}v${cell}h-${(row + 1) * cell}z`,
  );
  drawing.append(svgElement('path', { class: 'ground', d: back.join('') }));
  pattern[side].forEach((weights, row) =>
    weights.forEach((parts, column) => {
      const weight = parts / PARTS;
      if (weight < 0.005) return; // not to be told from none
      const place = { x: label + column * cell, y: label + row * cell };
      drawing.append(
        svgElement('rect', {
          class: 'weight',
          ...place,
          width: cell,
          height: cell,
          opacity: weight.toFixed(3),
        }),
      );
    }),
  );
  const mark = svgElement('rect', { class: 'cursor', width: cell, height: cell, visibility: 'hidden' });
  drawing.append(mark);
  const at = (x, y) => {
    const [row, column] = [Math.floor((y - label) / cell), Math.floor((x - label) / cell)];
    return row >= 0 && row < tokens.length && column >= 0 && column <= row ? [row, column] : null;
  };
  at.corner = (row, column) => ({ x: label + column * cell, y: label + row * cell });
  const outline = (next) => {
    mark.setAttribute('visibility', next ? 'visible' : 'hidden');
    if (!next) return;
    const { x, y } = at.corner(...next);
    mark.setAttribute('x', x);
    mark.setAttribute('y', y);
  };
  return { drawing, at, outline, size };
}

// Both pictures as one drawing.
function both(drawings) {
  const gap = 30;
  const [left, right] = drawings.map(({ drawing }) => drawing);
  const { width, height } = drawings[0].size;
  const whole = svgElement('svg', { width: 2 * width + gap, height: height + 20 });
  [left, right].forEach((drawing, i) => {
    const title = svgElement(
      'text',
      { x: i * (width + gap), y: 14, 'font-size': 13, fill: 'currentColor' },
      SIDES[i],
    );
    const group = svgElement('g', { transform: `translate(${i * (width + gap)} 20)` });
    group.append(...[...drawing.cloneNode(true).childNodes]);
    whole.append(title, group);
  });
  const frame = element('figure', { class: 'aside' }, whole);
  document.body.append(frame); // styles are only known of what is in the page
  setTimeout(() => frame.remove());
  return whole;
}

function visible(token) {
  return token.replaceAll('\n', '⏎').trim() || '·';
}

function quoted(token) {
  return `“${token.replaceAll('\n', '⏎')}”`;
}
