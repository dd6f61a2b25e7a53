// Plays an MP4: the finished file, or fragments through Media Source while they are made.

/** Seconds of played video that a Media Source keeps. */
const BEHIND = 120;

export class VideoScreen {
  #closers = [];
  #closed = false;
  #fragments = false;

  constructor(video, { shown, changed, rate, growing }) {
    this.video = video;
    this.shown = shown;
    this.changed = changed;
    this.rate = rate;
    this.growing = growing;
    this.live = false;
    this.receivedBytes = 0;
    this.drawn = 0;
    this.halt = () => {}; // takes no more fragments
    this.wanting = true; // plays as soon as there is something
    for (const name of ["play", "pause", "ended", "progress", "seeked", "durationchange"]) {
      this.#listen(name, changed);
    }
    this.#listen("timeupdate", () => {
      if (this.live) this.#chase();
      changed();
    });
    this.#listen("canplay", () => {
      if (this.wanting) this.play();
    });
    this.#everyFrame();
  }

  /** Play a finished file. */
  openFile(url) {
    this.video.src = url;
    this.video.load();
  }

  /** Play fragments as they come; `end` is called with what broke them off, or null. */
  openFragments(url, end) {
    this.#fragments = true;
    const abort = new AbortController();
    this.halt = () => abort.abort();
    const media = new MediaSource();
    const address = URL.createObjectURL(media);
    this.#closers.push(() => abort.abort(), () => URL.revokeObjectURL(address));
    this.video.src = address;
    media.addEventListener("sourceopen", () => {
      this.#feed(media, url, abort.signal).then(
        () => end(null),
        (error) => {
          if (!abort.signal.aborted) end(error);
        },
      );
    }, { once: true });
  }

  get playing() {
    return !this.video.paused && !this.video.ended;
  }

  get index() {
    const frame = Math.floor(this.video.currentTime * (this.rate() || 24) + 0.01);
    return Math.min(frame, this.range[1]); // a finished video stands at its end, behind the last
  }

  get time() {
    return this.video.currentTime;
  }

  get scrubbable() {
    return this.video.readyState >= HTMLMediaElement.HAVE_METADATA;
  }

  get range() {
    const { seekable, buffered } = this.video;
    const rate = this.rate() || 24;
    const ranges = this.#fragments ? buffered : seekable;
    if (!ranges.length) return [0, 0];
    const last = Math.round(ranges.end(ranges.length - 1) * rate) - 1;
    return [Math.round(ranges.start(0) * rate), Math.max(0, last)];
  }

  arrived() {}

  play() {
    this.wanting = false;
    this.video.play().catch(() => this.changed());
  }

  pause() {
    this.wanting = this.live = false;
    this.video.pause();
    this.changed();
  }

  seek(index) {
    const [first, last] = this.range;
    this.live = false;
    const frame = Math.min(Math.max(index, first), last);
    this.video.currentTime = (frame + 0.5) / (this.rate() || 24); // the middle of its time
  }

  step(count) {
    this.video.pause();
    this.seek(this.index + count);
  }

  follow(live) {
    this.live = live;
    if (live) {
      this.#chase();
      this.play();
    }
    this.changed();
  }

  close() {
    this.#closed = true;
    for (const close of this.#closers) close();
    this.video.pause();
    this.video.removeAttribute("src");
    this.video.load();
  }

  #listen(name, heard) {
    this.video.addEventListener(name, heard);
    this.#closers.push(() => this.video.removeEventListener(name, heard));
  }

  #chase() {
    const { buffered } = this.video;
    if (!buffered.length) return;
    const end = buffered.end(buffered.length - 1);
    if (end - this.video.currentTime > 0.4) this.video.currentTime = end - 0.1;
  }

  #everyFrame() {
    if (!this.video.requestVideoFrameCallback) {
      this.#listen("timeupdate", () => this.shown({ index: this.index, time: this.time }));
      return;
    }
    const one = (now, { mediaTime }) => {
      if (this.#closed) return;
      const index = Math.round(mediaTime * (this.rate() || 24));
      this.drawn += 1;
      this.video.dataset.frame = String(index);
      this.video.dataset.drawn = String(this.drawn);
      this.shown({ index, time: mediaTime });
      this.video.requestVideoFrameCallback(one);
    };
    this.video.requestVideoFrameCallback(one);
  }

  async #feed(media, url, signal) {
    const response = await fetch(url, { signal, cache: "no-store" });
    if (!response.ok) throw new Error(`the video was refused (${response.status})`);
    const reader = response.body.getReader();
    let buffer = null;
    let head = new Uint8Array();
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      this.receivedBytes += value.byteLength;
      let bytes = value;
      if (!buffer) {
        head = joined(head, value);
        const codec = codecOf(head);
        if (!codec) continue;
        const type = `video/mp4; codecs="${codec}"`;
        if (!MediaSource.isTypeSupported(type)) throw new Error(`this browser plays no ${type}`);
        buffer = media.addSourceBuffer(type);
        bytes = head;
      }
      await this.#append(buffer, bytes);
    }
    if (media.readyState === "open") media.endOfStream();
  }

  async #append(buffer, bytes) {
    try {
      buffer.appendBuffer(bytes);
    } catch (error) {
      if (error.name !== "QuotaExceededError") throw error;
      const until = Math.max(0, this.video.currentTime - 5);
      if (until <= 0) {
        await new Promise((done) => setTimeout(done, 500)); // until some of it has been played
      } else {
        buffer.remove(0, until);
        await updated(buffer);
      }
      await this.#append(buffer, bytes);
      return;
    }
    await updated(buffer);
    if (!buffer.buffered.length) return;
    const start = buffer.buffered.start(0);
    if (this.video.currentTime < start) this.video.currentTime = start; // joined on the way
    if (this.video.currentTime - start > 2 * BEHIND) {
      buffer.remove(start, this.video.currentTime - BEHIND);
      await updated(buffer);
    }
  }
}

function updated(buffer) {
  if (!buffer.updating) return Promise.resolve();
  return new Promise((done, failed) => {
    buffer.addEventListener("updateend", done, { once: true });
    buffer.addEventListener("error", () => failed(new Error("the video is damaged")), { once: true });
  });
}

function joined(one, other) {
  const both = new Uint8Array(one.byteLength + other.byteLength);
  both.set(one);
  both.set(other, one.byteLength);
  return both;
}

/** The codec that the first segment names, as `isTypeSupported` wants it; null while incomplete. */
function codecOf(head) {
  const text = new TextDecoder("latin1").decode(head);
  const at = text.indexOf("avcC");
  if (at < 0 || head.byteLength < at + 8) return null;
  const hex = [...head.subarray(at + 5, at + 8)].map((byte) => byte.toString(16).padStart(2, "0"));
  return `avc1.${hex.join("")}`;
}
