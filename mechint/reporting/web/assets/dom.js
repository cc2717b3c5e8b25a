// Small helpers for elements. Text only ever becomes text nodes and attributes.

const SVG = 'http://www.w3.org/2000/svg';

export function byId(id) {
  return document.getElementById(id);
}

export function element(name, attributes = {}, ...children) {
  return fill(document.createElement(name), attributes, children);
}

export function svgElement(name, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, name), attributes, children);
}

function fill(node, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined && value !== false)
      node.setAttribute(key, value === true ? '' : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

export function setOptions(select, options) {
  select.replaceChildren(...options.map(([value, title]) => element('option', { value }, title)));
}

// The colour that a custom property of the style has now.
export function themeColour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

// Calls back when colours change: another scheme, or printing, which is always light.
export function onTheme(callback) {
  window.matchMedia('(prefers-color-scheme: dark)').addEventListener('change', callback);
  window.matchMedia('print').addEventListener('change', callback);
}
