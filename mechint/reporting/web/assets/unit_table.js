// The table of units: sorted, filtered and turned page by page, whatever the number of units.

import { byId, element } from './dom.js';
import { csvText, saveFile } from './export.js';
import { count, fixed, known, precise } from './format.js';

const PAGE_LENGTH = 15;

// What stands in the columns; get: the value of a unit, show: its text, number: whether it is set flush right.
export function unitColumns(channels, units, seeds, noun) {
  const { columns } = channels;
  const first = (unit) => channels.place(units.channelsOf(unit)[0]);
  const found = [
    { key: 'rank', title: 'Rank', number: true, get: (unit) => units.rank(unit), show: count },
    { key: 'layer', title: 'Layer', number: true, get: (unit) => first(unit).block.layer, show: count },
    { key: 'kind', title: 'Kind', get: (unit) => kindsOf(channels, units, unit), show: String },
    { key: 'head', title: 'KV head', number: true, get: (unit) => first(unit).head, show: count },
    {
      key: 'channel',
      title: noun === 'channel' ? 'Channel' : 'Direction',
      number: true,
      get: (unit) => first(unit).channel,
      show: (_, unit) => channelsText(channels, units, unit),
    },
    {
      key: 'importance',
      title: 'Importance',
      number: true,
      get: (unit) => units.importance[unit],
      show: (value) => fixed(value),
      exact: precise,
    },
    {
      key: 'kept',
      title: 'Kept',
      get: (unit, kept) => (kept[units.channelsOf(unit)[0]] ? 'kept' : 'removed'),
      show: String,
    },
  ];
  const value = (name) => (unit) => columns[name][units.channelsOf(unit)[0]];
  if (columns.share)
    found.push({
      key: 'share',
      title: 'Share',
      number: true,
      get: value('share'),
      show: (one) => fixed(one, 4),
      exact: precise,
    });
  if (columns.frequency) {
    found.push({
      key: 'frequency',
      title: 'Seeds that keep it',
      number: true,
      get: value('frequency'),
      show: (one) => `${one} of ${seeds}`,
      exact: String,
    });
  }
  if (columns.necessity) {
    found.push({
      key: 'necessity',
      title: 'KL rise without it',
      number: true,
      get: value('necessity'),
      show: (one) => fixed(one, 5),
      exact: precise,
    });
  }
  return found;
}

export function kindsOf(channels, units, unit) {
  return [...new Set(units.channelsOf(unit).map((i) => channels.place(i).block.kind.toUpperCase()))].join(
    '+',
  );
}

export function channelsText(channels, units, unit) {
  const numbers = [...new Set(units.channelsOf(unit).map((i) => channels.place(i).channel))];
  return numbers.length > 3 ? `${numbers[0]}–${numbers[numbers.length - 1]}` : numbers.join(', ');
}

export class UnitTable {
  constructor(channels, units, columns, state, choose) {
    Object.assign(this, { channels, units, columns, state, choose, page: 0, kept: channels.columns.kept });
    byId('unit-filter').addEventListener('input', (event) => state.set({ find: event.target.value }));
    byId('units-csv').addEventListener('click', () => saveFile('units.csv', 'text/csv', this.csv()));
    this.head = element('tr');
    this.body = element('tbody');
    byId('unit-table').append(element('thead', {}, this.head), this.body);
    for (const column of columns) {
      const button = element('button', { type: 'button', class: 'sort' }, column.title);
      button.addEventListener('click', () => {
        const [key, direction] = state.get('order').split('.');
        const up =
          key === column.key
            ? direction === 'down'
            : !column.number || ['rank', 'layer', 'head', 'channel'].includes(column.key);
        state.set({ order: `${column.key}.${up ? 'up' : 'down'}` });
      });
      this.head.append(element('th', { scope: 'col', class: column.number ? 'n' : null }, button));
    }
  }

  // What the slider keeps has changed: lines stay where they are, unless they are chosen or sorted by it.
  show(kept) {
    const byKept =
      this.state.get('order').startsWith('kept') || parseFilter(this.state.get('find')).kept !== null;
    if (byKept) this.arrange(kept);
    else {
      this.kept = kept;
      this.draw();
    }
  }

  // Applies filter and order.
  arrange(kept) {
    this.kept = kept;
    const { units, state, columns } = this;
    const words = parseFilter(state.get('find'));
    const [key, direction] = state.get('order').split('.');
    const column = columns.find((one) => one.key === key) ?? columns[0];
    const chosen = [];
    for (let i = units.total - 1; i >= 0; i -= 1) {
      if (this.matches(units.order[i], words)) chosen.push(units.order[i]);
    }
    const asTheyAre = ['importance.down', 'rank.up'].includes(state.get('order'));
    this.chosen = asTheyAre
      ? chosen
      : sortUnits(chosen, (unit) => column.get(unit, kept), direction === 'down');
    this.unknown = words.unknown;
    this.page = 0;
    this.draw();
  }

