// "Show where it looked": which patches of the pictures a word of an answer attended to. An extra pass of the model, on
// request. It shows attention, averaged over layers and heads; it does not prove why the model said what it said.

import { el } from "./dom.js";
import { alignWords, frameOf, meanWeights, patchBox, perPicture, placeName, sizeSeen } from "./geometry.js";

const WORD = /[\p{L}\p{N}][\p{L}\p{N}'’-]*/gu;
const VEIL = [12, 16, 32]; // where little attention lies the picture is covered with this
const VEIL_OPACITY = 0.78;

/** Put every word of a rendered answer into a span of its own; returns the spans. */
function wrapWords(body) {
  const texts = [];
  const walker = document.createTreeWalker(body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) texts.push(walker.currentNode);
  const spans = [];
  for (const node of texts) {
    const pieces = [];
    let end = 0;
    for (const found of node.data.matchAll(WORD)) {
      const span = el("span", { class: "word" }, found[0]);
      pieces.push(node.data.slice(end, found.index), span);
      spans.push(span);
      end = found.index + found[0].length;
    }
    if (pieces.length) node.replaceWith(...pieces, node.data.slice(end));
  }
  return spans;
}

/** One picture in its frame, with a canvas of one pixel a patch over what the model saw of it. */
class Frame {
  constructor(picture, preset, patchesPerSide) {
    this.patchesPerSide = patchesPerSide;
    this.geometry = frameOf(sizeSeen(picture, preset), preset, patchesPerSide);
    const image = el("img", { src: picture.shown, alt: picture.name });
    if (preset === "original") image.style.imageOrientation = "none";
    this.canvas = el("canvas", { width: patchesPerSide, height: patchesPerSide, "aria-hidden": "true" });
    this.node = el("div", { class: "frame" }, image, this.canvas);
    this.node.style.aspectRatio = String(this.geometry.aspect);
    place(image, this.geometry.picture);
    place(this.canvas, this.geometry.square);
  }

  draw(weights, most) {
    const side = this.patchesPerSide;
    const pixels = new ImageData(side, side);
    weights.forEach((weight, idx) => {
      const share = most > 0 ? Math.sqrt(weight / most) : 0; // the root, so that the middle range can be told apart
      pixels.data.set([...VEIL, Math.round(255 * VEIL_OPACITY * (1 - share))], 4 * idx);
    });
    this.canvas.getContext("2d").putImageData(pixels, 0, 0);
  }

  placeOf(idx) {
    return placeName(this.geometry, patchBox(this.geometry, idx, this.patchesPerSide));
  }
}

function place(node, { x, y, width, height }) {
  Object.assign(node.style, { left: `${100 * x}%`, top: `${100 * y}%`, width: `${100 * width}%`, height: `${100 * height}%` });
}

function inWords(place) {
  if (place === "middle") return "in the middle";
  return place.startsWith("the ") ? `on ${place}` : `at the ${place}`;
}

/**
 * Fill `panel` for an answer that is rendered in `body`. `attention` is the server's reply, `pictures` are those of the
 * conversation in the order in which they were sent.
 */
export function showLook(panel, body, { attention, pictures, preset }) {
  const { texts, weights, patches_per_side: side } = attention;
  const frames = pictures.map((picture) => new Frame(picture, preset, side));
  const spans = wrapWords(body);
  const tokens = alignWords(spans.map((span) => span.textContent), texts);
  const whole = [0, texts.length];
  const steps = [{ name: "the whole answer", tokens: whole, span: null }];
  spans.forEach((span, idx) => {
    if (tokens[idx]) steps.push({ name: `“${span.textContent}”`, tokens: tokens[idx], span });
  });

  const where = el("p", { class: "where" });
  const slider = el("input", { type: "range", min: 0, max: steps.length - 1, step: 1, "aria-label": "Word of the answer" });
  const show = (idx) => {
    const { tokens: [first, end], span, name: words } = steps[idx];
    const parts = perPicture(meanWeights(weights, first, end), side);
    const most = Math.max(...parts.flat());
    parts.forEach((part, picture) => frames[picture]?.draw(part, most));
    const best = parts.findIndex((part) => part.includes(most));
    const at = inWords(frames[best].placeOf(parts[best].indexOf(most)));
    const which = frames.length > 1 ? ` of picture ${best + 1}` : "";
    spans.forEach((other) => other.classList.toggle("on", other === span));
    slider.value = String(idx);
    slider.setAttribute("aria-valuetext", `${words}: most ${at}${which}`);
    where.replaceChildren("For ", el("strong", {}, words), `, most attention lies ${at}${which}.`);
  };
  slider.addEventListener("input", () => show(Number(slider.value)));
  steps.forEach(({ span }, idx) => {
    span?.addEventListener("pointerenter", () => show(idx));
    span?.addEventListener("click", () => show(idx));
  });
  panel.classList.add("two");
  panel.replaceChildren(el("div", { class: "frames" }, ...frames.map((frame) => frame.node)), el("div", {}, where, slider,
    el("p", { class: "note" }, "Point at a word of the answer, or move the slider. Clear patches got much attention, dark ones " +
      "little, averaged over the model's layers and heads. This is where it looked, not a proof of why it answered so.")));
  show(0);
}
