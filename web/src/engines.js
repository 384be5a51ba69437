// The three engines behind one face: a question in, the answer or a sentence why there is none.
//
// Each has at most one call in flight and one question that waits: the latest. What was asked in
// between is never sent, so that a slow engine falls behind by one answer and no more.

import { loadModel } from "./litert.js";

/** @typedef {number[] | string[]} Values of one output, flat */
/** @typedef {Record<string, Values>} Outputs */

/**
 * One row of inputs for the signature, and how each engine wants to have it.
 *
 * @typedef {object} Question
 * @property {number} id grows
 * @property {number} askedAt of performance.now()'s clock: when the pen moved
 * @property {Record<string, unknown>} inputs input name to nested lists, of one row
 * @property {string} body what REST is sent
 */

/**
 * @typedef {object} Answer
 * @property {Question} question
 * @property {Outputs} [outputs]
 * @property {number} [ms]
 * @property {string} [problem]
 */

const AGAIN_MS = 2000; // a server starts, or loads a model

export class Engine {
  /** @type {Question | null} */ #next = null;
  #isBusy = false;

  /**
   * @param {string} name
   * @param {string} detail
   * @param {(question: Question) => Promise<Outputs>} ask throws an Error whose message is a sentence
   * @param {{ready?: Promise<unknown>, address?: string, again?: boolean}} [more] what it waits for
   *     before the first call; where it is; whether what failed is tried again after a while
   */
  constructor(name, detail, ask, { ready = Promise.resolve(), address = "", again = false } = {}) {
    this.name = name;
    this.detail = detail;
    this.address = address;
    this.again = again;
    this.ask = ask;
    this.ready = ready;
    ready.catch(() => {}); // told with the first answer
    /** @type {Answer | null} */
    this.answer = null;
    /** @type {(engine: Engine) => void} */
    this.onAnswer = () => {};
  }

  /** @param {Question} question */
  async submit(question) {
    this.#next = question;
    clearTimeout(this.waiting);
    if (this.#isBusy) return;
    this.#isBusy = true;
    while (this.#next) {
      const asked = this.#next;
      this.#next = null;
      this.answer = await this.#time(asked);
      this.onAnswer(this);
    }
    this.#isBusy = false;
    if (this.again && this.answer.problem) this.waiting = setTimeout(() => this.submit(this.answer.question), AGAIN_MS);
  }

  /** @param {Question} question @returns {Promise<Answer>} */
  async #time(question) {
    try {
      await this.ready;
      const start = performance.now();
      const outputs = await this.ask(question);
      return { question, outputs, ms: performance.now() - start };
    } catch (error) {
      return { question, problem: error instanceof Error ? error.message : String(error) };
    }
  }
}

/** @param {any} facts @param {Promise<unknown>} runtime */
export function makeEngines(facts, runtime) {
  const model = loadBrowserModel(facts, runtime);
  return [
    new Engine("Browser", "LiteRT.js", makeBrowser(facts, model), { ready: model }),
    new Engine("Server", "REST", makeServer(facts), { address: facts.server_shown, again: true }),
    new Engine("Python", "TFLite", makePython(facts)),
  ];
}

/** @returns {Promise<import("./litert.js").BrowserModel>} */
async function loadBrowserModel(facts, runtime) {
  if (facts.browser_obstacle) throw new Error(facts.browser_obstacle);
  const content = fetch("model.tflite").then((response) => response.arrayBuffer());
  await runtime;
  const model = await loadModel(new Uint8Array(await content));
  if (!model.signatures[facts.signature_name]) {
    throw new Error(`the file for browsers has no signature ${facts.signature_name}`);
  }
  return model;
}

function makeBrowser(facts, model) {
  return async ({ inputs }) => {
    const loaded = await model;
    const arrays = Object.fromEntries(
      loaded.signatures[facts.signature_name].inputs.map(({ name, dtype }) => [
        name,
        toArray(dtype, flatten(inputs[name])),
      ]),
    );
    const outputs = await loaded.run(facts.signature_name, 1, arrays);
    return Object.fromEntries(Object.entries(outputs).map(([name, values]) => [name, [...values]]));
  };
}

