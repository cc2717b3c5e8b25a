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

// Names and values; meaning: undefined where the unit was not looked at.
export function meaningFacts(meaning, kind) {
  const share = (value) => (known(value) ? percent(value) : UNMEASURED);
  const activation = known(meaning?.mean)
    ? `${fixed(meaning.mean, 3)} ± ${fixed(meaning.sd, 3)}`
    : UNMEASURED;
  const found = [[`Its ${kind === 'k' ? 'key' : 'value'}, mean ± standard deviation`, activation]];
  if (kind === 'k')
    found.push(
      ["Share of the head's mean key", share(meaning?.mean_share)],
      ['Share of the bias', share(meaning?.bias_share)],
    );
  return found;
}

// Tokens, and contexts with the token itself marked.
export function meaningParts(meaning, kind) {
  const part = (title, items) => [
    element('h4', {}, title),
    items?.length ? element('ul', {}, ...items) : element('p', { class: 'note' }, UNMEASURED),
  ];
  const marked = ([before, token, value]) => {
    const shown = token.trimStart(); // a space before the token is not marked: it may end a line
    const text = shown
      ? [before + token.slice(0, token.length - shown.length), shown]
      : [before, quotedSpace(token)];
    const number = known(value) ? ` ${signed(value, 2)}` : '';
    return element('li', {}, text[0], element('mark', {}, text[1]), number);
  };
  return [
    ...TOLD[kind].tokens.flatMap((title) =>
      part(
        title,
        meaning?.tokens[title]?.map((text) => element('li', {}, text)),
      ),
    ),
    ...TOLD[kind].contexts.flatMap((title) => part(title, meaning?.contexts[title]?.map(marked))),
  ];
}

function quotedSpace(token) {
  return token.replaceAll('\n', '⏎').replaceAll(' ', '␣') || '·';
}
