// What the numbers of an output mean, as `contract.heads` says it: rows for people.

const MOST_IN_HEADLINE = 3;

/**
 * @typedef {object} Row
 * @property {string} label
 * @property {string} text
 * @property {number | null} share 0..1, for a bar
 */

/**
 * @param {any} output of the facts
 * @param {(number | string | boolean)[]} values
 * @returns {{rows: Row[], headline: string, detail: string}}
 */
export function explain(output, values) {
  const head = output.head;
  const isFlat = output.shape === null || output.shape.length < 2;
  if (head && isFlat && values.every((one) => typeof one === "number")) {
    if (head.task === "multiclass" && values.length > 1) return explainClasses(head, values);
    if (head.task === "binary" && values.length === 1) return explainBinary(head, values[0]);
    if (head.task === "multilabel" || head.task === "binary") return explainLabels(head, values);
  }
  const rows = values.map((one, at) => ({
    label: values.length > 1 ? `${output.name} ${at}` : output.name,
    text: formatValue(one),
    share: null,
  }));
  const isFew = values.length <= MOST_IN_HEADLINE;
  return {
    rows,
    headline: isFew ? rows.map(({ text }) => text).join(", ") : (rows[0]?.text ?? ""),
    detail: isFew ? output.name : `the first of ${values.length.toLocaleString("en")} values of ${output.name}`,
  };
}

function explainClasses(head, values) {
  const shares = head.from_logits ? softmax(values) : values;
  const best = shares.indexOf(Math.max(...shares));
  const rows = shares.map((share, at) => makeRow(nameClass(head, at), share));
  return { rows, headline: rows[best]?.label ?? "?", detail: rows[best]?.text ?? "" };
}

function explainBinary(head, value) {
  const share = head.from_logits ? sigmoid(value) : value;
  const rows = [makeRow(nameClass(head, 1), share), makeRow(nameClass(head, 0), 1 - share)];
  const best = rows[share > 0.5 ? 0 : 1];
  return { rows, headline: best.label, detail: best.text };
}

function explainLabels(head, values) {
  const shares = head.from_logits ? values.map(sigmoid) : values;
  const rows = shares.map((share, at) => makeRow(nameClass(head, at), share));
  const right = rows.filter(({ share }) => share > 0.5);
  return {
    rows,
    headline: right.map(({ label }) => label).join(", ") || "none",
    detail: right.map(({ text }) => text).join(", "),
  };
}

function nameClass(head, at) {
  return head.class_names[at] ?? String(at);
}

function makeRow(label, share) {
  return { label, text: formatShare(share), share };
}

function formatShare(share) {
  if (!Number.isFinite(share)) return String(share);
  return `${(100 * share).toFixed(1)} %`;
}

/** @param {number | string | boolean} value */
function formatValue(value) {
  if (typeof value !== "number" || Number.isInteger(value)) return String(value);
  return Math.abs(value) >= 1e-3 && Math.abs(value) < 1e6 ? value.toFixed(4) : value.toExponential(3);
}

function softmax(values) {
  const largest = Math.max(...values);
  const powers = values.map((one) => Math.exp(one - largest));
  const sum = powers.reduce((total, one) => total + one, 0);
  return powers.map((one) => one / sum);
}

function sigmoid(value) {
  return 1 / (1 + Math.exp(-value));
}

/**
 * The largest difference between any two engines, and whether it is more than is allowed.
 *
 * @param {import("./engines.js").Outputs[]} answers
 * @param {number} limit for outputs up to 1; times the largest magnitude where it is more
 */
export function compare(answers, limit) {
  let largest = 0;
  let isWithin = true;
  for (const name of Object.keys(answers[0] ?? {})) {
    const columns = answers.map((one) => one[name]);
    const scale = Math.max(1, ...columns.flat().filter(Number.isFinite).map(Math.abs));
    for (let at = 0; at < columns[0].length; at++) {
      const difference = spread(columns.map((values) => values[at]));
      largest = Math.max(largest, difference);
      isWithin &&= difference <= limit * scale;
    }
    if (columns.some((values) => values.length !== columns[0].length)) {
      largest = Infinity;
      isWithin = false;
    }
  }
  return { largest, isWithin };
}

function spread(values) {
  if (values.every((one) => Object.is(one, values[0]))) return 0;
  if (!values.every(Number.isFinite)) return Infinity;
  return Math.max(...values) - Math.min(...values);
}
