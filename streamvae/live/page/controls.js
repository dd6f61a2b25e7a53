// The bar under the picture, and the keys that do the same.

import { clock } from "./format.js";

const $ = (id) => document.getElementById(id);

export class Controls {
  constructor({ download, cancel }) {
    this.session = null;
    this.download = download;
    this.cancel = cancel;
    this.stage = $("stage");
    $("play").addEventListener("click", () => this.toggle());
    $("live").addEventListener("click", () => this.#screen?.follow(!this.#screen.live));
    $("full").addEventListener("click", () => this.full());
    $("seek").addEventListener("input", (event) => this.#scrub(event.target.valueAsNumber));
    this.stage.addEventListener("click", (event) => {
      if (event.target.closest("button, label, a") || !this.#screen) return;
      this.toggle();
    });
    document.addEventListener("keydown", (event) => this.#key(event));
  }

  get #screen() {
    return this.session?.screen ?? null;
  }

  show(session) {
    this.session = session;
    this.update();
  }

  toggle() {
    const screen = this.#screen;
    if (!screen?.scrubbable) return;
    if (screen.playing) screen.pause();
    else screen.play();
  }

  full() {
    if (document.fullscreenElement) document.exitFullscreen();
    else this.stage.requestFullscreen?.().catch(() => {});
  }

  update() {
    const screen = this.#screen;
    const able = Boolean(screen?.scrubbable);
    const [first, last] = able ? screen.range : [0, 0];
    const end = Math.max(last, (this.session?.total ?? 0) - 1, 1);
    const index = able ? Math.max(screen.index, 0) : 0;
    for (const id of ["play", "seek"]) $(id).disabled = !able;
    $("live").disabled = !able || !screen.growing();
    $("live").setAttribute("aria-pressed", String(Boolean(screen?.live) && !$("live").disabled));
    const playing = Boolean(able && screen.playing);
    const play = $("play");
    if (play.classList.toggle("playing", playing) !== (play.dataset.says === "Pause") || !play.dataset.says) {
      play.dataset.says = playing ? "Pause" : "Play";
      play.setAttribute("aria-label", play.dataset.says);
      play.title = `${play.dataset.says} (space)`;
    }
    const seek = $("seek");
    seek.max = String(end);
    seek.value = String(index);
    const percent = (frame) => `${(100 * Math.min(Math.max(frame / end, 0), 1)).toFixed(2)}%`;
    $("arrived").style.left = percent(first);
    $("arrived").style.width = percent(last - first);
    $("played").style.left = percent(first);
    $("played").style.width = percent(index - first);
    this.#say(able && screen.index >= 0 ? index : null, screen?.time);
  }

  #say(index, time) {
    const place = $("place");
    if (index === null) {
      place.textContent = "–";
      $("seek").removeAttribute("aria-valuetext");
      return;
    }
    const total = this.session.total;
    const at = time == null ? "" : `${clock(time)} · `;
    place.replaceChildren(at, element("b", `${index + 1}`), total ? ` / ${total}` : "");
    $("seek").setAttribute("aria-valuetext", `frame ${index + 1}${total ? ` of ${total}` : ""}`);
  }

  /** Frames that have not come yet cannot be shown: the handle goes as far as they reach. */
  #scrub(wanted) {
    const screen = this.#screen;
    if (!screen) return;
    screen.pause();
    screen.seek(Math.min(Math.max(wanted, screen.range[0]), screen.range[1]));
    this.update();
  }

  #key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
    if (document.querySelector("dialog[open]")) return;
    const { target } = event;
    const editing = target.matches("input:not([type=range]), select, textarea");
    const pressing = target.matches("button, a, summary") && [" ", "Enter"].includes(event.key);
    if (editing || pressing) return;
    const action = this.#actions()[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (!action) return;
    event.preventDefault();
    action();
  }

  #actions() {
    const screen = this.#screen;
    const able = screen?.scrubbable;
    return {
      "?": () => $("help").showModal(),
      " ": () => this.toggle(),
      ArrowLeft: () => able && screen.step(-1),
      ArrowRight: () => able && screen.step(1),
      Home: () => able && this.#scrub(screen.range[0]),
      End: () => able && this.#scrub(screen.range[1]),
      l: () => able && screen.growing() && screen.follow(!screen.live),
      f: () => this.full(),
      d: () => this.download(),
      x: () => this.cancel(),
    };
  }
}

function element(tag, text) {
  const made = document.createElement(tag);
  made.textContent = text;
  return made;
}
