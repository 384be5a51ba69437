// The page of `python -m clients demo`.

import { Answers, element, find } from "./answers.js";
import { flatten, makeEngines } from "./engines.js";
import { Form } from "./form.js";
import { drawInk } from "./ink.js";
import { loadRuntime } from "./litert.js";
import { Pad } from "./pad.js";
import { paintPixels, readPicture } from "./pictures.js";

const MOST_BUTTONS = 12;

const runtime = loadRuntime();
runtime.catch(() => {}); // the engine says so, in its turn
const examplesSoon = fetch("examples.json").then((response) => response.json());
const facts = await (await fetch("facts.json")).json();
const engines = makeEngines(facts, runtime);
const answers = new Answers(facts, engines);
let count = 0;
for (const engine of engines) engine.onAnswer = showAnswer;

introduce();
const input = facts.picture ? makePicture() : makeForm();
const examples = await examplesSoon;
offerExamples();
if (examples.length) input.fill(examples[0]);
else input.ask(performance.now());

function introduce() {
  const version = facts.version === null ? "" : `, version ${facts.version}`;
  document.title = `${facts.model_name}${version} – Plumbline`;
  find("title").textContent = facts.model_name + version;
  const accuracy = facts.metrics.test_accuracy;
  const trained = facts.trained_on ? `trained on ${facts.trained_on}` : "";
  const right = accuracy === undefined ? "" : `${(100 * accuracy).toFixed(1)} % right on its test rows`;
  const asked = `signature ${facts.signature_name}`;
  find("about").textContent = [trained, right, asked].filter(Boolean).join(" · ");
}

/** @param {Record<string, unknown>} inputs nested lists, of one row @param {number} askedAt */
function ask(inputs, askedAt) {
  const rows = Object.fromEntries(
    facts.inputs.map(({ name, has_batch }) => [name, has_batch ? [inputs[name]] : inputs[name]]),
  );
  const body = JSON.stringify({ signature_name: facts.signature_name, inputs: rows });
  find("ask").dataset.question = String(count + 1);
  const question = { id: ++count, askedAt, inputs, body };
  for (const engine of engines) engine.submit(question);
}

function showAnswer(engine) {
  answers.show();
  if (!engine.answer.outputs) return;
  // For who measures: from the pen to the bars, of each engine.
  performance.clearMeasures(engine.name);
  performance.measure(engine.name, { start: engine.answer.question.askedAt, end: performance.now() });
}

/** A pad to draw on where drawings are known, and a place to drop pictures. */
function makePicture() {
  const { height, width, channels, has_channel_axis, ink } = facts.picture;
  const pad = ink ? new Pad(facts.picture) : null;
  const seen = element("canvas", { id: "seen", role: "img", "aria-label": "What the model sees" });
  [seen.width, seen.height] = [width, height];
  const picker = element("input", { type: "file", id: "picker", accept: "image/*", class: "unseen" });
  const chooser = element("label", { for: "picker", class: "button" }, "Choose a picture");
  const problem = element("p", { class: "problem", role: "alert" });
  const tools = element("div", { class: "tools" });
  const caption = element("p", { class: "detail" }, `What the model sees: ${width}\u00a0×\u00a0${height}\u00a0pixels`);
  const hint = pad
    ? "Draw here, or drop a picture."
    : `Drop a picture; it is scaled to ${width} × ${height} pixels.`;
  if (pad) {
    const clear = element("button", { type: "button", id: "clear" }, "Clear");
    clear.addEventListener("click", () => pad.clear());
    tools.append(clear);
    pad.onChange = (askedAt) => askPixels(pad.pixels ?? drawInk(pad.strokes, facts.picture), askedAt);
  }
  tools.append(picker, chooser);
  const place = find("ask");
  if (pad) {
    const beside = element("div");
    const model = element("div", { class: "seen" });
    beside.append(caption, tools);
    model.append(seen, beside);
    place.append(pad.canvas, element("p", { class: "hint" }, hint), model, describeKeys());
  } else {
    seen.classList.add("large");
    place.append(seen, caption, element("p", { class: "hint" }, hint), tools);
  }
  place.append(problem);

  function askPixels(pixels, askedAt) {
    paintPixels(seen, pixels, channels);
    const rows = Array.from({ length: height }, (_, y) =>
      Array.from({ length: width }, (_, x) => {
        const at = (y * width + x) * channels;
        return has_channel_axis ? [...pixels.subarray(at, at + channels)] : pixels[at];
      }),
    );
    ask({ [facts.inputs[0].name]: rows }, askedAt);
  }

  function show(pixels, askedAt) {
    problem.textContent = "";
    if (pad) pad.show(pixels);
    else askPixels(pixels, askedAt);
  }

  async function take(file) {
    if (!file) return;
    try {
      show(await readPicture(file, facts.picture), performance.now());
    } catch (error) {
      problem.textContent = `${error.message}.`;
    }
  }

  picker.addEventListener("change", () => take(picker.files[0]));
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    take(event.dataTransfer.files[0]);
  });
  document.addEventListener("paste", (event) => take(event.clipboardData.files[0]));

  return {
    ask: (askedAt) => (pad ? pad.clear(askedAt) : askPixels(new Uint8Array(height * width * channels), askedAt)),
    fill: ({ inputs }) => show(Uint8Array.from(flatten(inputs[facts.inputs[0].name])), performance.now()),
  };
}

