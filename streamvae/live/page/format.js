// Numbers for people.

export function seconds(value) {
  if (value == null) return "–";
  return value < 10 ? value.toFixed(2) : value.toFixed(1);
}

export function bytes(value) {
  const units = ["B", "kB", "MB", "GB"];
  let [size, unit] = [value, 0];
  while (size >= 1000 && unit < units.length - 1) {
    size /= 1000;
    unit += 1;
  }
  return [size < 10 && unit ? size.toFixed(1) : String(Math.round(size)), units[unit]];
}

export function rate(value) {
  if (value == null || !Number.isFinite(value)) return "–";
  if (value >= 10) return String(Math.round(value));
  return value.toFixed(value < 0.1 ? 2 : 1);
}

/** 0:04.25 */
export function clock(value) {
  const minutes = Math.floor(value / 60);
  return `${minutes}:${(value - 60 * minutes).toFixed(2).padStart(5, "0")}`;
}
