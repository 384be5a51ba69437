// From strokes of a pen to the pixels that a model knows: `clients/demo/ink.py` has measured how
// the version's own pictures look, and here a drawing is made to look the same.

const FINE = 4; // pixels of the canvas for one of the picture, either way
const MOST_ENLARGED = 8; // a small drawing is enlarged up to so many times; a dot stays one

/** @typedef {[number, number]} Point x and y, 0..1 over the pad */

/**
 * @param {Point[][]} strokes
 * @param {any} picture of the facts, with ink
 * @returns {Uint8Array} (height, width), row after row
 */
export function drawInk(strokes, { height, width, ink }) {
  const levels = strokes.length ? spreadInk(strokes, { height, width, ink }) : new Float32Array(height * width);
  const most = levels.reduce((one, other) => Math.max(one, other), 0);
  const gain = most > 0 ? 255 / most : 0;
  return Uint8Array.from(levels, (level) => (ink.is_dark ? 255 - Math.round(level * gain) : Math.round(level * gain)));
}

function spreadInk(strokes, { height, width, ink }) {
  const [centerY, centerX] = ink.center;
  const size = { height, width };
  const levels = rasterize(strokes, ink, size, centerX, centerY);
  if (!ink.by_mass) return levels;
  const [massX, massY] = findMass(levels, width);
  return rasterize(strokes, ink, size, 2 * centerX - massX, 2 * centerY - massY);
}

/** @type {OffscreenCanvas | undefined} one for all drawings: they are of one size */
let paper;

/** The drawing in the box that ink of this version fits into, its middle at a place. */
function rasterize(strokes, ink, { height, width }, middleX, middleY) {
  const [scaleX, scaleY] = chooseScale(strokes, ink);
  const box = findBox(strokes);
  const canvas = (paper ??= new OffscreenCanvas(width * FINE, height * FINE));
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.setTransform(FINE, 0, 0, FINE, 0, 0);
  context.clearRect(0, 0, width, height);
  context.lineWidth = ink.stroke;
  context.lineCap = context.lineJoin = "round";
  for (const stroke of strokes) {
    context.beginPath();
    const placed = stroke.map(([x, y]) => [
      middleX + (x - (box.left + box.right) / 2) * scaleX,
      middleY + (y - (box.top + box.bottom) / 2) * scaleY,
    ]);
    tracePath(context, placed);
    context.stroke();
  }
  const { data } = context.getImageData(0, 0, canvas.width, canvas.height);
  let levels = new Float32Array(data.length / 4);
  for (let at = 0; at < levels.length; at++) levels[at] = data[4 * at + 3] / 255;
  // Two boxes in turn are a triangle one and a half times as wide as either; a pixel's own area
  // does the rest.
  const radius = Math.round((Math.max(0, ink.blur - 1) / 1.5 / 2) * FINE);
  for (let pass = 0; pass < 2 && radius; pass++) {
    levels = blurRows(levels, canvas.width, radius);
    levels = transpose(levels, canvas.width);
    levels = blurRows(levels, canvas.height, radius);
    levels = transpose(levels, canvas.height);
  }
  return shrink(levels, width, height);
}

/** @param {[number, number][]} points */
export function tracePath(context, points) {
  const [[startX, startY], ...rest] = points;
  context.moveTo(startX, startY);
  if (!rest.length) context.lineTo(startX + 1e-3, startY); // a line of no length is not drawn
  rest.forEach(([x, y], at) => {
    const next = rest[at + 1];
    if (next) context.quadraticCurveTo(x, y, (x + next[0]) / 2, (y + next[1]) / 2);
    else context.lineTo(x, y);
  });
}

function chooseScale(strokes, ink) {
  const { left, right, top, bottom } = findBox(strokes);
  const roomX = Math.max(ink.width - ink.stroke, 1);
  const roomY = Math.max(ink.height - ink.stroke, 1);
  const most = MOST_ENLARGED * ink.height;
  const scaleX = Math.min(roomX / (right - left), most);
  const scaleY = Math.min(roomY / (bottom - top), most);
  const isLine = bottom - top < 0.15 * (right - left);
  if (ink.is_stretched && !isLine) return [Math.min(scaleX, scaleY), scaleY];
  return [Math.min(scaleX, scaleY), Math.min(scaleX, scaleY)];
}

function findBox(strokes) {
  const [xs, ys] = [0, 1].map((axis) => strokes.flat().map((point) => point[axis]));
  return { left: Math.min(...xs), right: Math.max(...xs), top: Math.min(...ys), bottom: Math.max(...ys) };
}

/** Each value becomes the mean of those around it; beyond its ends a row goes on as it ends. */
function blurRows(levels, length, radius) {
  const blurred = new Float32Array(levels.length);
  for (let start = 0; start < levels.length; start += length) {
    const at = (place) => levels[start + Math.min(Math.max(place, 0), length - 1)];
    let sum = 0;
    for (let place = -radius; place <= radius; place++) sum += at(place);
    for (let place = 0; place < length; place++) {
      blurred[start + place] = sum / (2 * radius + 1);
      sum += at(place + radius + 1) - at(place - radius);
    }
  }
  return blurred;
}

function transpose(levels, width) {
  const height = levels.length / width;
  const turned = new Float32Array(levels.length);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) turned[x * height + y] = levels[y * width + x];
  }
  return turned;
}

function shrink(levels, width, height) {
  const small = new Float32Array(width * height);
  const length = width * FINE;
  for (let y = 0; y < height * FINE; y++) {
    for (let x = 0; x < length; x++) {
      small[Math.floor(y / FINE) * width + Math.floor(x / FINE)] += levels[y * length + x] / FINE ** 2;
    }
  }
  return small;
}

function findMass(levels, width) {
  let [total, x, y] = [0, 0, 0];
  levels.forEach((level, at) => {
    total += level;
    x += level * ((at % width) + 0.5);
    y += level * (Math.floor(at / width) + 0.5);
  });
  return [x / total, y / total];
}
