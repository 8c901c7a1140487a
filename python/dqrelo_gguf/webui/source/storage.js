// What the browser keeps: nothing fails where it keeps nothing.

const inMemory = new Map();

export function recall(store, name) {
  try {
    return window[store].getItem(name);
  } catch {
    return inMemory.get(name) ?? null;
  }
}

// Null forgets.
export function keep(store, name, value) {
  inMemory.set(name, value);
  try {
    if (value === null) {
      window[store].removeItem(name);
    } else {
      window[store].setItem(name, value);
    }
  } catch {
    // It lasts as long as the page.
  }
}
