// Typed arrays as bytes: the same format as clients/web/safetensors.py, which says what it is.

const ARRAYS = { F32: Float32Array, I32: Int32Array, U8: Uint8Array };

/**
 * @typedef {object} NamedArray
 * @property {Float32Array | Int32Array | Uint8Array} values
 * @property {number[]} shape
 */

/**
 * @param {Record<string, NamedArray>} arrays
 * @param {Record<string, string>} metadata
 * @returns {Blob}
 */
export function encode(arrays, metadata) {
  /** @type {Record<string, unknown>} */
  const header = { __metadata__: metadata };
  const pieces = [];
  let end = 0;
  for (const [name, { values, shape }] of Object.entries(arrays)) {
    const start = end;
    end += values.byteLength;
    header[name] = { dtype: codeOf(values), shape, data_offsets: [start, end] };
    pieces.push(values);
  }
  const text = new TextEncoder().encode(JSON.stringify(header));
  const length = new BigUint64Array([BigInt(text.length)]);
  return new Blob([length, text, ...pieces]);
}

/**
 * @param {ArrayBuffer} content
 * @returns {{arrays: Record<string, NamedArray>, metadata: Record<string, string>}}
 */
export function decode(content) {
  const data = 8 + Number(new DataView(content).getBigUint64(0, true));
  const { __metadata__: metadata, ...header } = JSON.parse(new TextDecoder().decode(content.slice(8, data)));
  const arrays = Object.fromEntries(
    Object.entries(header).map(([name, { dtype, shape, data_offsets: [start, end] }]) => [
      name,
      // A copy: a view would have to start at a multiple of its elements' size.
      { values: new ARRAYS[dtype](content.slice(data + start, data + end)), shape },
    ]),
  );
  return { arrays, metadata };
}

/** @param {NamedArray["values"]} values */
function codeOf(values) {
  return Object.keys(ARRAYS).find((code) => values instanceof ARRAYS[code]);
}
