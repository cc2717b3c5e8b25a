// What a unit does, as its card tells it: a run on a task looks at the units that rank highest.

import { element } from './dom.js';
import { fixed, known, percent, signed } from './format.js';

export const UNMEASURED = 'not measured';

// What is told of the units of a kind: titles of their lists of tokens and of their contexts.
const TOLD = {
  k: {
    tokens: ['Pairs with the largest terms'],
    contexts: ['Where the key is large', 'Where queries for it are large'],
  },
  v: { tokens: ['Promotes', 'Suppresses'], contexts: ['Where the value is large'] },
};

// Names and values; meaning: undefined where the unit was not looked at. Lists that were not made are told here.
export function meaningFacts(meaning, kind) {
  const share = (value) => (known(value) ? percent(value) : UNMEASURED);
  const activation = known(meaning?.mean)
    ? `${fixed(meaning.mean, 3)} ± ${fixed(meaning.sd, 3)}`
    : UNMEASURED;
  const missing = listsOf(meaning, kind).filter(([, items]) => !items.length);
  return [
    [`Its ${kind === 'k' ? 'key' : 'value'}, mean ± standard deviation`, activation],
    ...(kind === 'k' ? [["Share of the head's mean key", share(meaning?.mean_share)]] : []),
    ...(kind === 'k' ? [['Share of the bias', share(meaning?.bias_share)]] : []),
    ...missing.map(([title]) => [title, UNMEASURED]),
  ];
}

// Tokens, and contexts with the token itself marked.
export function meaningParts(meaning, kind) {
  const lists = listsOf(meaning, kind).filter(([, items]) => items.length);
  return lists.flatMap(([title, items]) => [element('h4', {}, title), element('ul', {}, ...items)]);
}

function listsOf(meaning, kind) {
  const { tokens, contexts } = TOLD[kind];
  const plain = (text) => element('li', {}, text);
  return [
    ...tokens.map((title) => [title, (meaning?.tokens[title] ?? []).map(plain)]),
    ...contexts.map((title) => [title, (meaning?.contexts[title] ?? []).map(inContext)]),
  ];
}

function inContext([before, token, value]) {
  const shown = token.trimStart(); // a space before the token is not marked: it may end a line
  const lead = shown ? before + token.slice(0, token.length - shown.length) : before;
  const number = known(value) ? ` ${signed(value, 2)}` : '';
  return element('li', {}, lead, element('mark', {}, shown || quotedSpace(token)), number);
}

function quotedSpace(token) {
  return token.replaceAll('\n', '⏎').replaceAll(' ', '␣') || '·';
}
