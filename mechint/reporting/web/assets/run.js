// The page of a run.

import { Channels, Units, countBlocks, keptAt, ordered, shades } from './channels.js';
import { barChart, lineChart } from './chart.js';
import { CIRCUIT_STATE, showCircuit } from './circuit.js';
import { readPage } from './data.js';
import { byId, element, onTheme, setOptions } from './dom.js';
import { saveFile, svgText } from './export.js';
import { count, fixed, known, percent, precise, signed, withError } from './format.js';
import { ChannelMap, listenTo } from './map.js';
import { UNMEASURED, meaningFacts, meaningParts } from './meaning.js';
import { State } from './state.js';
import { enhanceTables } from './tables.js';
import { hideTip, showTip } from './tip.js';
import { UnitTable, unitColumns } from './unit_table.js';

function runPage() {
  const { info, columns } = readPage();
  const channels = new Channels(info.layers, columns);
  const units = new Units(channels);
  const state = new State({
    ...CIRCUIT_STATE,
    keep: '',
    colour: 'importance',
    rows: 'number',
    cells: 'number',
    unit: '',
    order: 'importance.down',
    find: '',
    sort: '',
  });
  const map = new ChannelMap(byId('map-canvas'), byId('map-frame'), channels);
  const choose = (i) => state.set({ unit: channelName(i) });
  const table = new UnitTable(
    channels,
    units,
    unitColumns(channels, units, info.seeds, info.noun),
    state,
    choose,
  );
  let kept = columns.kept;
  let layerChart = null;
  const orders = new Map(); // of columns, which never change

  function orderOf(values) {
    if (!orders.has(values)) orders.set(values, ordered(values));
    return orders.get(values);
  }

  function channelName(i) {
    const { block, head, channel } = channels.place(i);
    return `${block.kind}.${block.layer}.${head}.${channel}`;
  }

  function channelNamed(name) {
    const [kind, layer, head, channel] = name.split('.');
    const block = channels.blocks.find((one) => one.kind === kind && String(one.layer) === layer);
    const inside = block && Number(head) < block.heads && Number(channel) < block.width;
    return inside ? block.start + Number(head) * block.width + Number(channel) : -1;
  }

  // The slider's threshold; null for the run's own mask.
  function threshold() {
    const wanted = state.get('keep');
    return wanted === '' || Number.isNaN(Number(wanted)) ? null : units.thresholdFor(Number(wanted));
  }

  function recount() {
    const at = threshold();
    kept = keptAt(channels, at);
    const keptUnits = at === null ? info.units.kept : units.countFrom(at);
    const blocks = countBlocks(channels, kept);
    const [k, v] = ['k', 'v'].map((kind) =>
      total(channels.blocks.map((block, i) => (block.kind === kind ? blocks[i] : 0))),
    );
    const [allK, allV] = ['k', 'v'].map((kind) =>
      total(channels.blocks.map((block) => (block.kind === kind ? block.heads * block.width : 0))),
    );
    byId('threshold').value = keptUnits;
    byId('count').value = keptUnits;
    byId('own').setAttribute('aria-pressed', String(at === null));
    map.titles = { k: `K: ${count(k)} of ${count(allK)} kept`, v: `V: ${count(v)} of ${count(allV)} kept` };
    const told = [
      at === null ? "The run's mask" : at === Infinity ? 'No unit' : `Importance of at least ${precise(at)}`,
      `${count(keptUnits)} of ${count(units.total)} units kept (sparsity ${percent(1 - keptUnits / units.total, 2)})`,
      `K ${count(k)}, V ${count(v)} ${info.noun}s`,
      measuredText(at, keptUnits),
    ];
    byId('recount').textContent = `${told.join(' · ')}.`;
    drawLayers(blocks);
  }

  function measuredText(at, keptUnits) {
    const point = info.measured.find((one) =>
      at === null
        ? one.directory === ''
        : keptUnits === one.kept && known(one.threshold) && units.countFrom(one.threshold) === one.kept,
    );
    if (at !== null && keptUnits === 0 && known(info.losses.empty))
      return `measured: loss ${fixed(info.losses.empty)}`;
    if (at !== null && keptUnits === units.total && known(info.losses.dense))
      return `measured: loss ${fixed(info.losses.dense)}, KL 0`;
    if (!point) return 'loss not measured here';
    return `measured: loss ${withError(point.loss, point.loss_se)}, KL ${withError(point.kl, point.kl_se)}`;
  }

  function drawLayers(blocks) {
    const values = (kind) => channels.blocks.flatMap((block, i) => (block.kind === kind ? [blocks[i]] : []));
    const spec = {
      title: `Kept ${info.noun}s in every layer: K (left bar, blue) and V (right bar, orange)`,
      y: { label: `kept ${info.noun}s` },
      groups: info.layers.map((layer) => String(layer.index)),
      series: [
        { name: 'K', style: 'k', values: values('k') },
        { name: 'V', style: 'v', values: values('v') },
      ],
    };
    if (layerChart) layerChart(spec);
    else layerChart = barChart(byId('layer-chart'), spec);
  }

  function colourMap() {
    map.readColours();
    const name = state.get('colour');
    if (name === 'frequency' && columns.frequency) {
      map.paint = (i, kind) => (columns.frequency[i] ? [kind, columns.frequency[i] / info.seeds] : ['r', 0]);
    } else {
      const values = name === 'importance' ? columns.importance : (columns[name] ?? columns.importance);
      const shade = shades(values, kept, orderOf(values));
      map.paint = (i, kind) => [kept[i] ? kind : 'r', shade[i]];
    }
  }

  function arrangeMap() {
    const mean =
      (values) =>
      ({ position, head }) => {
        let [sum, number] = [0, 0];
        for (const kind of ['k', 'v']) {
          const block = channels.block(position, kind);
          if (head >= block.heads) continue;
          for (let c = 0; c < block.width; c += 1) sum += values[block.start + head * block.width + c];
          number += block.width;
        }
        return number ? sum / number : 0;
      };
    const rows = {
      kept: mean(kept),
      importance: mean(columns.importance),
      frequency: columns.frequency && mean(columns.frequency),
    };
    const cells = columns[state.get('cells')];
    map.arrange(rows[state.get('rows')] ?? null, cells ? (i) => cells[i] : null);
  }

  function describe(i) {
    const { block, head, channel } = channels.place(i);
    const lines = [
      `layer ${block.layer} · KV head ${head} · ${block.kind.toUpperCase()} ${info.noun} ${channel}`,
      `importance ${fixed(columns.importance[i])}, rank ${count(units.rank(units.of(i)))} of ${count(units.total)}`,
      kept[i] ? 'kept' : 'removed',
    ];
    if (columns.frequency) lines.push(`kept by ${columns.frequency[i]} of ${info.seeds} seeds`);
    return lines;
  }

  function drawCard() {
    const i = map.selected;
    if (i < 0) return;
    const { block, head, channel } = channels.place(i);
    const unit = units.of(i);
    const own = columns.kept[i] ? 'kept' : 'removed';
    const facts = [
      ['Module', block.name],
      ['Importance', precise(columns.importance[i])],
      ['Rank', `${count(units.rank(unit))} of ${count(units.total)}`],
      ["In the run's mask", own],
    ];
    if (threshold() !== null) facts.push(['At the slider', kept[i] ? 'kept' : 'removed']);
    const seeds = columns.frequency ? `${columns.frequency[i]} of ${info.seeds} seeds` : UNMEASURED;
    const rise = columns.necessity?.[i];
    const error = columns.necessity_error?.[i];
    facts.push(['Seeds that keep it', seeds]);
    facts.push([
      'KL rise when it alone is removed',
      known(rise) ? `${signed(rise, 5)} ± ${fixed(error, 5)} nats` : UNMEASURED,
    ]);
    if (columns.share) facts.push(['Share', precise(columns.share[i])]);
    facts.push(['Switched together with', partnerText(units.channelsOf(unit).filter((one) => one !== i))]);
    const meaning = meaningOf(i);
    facts.push(...meaningFacts(meaning, block.kind));
    const close = element('button', { type: 'button', class: 'close', 'aria-label': 'Close' }, '×');
    close.addEventListener('click', () => {
      state.set({ unit: '' });
      byId('map-canvas').focus();
    });
    const title = `${block.kind.toUpperCase()} ${info.noun} ${channel}`;
    byId('card').replaceChildren(
      close,
      element('h3', {}, title),
      element('p', { class: 'note' }, `layer ${block.layer}, KV head ${head}`),
      element(
        'dl',
        {},
        ...facts.flatMap(([name, value]) => [element('dt', {}, name), element('dd', {}, value)]),
      ),
      ...meaningParts(meaning, block.kind),
    );
  }

  // What the unit of a channel does, where that was looked at.
  function meaningOf(i) {
    const name = units.channelsOf(units.of(i)).map(channelName);
    return info.cards[name.find((one) => Object.hasOwn(info.cards, one))];
  }

  function partnerText(partners) {
    if (!partners.length)
      return info.units.total < channels.total && !units.members ? 'not recorded' : 'no other';
    const names = partners.slice(0, 6).map((i) => {
      const { block, channel } = channels.place(i);
      return `${block.kind.toUpperCase()} ${channel}`;
    });
    return partners.length > 6 ? `${names.join(', ')} and ${partners.length - 6} others` : names.join(', ');
  }

  function select() {
    map.selected = channelNamed(state.get('unit'));
    if (map.selected < 0)
      byId('card').replaceChildren(
        element(
          'p',
          { class: 'note' },
          'Click a cell, or a line of the table of units, to read about it here.',
        ),
      );
    else drawCard();
  }

  function fillControls() {
    const has = (name, title) => (columns[name] ? [[name, title]] : []);
    const more = [...has('share', 'share'), ...has('frequency', 'seeds that keep it')];
    setOptions(byId('colour'), [['importance', 'importance'], ...more]);
    setOptions(byId('cells'), [
      ['number', 'by number'],
      ['importance', 'by importance'],
      ...more.map(([key, title]) => [key, `by ${title}`]),
    ]);
    const rowOrders = [
      ['number', 'by layer and head'],
      ['kept', 'by kept share'],
      ['importance', 'by mean importance'],
    ];
    setOptions(byId('rows'), [...rowOrders, ...has('frequency', 'by mean frequency')]);
    for (const id of ['colour', 'cells', 'rows'])
      byId(id).addEventListener('change', () => state.set({ [id]: byId(id).value }));
    for (const id of ['threshold', 'count'])
      byId(id).addEventListener('input', () => state.set({ keep: byId(id).value }));
    byId('own').addEventListener('click', () => state.set({ keep: '' }));
    for (const point of info.measured.filter((one) => one.directory)) {
      const mark = element('button', { type: 'button' }, `${percent(point.sparsity, 1)} target`);
      mark.addEventListener('click', () => state.set({ keep: String(point.kept) }));
      byId('marks').append(mark);
    }
    byId('map-svg').addEventListener('click', () =>
      saveFile('channels.svg', 'image/svg+xml', svgText(map.svg())),
    );
  }

  function showControls() {
    for (const id of ['colour', 'cells', 'rows']) byId(id).value = state.get(id);
    if (byId('unit-filter').value !== state.get('find')) byId('unit-filter').value = state.get('find');
  }

  function update(keys) {
    const has = (...names) => names.some((name) => keys.has(name));
    showControls();
    if (has('keep')) recount();
    if (has('keep', 'colour')) colourMap();
    if (has('rows', 'cells') || (has('keep') && state.get('rows') === 'kept')) arrangeMap();
    if (has('keep', 'unit')) select();
    if (has('keep', 'unit', 'colour', 'rows', 'cells')) map.draw();
    if (has('order', 'find')) table.arrange(kept);
    else if (has('keep')) table.show(kept);
  }

  fillControls();
  update(new Set(Object.keys(state.values)));
  state.onChange(update);
  listenTo(map, (i, x, y) => (i === null ? hideTip() : showTip(describe(i), x, y)), choose);
  onTheme(() => {
    colourMap();
    map.draw();
  });
  new ResizeObserver(() => map.draw()).observe(byId('map-frame'));
  drawCurves(info);
  const open = (i) => {
    choose(i);
    byId('map').scrollIntoView();
    byId('card').focus({ preventScroll: true });
  };
  if (info.circuit) showCircuit(info, channels, state, open);
  enhanceTables(state);
  if (state.get('unit')) byId('map').scrollIntoView();
}

