// The list of jobs: uploads under way, jobs of this page, jobs of others that the server tells.

import { jobAddress } from "./api.js";
import { rate } from "./format.js";

const STATES = {
  uploading: "uploading",
  queued: "waiting",
  running: "decoding",
  done: "done",
  failed: "failed",
  cancelled: "cancelled",
};

export class JobList {
  #rows = new Map();

  constructor(list, template, { choose, cancel }) {
    this.list = list;
    this.template = template;
    this.choose = choose;
    this.cancel = cancel;
  }

  /** Show these entries, the newest first: {id, name, state, frames, total, ...}. */
  show(entries, chosen) {
    const ids = new Set(entries.map(({ id }) => id));
    for (const [id, row] of this.#rows) {
      if (ids.has(id)) continue;
      row.remove();
      this.#rows.delete(id);
    }
    entries.forEach((entry, place) => {
      const row = this.#rows.get(entry.id) ?? this.#make(entry);
      if (this.list.children[place] !== row) {
        this.list.insertBefore(row, this.list.children[place] ?? null);
      }
      this.#fill(row, entry, entry.id === chosen);
    });
  }

  #make(entry) {
    const row = this.template.content.firstElementChild.cloneNode(true);
    row.querySelector(".job-open").addEventListener("click", () => this.choose(entry.id));
    row.querySelector(".job-cancel").addEventListener("click", () => this.cancel(entry.id));
    this.#rows.set(entry.id, row);
    return row;
  }

  #fill(row, entry, chosen) {
    const { id, name, state, frames = 0, total, position, error, share } = entry;
    const active = ["uploading", "queued", "running"].includes(state);
    row.dataset.state = state;
    row.dataset.id = id;
    row.classList.toggle("chosen", chosen);
    row.querySelector(".job-open").setAttribute("aria-current", String(chosen));
    row.querySelector(".job-name").textContent = name;
    row.querySelector(".job-state").textContent = STATES[state] ?? state;
    row.querySelector(".job-detail").textContent = detail(entry, active);
    row.title = error ?? "";
    const progress = row.querySelector(".job-progress");
    progress.hidden = !active;
    progress.setAttribute("aria-label", `Progress of ${name}`);
    const done = state === "uploading" ? share : total ? frames / total : null;
    if (state === "queued" || done == null) progress.removeAttribute("value");
    else progress.value = done;
    if (state === "queued" && position) progress.hidden = true;
    const download = row.querySelector(".job-download");
    download.hidden = active || !entry.links?.video;
    if (!download.hidden && !download.hasAttribute("href")) {
      download.href = jobAddress(id, "/video.mp4");
      download.download = `${name.replace(/\.(safetensors|npy)$/, "")}.mp4`;
      download.setAttribute("aria-label", `Download ${name} as MP4`);
      download.title = "Download the MP4";
    }
    const cancel = row.querySelector(".job-cancel");
    const words = active ? `Cancel ${name}` : `Remove ${name}`;
    if (cancel.title !== words) {
      cancel.setAttribute("aria-label", words);
      cancel.title = words;
    }
  }
}

function detail({ state, frames = 0, total, position, error, share, speed }, active) {
  if (state === "uploading") return `${Math.round(100 * (share ?? 0))} % sent`;
  if (state === "failed") return error ?? "no reason was given";
  if (state === "queued") return position ? `number ${position} in the queue` : "about to begin";
  const counted = total && active ? `${frames} of ${total} frames` : `${frames} frames`;
  return speed ? `${counted}, ${rate(speed)} a second` : counted;
}
