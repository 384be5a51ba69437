// Where a digit is drawn: with mouse, finger or pen, or with the keys.

import { element } from "./answers.js";
import { tracePath } from "./ink.js";

const SIDE = 336;
const LINE = 0.075; // of the pad's side
const STEP = 1 / 28;

const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

export class Pad {
  /** @type {import("./ink.js").Point[][]} */ strokes = [];
  /** @type {Uint8Array | null} of an example or of a picture that was dropped */ pixels = null;
  #isDown = false; // the pen of the keys
  #cursor = [0.5, 0.5];
  /** @type {(askedAt: number) => void} */ onChange = () => {};

  /** @param {{height: number, width: number}} size of the picture */
  constructor(size) {
    this.size = size;
    this.canvas = element("canvas", {
      id: "pad",
      tabindex: "0",
      role: "application",
      "aria-label": "Drawing pad",
      "aria-describedby": "keys",
    });
    const scale = window.devicePixelRatio || 1;
    this.canvas.width = Math.round(SIDE * scale);
    this.canvas.height = Math.round((SIDE * scale * size.height) / size.width);
    this.context = this.canvas.getContext("2d");
    this.canvas.addEventListener("pointerdown", (event) => this.#begin(event));
    this.canvas.addEventListener("pointermove", (event) => this.#move(event));
    for (const name of ["pointerup", "pointercancel"]) {
      this.canvas.addEventListener(name, () => (this.pointer = undefined));
    }
    this.canvas.addEventListener("keydown", (event) => this.#press(event));
    for (const name of ["focus", "blur"]) this.canvas.addEventListener(name, () => this.paint());
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.paint());
  }

  clear(askedAt = performance.now()) {
    this.strokes = [];
    this.pixels = null;
    this.#isDown = false;
    this.#change(askedAt);
  }

  /** @param {Uint8Array} pixels one channel */
  show(pixels) {
    this.strokes = [];
    this.pixels = pixels;
    this.#isDown = false;
    this.#change(performance.now());
  }

  #begin(event) {
    if (event.button !== 0) return;
    this.canvas.setPointerCapture(event.pointerId);
    this.pointer = event.pointerId;
    this.#isDown = false;
    this.#startStroke(this.#place(event));
    this.#change(event.timeStamp);
  }

  #move(event) {
    if (event.pointerId !== this.pointer) return;
    const passed = event.getCoalescedEvents?.() ?? [];
    const stroke = this.strokes.at(-1);
    stroke.push(...(passed.length ? passed : [event]).map((one) => this.#place(one)));
    this.#change(event.timeStamp);
  }

  #startStroke(point) {
    this.pixels = null;
    this.strokes.push([point]);
  }

  #press(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key in MOVES) {
      const [x, y] = MOVES[event.key];
      const clip = (value) => Math.min(Math.max(value, 0), 1);
      this.#cursor = [clip(this.#cursor[0] + x * STEP), clip(this.#cursor[1] + y * STEP)];
      if (this.#isDown) this.strokes.at(-1).push([...this.#cursor]);
    } else if (event.key === " ") {
      this.#isDown = !this.#isDown;
      if (this.#isDown) this.#startStroke([...this.#cursor]);
    } else if (["Delete", "Backspace", "Escape"].includes(event.key)) {
      this.clear(event.timeStamp);
    } else {
      return;
    }
    event.preventDefault();
    this.#change(event.timeStamp);
  }

  /** @returns {import("./ink.js").Point} */
  #place(event) {
    const { left, top, width, height } = this.canvas.getBoundingClientRect();
    return [(event.clientX - left) / width, (event.clientY - top) / height];
  }

  #change(askedAt) {
    this.paint();
    this.onChange(askedAt);
  }

  paint() {
    const { context, canvas } = this;
    const style = getComputedStyle(canvas);
    context.clearRect(0, 0, canvas.width, canvas.height);
    if (this.pixels) this.#paintPixels();
    context.lineWidth = LINE * canvas.width;
    context.lineCap = context.lineJoin = "round";
    context.strokeStyle = style.color;
    for (const stroke of this.strokes) {
      context.beginPath();
      tracePath(context, stroke.map(([x, y]) => [x * canvas.width, y * canvas.height]));
      context.stroke();
    }
    if (canvas.matches(":focus-visible")) this.#paintCursor(style);
  }

  /** In the pad's own ink, whichever way round the version has it. */
  #paintPixels() {
    const { height, width, ink } = this.size;
    const small = new OffscreenCanvas(width, height);
    const image = new ImageData(width, height);
    const [red, green, blue] = getComputedStyle(this.canvas).color.match(/\d+/g).map(Number);
    this.pixels.forEach((level, at) => {
      image.data.set([red, green, blue, ink.is_dark ? 255 - level : level], 4 * at);
    });
    small.getContext("2d").putImageData(image, 0, 0);
    this.context.imageSmoothingQuality = "high";
    this.context.drawImage(small, 0, 0, this.canvas.width, this.canvas.height);
  }

  #paintCursor(style) {
    const { context, canvas } = this;
    const [x, y] = [this.#cursor[0] * canvas.width, this.#cursor[1] * canvas.height];
    context.strokeStyle = style.getPropertyValue("--accent");
    context.lineWidth = canvas.width / 120;
    context.beginPath();
    context.arc(x, y, canvas.width / (this.#isDown ? 40 : 24), 0, 2 * Math.PI);
    context.stroke();
  }
}