function total(values) {
  return values.reduce((sum, value) => sum + value, 0);
}

function drawCurves(info) {
  const { step, ...logged } = info.curves;
  const points = (name) => step.map((x, i) => ({ x, y: logged[name][i] }));
  const x = { label: 'step' };
  const nats = `${info.objective ?? 'objective'} [nats/token]`;
  const charts = [
    ['loss', { title: 'Objective on calibration data', y: { label: nats }, names: ['loss'] }],
    [
      'sparsity',
      {
        title: 'Sparsity of the hard mask',
        y: { label: 'fraction removed', from: 0, to: 1 },
        names: ['sparsity', 'scheduled_sparsity'],
      },
    ],
    ['temperature', { title: 'Temperature', y: { label: 'temperature' }, names: ['temperature'] }],
    ['changed_units', { title: 'Units switched at a step', y: { label: 'units' }, names: ['changed_units'] }],
  ];
  for (const [key, { title, y, names }] of charts) {
    if (!step || !logged[key]) continue;
    const place = element('div', { class: 'chart' });
    byId('curves').append(place);
    const series = names
      .filter((name) => logged[name])
      .map((name) => ({ name: name.replaceAll('_', ' '), points: points(name) }));
    lineChart(place, { title, x, y, series, height: 220 });
  }
  if (!byId('nested-chart')) return;
  const levels = [
    { y: info.losses.dense, name: 'dense' },
    { y: info.losses.empty, name: 'empty' },
  ];
  const nested = info.measured.map((point) => ({
    x: point.sparsity,
    y: point.loss,
    low: known(point.loss_se) ? point.loss - 1.96 * point.loss_se : null,
    high: known(point.loss_se) ? point.loss + 1.96 * point.loss_se : null,
    text: [
      `sparsity ${percent(point.sparsity, 2)}`,
      `loss ${withError(point.loss, point.loss_se)}`,
      `KL ${withError(point.kl, point.kl_se)}`,
      `${count(point.kept)} units kept`,
    ],
  }));
  lineChart(byId('nested-chart'), {
    title: 'Loss of the nested masks, with 95 % intervals',
    x: { label: 'sparsity [fraction of units removed]' },
    y: { label: 'loss [nats/token]' },
    series: [{ name: 'masked', points: nested, dots: true }],
    levels,
  });
}

runPage();
