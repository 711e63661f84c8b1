// Where a patch of the model's view lies on the picture. No DOM.
//
// The model sees a square. `original` pads the picture to one, `hf` cuts one out of its middle. A frame holds both, the
// picture and the square; all boxes are shares of the frame: {x, y, width, height}.

const PATCH_PIXELS = 14;

/** Width and height as the preset takes them: `original` leaves a camera's turn aside, `hf` applies it. */
export function sizeSeen(picture, preset) {
  const isSideways = picture.orientation >= 5;
  const { width, height } = picture; // upright, as a browser shows it
  return preset === "original" && isSideways ? { width: height, height: width } : { width, height };
}

/** `{aspect, picture, square}`: the frame's width over height, and the two boxes in it. */
export function frameOf({ width, height }, preset, patchesPerSide) {
  if (preset === "hf") {
    const edge = patchesPerSide * PATCH_PIXELS;
    const long = Math.floor((edge * Math.max(width, height)) / Math.min(width, height));
    const start = Math.floor((long - edge) / 2) / long;
    const share = edge / long;
    const square =
      width >= height ? { x: start, y: 0, width: share, height: 1 } : { x: 0, y: start, width: 1, height: share };
    return { aspect: width / height, picture: { x: 0, y: 0, width: 1, height: 1 }, square };
  }
  const side = Math.max(width, height);
  const picture = {
    x: Math.floor((side - width) / 2) / side,
    y: Math.floor((side - height) / 2) / side,
    width: width / side,
    height: height / side,
  };
  return { aspect: 1, picture, square: { x: 0, y: 0, width: 1, height: 1 } };
}

/** The box of one patch, counted row by row. */
export function patchBox(frame, index, patchesPerSide) {
  const { x, y, width, height } = frame.square;
  const row = Math.floor(index / patchesPerSide);
  const column = index % patchesPerSide;
  return {
    x: x + (width * column) / patchesPerSide,
    y: y + (height * row) / patchesPerSide,
    width: width / patchesPerSide,
    height: height / patchesPerSide,
  };
}

/** Which part of a picture a box's middle lies in, in words; "the edge that was added" outside of the picture. */
export function placeName(frame, box) {
  const across = (box.x + box.width / 2 - frame.picture.x) / frame.picture.width;
  const down = (box.y + box.height / 2 - frame.picture.y) / frame.picture.height;
  if (across < 0 || across > 1 || down < 0 || down > 1) return "the edge that was added";
  const row = ["top", "", "bottom"][Math.min(2, Math.floor(down * 3))];
  const column = ["left", "", "right"][Math.min(2, Math.floor(across * 3))];
  return `${row} ${column}`.trim() || "middle";
}

/**
 * Place every word of the rendered answer among the tokens.
 *
 * `words` are runs of letters as they are read, in order; `texts` are the tokens' texts, whose run may hold marks that
 * rendering took away. Returns for each word `[first, last + 1]` token, or null where it is not found.
 */
export function alignWords(words, texts) {
  const starts = [];
  let whole = "";
  for (const text of texts) {
    starts.push(whole.length);
    whole += text;
  }
  let cursor = 0;
  return words.map((word) => {
    const at = whole.indexOf(word, cursor);
    if (at < 0) return null;
    cursor = at + word.length;
    let first = starts.findLastIndex((start) => start <= at);
    while (first > 0 && starts[first] === starts[first + 1]) first -= 1;
    let end = first + 1;
    while (end < starts.length && starts[end] < cursor) end += 1;
    return [first, end];
  });
}

/** Mean of the tokens' weights, one row of numbers. */
export function meanWeights(weights, first, end) {
  const count = end - first;
  const sum = new Array(weights[first].length).fill(0);
  for (let token = first; token < end; token += 1) {
    weights[token].forEach((weight, index) => { sum[index] += weight / count; });
  }
  return sum;
}

/** Cut a row of weights into one per picture. */
export function perPicture(row, patchesPerSide) {
  const size = patchesPerSide * patchesPerSide;
  const parts = [];
  for (let start = 0; start + size <= row.length; start += size) parts.push(row.slice(start, start + size));
  return parts;
}
