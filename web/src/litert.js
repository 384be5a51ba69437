// LiteRT.js, and one model in it: bytes of a .tflite file in, rows in, rows out.

import { Environment, Tensor, loadAndCompile, loadLiteRt } from "@litertjs/core";

/**
 * @typedef {object} TensorSpec
 * @property {string} name
 * @property {"float32" | "int32" | "uint8"} dtype
 * @property {number[]} shape the batch axis first
 */

/**
 * @typedef {object} Signature
 * @property {TensorSpec[]} inputs
 * @property {TensorSpec[]} outputs
 */

/** @typedef {Float32Array | Int32Array | Uint8Array} Values */

const ARRAYS = { float32: Float32Array, int32: Int32Array, uint8: Uint8Array };

/** @type {Promise<unknown> | undefined} */
let loading;

/**
 * Loads the runtime, once for a page.
 *
 * @param {string} [folder] where the wasm lies, beside the page
 */
export function loadRuntime(folder = "wasm") {
  // Answers are compared in float32 on the CPU. Asking for a GPU takes time and warns where
  // there is none.
  Environment.create = async () => new Environment({ webGpuDevice: null });
  // Its log goes to stderr, which Emscripten takes for errors; what fails also throws.
  globalThis.Module ??= { printErr: (/** @type {string} */ line) => console.debug(line) };
  loading ??= loadLiteRt(folder);
  return loading;
}

/**
 * A model of a .tflite file, ready to run.
 *
 * @param {Uint8Array} content
 * @returns {Promise<BrowserModel>}
 */
export async function loadModel(content) {
  await loadRuntime();
  return new BrowserModel(await loadAndCompile(content, { accelerator: "wasm" }));
}

/** One compiled model. Calls must not overlap: it has one set of tensors. */
export class BrowserModel {
  /** @param {import("@litertjs/core").CompiledModel} compiled */
  constructor(compiled) {
    this.compiled = compiled;
    /** @type {Record<string, Signature>} */
    this.signatures = {};
    for (const [name, runner] of Object.entries(compiled.signatures)) {
      this.signatures[name] = {
        inputs: runner.getInputDetails().map(describe),
        outputs: runner.getOutputDetails().map(describe),
      };
    }
  }

  /**
   * Rows through one signature, as many at a time as the file takes: one, in the web variant.
   *
   * @param {string} signatureName
   * @param {number} rows
   * @param {Record<string, Values>} inputs input name to the values of all rows, row after row
   * @returns {Promise<Record<string, Values>>} output name to the values of all rows
   */
  async run(signatureName, rows, inputs) {
    const signature = this.signatures[signatureName];
    if (!signature) {
      const names = Object.keys(this.signatures).join(", ");
      throw new Error(`the file has no signature ${signatureName}; it has ${names}`);
    }
    const batch = signature.inputs[0].shape[0] ?? 1;
    if (rows % batch) throw new Error(`${rows} rows do not fill up runs of ${batch}`);
    const outputs = Object.fromEntries(
      signature.outputs.map((spec) => [spec.name, new ARRAYS[spec.dtype]((count(spec) / batch) * rows)]),
    );
    for (let start = 0; start < rows; start += batch) {
      const given = Object.fromEntries(
        signature.inputs.map((spec) => {
          const size = count(spec);
          const from = (start / batch) * size;
          return [spec.name, new Tensor(inputs[spec.name].slice(from, from + size), spec.shape)];
        }),
      );
      const answered = await this.compiled.run(signatureName, given);
      for (const spec of signature.outputs) {
        outputs[spec.name].set(await answered[spec.name].data(), (start / batch) * count(spec));
        answered[spec.name].delete();
      }
      for (const tensor of Object.values(given)) tensor.delete();
    }
    return outputs;
  }

  /** Frees its memory. */
  close() {
    this.compiled.delete();
  }
}

/** @param {TensorSpec} spec */
function count(spec) {
  return spec.shape.reduce((product, size) => product * size, 1);
}

/** @returns {TensorSpec} */
function describe({ name, dtype, shape }) {
  return { name, dtype, shape: [...shape] };
}
