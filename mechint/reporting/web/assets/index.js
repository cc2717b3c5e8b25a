// The index of a tree that is served: every run, and how far those are that run now.

import { readPage } from './data.js';
import { byId, element } from './dom.js';
import { count, fixed, known, percent } from './format.js';
import { State } from './state.js';
import { enhanceTables, refreshTables } from './tables.js';

const EVERY = 2000;

function indexPage() {
  const { info } = readPage();
  const state = new State({ sort: '', find: '' });
  const body = document.querySelector('table[data-name=runs]').tBodies[0];
  const lines = new Map();

  function show(runs) {
    for (const run of runs) {
      const text = JSON.stringify(run);
      const line = lines.get(run.name);
      if (line?.text === text) continue;
      const row = indexLine(run);
      if (line) line.row.replaceWith(row);
      else body.append(row);
      lines.set(run.name, { text, row });
    }
    const there = new Set(runs.map((run) => run.name));
    for (const [name, { row }] of lines) {
      if (there.has(name)) continue;
      row.remove();
      lines.delete(name);
    }
    const statuses = [...new Set(runs.map((run) => run.status))];
    const told = statuses.map((status) => `${runs.filter((run) => run.status === status).length} ${status}`);
    const counts = told.length ? told.join(', ') : 'no results yet';
    if (byId('counts').textContent !== counts) byId('counts').textContent = counts;
    refreshTables(state);
  }

  async function ask() {
    try {
      const answer = await fetch('/runs.json');
      show((await answer.json()).runs);
    } catch {
      byId('counts').textContent = 'The server does not answer any more.';
    }
    setTimeout(ask, EVERY);
  }

  enhanceTables(state);
  show(info.runs);
  setTimeout(ask, EVERY);
}

function indexLine(run) {
  const name = run.page ? element('a', { href: run.page }, run.name) : run.name;
  const progress = element('td', { class: 'n', 'data-value': run.progress ?? '' });
  if (known(run.progress)) {
    const title = `${count(run.step)} of ${count(run.steps)} steps`;
    progress.append(
      element('progress', { value: run.progress, max: 1, 'aria-label': title }),
      ` ${percent(run.progress, 0)}`,
    );
  }
  const status = element('td', {}, run.status);
  if (run.detail) status.append(element('small', {}, run.detail));
  const number = (value, text) => element('td', { class: 'n', 'data-value': value ?? '' }, text);
  return element(
    'tr',
    {},
    element('td', {}, name),
    element('td', {}, run.kind),
    status,
    progress,
    element('td', {}, run.model ?? ''),
    element('td', {}, run.method ?? ''),
    number(run.kept, known(run.kept) ? `${count(run.kept)} of ${count(run.total)}` : ''),
    number(run.kl, fixed(run.kl)),
    number(run.faithfulness, fixed(run.faithfulness, 3)),
  );
}

indexPage();