function describeKeys() {
  const keys = element("details");
  keys.append(element("summary", {}, "Keys"));
  const text =
    "On the pad, the arrow keys move the pen, the space bar puts it down and lifts it, and Delete clears. " +
    "A digit anywhere shows an example of it.";
  keys.append(element("p", { id: "keys" }, text));
  return keys;
}

function makeForm() {
  const form = new Form(facts);
  const problem = element("p", { class: "problem", role: "alert" });
  find("ask").append(form.box, problem);
  form.onChange = (askedAt) => {
    try {
      ask(form.read(), askedAt);
      problem.textContent = "";
    } catch (error) {
      problem.textContent = `${error.message}.`;
    }
  };
  return { ask: form.onChange, fill: ({ inputs }) => form.fill(inputs) };
}

/** A button for each class, as far as there are few of them; else one that goes on to the next row. */
function offerExamples() {
  if (!examples.length) return;
  const groups = groupExamples();
  const isShort = groups.every(({ label }) => label.length < 3);
  const box = element("div", { class: "examples", role: "group", "aria-label": "Examples" });
  box.classList.toggle("short", isShort);
  box.append(element("span", { class: "detail", "aria-hidden": "true" }, "Examples"));
  for (const { label, rows } of groups) {
    const button = element("button", { type: "button" }, label);
    let next = 0;
    button.addEventListener("click", () => input.fill(rows[next++ % rows.length]));
    box.append(button);
    if (/^[0-9]$/.test(label)) {
      document.addEventListener("keydown", (event) => {
        const isTyping = event.target.matches("input, textarea");
        if (event.key === label && !isTyping && !event.ctrlKey && !event.metaKey && !event.altKey) button.click();
      });
    }
  }
  const keys = find("ask").querySelector("details");
  if (keys) keys.before(box);
  else if (facts.picture) find("ask").append(box);
  else find("ask-title").after(box);
}

function groupExamples() {
  const [output, ...others] = facts.outputs;
  const head = output.head;
  const size = output.shape?.[0] ?? 0;
  if (others.length || head?.task !== "multiclass" || size > MOST_BUTTONS) {
    return [{ label: "Next example", rows: [...examples.slice(1), examples[0]] }];
  }
  const groups = Array.from({ length: size }, (_, at) => ({ label: head.class_names[at] ?? String(at), rows: [] }));
  for (const example of examples) {
    const scores = flatten(example.outputs[output.name]);
    groups[scores.indexOf(Math.max(...scores))]?.rows.push(example);
  }
  return groups.filter(({ rows }) => rows.length);
}
