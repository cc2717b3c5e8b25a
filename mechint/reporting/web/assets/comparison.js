// The page of compared variants.

import { lineChart } from './chart.js';
import { readPage } from './data.js';
import { byId } from './dom.js';
import { fixed, percent } from './format.js';
import { MASK_STATE, showMasks } from './masks.js';
import { State } from './state.js';
import { enhanceTables } from './tables.js';

function comparisonPage() {
  const { info, columns } = readPage();
  const state = new State({ ...MASK_STATE, sort: '', find: '' });
  const series = info.curves.map(({ name, points }) => ({
    name,
    dots: true,
    points: points.map((point) => ({
      x: point.sparsity,
      y: point.mean,
      low: point.size > 1 ? point.min : null,
      high: point.size > 1 ? point.max : null,
      text: [`sparsity ${percent(point.sparsity, 2)}`, `KL ${fixed(point.mean)}`, `${point.size} runs`],
    })),
  }));
  showMasks(info, columns, state, (name) => series.find((one) => one.name === name)?.points ?? []);
  enhanceTables(state);
  const curves = series.filter(({ points }) => points.length > 1);
  if (!curves.length) return;
  lineChart(byId('kl-chart'), {
    title: 'KL against sparsity: mean and range over runs',
    x: { label: 'sparsity [fraction of units removed]' },
    y: { label: 'KL [nats/token]' },
    series: curves,
  });
}

comparisonPage();
