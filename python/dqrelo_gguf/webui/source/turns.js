// How many streams are open at a time. Over HTTP/1.1 a browser opens six connections to a server; one is left for everything else.

const CONNECTIONS_LEFT = 5;

function limit() {
  const protocol = performance.getEntriesByType("navigation")[0]?.nextHopProtocol ?? "";
  return /^h[23]/.test(protocol) ? Infinity : CONNECTIONS_LEFT;
}

let nOpen = 0;
const waiting = [];

// Resolves when a stream may open, rejects when `signal` aborts. Whoever got a turn gives it back with `leave`.
export function enter(signal) {
  if (nOpen < limit()) {
    nOpen += 1;
    return Promise.resolve();
  }
  return new Promise((resolve, reject) => {
    const entry = { resolve };
    waiting.push(entry);
    signal.addEventListener("abort", () => {
      const place = waiting.indexOf(entry);
      if (place >= 0) {
        waiting.splice(place, 1);
        reject(signal.reason);
      }
    });
  });
}

export function leave() {
  const next = waiting.shift();
  if (next) {
    next.resolve();
  } else {
    nOpen -= 1;
  }
}
