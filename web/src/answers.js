// The answers, side by side: a column for each engine, a row for each class or number.

import { compare, explain } from "./meaning.js";

const MOST_ROWS = 12;
const SAY_AFTER_MS = 700;

export class Answers {
  /** @param {any} facts @param {import("./engines.js").Engine[]} engines */
  constructor(facts, engines) {
    this.facts = facts;
    this.engines = engines;
    this.table = find("bars");
    this.headings = engines.map((engine) => {
      const cell = element("th", { scope: "col" });
      const detail = element("span", { class: "detail" }, engine.detail);
      if (engine.address) detail.append(element("span", { class: "address" }, ` at ${engine.address}`));
      cell.append(
        element("span", { class: "engine" }, engine.name),
        detail,
        element("span", { class: "ms" }),
      );
      return cell;
    });
    const line = element("tr");
    line.append(element("td"), ...this.headings);
    const head = element("thead");
    head.append(line);
    this.body = element("tbody");
    this.table.append(head, this.body);
    /** @type {{line: HTMLElement, label: HTMLElement, cells: {bar: HTMLElement, text: HTMLElement}[]}[]} */
    this.lines = [];
  }

  /** Shows what the engines have answered last. */
  show() {
    const answered = this.engines.filter(({ answer }) => answer?.outputs);
    this.engines.forEach((engine, at) => this.#showTime(this.headings[at], engine));
    this.#showProblems();
    if (!answered.length) return;
    const newest = Math.max(...answered.map(({ answer }) => answer.question.id));
    const first = answered.find(({ answer }) => answer.question.id === newest);
    const headline = this.#showRows(first);
    this.#showHeadline(headline);
    this.#showAgreement(newest, headline);
  }

  #showTime(cell, { answer }) {
    const text = answer?.ms === undefined ? (answer?.problem ? "no answer" : "starting") : formatMs(answer.ms);
    write(cell.querySelector(".ms"), text);
    cell.classList.toggle("away", answer?.outputs === undefined);
  }

  #showProblems() {
    const found = this.engines.filter(({ answer }) => answer?.problem);
    const texts = found.map(({ name, answer }) => `${name}: ${answer.problem}.`);
    const list = find("notes");
    if (list.dataset.shown === texts.join("\n")) return;
    list.dataset.shown = texts.join("\n");
    list.replaceChildren(...texts.map((text) => element("li", {}, text)));
    if (texts.length) this.#say(texts.join(" "));
  }

  /** Rows are chosen and ordered by one engine's answer; returns what it says in short. */
  #showRows(first) {
    const shown = this.facts.outputs.map((output) => {
      const columns = this.engines.map(({ answer }) =>
        answer?.outputs ? explain(output, answer.outputs[output.name]) : null,
      );
      const said = explain(output, first.answer.outputs[output.name]);
      return { output, columns, said, places: choosePlaces(said.rows) };
    });
    const isNamed = shown.length > 1;
    let at = 0;
    for (const { output, columns, said, places } of shown) {
      const best = said.rows.findIndex(({ label }) => label === said.headline);
      for (const place of places) {
        const line = this.#line(at++);
        const label = said.rows[place].label;
        write(line.label, isNamed && said.rows[place].share !== null ? `${output.name}: ${label}` : label);
        line.line.classList.toggle("best", place === best);
        columns.forEach((column, one) => {
          const row = column?.rows[place];
          const { bar, text } = line.cells[one];
          write(text, row?.text ?? "–");
          bar.style.setProperty("--share", String(row?.share ?? 0));
          bar.hidden = said.rows[place].share === null;
        });
      }
    }
    this.lines.splice(at).forEach(({ line }) => line.remove());
    const left = shown.reduce((sum, { said, places }) => sum + said.rows.length - places.length, 0);
    this.table.classList.toggle("short", this.lines.every(({ label }) => label.textContent.length < 3));
    if (left) this.table.dataset.more = `and ${left.toLocaleString("en")} more`;
    // A class says more in short than a number, and one is enough.
    return (shown.find(({ said }) => said.rows[0]?.share != null) ?? shown[0]).said;
  }

  #line(at) {
    if (this.lines[at]) return this.lines[at];
    const line = element("tr");
    const label = element("th", { scope: "row" });
    const cells = this.engines.map(() => {
      const cell = element("td");
      const bar = element("span", { class: "bar" });
      const text = element("span", { class: "value" });
      cell.append(text, bar);
      line.append(cell);
      return { bar, text };
    });
    line.prepend(label);
    this.body.append(line);
    this.lines[at] = { line, label, cells };
    return this.lines[at];
  }

  #showHeadline({ headline, detail }) {
    const place = find("headline");
    if (place.children.length === 0) place.append(element("strong"), element("span"));
    write(place.children[0], headline);
    place.classList.toggle("long", headline.length > 8);
    write(place.children[1], detail);
  }

  #showAgreement(newest, { headline, detail }) {
    const same = this.engines.filter(({ answer }) => answer?.outputs && answer.question.id === newest);
    const late = this.engines.filter(({ answer }) => !answer || answer.question.id < newest);
    if (late.length) return; // still asked: the sentence before stands a moment longer
    const place = find("agreement");
    const { largest, isWithin } = compare(same.map(({ answer }) => answer.outputs), this.facts.max_difference);
    place.className = same.length < 2 ? "" : isWithin ? "agree" : "differ";
    const who = same.length === 3 ? "All three" : "Both";
    const verdict = isWithin ? `${who} agree` : `${who} answered, and they differ`;
    const difference = largest === 0 ? "to the last bit" : `largest difference ${formatTiny(largest)}`;
    const sentence =
      same.length < 2
        ? `${same[0]?.name ?? "Nobody"} alone answers; there is nothing to compare it with`
        : `${verdict}: ${difference}, ${formatTiny(this.facts.max_difference)} allowed`;
    write(place, sentence);
    Object.assign(place.dataset, { difference: largest, question: newest });
    this.#say(`${headline}, ${detail}. ${sentence}.`);
  }

  /** To screen readers, once the pen rests. @param {string} sentence */
  #say(sentence) {
    clearTimeout(this.saying);
    this.saying = setTimeout(() => write(find("live"), sentence), SAY_AFTER_MS);
  }
}

/** All of a few rows in their own order, the largest of many. */
function choosePlaces(rows) {
  const places = rows.map((_, at) => at);
  if (rows.length <= MOST_ROWS) return places;
  if (rows[0].share === null) return places.slice(0, MOST_ROWS);
  return places.sort((one, other) => rows[other].share - rows[one].share).slice(0, MOST_ROWS);
}

function formatMs(ms) {
  return `${ms < 10 ? ms.toFixed(1) : Math.round(ms)} ms`;
}

const RAISED = { "-": "⁻", 0: "⁰", 1: "¹", 2: "²", 3: "³", 4: "⁴", 5: "⁵", 6: "⁶", 7: "⁷", 8: "⁸", 9: "⁹" };

/** 4.3 × 10⁻¹⁰ */
function formatTiny(value) {
  if (!Number.isFinite(value)) return "without end";
  const [digits, power] = value.toExponential(1).split("e");
  const raised = [...power.replace("+", "")].map((one) => RAISED[one]).join("");
  return power === "+0" ? digits : `${digits} × 10${raised}`;
}

function write(place, text) {
  if (place.textContent !== text) place.textContent = text;
}

export function find(id) {
  return document.getElementById(id);
}

/** @param {string} tag @param {Record<string, string>} [attributes] @param {string} [text] */
export function element(tag, attributes = {}, text = "") {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text) made.textContent = text;
  return made;
}
