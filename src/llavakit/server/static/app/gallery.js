// Examples for the first minute: drawn pictures, with questions that the embedded model answers.

import { $, el } from "./dom.js";

const EXAMPLES = [
  { file: "shapes.png", alt: "Two red circles, a blue star and a green triangle",
    questions: ["How many red circles are there?", "What color is the star?", "Where is the triangle?"] },
  { file: "sign.png", alt: "A brown sign that says COFFEE, above a purple cross and an orange diamond",
    questions: ["What does the sign say?", "What color is the cross?", "Which shape is orange?"] },
  { file: "chart.png", alt: "A bar chart with a blue, an orange and a green bar",
    questions: ["Which bar is the tallest?", "What is the value of the blue bar?"] },
  { file: "ring.png", alt: "A purple ring and an orange star",
    questions: ["What color is the ring?", "Where is the star?"] },
  { file: "music.png", alt: "A red diamond and a blue star above a green sign that says MUSIC",
    questions: ["What does the sign say?", "Is there a blue star?"] },
  { file: "bars.png", alt: "A bar chart with a red, a purple and a yellow bar",
    questions: ["Which bar is the shortest?", "How many bars are there?"] },
];

/** Fill the gallery. `onPicture` gets a File, `onQuestion` what fetches one, at once, and a question. */
export function showGallery({ onPicture, onQuestion, onFailure }) {
  $("gallery").replaceChildren(...EXAMPLES.map((example) => {
    const address = new URL(`../gallery/${example.file}`, import.meta.url).href;
    const load = async () => {
      const response = await fetch(address);
      if (!response.ok) throw new Error(`status ${response.status}`);
      return new File([await response.blob()], example.file, { type: "image/png" });
    };
    const attempt = async (work) => {
      try {
        await work();
      } catch (error) {
        onFailure(`The example could not be loaded: ${error.message}.`);
      }
    };
    const picture = el("img", { src: address, alt: example.alt, width: 448, height: 448, loading: "lazy" });
    return el("li", {},
      el("button", { type: "button", class: "picture", title: "Ask your own question about it", onclick: () => attempt(async () => onPicture(await load())) }, picture),
      el("div", { class: "questions" }, ...example.questions.map((question) =>
        el("button", { type: "button", onclick: () => attempt(() => onQuestion(load, question)) }, question))));
  }));
}
