// What the page was given: JSON, and numbers per channel as typed arrays over one block.

const ARRAYS = { float32: Float32Array, int32: Int32Array, uint8: Uint8Array };

export function readPage() {
  const info = JSON.parse(document.getElementById('data').textContent);
  const text = atob(document.getElementById('block').textContent);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i += 1) bytes[i] = text.charCodeAt(i);
  const columns = {};
  for (const [name, { type, offset, length }] of Object.entries(info.columns)) {
    columns[name] =
      type === 'bool' ? bits(bytes, offset, length) : new ARRAYS[type](bytes.buffer, offset, length);
  }
  return { info, columns };
}

// Booleans come eight to a byte, the first in the lowest bit.
function bits(bytes, offset, length) {
  return Uint8Array.from({ length }, (_, i) => (bytes[offset + (i >> 3)] >> (i & 7)) & 1);
}
