// A model in a browser that nobody sees: `python -m clients parity --via browser` asks, one batch
// at a time, and this page answers. Each answer's response is the next question.

import { loadModel, loadRuntime } from "./litert.js";
import { decode, encode } from "./safetensors.js";

/** @param {Blob} answer */
async function ask(answer) {
  const response = await fetch("answers", { method: "POST", body: answer });
  const question = await response.arrayBuffer();
  return question.byteLength ? decode(question) : null;
}

/** What is thrown by the runtime is an Error, the event of a script that did not load, or a number.
 * @param {unknown} error */
function explain(error) {
  if (error instanceof Event) {
    const source = /** @type {HTMLScriptElement} */ (error.target)?.src;
    return `${source ? new URL(source).pathname.split("/").slice(2).join("/") : "a script"} could not be loaded`;
  }
  return error instanceof Error ? error.message : String(error);
}

/** @param {string} url */
async function read(url) {
  const response = await fetch(url);
  if (!response.ok) throw new Error(`${url}: ${response.status}`);
  return new Uint8Array(await response.arrayBuffer());
}

/** @param {import("./litert.js").BrowserModel} model
 * @param {NonNullable<Awaited<ReturnType<typeof ask>>>} question */
async function answer(model, { arrays, metadata: { signature_name: name } }) {
  if (!model.signatures[name]) {
    throw new Error(`the file has no signature ${name}; it has ${Object.keys(model.signatures)}`);
  }
  const { inputs, outputs } = model.signatures[name];
  const runs = countRuns(inputs, arrays);
  const given = Object.fromEntries(inputs.map((spec) => [spec.name, arrays[spec.name].values]));
  const answered = await model.run(name, runs * (inputs[0].shape[0] ?? 1), given);
  return Object.fromEntries(
    outputs.map(({ name: output, shape: [first, ...rest] }) => [
      output,
      { values: answered[output], shape: first === undefined ? [] : [first * runs, ...rest] },
    ]),
  );
}

/**
 * How often the rows that the file fixes go into those that are given: once, where a signature has
 * no batch axis.
 *
 * @param {import("./litert.js").TensorSpec[]} specs
 * @param {Record<string, import("./safetensors.js").NamedArray>} arrays
 */
function countRuns(specs, arrays) {
  const counts = specs.map(({ name, dtype, shape: [first, ...rest] }) => {
    const { values, shape: [rows, ...others] = [] } = arrays[name] ?? {};
    if (!values) throw new Error(`no input ${name} was given`);
    const given = `${values.constructor.name} [${[rows ?? [], ...others]}]`;
    if (String(others) !== String(rest) || (rows === undefined) !== (first === undefined)) {
      throw new Error(`input ${name} is ${given}, and the model takes ${dtype} [${[first ?? [], ...rest]}]`);
    }
    return first === undefined ? 1 : rows / first;
  });
  if (new Set(counts).size > 1) throw new Error(`inputs of different numbers of rows: ${counts}`);
  return counts[0];
}

/** What the command is told of an error, and where it came from.
 * @param {"runtime" | "model" | "run"} cause @param {unknown} error */
function report(cause, error) {
  const text = explain(error);
  // It refuses the whole file if one tensor of one signature has another dtype than it knows.
  return encode({}, { cause: /^Element type \w+ is not supported/.test(text) ? "dtype" : cause, error: text });
}

/** @returns {Promise<{model?: import("./litert.js").BrowserModel, hello: Blob}>} */
async function load() {
  try {
    const content = await read("model.tflite");
    try {
      await loadRuntime();
    } catch (error) {
      return { hello: report("runtime", error) };
    }
    const model = await loadModel(content);
    return { model, hello: encode({}, { signature_names: Object.keys(model.signatures).join("\n") }) };
  } catch (error) {
    return { hello: report("model", error) };
  }
}

async function replay() {
  const { model, hello } = await load();
  for (let question = await ask(hello); model && question; ) {
    let answered;
    try {
      answered = encode(await answer(model, question), {});
    } catch (error) {
      answered = report("run", error);
    }
    question = await ask(answered);
  }
}

// Where nobody is left to ask, a browser has no reason to stay either.
await replay().catch(() => {});
window.close();
