// Elements are made from parts; no text is ever read as HTML.

export const find = (id) => document.getElementById(id);

// An element. Properties are set as such, those with a dash and `role` and `scope` as attributes; `on` has listeners.
export function el(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  const { on = {}, ...rest } = properties;
  for (const [name, value] of Object.entries(rest)) {
    if (name.includes("-") || name === "role" || name === "scope") {
      made.setAttribute(name, value);
    } else {
      made[name] = value;
    }
  }
  for (const [event, listener] of Object.entries(on)) {
    made.addEventListener(event, listener);
  }
  made.append(...children);
  return made;
}

export const button = (text, click, properties = {}) => el("button", { type: "button", textContent: text, on: { click }, ...properties });

export function option(value, text, chosen) {
  return el("option", { value, textContent: text, selected: value === chosen });
}

// Writes a text only where it changes, so that nothing is read out twice.
export function write(element, text) {
  if (element.textContent !== text) {
    element.textContent = text;
  }
}

// For those who do not see the page.
export function announce(text) {
  write(find("announcer"), text);
}

// One line above the view; an empty text takes it away.
export function notice(text, isError = true) {
  const line = find("notice");
  line.hidden = text === "";
  line.dataset.kind = isError ? "error" : "done";
  write(line, text);
}
