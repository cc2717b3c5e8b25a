// What the reader chose, kept in the address's fragment, so that a link shows the same view.
// The fragment is #key=value&key=value; a plain #name still goes to that part of the page.

export class State {
  constructor(defaults) {
    this.defaults = defaults;
    this.values = { ...defaults };
    this.listeners = [];
    this.read();
    window.addEventListener('hashchange', () => {
      if (this.read()) this.announce(Object.keys(this.values));
    });
  }

  // Takes the fragment's values for the keys that this page knows; says whether the fragment held a view.
  read() {
    const fragment = window.location.hash.slice(1);
    if (!fragment.includes('=')) return false;
    const given = new URLSearchParams(fragment);
    for (const key of Object.keys(this.defaults)) {
      this.values[key] = given.has(key) ? given.get(key) : this.defaults[key];
    }
    return true;
  }

  get(key) {
    return this.values[key];
  }

  set(changes) {
    const changed = Object.keys(changes).filter((key) => this.values[key] !== changes[key]);
    if (!changed.length) return;
    Object.assign(this.values, changes);
    const told = Object.entries(this.values).filter(([key, value]) => value !== this.defaults[key]);
    const fragment = new URLSearchParams(told).toString();
    const place = window.location.href.split('#')[0];
    try {
      window.history.replaceState(null, '', fragment ? `${place}#${fragment}` : place);
    } catch {
      // A page inside a notebook has no address of its own, and so no links to its views.
    }
    this.announce(changed);
  }

  onChange(listener) {
    this.listeners.push(listener);
  }

  announce(keys) {
    for (const listener of this.listeners) listener(new Set(keys));
  }
}
