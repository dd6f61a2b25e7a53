// Frames as they arrived: encoded, in order, and never more than so many bytes of them.

/** Bytes of JPEG that the page keeps, of all jobs together. */
export const KEPT = 256 * 2 ** 20;

/** All jobs' frames share one bound; what is looked at is given up last. */
export class Shelf {
  constructor(limit = KEPT) {
    this.limit = limit;
    this.stores = new Set();
  }

  store() {
    const store = new FrameStore(this);
    this.stores.add(store);
    return store;
  }

  drop(store) {
    this.stores.delete(store);
  }

  /** Give up the oldest frames: of other jobs first, then of the one that just grew. */
  fit(grown) {
    let bytes = 0;
    for (const store of this.stores) bytes += store.bytes;
    const others = [...this.stores].filter((store) => store !== grown && !store.watched);
    for (const store of [...others, grown]) {
      while (bytes > this.limit && store.length > 1) bytes -= store.shift();
    }
  }
}

/** The frames of one job. */
class FrameStore {
  #frames = [];
  #gone = 0; // frames in #frames that were given up; cut off now and then

  constructor(shelf) {
    this.shelf = shelf;
    this.bytes = 0;
    this.received = 0;
    this.receivedBytes = 0;
    this.missed = 0;
    this.evicted = 0;
    this.watched = false;
  }

  get length() {
    return this.#frames.length - this.#gone;
  }

  get oldest() {
    return this.length ? this.#frames[this.#gone] : null;
  }

  get newest() {
    return this.length ? this.#frames[this.#frames.length - 1] : null;
  }

  /** Keep a frame; what comes twice or late is not wanted. Returns whether it was kept. */
  add(index, time, bytes) {
    const last = this.newest;
    if (last && index <= last.index) return false;
    this.missed += index - (last ? last.index + 1 : 0);
    this.#frames.push({ index, time, blob: new Blob([bytes], { type: "image/jpeg" }) });
    this.received += 1;
    this.receivedBytes += bytes.byteLength;
    this.bytes += bytes.byteLength;
    this.shelf.fit(this);
    return true;
  }

  /** Give up the oldest frame; returns its bytes. */
  shift() {
    const { size } = this.#frames[this.#gone].blob;
    this.#frames[this.#gone] = undefined;
    this.#gone += 1;
    this.evicted += 1;
    this.bytes -= size;
    if (this.#gone > 256 && this.#gone * 2 > this.#frames.length) {
      this.#frames.splice(0, this.#gone);
      this.#gone = 0;
    }
    return size;
  }

  /** The frame `index`, or the next one that is there; null after the newest. */
  at(index) {
    const place = this.#place(index);
    return place < this.#frames.length ? this.#frames[place] : null;
  }

  /** The frame that is there before `index`; null before the oldest. */
  before(index) {
    const place = this.#place(index) - 1;
    return place >= this.#gone ? this.#frames[place] : null;
  }

  /** How many frames are there after `index`. */
  after(index) {
    return this.#frames.length - this.#place(index + 1);
  }

  #place(index) {
    let [low, high] = [this.#gone, this.#frames.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.#frames[middle].index < index) low = middle + 1;
      else high = middle;
    }
    return low;
  }
}
