// Plays kept JPEG frames on a canvas: every one of them, none before its turn.

/** Frames that are decoded ahead of the one on show. */
const AHEAD = 4;

/** Frames a second where the latents have no rate. */
const DEFAULT_RATE = 24;

/** While more frames are to come, a buffer shorter than this is played more slowly. */
const COMFORTABLE = 8;

export class CanvasScreen {
  #pictures = new Map(); // index -> Promise<ImageBitmap>
  #context = null;
  #request = 0;
  #due = 0;
  #drawing = false;
  #closed = false;

  constructor(canvas, store, { shown, changed, rate, growing }) {
    this.canvas = canvas;
    this.store = store;
    this.shown = shown; // called with each frame as it is drawn
    this.changed = changed; // called when playing, live or the position changed
    this.rate = rate; // () => frames a second, or null
    this.growing = growing; // () => whether more frames are to come
    this.playing = true;
    this.live = false;
    this.index = -1;
    this.drawn = 0;
    this.#schedule();
  }

  get scrubbable() {
    return this.store.length > 0;
  }

  get range() {
    return [this.store.oldest?.index ?? 0, this.store.newest?.index ?? 0];
  }

  get time() {
    return this.index < 0 ? null : (this.store.at(this.index)?.time ?? null);
  }

  /** A frame has come. */
  arrived() {
    this.#schedule();
  }

  play() {
    const atEnd = this.index >= this.range[1] && !this.growing();
    if (atEnd) this.index = this.range[0] - 1;
    this.#due = 0;
    this.playing = true;
    this.changed();
    this.#schedule();
  }

  pause() {
    this.playing = false;
    this.live = false;
    this.changed();
  }

  /** Show the frame `index` or the nearest one that is there. */
  seek(index) {
    const frame = this.store.at(index) ?? this.store.newest;
    this.live = false;
    if (frame) this.#draw(frame);
    this.changed();
  }

  step(count) {
    this.playing = false;
    const next = count > 0 ? this.store.at(this.index + 1) : this.store.before(this.index);
    if (next) this.seek(next.index);
    this.changed();
  }

  follow(live) {
    this.live = live;
    this.playing = live || this.playing;
    this.changed();
    this.#schedule();
  }

  close() {
    this.#closed = true;
    cancelAnimationFrame(this.#request);
    for (const picture of this.#pictures.values()) picture.then((it) => it.close(), () => {});
    this.#pictures.clear();
  }

  #schedule() {
    if (this.#request || this.#closed || !this.playing) return;
    if (!this.store.at(this.index + 1)) return; // `arrived` comes back here
    this.#request = requestAnimationFrame((now) => {
      this.#request = 0;
      this.#turn(now);
    });
  }

  #turn(now) {
    const next = this.live ? this.store.newest : this.store.at(this.index + 1);
    if (!this.playing || !next || next.index === this.index) {
      if (this.playing && !this.growing() && this.index >= this.range[1]) this.pause();
      return;
    }
    if (!this.#drawing && now + 2 >= this.#due) {
      this.#due = Math.max(this.#due, now - this.#period()) + this.#period();
      this.#draw(next);
    }
    this.#schedule();
  }

  /** Milliseconds that a frame stays: longer when the buffer runs dry, so that bursts flow. */
  #period() {
    const rate = this.rate() || DEFAULT_RATE;
    if (this.live) return 0;
    const ahead = this.store.after(this.index);
    const share = this.growing() && this.index >= 0 ? Math.min(1, ahead / COMFORTABLE) : 1;
    return 1000 / (rate * Math.max(share, 0.125));
  }

  async #draw(frame) {
    this.#drawing = true;
    const wanted = (this.wanted = frame.index);
    try {
      const picture = await this.#picture(frame);
      if (this.#closed || this.wanted !== wanted) return;
      if (this.canvas.width !== picture.width || this.canvas.height !== picture.height) {
        [this.canvas.width, this.canvas.height] = [picture.width, picture.height];
      }
      this.#context ??= this.canvas.getContext("2d", { alpha: false });
      this.#context.drawImage(picture, 0, 0);
      this.index = frame.index;
      this.drawn += 1;
      this.canvas.dataset.frame = String(frame.index);
      this.canvas.dataset.drawn = String(this.drawn);
      this.shown(frame);
    } catch {
      this.index = Math.max(this.index, frame.index); // a damaged picture: on to the next
    } finally {
      if (this.wanted === wanted) this.#drawing = false;
      this.#ahead();
      this.#schedule();
      if (this.playing && !this.growing() && !this.store.at(this.index + 1)) this.pause();
    }
  }

  /** Decode the next frames, and let go of what lies behind. */
  #ahead() {
    if (this.#closed) return;
    const near = new Set([this.index]);
    for (let index = this.index, count = 0; count < AHEAD && this.playing; count += 1) {
      const frame = this.store.at(index + 1);
      if (!frame) break;
      index = frame.index;
      near.add(index);
      this.#picture(frame).catch(() => {});
    }
    for (const [index, picture] of this.#pictures) {
      if (near.has(index)) continue;
      this.#pictures.delete(index);
      picture.then((it) => it.close(), () => {});
    }
  }

  #picture(frame) {
    let picture = this.#pictures.get(frame.index);
    if (!picture) {
      picture = createImageBitmap(frame.blob, { colorSpaceConversion: "none" });
      this.#pictures.set(frame.index, picture);
    }
    return picture;
  }
}
