// How numbers are written; a dash stands for what is not known.

export const ABSENT = '—';

export function known(value) {
  return typeof value === 'number' && Number.isFinite(value);
}

export function count(value) {
  return known(value) ? value.toLocaleString('en-US') : ABSENT;
}

export function fixed(value, digits = 4) {
  if (!known(value)) return ABSENT;
  return value.toLocaleString('en-US', { minimumFractionDigits: digits, maximumFractionDigits: digits });
}

export function signed(value, digits = 4) {
  return known(value) && value > 0 ? `+${fixed(value, digits)}` : fixed(value, digits);
}

export function percent(fraction, digits = 1) {
  return known(fraction) ? `${fixed(100 * fraction, digits)} %` : ABSENT;
}

// A single-precision number with the digits that tell it from its neighbours.
export function precise(value) {
  return known(value) ? String(Number(value.toPrecision(7))) : ABSENT;
}

export function withError(value, error, digits = 4) {
  return known(error) ? `${fixed(value, digits)} ± ${fixed(error, digits)}` : fixed(value, digits);
}

export function shortened(text, most) {
  return text.length > most ? `${text.slice(0, Math.max(4, most - 1))}…` : text;
}
