// Tables that the page came with: a click on a heading sorts, a button gives the table as CSV.

import { byId, element } from './dom.js';
import { csvText, saveFile } from './export.js';

export function enhanceTables(state) {
  for (const table of document.querySelectorAll('table.sortable')) {
    [...table.tHead.rows[0].cells].forEach((cell, column) => {
      const button = element('button', { type: 'button', class: 'sort' });
      button.append(...cell.childNodes);
      cell.append(button);
      button.addEventListener('click', () => {
        const descending = cell.getAttribute('aria-sort') === 'ascending';
        state.set({ sort: `${table.dataset.name}.${column}.${descending ? 'down' : 'up'}` });
      });
    });
    const save = element('button', { type: 'button', class: 'csv' }, 'CSV of this table');
    save.addEventListener('click', () =>
      saveFile(`${table.dataset.name}.csv`, 'text/csv', csvText(tableRows(table))),
    );
    table.parentElement.after(save);
  }
  const apply = () => {
    const [name, column, direction] = (state.get('sort') ?? '').split('.');
    const table = [...document.querySelectorAll('table.sortable')].find((one) => one.dataset.name === name);
    if (table && table.tHead.rows[0].cells[Number(column)])
      sortTable(table, Number(column), direction === 'down');
  };
  apply();
  state.onChange((keys) => {
    if (keys.has('sort')) apply();
  });
}

// The value that a cell is sorted by and written with: the exact one where the text is rounded.
export function cellValue(cell) {
  const text = cell.dataset.value ?? cell.textContent.trim();
  const number = Number(text.replaceAll(',', ''));
  if (text === '' || text === 'None' || text === '—') return null;
  return Number.isNaN(number) ? text : number;
}

export function compareValues(a, b) {
  if (a === null || b === null) return (a === null) - (b === null);
  if (typeof a === 'number' && typeof b === 'number') return a - b;
  return String(a).localeCompare(String(b), 'en', { numeric: true });
}

export function sortTable(table, column, descending) {
  const body = table.tBodies[0];
  const keyed = [...body.rows].map((row) => [cellValue(row.cells[column]), row]);
  keyed.sort(([a], [b]) =>
    descending && a !== null && b !== null ? compareValues(b, a) : compareValues(a, b),
  );
  body.append(...keyed.map(([, row]) => row));
  [...table.tHead.rows[0].cells].forEach((cell, i) => {
    if (i === column) cell.setAttribute('aria-sort', descending ? 'descending' : 'ascending');
    else cell.removeAttribute('aria-sort');
  });
}

function tableRows(table) {
  const head = [...table.tHead.rows[0].cells].map((cell) => cell.textContent.trim());
  const shown = [...table.tBodies[0].rows].filter((row) => !row.hidden);
  return [head, ...shown.map((row) => [...row.cells].map(cellValue))];
}

// Shows the lines that hold every word of a field.
export function filterTable(table, input, counter) {
  const apply = () => {
    const words = byId(input).value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of table.tBodies[0].rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
      shown += row.hidden ? 0 : 1;
    }
    byId(counter).textContent = `${shown} of ${table.tBodies[0].rows.length} lines`;
  };
  byId(input).addEventListener('input', apply);
  apply();
}
