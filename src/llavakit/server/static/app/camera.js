// Photographs: what this machine's camera sees, where a page may use it; elsewhere the phone's own camera application.

import { $ } from "./dom.js";

const isPhone = () => matchMedia("(pointer: coarse)").matches;

/** Whether the page shows the camera itself. Browsers allow that to secure pages; phones have something better. */
export function canShowCamera() {
  return Boolean(navigator.mediaDevices?.getUserMedia) && !isPhone();
}

/** Whether a photograph can be taken here at all. */
export async function hasCamera() {
  if (!canShowCamera()) return isPhone();
  const devices = await navigator.mediaDevices.enumerateDevices().catch(() => []); // where a policy forbids it
  return devices.some((device) => device.kind === "videoinput");
}

let isOpening = false; // or open: the browser may ask for leave first, and a button be pressed twice meanwhile

/** Show what the camera sees until a photograph is taken: a JPEG file, or null. Fails with words for whoever asked. */
export async function takePhotograph() {
  if (isOpening) return null;
  isOpening = true;
  try {
    return await photograph();
  } finally {
    isOpening = false;
  }
}

async function photograph() {
  const stream = await open();
  const dialog = $("photograph");
  const video = $("photograph-video");
  const button = $("photograph-yes");
  try {
    button.disabled = true; // until there is something to see
    video.onloadeddata = () => {
      button.disabled = false;
      button.focus();
    };
    video.srcObject = stream;
    dialog.returnValue = "";
    dialog.showModal();
    await new Promise((resolve) => dialog.addEventListener("close", resolve, { once: true }));
    return dialog.returnValue === "yes" ? await still(video) : null;
  } finally {
    video.srcObject = null;
    for (const track of stream.getTracks()) track.stop();
  }
}

async function open() {
  try {
    return await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment", width: { ideal: 1920 } } });
  } catch (error) {
    const reason = {
      NotAllowedError: "The browser does not let this page use the camera. Allow it beside the address",
      NotFoundError: "There is no camera here. Connect one",
      NotReadableError: "Another program uses the camera. Close it",
    }[error.name];
    throw new Error(`${reason ?? `The camera cannot be used (${error.name}). Try again`}, or add a picture from a file.`);
  }
}

async function still(video) {
  const canvas = document.createElement("canvas");
  canvas.width = video.videoWidth;
  canvas.height = video.videoHeight;
  canvas.getContext("2d").drawImage(video, 0, 0);
  const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.95));
  if (!blob) throw new Error("The camera gave no picture. Try again, or add one from a file.");
  const time = new Date().toISOString().slice(0, 19).replace(/[T:]/g, "-");
  return new File([blob], `photograph-${time}.jpg`, { type: "image/jpeg" });
}
