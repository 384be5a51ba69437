// A form made from the signature, for what is no picture: numbers, texts, vectors.

import { element } from "./answers.js";
import { flatten } from "./engines.js";

const MOST_FIELDS = 40; // one for each named column
const MOST_NUMBERS = 4096; // as text; more of them come from an example as they are, or are zeros

/** One input of the signature. */
class Field {
  /** @param {any} tensor @param {string[]} columns */
  constructor(tensor, columns) {
    this.tensor = tensor;
    const names = columns.length && columns.length === tensor.shape?.at(-1) && tensor.shape.length === 1 ? columns : [];
    this.columns = names.length <= MOST_FIELDS ? names : [];
    this.count = countValues(tensor.shape);
    this.isLarge = this.count > MOST_NUMBERS;
    /** @type {any[]} */
    this.kept = Array(this.count || 0).fill(0);
    this.box = element("fieldset");
    this.box.append(element("legend", {}, `${tensor.name} `));
    this.box.firstChild.append(element("span", { class: "detail" }, describe(tensor)));
    this.places = this.#build();
  }

  #build() {
    if (this.columns.length) {
      const grid = element("div", { class: "columns" });
      const places = this.columns.map((name) => {
        const label = element("label", {}, name);
        const place = element("input", { type: "text", inputmode: "decimal", autocomplete: "off", value: "0" });
        label.append(place);
        grid.append(label);
        return place;
      });
      this.box.append(grid);
      return places;
    }
    if (this.isLarge) {
      this.note = element("p", { class: "detail" }, `${this.count.toLocaleString("en")} zeros`);
      this.box.append(this.note);
      return [];
    }
    const isText = this.tensor.dtype === "string";
    const isOne = this.count === 1;
    const place = isOne && !isText
      ? element("input", { type: "text", inputmode: "decimal", autocomplete: "off" })
      : element("textarea", { rows: isText ? "3" : "4", spellcheck: "false" });
    place.setAttribute("aria-label", `${this.tensor.name}, ${describe(this.tensor)}`);
    if (!isText) place.value = this.kept.join(", ");
    this.box.append(place);
    return [place];
  }

  /** @param {unknown} value nested lists */
  fill(value) {
    const values = flatten(value);
    this.kept = values;
    if (this.columns.length) this.places.forEach((place, at) => (place.value = writeValue(this.tensor, values[at])));
    else if (this.isLarge) this.note.textContent = `${values.length.toLocaleString("en")} numbers of the example`;
    else if (this.tensor.dtype === "string") this.places[0].value = values.join("\n");
    else this.places[0].value = values.map((one) => writeValue(this.tensor, one)).join(", ");
  }

  /** @returns {unknown} nested lists as the signature's shape */
  read() {
    return nest(this.tensor, this.#readValues());
  }

  #readValues() {
    if (this.isLarge) return this.kept;
    if (this.tensor.dtype === "string") {
      const text = this.places[0].value;
      return this.count === 1 ? [text] : text.split("\n");
    }
    const texts = this.columns.length
      ? this.places.map(({ value }) => value)
      : this.places[0].value.split(/[\s,;\[\]]+/).filter(Boolean);
    return texts.map((text) => readNumber(this.tensor, text));
  }
}

export class Form {
  /** @type {(askedAt: number) => void} */ onChange = () => {};

  constructor(facts) {
    this.fields = facts.inputs.map((tensor) => new Field(tensor, facts.inputs.length === 1 ? facts.columns : []));
    this.box = element("form");
    this.box.append(...this.fields.map(({ box }) => box));
    this.box.addEventListener("input", (event) => this.onChange(event.timeStamp));
    this.box.addEventListener("submit", (event) => event.preventDefault());
  }

  /** @param {Record<string, unknown>} inputs of an example */
  fill(inputs) {
    for (const field of this.fields) field.fill(inputs[field.tensor.name]);
    this.onChange(performance.now());
  }

  /** @returns {Record<string, unknown>} */
  read() {
    return Object.fromEntries(this.fields.map((field) => [field.tensor.name, field.read()]));
  }
}

function describe({ dtype, shape }) {
  if (shape === null) return `${dtype}, any shape`;
  return shape.length ? `${dtype} (${shape.map((size) => size ?? "any").join(", ")})` : dtype;
}

/** How many values a shape has; NaN where an axis varies. */
function countValues(shape) {
  return shape === null ? NaN : shape.reduce((product, size) => product * (size ?? NaN), 1);
}

function readNumber({ name, dtype }, text) {
  if (dtype === "bool") {
    if (!/^(true|false|0|1)$/i.test(text)) throw new Error(`${name} takes true or false, and ${text} is neither`);
    return /^(true|1)$/i.test(text);
  }
  const value = Number(text);
  if (text.trim() === "" || !Number.isFinite(value)) throw new Error(`${name} takes numbers, and “${text}” is none`);
  if (/int/.test(dtype) && !Number.isInteger(value)) throw new Error(`${name} takes whole numbers, and ${text} is none`);
  return value;
}

/** The shortest decimal that is the same float32. */
function writeValue({ dtype }, value) {
  if (dtype !== "float32" || typeof value !== "number") return String(value);
  for (let digits = 1; digits < 9; digits++) {
    const text = value.toPrecision(digits);
    if (Math.fround(Number(text)) === Math.fround(value)) return String(Number(text));
  }
  return String(value);
}

function nest({ name, shape }, values) {
  if (shape === null) return values;
  const known = shape.reduce((product, size) => product * (size ?? 1), 1);
  const free = shape.filter((size) => size === null).length;
  const fits = free === 0 ? values.length === known : free === 1 && values.length % known === 0;
  if (!fits) {
    const wanted = free === 0 ? known.toLocaleString("en") : `a multiple of ${known}`;
    throw new Error(`${name} takes ${wanted} values, and ${values.length.toLocaleString("en")} are given`);
  }
  const sizes = shape.map((size) => size ?? values.length / known);
  return sizes.reduceRight((rows, size, axis) => (axis === 0 ? rows : cut(rows, size)), cutNone(values, sizes));
}

function cutNone(values, sizes) {
  return sizes.length ? values : values[0];
}

function cut(rows, size) {
  return Array.from({ length: rows.length / size }, (_, at) => rows.slice(at * size, (at + 1) * size));
}
