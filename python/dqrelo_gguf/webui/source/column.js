// A column: which model, its scales, its conversation.

import { answerElements } from "./answer.js";
import { fetchAnswer, isRunning, messages, newTurn } from "./chat.js";
import { asBlend, modelChoice, requestFields, title } from "./choice.js";
import { copy } from "./copy.js";
import { announce, button, el, write } from "./dom.js";
import { modelMenu, modelOf, OWN } from "./menu.js";
import { server } from "./server.js";
import { sliders } from "./sliders.js";
import { outcome, progress } from "./words.js";

const NEAR_END_PIXELS = 60;

export class Column {
  // `host` has settings(), follows(), removed(column) and changed().
  constructor(choice, host) {
    this.choice = choice;
    this.host = host;
    this.turns = [];
    this.menu = el("select", { className: "model", "aria-label": "Model of this column", on: { change: () => this.choose(this.menu.value) } });
    this.badge = el("span", { className: "badge" });
    this.scales = el("div", { className: "scales" });
    this.log = el("div", { className: "log", tabIndex: 0, role: "log", "aria-live": "off" });
    this.facts = el("p", { className: "facts" });
    this.stopButton = button("Stop", () => this.stop());
    this.againButton = button("Ask again", () => this.again());
    this.copyButton = button("Copy", () => copy(this.last().answer, "The answer was copied."));
    const remove = button("×", () => host.removed(this), { className: "icon", "aria-label": "Take this column away" });
    this.element = el(
      "section",
      { className: "column" },
      el("div", { className: "head" }, this.menu, this.badge, remove),
      this.scales,
      this.log,
      el("div", { className: "foot" }, this.facts, el("div", { className: "group" }, this.stopButton, this.againButton, this.copyButton)),
    );
    this.showChoice();
    this.showTurns();
  }

  get name() {
    return title(this.choice, server.base);
  }

  get running() {
    return isRunning(this.last());
  }

  last() {
    return this.turns.at(-1);
  }

  choose(value) {
    const first = server.models[0]?.name ?? "";
    this.choice = value === OWN ? asBlend(this.choice, server.blends, first) : modelChoice(modelOf(value));
    this.showChoice();
    this.host.changed();
  }

  // The menu, the badge and the sliders, after the choice or the server's models changed.
  showChoice() {
    modelMenu(this.menu, this.choice);
    this.scales.replaceChildren(
      ...sliders(this.choice, server.models, {
        moved: () => this.showName(),
        settled: () => this.host.follows() && this.last() && this.again(),
        removed: (i) => this.changeParts((parts) => parts.splice(i, 1)),
        added: (name) => this.changeParts((parts) => parts.push({ name, scale: 1 })),
      }),
    );
    this.showName();
    this.showState();
  }

  changeParts(change) {
    change(this.choice.parts);
    this.showChoice();
  }

  showName() {
    this.element.setAttribute("aria-label", this.name);
    this.log.setAttribute("aria-label", `Conversation with ${this.name}`);
  }

  showState() {
    const row = this.choice.parts.length === 0 ? server.models.find((delta) => delta.name === this.choice.model) : undefined;
    write(this.badge, row && row.state !== "loaded" ? row.state : "");
    this.badge.dataset.state = row?.state ?? "";
  }

  // The server listed its models again.
  refresh() {
    if (modelMenu(this.menu, this.choice)) {
      this.showChoice();
    }
    this.showState();
  }

  ask(prompt) {
    const turn = newTurn(prompt);
    this.turns.push(turn);
    this.run(turn);
  }

  // The last prompt once more, in place of its answer.
  again() {
    const { prompt } = this.last();
    this.stop();
    this.turns.pop();
    this.ask(prompt);
  }

  stop() {
    this.last()?.abort.abort();
  }

  clear() {
    this.stop();
    this.turns = [];
    this.showTurns();
  }

  async run(turn) {
    const { system, parameters } = this.host.settings();
    turn.name = this.name;
    const body = { ...requestFields(this.choice), ...parameters, messages: messages(this.turns, turn, system) };
    this.showTurns();
    this.host.changed();
    await fetchAnswer(turn, body, () => this.showLater(turn));
    if (turn === this.last()) {
      announce(`${turn.name}: ${outcome(turn)}`);
      this.host.changed(turn);
    }
  }

  // Tokens come faster than frames.
  showLater(turn) {
    this.frame ??= requestAnimationFrame(() => {
      this.frame = null;
      if (turn === this.last()) {
        this.showLast();
      }
    });
  }

  showTurns() {
    this.log.replaceChildren(...this.turns.map((turn) => this.turnElement(turn)));
    this.showLast();
  }

  turnElement(turn) {
    const answer = el("div", { className: "answer" });
    turn.show = () => {
      const thinking = turn.thinking === "" ? [] : [el("p", { className: "thinking", textContent: turn.thinking })];
      const error = turn.error === "" ? [] : [el("p", { className: "error", role: "alert", textContent: turn.error })];
      const ended = turn.state === "stopped" ? [el("p", { className: "hint", textContent: "stopped" })] : [];
      answer.replaceChildren(...thinking, ...answerElements(turn.answer), ...error, ...ended);
    };
    turn.show();
    return el("div", { className: "turn" }, el("p", { className: "prompt", textContent: turn.prompt }), answer);
  }

  showLast() {
    const turn = this.last();
    const isNearEnd = this.log.scrollHeight - this.log.scrollTop - this.log.clientHeight < NEAR_END_PIXELS;
    turn?.show();
    if (isNearEnd) {
      this.log.scrollTop = this.log.scrollHeight;
    }
    this.element.setAttribute("aria-busy", String(this.running));
    write(this.facts, turn ? (this.running && turn.state !== "answering" ? progress(turn) : outcome(turn)) : "");
    this.stopButton.disabled = !this.running;
    this.againButton.disabled = !turn;
    this.copyButton.disabled = !turn?.answer;
  }
}
