// One job as this page watches it: what the server tells, its frames, and the screen they are on.

import { jobAddress } from "./api.js";
import { CanvasScreen } from "./canvas_screen.js";
import { PictureScreen } from "./picture_screen.js";
import { openFetch, openSocket } from "./transports.js";
import { VideoScreen } from "./video_screen.js";

const ENDS = new Set(["done", "failed", "cancelled"]);

/** A browser opens six connections to a host; these many may be taken by frames. */
const MOST_BODIES = 3;
let bodies = 0;

/** Milliseconds that an old connection stays at most when another transport is chosen. */
const OVERLAP = 5000;

export class Session {
  #close = () => {};
  #retire = () => {};
  #turn = null;
  #events = null;

  /**
   * @param {object} job as the server tells it
   * @param {{shelf: object, stage: Element, changed: Function, mine: boolean, began: number}} with_
   */
  constructor(job, { shelf, stage, changed, mine = false, began = null }) {
    this.job = job;
    this.shelf = shelf;
    this.store = shelf.store();
    this.stage = stage;
    this.changed = changed;
    this.mine = mine;
    this.began = began; // when it was asked for, in the page's clock
    this.first = null; // milliseconds from then to the first picture
    this.spans = new Map();
    this.heard = performance.now();
    this.screen = null;
    this.element = null;
    this.transport = null;
    this.error = null;
    this.connected = false;
  }

  get id() {
    return this.job.id;
  }

  get over() {
    return ENDS.has(this.job.state);
  }

  get rate() {
    return this.job.info?.fps ?? this.job.fps ?? null;
  }

  /** Frames in all, as far as that is known. */
  get total() {
    return this.job.total ?? this.job.info?.frames ?? (this.job.state === "done" ? this.job.frames : null);
  }

  /** Frames decoded: those that have come are, whatever the last event said. */
  get decoded() {
    return Math.max(this.job.frames ?? 0, (this.store.newest?.index ?? -1) + 1);
  }

  get receivedBytes() {
    return this.store.receivedBytes + (this.screen?.receivedBytes ?? 0);
  }

  /** Take in what the server told. */
  update(told) {
    const known = Object.fromEntries(Object.entries(told).filter(([, value]) => value != null));
    this.job = { ...this.job, ...known };
    this.heard = performance.now();
    for (const span of told.stats?.timeline ?? []) {
      this.spans.set(`${span.stage} ${span.chunk}`, span);
    }
    if (this.over) this.#events?.close();
    this.changed(this);
  }

  /** Listen to progress and stats, until the job is over or `unlisten`. */
  listen() {
    if (this.#events || (this.over && this.spans.size)) return;
    const events = (this.#events = new EventSource(jobAddress(this.id, "/events")));
    const hear = ({ data }) => {
      if (data) this.update(JSON.parse(data));
    };
    events.addEventListener("job", hear);
    events.addEventListener("end", (event) => {
      events.close();
      hear(event);
    });
  }

  unlisten() {
    this.#events?.close();
    this.#events = null;
  }

  /** Watch by a transport, instead of the one before. Returns the transport that it became. */
  watch(wanted) {
    const transport = this.#possible(wanted);
    this.#retire(); // of the one before the one before
    const [close, screen, element] = [this.#close, this.screen, this.element];
    if (element) element.hidden = true;
    let standing = true;
    // The job ends when nobody watches: the new connection must stand before the old one goes.
    this.#retire = () => {
      if (!standing) return;
      standing = false;
      close();
      screen?.close();
      element?.remove();
    };
    this.transport = transport;
    this.error = null;
    this.connected = !["file"].includes(transport);
    const tags = { socket: "canvas", fetch: "canvas", mjpeg: "img" };
    this.element = document.createElement(tags[transport] ?? "video");
    this.element.className = "screen";
    this.element.hidden = true;
    this.stage.append(this.element);
    this.#open(transport);
    if (this.over) this.#retire();
    else setTimeout(this.#retire, OVERLAP);
    return transport;
  }

  /** Take no more frames; what has come stays. */
  halt() {
    this.connected = false;
    this.#turn = null;
    this.#retire();
    this.#close();
    this.#close = () => {};
    this.screen?.halt?.();
    this.changed(this);
  }

  /** Let go of connections and memory. */
  close() {
    this.unlisten();
    this.#retire();
    this.#close();
    this.#close = () => {};
    this.screen?.close();
    this.screen = null;
    this.element?.remove();
    this.shelf.drop(this.store);
  }

  #possible(wanted) {
    if (wanted === "file" && this.job.state !== "done") return "socket";
    if (this.over && this.store.length && ["socket", "fetch"].includes(wanted)) return wanted;
    if (this.over) return "file";
    if (wanted === "mse" && !globalThis.MediaSource) return "socket";
    return wanted !== "socket" && bodies >= MOST_BODIES ? "socket" : wanted;
  }

  #open(transport) {
    const hooks = {
      shown: () => {
        this.#retire();
        if (this.first === null && this.began !== null) this.first = performance.now() - this.began;
        this.changed(this);
      },
      changed: () => this.changed(this),
      rate: () => this.rate,
      growing: () => this.connected,
    };
    const turn = (this.#turn = {});
    const end = (error) => {
      if (turn === this.#turn) this.#ended(transport, error);
    };
    if (transport === "mse" || transport === "file") {
      this.screen = new VideoScreen(this.element, hooks);
      this.element.muted = true;
      this.element.playsInline = true;
      this.element.setAttribute("aria-label", "The decoded video");
    } else if (transport === "mjpeg") {
      this.screen = new PictureScreen(this.element, hooks);
      this.element.alt = "The frames as they are decoded";
    } else {
      this.screen = new CanvasScreen(this.element, this.store, hooks);
      this.element.setAttribute("role", "img");
      this.element.setAttribute("aria-label", "The decoded frame");
    }
    if (transport === "file") {
      this.screen.openFile(jobAddress(this.id, "/video.mp4"));
      this.#close = () => {};
    } else if (this.over) {
      this.connected = false; // what is kept is all there is
      this.#close = () => {};
    } else {
      this.#connect(transport, end);
    }
  }

  #connect(transport, end) {
    const to = {
      frame: (index, time, jpeg) => {
        if (this.store.add(index, time, jpeg)) this.screen?.arrived();
        this.changed(this);
      },
      end,
    };
    if (transport === "socket") {
      this.#close = openSocket(jobAddress(this.id), to);
      return;
    }
    bodies += 1;
    let stop = () => {};
    if (transport === "fetch") stop = openFetch(jobAddress(this.id, "/frames.jpegs"), to);
    else if (transport === "mse") this.screen.openFragments(jobAddress(this.id, "/frames.mp4"), end);
    else this.screen.open(jobAddress(this.id, "/frames.mjpeg"), end);
    let open = true;
    this.#close = () => {
      if (open) bodies -= 1;
      open = false;
      stop();
    };
  }

  #ended(transport, error) {
    if (error && transport === "socket" && !this.store.received && !this.over) {
      this.watch("fetch"); // a proxy that lets no WebSocket through
      return;
    }
    this.connected = false;
    this.#close();
    this.#close = () => {};
    if (error && !this.over) this.error = error.message;
    this.screen?.arrived();
    this.changed(this);
  }
}