  matches(unit, words) {
    if (words.unknown.length) return false;
    const i = this.units.channelsOf(unit)[0];
    if (words.kept !== null && Boolean(this.kept[i]) !== words.kept) return false;
    if (words.kind && !kindsOf(this.channels, this.units, unit).includes(words.kind)) return false;
    if (!words.numbers.length) return true;
    const { block, head } = this.channels.place(i);
    const channel = this.units.channelsOf(unit).map((one) => this.channels.place(one).channel);
    return words.numbers.every(({ what, number }) =>
      what === 'channel' ? channel.includes(number) : { layer: block.layer, head }[what] === number,
    );
  }

  draw() {
    const { chosen, columns } = this;
    const pages = Math.max(1, Math.ceil(chosen.length / PAGE_LENGTH));
    this.page = Math.max(0, Math.min(this.page, pages - 1));
    const [key, direction] = this.state.get('order').split('.');
    columns.forEach((column, i) => {
      const cell = this.head.cells[i];
      if (column.key === key)
        cell.setAttribute('aria-sort', direction === 'down' ? 'descending' : 'ascending');
      else cell.removeAttribute('aria-sort');
    });
    const shown = chosen.slice(this.page * PAGE_LENGTH, (this.page + 1) * PAGE_LENGTH);
    this.body.replaceChildren(...shown.map((unit) => this.line(unit)));
    const turn = (title, by, able) => {
      const button = element('button', { type: 'button', disabled: !able }, title);
      button.addEventListener('click', () => {
        this.page += by;
        this.draw();
      });
      return button;
    };
    const told = this.unknown.length
      ? `Not understood: ${this.unknown.join(' ')}`
      : `${count(chosen.length)} units, page ${count(this.page + 1)} of ${count(pages)}`;
    byId('unit-pager').replaceChildren(
      turn('Previous', -1, this.page > 0),
      turn('Next', 1, this.page < pages - 1),
      element('span', { role: 'status' }, told),
    );
  }

  line(unit) {
    const i = this.units.channelsOf(unit)[0];
    const cells = this.columns.map((column, c) => {
      const text = column.show(column.get(unit, this.kept), unit);
      if (c) return element('td', { class: column.number ? 'n' : null }, text);
      return element(
        'td',
        { class: 'n' },
        element(
          'button',
          { type: 'button', class: 'link', 'aria-label': `Open the unit of rank ${text}` },
          text,
        ),
      );
    });
    const row = element('tr', { 'data-channel': i }, ...cells);
    row.addEventListener('click', () => this.choose(i));
    return row;
  }

  csv() {
    const { columns, chosen, kept } = this;
    const exact = (column, unit) => {
      const value = column.get(unit, kept);
      if (column.key === 'channel')
        return channelsText(this.channels, this.units, unit).replaceAll('–', ' to ');
      return column.exact ? column.exact(value) : value;
    };
    return csvText([
      columns.map((column) => column.title),
      ...chosen.map((unit) => columns.map((column) => exact(column, unit))),
    ]);
  }
}

// Units by a value; those without one come last, equal ones stay as they are.
function sortUnits(chosen, get, descending) {
  const sign = descending ? -1 : 1;
  const keyed = chosen.map((unit) => [get(unit), unit]);
  const lost = (value) => typeof value === 'number' && !known(value);
  keyed.sort(([x], [y]) => {
    if (lost(x) || lost(y)) return lost(x) - lost(y);
    return x < y ? -sign : x > y ? sign : 0;
  });
  return keyed.map(([, unit]) => unit);
}

// "layer 3 v kept" as conditions; words that mean nothing are told.
export function parseFilter(text) {
  const found = { kept: null, kind: '', numbers: [], unknown: [] };
  const rest = text.toLowerCase().replace(/\b(layer|head|channel)\s*(\d+)/g, (_, what, number) => {
    found.numbers.push({ what, number: Number(number) });
    return ' ';
  });
  for (const word of rest.split(/\s+/).filter(Boolean)) {
    if (word === 'kept' || word === 'removed') found.kept = word === 'kept';
    else if (word === 'k' || word === 'v') found.kind = word.toUpperCase();
    else found.unknown.push(word);
  }
  return found;
}
