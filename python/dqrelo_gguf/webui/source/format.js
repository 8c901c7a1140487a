// Numbers as people read them.

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB"];

export function bytes(n) {
  let unit = 0;
  while (n >= 1024 && unit < UNITS.length - 1) {
    n /= 1024;
    unit += 1;
  }
  return `${unit === 0 || n >= 100 ? Math.round(n) : n.toFixed(1)} ${UNITS[unit]}`;
}

export const count = (n) => n.toLocaleString("en");

export const plural = (n, one, many = `${one}s`) => `${count(n)} ${n === 1 ? one : many}`;

export const decimal = (n) => String(Number(n.toPrecision(3)));

export const percent = (share) => `${(100 * share).toFixed(1)} %`;

export function duration(ms) {
  return ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(ms < 10000 ? 2 : 1)} s`;
}

export const rate = (perSecond) => `${perSecond >= 100 ? count(Math.round(perSecond)) : perSecond.toFixed(1)}/s`;

// Seconds ago in words; `then` is Unix time in seconds.
export function ago(then, nowMs = Date.now()) {
  const s = Math.max(0, Math.round(nowMs / 1000 - then));
  if (s < 60) {
    return s < 5 ? "just now" : `${s} s ago`;
  }
  return s < 3600 ? `${Math.floor(s / 60)} min ago` : s < 86400 ? `${Math.floor(s / 3600)} h ago` : `${Math.floor(s / 86400)} d ago`;
}