function makePython(facts) {
  return async ({ body }) => {
    if (facts.python_obstacle) throw new Error(facts.python_obstacle);
    let response;
    try {
      response = await fetch("predict", { method: "POST", body });
    } catch {
      throw new Error("the command that serves this page has ended; start it again");
    }
    return readAnswer(facts, parse(await response.text()));
  };
}

function makeServer(facts) {
  return async ({ body }) => {
    let response;
    try {
      // As text/plain, which TensorFlow Serving takes as well, a browser asks nobody's leave first.
      response = await fetch(`${facts.server_url}:predict`, { method: "POST", body });
    } catch {
      throw new Error(await diagnose(facts));
    }
    let answer;
    try {
      answer = parse(await response.text());
    } catch {
      throw new Error(`the server at ${facts.server_shown} answered ${response.status} and no JSON`);
    }
    if (response.status === 404) throw new Error(await findOthers(facts));
    return readAnswer(facts, answer);
  };
}

/** What is served in place of a version that is not: a newer one takes the place of an older one. */
async function findOthers(facts) {
  const url = facts.server_url.replace(/\/versions\/\d+$/, "");
  try {
    const response = await fetch(url);
    const { model_version_status: found = [] } = await response.json();
    const served = found.filter(({ state }) => state === "AVAILABLE").map(({ version }) => version);
    if (served.length > 0 && !served.includes(String(facts.version))) {
      return (
        `it serves version ${served.join(" and ")} of ${facts.model_name}, and not ` +
        `${facts.version} any more, which this page shows; start the demo again`
      );
    }
  } catch {
    // What is said below is true whatever it answers.
  }
  const name = `${facts.model_name}${facts.version === null ? "" : `, version ${facts.version}`}`;
  return `it serves no ${name}; give --model_name where it has another name there`;
}

/** A page is not told why it gets no answer. Whether anybody is there, it can find out. */
async function diagnose(facts) {
  try {
    await fetch(facts.server_url, { mode: "no-cors" });
  } catch {
    return `nobody answers at ${facts.server_shown}; start the server: it is asked again`;
  }
  return (
    `the server at ${facts.server_shown} answers, but not to web pages; ` +
    "start it with --rest_api_enable_cors_support"
  );
}

/** JSON, in which TensorFlow Serving writes NaN and Infinity as bare words. */
function parse(text) {
  try {
    return JSON.parse(text);
  } catch {
    const quoted = text.replace(/"(?:[^"\\]|\\.)*"|-?(?:NaN|Infinity)/g, (found) =>
      found.startsWith('"') ? found : `{"number":"${found}"}`,
    );
    return JSON.parse(quoted);
  }
}

/** REST leaves out the name where there is one output, and the batch axis is ours to take off. */
function readAnswer(facts, answer) {
  if (answer.error !== undefined) throw new Error(String(answer.error));
  const names = facts.outputs.map(({ name }) => name);
  const given = answer.outputs;
  const isNamed = names.length > 1 || (given instanceof Object && !Array.isArray(given) && names[0] in given);
  return Object.fromEntries(names.map((name) => [name, flatten(isNamed ? given[name] : given)]));
}

/** @returns {any[]} numbers, booleans or texts */
export function flatten(value) {
  return [value].flat(Infinity).map(readValue);
}

/** Also REST's form of a string that is no UTF-8, and of what `parse` found to be no JSON. */
function readValue(value) {
  if (value === null || typeof value !== "object") return value;
  if (value.number) return Number(value.number);
  const bytes = Uint8Array.from(atob(value.b64), (one) => one.codePointAt(0));
  return new TextDecoder().decode(bytes);
}

function toArray(dtype, values) {
  if (dtype === "float32") return Float32Array.from(values);
  return dtype === "int32" ? Int32Array.from(values) : Uint8Array.from(values);
}
