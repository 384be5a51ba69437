// A picture of any size as the pixels of the signature; in Python `clients/files/images.py`.

const MOST_PIXELS = 16 * 1024 * 1024; // contract/pictures.py
const GREY = [0.299, 0.587, 0.114];

/**
 * @param {Blob} file
 * @param {any} picture of the facts
 * @returns {Promise<Uint8Array>} (height, width, channels), row after row
 */
export async function readPicture(file, { height, width, channels, ink }) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    throw new Error(`${file.name || "what was dropped"} is no picture that this browser can read`);
  }
  if (bitmap.width * bitmap.height > MOST_PIXELS) {
    throw new Error(`${bitmap.width} × ${bitmap.height} pixels; at most ${MOST_PIXELS.toLocaleString("en")} are read`);
  }
  const context = new OffscreenCanvas(width, height).getContext("2d");
  context.fillStyle = "white"; // paper, where a picture is transparent
  context.fillRect(0, 0, width, height);
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, width, height);
  bitmap.close();
  const { data } = context.getImageData(0, 0, width, height);
  const pixels = new Uint8Array(height * width * channels);
  for (let at = 0; at < height * width; at++) {
    const colors = data.subarray(4 * at, 4 * at + 3);
    if (channels === 3) pixels.set(colors, 3 * at);
    else pixels[at] = Math.round(colors.reduce((sum, color, one) => sum + color * GREY[one], 0));
  }
  return ink && isLight(pixels, height, width) !== ink.is_dark ? pixels.map((level) => 255 - level) : pixels;
}

/** Whether the ground is light, by the border: a digit on paper is not what MNIST looks like. */
function isLight(pixels, height, width) {
  const border = [];
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      if (y === 0 || x === 0 || y === height - 1 || x === width - 1) border.push(pixels[y * width + x]);
    }
  }
  border.sort((one, other) => one - other);
  return border[border.length >> 1] > 127;
}

/** Pixels on a canvas of their own size. @param {HTMLCanvasElement} canvas @param {Uint8Array} pixels */
export function paintPixels(canvas, pixels, channels) {
  const image = new ImageData(canvas.width, canvas.height);
  const second = channels === 3 ? 1 : 0;
  for (let at = 0; at < canvas.width * canvas.height; at++) {
    const from = at * channels;
    image.data[4 * at] = pixels[from];
    image.data[4 * at + 1] = pixels[from + second];
    image.data[4 * at + 2] = pixels[from + 2 * second];
    image.data[4 * at + 3] = 255;
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
}
