// The page of a tree of runs.

import { lineChart } from './chart.js';
import { readPage } from './data.js';
import { byId, setOptions } from './dom.js';
import { count, fixed, known, percent, signed } from './format.js';
import { MASK_STATE, showMasks } from './masks.js';
import { State } from './state.js';
import { enhanceTables } from './tables.js';

const NUMBERS = [
  ['kl', 'KL [nats/token]'],
  ['loss', 'loss [nats/token]'],
  ['faithfulness', 'faithfulness'],
  ['top1_agreement', 'top-1 agreement'],
  ['loss_degradation_percent', 'loss degradation [%]'],
];
const AGAINST = [
  ['sparsity', 'sparsity [fraction of units removed]'],
  ['kv_bytes_per_token', 'cache [bytes/token]'],
];

function studyPage() {
  const { info, columns } = readPage();
  const measured = NUMBERS.filter(([name]) => info.points.some((point) => known(point[name])));
  const state = new State({
    ...MASK_STATE,
    number: measured.length ? measured[0][0] : '',
    against: 'sparsity',
    reference: '0',
    sort: '',
    find: '',
  });
  setOptions(byId('number'), measured);
  setOptions(byId('against'), AGAINST);
  setOptions(
    byId('reference'),
    info.groups.map((name, i) => [String(i), name]),
  );
  for (const id of ['number', 'against', 'reference']) {
    byId(id).addEventListener('change', () => state.set({ [id]: byId(id).value }));
  }
  const rows = [...document.querySelectorAll('table[data-name=runs] tbody tr')];
  let pareto = null;

  function pointsOf(group, number, against) {
    const found = info.points.filter((point) => point.group === group);
    return found.map((point) => studyPoint(point, number, against));
  }

  function drawStudy() {
    const [number, title] = measured.find(([name]) => name === state.get('number')) ??
      measured[0] ?? ['', ''];
    const [against, label] = AGAINST.find(([name]) => name === state.get('against')) ?? AGAINST[0];
    const series = info.groups.map((name) => ({
      name,
      dots: true,
      points: pointsOf(name, number, against),
    }));
    const spec = {
      title: `${title} against ${label}`,
      x: { label },
      y: { label: title },
      series,
      height: 340,
    };
    if (pareto) pareto(spec);
    else pareto = lineChart(byId('pareto'), spec);
  }

  function showDifferences() {
    const reference = info.groups[Number(state.get('reference'))] ?? info.groups[0];
    rows.forEach((row, i) => {
      const run = info.runs[i];
      const base = info.points.find((point) => point.group === reference && point.sparsity === run.sparsity);
      for (const cell of row.querySelectorAll('[data-delta]')) {
        const name = cell.dataset.delta;
        const value = base && known(run[name]) && known(base[name]) ? run[name] - base[name] : NaN;
        cell.textContent = signed(value);
        cell.dataset.value = known(value) ? value : '';
      }
    });
  }

  const update = (keys) => {
    for (const id of ['number', 'against', 'reference']) byId(id).value = state.get(id);
    if (keys.has('number') || keys.has('against')) drawStudy();
    if (keys.has('reference')) showDifferences();
  };
  update(new Set(['number', 'against', 'reference']));
  state.onChange(update);
  showMasks(info, columns, state, (group) => pointsOf(group, 'kl', 'sparsity'));
  enhanceTables(state);
}

function studyPoint(point, number, against) {
  const [y, spread] = [point[number], point[`${number}_sd`]];
  const told = known(spread) ? `${fixed(y)} ± ${fixed(spread)} over ${point.n} runs` : fixed(y);
  return {
    x: point[against],
    y,
    low: known(spread) ? y - spread : null,
    high: known(spread) ? y + spread : null,
    text: [
      told,
      `sparsity ${percent(point.sparsity, 2)}`,
      `${count(point.kept)} units kept`,
      `seeds ${point.seeds}`,
    ],
  };
}

studyPage();
