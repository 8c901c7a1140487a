"use strict";

// The sample: tokens coloured by KL. One is selected, by the mouse or by the arrow keys, and shown in full below.

const KL_STEPS = [0.001, 0.01, 0.1, 1];
const KL_LEAST = 3e-4;
const KL_MOST = 3;

function klColour(kl) {
  const share = Math.log(Math.max(kl, KL_LEAST) / KL_LEAST) / Math.log(KL_MOST / KL_LEAST);
  return `rgba(var(--heat), ${(0.75 * Math.min(share, 1)).toFixed(3)})`;
}

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) {
    made.className = className;
  }
  if (text !== undefined) {
    made.textContent = text;
  }
  return made;
}

class TokenView {
  constructor(data) {
    this.tokens = data.tokens;
    this.tuned = data.tuned;
    this.names = data.names;
    this.text = document.getElementById("token-text");
    this.details = document.getElementById("token-details");
    this.model = 0;
    this.selected = null;
    this.spans = [];
    this.records = [];
    this.tokens.windows.forEach((window_) => this.addWindow(window_));
    for (const kl of KL_STEPS) {
      const step = element("span", "", String(kl));
      step.style.backgroundColor = klColour(kl);
      document.getElementById("tokens-scale").append(step);
    }
    this.text.addEventListener("mouseover", (event) => this.selectSpan(event.target));
    this.text.addEventListener("click", (event) => this.selectSpan(event.target));
    this.text.addEventListener("keydown", (event) => this.onKey(event));
    this.text.addEventListener("focus", () => this.select(this.selected ?? 0));
  }

  piece(id) {
    return this.tokens.pieces[id] ?? `[token ${id}]`;
  }

  addWindow(window_) {
    const block = element("div", "window");
    for (const id of window_.context) {
      block.append(this.span(element("span", "context"), id));
    }
    for (const record of window_.tokens) {
      const span = this.span(element("span", "token"), record.id);
      span.id = `token-${this.spans.length}`;
      span.setAttribute("role", "option");
      span.setAttribute("aria-selected", "false");
      this.spans.push(span);
      this.records.push(record);
      block.append(span);
    }
    this.text.append(block);
  }

  // A token that has a new line in it is followed by one.
  span(made, id) {
    const piece = this.piece(id);
    made.textContent = piece.includes("↵") ? piece + "\n" : piece;
    return made;
  }

  show(model) {
    this.model = model;
    this.spans.forEach((span, i) => {
      span.style.backgroundColor = klColour(this.records[i].kl[model]);
    });
    this.select(this.selected ?? this.worst());
    const span = this.spans[this.selected];
    this.text.scrollTop = span.offsetTop - this.text.offsetTop - this.text.clientHeight / 2;
  }

  worst() {
    return this.records.reduce((best, record, i) => (record.kl[this.model] > this.records[best].kl[this.model] ? i : best), 0);
  }

  selectSpan(target) {
    const i = this.spans.indexOf(target);
    if (i >= 0) {
      this.select(i);
    }
  }

  onKey(event) {
    const steps = { ArrowLeft: -1, ArrowUp: -10, ArrowRight: 1, ArrowDown: 10, Home: -Infinity, End: Infinity };
    if (event.key in steps) {
      event.preventDefault();
      this.select(Math.min(Math.max((this.selected ?? 0) + steps[event.key], 0), this.spans.length - 1));
      this.spans[this.selected].scrollIntoView({ block: "nearest" });
    }
  }

  select(i) {
    if (this.selected !== null) {
      this.spans[this.selected].setAttribute("aria-selected", "false");
    }
    this.selected = i;
    this.spans[i].setAttribute("aria-selected", "true");
    this.text.setAttribute("aria-activedescendant", this.spans[i].id);
    const record = this.records[i];
    const name = this.names[this.model];
    this.details.replaceChildren(
      this.facts(record, name),
      this.candidates(`Most probable by ${this.tuned} (P)`, record.top, record.id),
      this.candidates(`Most probable by ${name} (Q)`, record.tops[this.model], record.id),
    );
  }

  facts(record, name) {
    const rows = [
      ["token", this.pieceElement(record.id)],
      [`P, by ${this.tuned}`, number(record.p)],
      [`Q, by ${name}`, number(record.q[this.model])],
      ["KL, nats", number(record.kl[this.model])],
    ];
    return this.table(`Token ${this.selected + 1} of ${this.records.length}`, rows);
  }

  candidates(title, found, own) {
    const rows = found.map(([id, p]) => [this.pieceElement(id), number(p) + (id === own ? " ←" : "")]);
    return this.table(title, rows);
  }

  pieceElement(id) {
    return element("span", "piece", this.piece(id));
  }

  table(title, rows) {
    const made = element("table");
    made.append(element("caption", "", title));
    for (const [name, value] of rows) {
      const row = made.insertRow();
      const head = element("th");
      head.scope = "row";
      head.append(name);
      row.append(head);
      row.insertCell().append(value);
    }
    return made;
  }
}
