// The box beside the pointer.

import { byId, element } from './dom.js';

export function showTip(lines, x, y) {
  const tip = byId('tip');
  tip.replaceChildren(...lines.map((line, i) => element(i ? 'div' : 'strong', {}, line)));
  tip.hidden = false;
  const { width, height } = tip.getBoundingClientRect();
  const room = document.documentElement.clientWidth - width - 6;
  tip.style.left = `${Math.max(4, Math.min(x + 14, room))}px`;
  tip.style.top = `${y + 18 + height > window.innerHeight ? Math.max(4, y - height - 12) : y + 18}px`;
}

export function hideTip() {
  byId('tip').hidden = true;
}
