// Tables that the page came with: a click on a heading sorts, a button gives the table as CSV.

import { element } from './dom.js';
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
  sortAsChosen(state);
  state.onChange((keys) => {
    if (keys.has('sort')) sortAsChosen(state);
  });
  enhanceFilters(state);
}

// After lines have changed.
export function refreshTables(state) {
  sortAsChosen(state);
  filterAsChosen(state);
}

function sortAsChosen(state) {
  const [name, column, direction] = (state.get('sort') ?? '').split('.');
  const table = tableNamed(name);
  if (table && table.tHead.rows[0].cells[Number(column)])
    sortTable(table, Number(column), direction === 'down');
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

// A field shows the lines of its table that hold every word; several fields share one state.
function enhanceFilters(state) {
  for (const field of document.querySelectorAll('input.filter')) {
    field.addEventListener('input', () => {
      state.set({ find: field.value ? `${field.dataset.table}:${field.value}` : '' });
    });
  }
  filterAsChosen(state);
  state.onChange((keys) => {
    if (keys.has('find')) filterAsChosen(state);
  });
}

function filterAsChosen(state) {
  const [name, text] = splitOnce(state.get('find') ?? '');
  for (const field of document.querySelectorAll('input.filter')) {
    const wanted = name === field.dataset.table ? text : '';
    if (field.value !== wanted) field.value = wanted;
    filterTable(tableNamed(field.dataset.table), wanted);
  }
}

function tableNamed(name) {
  return [...document.querySelectorAll('table.sortable')].find((one) => one.dataset.name === name);
}

function splitOnce(text) {
  const at = text.indexOf(':');
  return at < 0 ? ['', ''] : [text.slice(0, at), text.slice(at + 1)];
}

function filterTable(table, text) {
  const words = text.toLowerCase().split(/\s+/).filter(Boolean);
  const rows = [...table.tBodies[0].rows];
  for (const row of rows) {
    const told = row.textContent.toLowerCase();
    row.hidden = !words.every((word) => told.includes(word));
  }
  const shown = rows.filter((row) => !row.hidden).length;
  const counter = document.querySelector(`[data-count="${table.dataset.name}"]`);
  if (counter) counter.textContent = `${shown} of ${rows.length} lines`;
}
