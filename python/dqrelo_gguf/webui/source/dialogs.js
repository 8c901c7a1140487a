// Questions that are asked over the page.

import { apiKey, setApiKey } from "./api.js";
import { find } from "./dom.js";

// Shows a dialog; resolves to the value of the button that closed it, "" for Escape.
function opened(dialog) {
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => dialog.addEventListener("close", () => resolve(dialog.returnValue), { once: true }));
}

export async function confirm(title, text, yes) {
  const dialog = find("confirm-dialog");
  if (dialog.open) {
    return false;
  }
  find("confirm-title").textContent = title;
  find("confirm-text").textContent = text;
  find("confirm-yes").textContent = yes;
  return (await opened(dialog)) === "yes";
}

// Asks for the API key; true if there is another one than before.
export async function askForKey(error = "") {
  const dialog = find("key-dialog");
  if (dialog.open) {
    return false;
  }
  const input = find("key-input");
  input.value = "";
  find("key-error").textContent = error;
  find("key-forget").hidden = apiKey() === null;
  const answer = await opened(dialog);
  const key = input.value.trim();
  input.value = "";
  if (answer === "forget") {
    setApiKey(null);
    return true;
  }
  if (answer !== "save" || key === "") {
    return false;
  }
  if (!/^[\x21-\x7e]+$/.test(key)) {
    return askForKey("A key has letters, digits and signs of ASCII, without blanks.");
  }
  setApiKey(key);
  return true;
}
