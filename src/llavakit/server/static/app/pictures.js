// Pictures: taken from files, the clipboard, a drop or a camera; shown; sent. Made smaller only where the server would
// refuse them.

import { newId } from "./dom.js";

const TAKEN = /^image\/(png|jpeg|webp|gif|bmp|avif)$/;
const SMALLEST_SIDE = 448; // pixels; the models see no more than 336

/** What was dropped or pasted as `{pictures, others}`, both files; one of unknown type may be a picture. */
export function filesOf(transfer) {
  const files = [...(transfer?.files ?? [])];
  const isPicture = (file) => file.type.startsWith("image/") || file.type === "";
  return { pictures: files.filter(isPicture), others: files.filter((file) => !isPicture(file)) };
}

/** By what the sides of a picture are multiplied so that it has no more than so many pixels; 1 if it has not. */
export function scaleFor(width, height, limitPixels) {
  return Math.min(1, Math.sqrt(limitPixels / (width * height)));
}

/**
 * A file as `{id, blob, name, width, height, orientation}`; width and height are upright, as a browser shows it.
 *
 * `limits` are the server's, `{bytes, pixels}`. Throws an Error that says what is wrong with it.
 */
export async function takePicture(file, limits) {
  const name = file.name || "picture";
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    throw new Error(`${name} is no picture that this browser can show.`);
  }
  const { width, height } = bitmap;
  try {
    if (TAKEN.test(file.type) && file.size <= limits.bytes && width * height <= limits.pixels) {
      const orientation = file.type === "image/jpeg" ? orientationOf(await file.slice(0, 131_072).arrayBuffer()) : 1;
      // A Blob of its own: a File of the disk may change or vanish later.
      const blob = new Blob([await file.arrayBuffer()], { type: file.type });
      return { id: newId(), blob, name, width, height, orientation };
    }
    return { id: newId(), name, orientation: 1, ...(await smaller(bitmap, limits, name)) };
  } finally {
    bitmap.close();
  }
}

async function smaller(bitmap, limits, name) {
  for (let scale = scaleFor(bitmap.width, bitmap.height, limits.pixels); ; scale *= 0.7) {
    const width = Math.max(1, Math.floor(bitmap.width * scale));
    const height = Math.max(1, Math.floor(bitmap.height * scale));
    const canvas = document.createElement("canvas");
    canvas.width = width;
    canvas.height = height;
    const brush = canvas.getContext("2d");
    brush.imageSmoothingQuality = "high";
    brush.fillStyle = "#fff"; // JPEG has no transparency
    brush.fillRect(0, 0, width, height);
    brush.drawImage(bitmap, 0, 0, width, height);
    const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.92));
    if (blob && blob.size <= limits.bytes) return { blob, width, height };
    if (Math.max(width, height) < SMALLEST_SIDE) throw new Error(`${name} is larger than this server takes.`);
  }
}

/** The turn that a camera wrote into a JPEG, 1 to 8; 1 where it wrote none. */
export function orientationOf(buffer) {
  const view = new DataView(buffer);
  try {
    for (let at = 2; at + 4 < view.byteLength; at += 2 + view.getUint16(at + 2)) {
      const marker = view.getUint16(at);
      if (marker >> 8 !== 0xff || marker === 0xffda) return 1;
      if (marker === 0xffe1 && view.getUint32(at + 4) === 0x45786966) return readExif(view, at + 10);
    }
  } catch (error) {
    if (!(error instanceof RangeError)) throw error; // cut off: there is nothing more to read
  }
  return 1;
}

function readExif(view, start) {
  const isLittle = view.getUint16(start) === 0x4949;
  const table = start + view.getUint32(start + 4, isLittle);
  const count = view.getUint16(table, isLittle);
  for (let idx = 0; idx < count; idx += 1) {
    const entry = table + 2 + 12 * idx;
    if (view.getUint16(entry, isLittle) === 0x0112) {
      const value = view.getUint16(entry + 8, isLittle);
      return value >= 1 && value <= 8 ? value : 1;
    }
  }
  return 1;
}

function dataUri(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
}

/** The pictures that are in use, by id, with their addresses. */
export class Album {
  #store;
  #pictures = new Map();

  constructor(store) {
    this.#store = store;
  }

  add(picture) {
    this.#pictures.set(picture.id, { ...picture, shown: URL.createObjectURL(picture.blob), sent: null });
  }

  /** Bring pictures from the store, so that `get` has them; `toSend` readies their data URIs as well. */
  async load(ids, { toSend = false } = {}) {
    for (const id of ids) {
      if (!this.#pictures.has(id)) {
        const found = await (toSend ? this.#store.picture(id) : this.#seen(id));
        if (found) this.add(found);
      }
      const picture = this.#pictures.get(id);
      if (toSend && picture) picture.sent ??= await dataUri(picture.blob);
    }
  }

  /**
   * A stored picture to be shown; one that the database does not give is shown as one that is gone, and the rest is shown.
   * What is sent must have it: an answer about fewer pictures than the reader sees would be wrong without a sign.
   */
  async #seen(id) {
    try {
      return await this.#store.picture(id);
    } catch (error) {
      console.error(error);
      return null;
    }
  }

  get(id) {
    return this.#pictures.get(id) ?? null;
  }

  addressOf(id) {
    return this.#pictures.get(id)?.sent ?? null;
  }
}

/** `{id, name, type, width, height, orientation, data}` for the export, and back. */
export async function toRecord({ id, blob, name, width, height, orientation }) {
  return { id, name, type: blob.type, width, height, orientation, data: (await dataUri(blob)).split(",")[1] };
}

export function fromRecord({ id, name, type, width, height, orientation, data }) {
  const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
  return { id, name, width, height, orientation, blob: new Blob([bytes], { type }) };
}
