// Tokens by delta, of the text that Prometheus reads.

const LINE = /^llamacpp:delta_(prompt_tokens|tokens_predicted)_total\{delta="((?:[^"\\]|\\.)*)"\} (\S+)$/;

// A map from names to { prompt, answered }.
export function tokensByDelta(text) {
  const found = new Map();
  for (const line of text.split("\n")) {
    const match = LINE.exec(line);
    if (match) {
      const name = match[2].replace(/\\(.)/g, (_, c) => (c === "n" ? "\n" : c));
      const row = found.get(name) ?? { prompt: 0, answered: 0 };
      row[match[1] === "prompt_tokens" ? "prompt" : "answered"] = Number(match[3]);
      found.set(name, row);
    }
  }
  return found;
}
