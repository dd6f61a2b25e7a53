// The ways that JPEG frames come: a WebSocket with credits, or a chunked body of records.

/** Frames that may be on their way before the first is acknowledged. */
const CREDIT = 32;

/** Bytes that one record may have; more is not a picture but a broken stream. */
const LARGEST = 64 * 2 ** 20;

function record(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const time = view.getFloat64(4);
  return [view.getUint32(0), Number.isNaN(time) ? null : time, bytes.subarray(12)];
}

/**
 * Frames over a WebSocket. Each is acknowledged once it is kept.
 *
 * @param {URL} url of the job
 * @param {{frame: Function, end: Function}} to where what comes is told
 * @returns {() => void} closes it
 */
export function openSocket(url, to) {
  const address = new URL(url);
  address.protocol = address.protocol === "https:" ? "wss:" : "ws:";
  address.searchParams.set("credit", String(CREDIT));
  const socket = new WebSocket(address);
  socket.binaryType = "arraybuffer";
  let over = false;
  const finish = (error) => {
    if (over) return;
    over = true;
    to.end(error);
  };
  socket.onmessage = ({ data }) => {
    if (over) return;
    if (typeof data === "string") {
      const told = JSON.parse(data); // progress comes by server-sent events as well
      if (told.event === "error") finish(new Error(told.detail ?? told.message ?? "it failed"));
      if (told.event === "end") finish(null);
      return;
    }
    const [index, time, jpeg] = record(new Uint8Array(data));
    to.frame(index, time, jpeg);
    if (socket.readyState === WebSocket.OPEN) socket.send(JSON.stringify({ ack: index }));
  };
  socket.onclose = ({ code, reason }) => {
    finish(code === 1000 ? null : new Error(reason || "the connection was lost"));
  };
  return () => {
    over = true;
    socket.close(1000);
  };
}

/** Frames as a chunked body of length-prefixed records; arguments as for `openSocket`. */
export function openFetch(url, to) {
  const abort = new AbortController();
  const read = async () => {
    const response = await fetch(url, { signal: abort.signal, cache: "no-store" });
    if (!response.ok) throw new Error(`the frames were refused (${response.status})`);
    const reader = response.body.getReader();
    const bytes = new Incoming();
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      bytes.push(value);
      for (let one = bytes.take(); one; one = bytes.take()) to.frame(...record(one));
    }
    if (bytes.size) throw new Error("the frames broke off in the middle of one");
  };
  read().then(
    () => to.end(null),
    (error) => {
      if (!abort.signal.aborted) to.end(error);
    },
  );
  return () => abort.abort();
}

/** Bytes in pieces, taken out a record at a time; each byte is copied once. */
class Incoming {
  #pieces = [];
  size = 0;

  push(piece) {
    this.#pieces.push(piece);
    this.size += piece.byteLength;
  }

  /** The next whole record without its length, or null. */
  take() {
    if (this.size < 4) return null;
    const length = new DataView(this.#copy(4, false).buffer).getUint32(0);
    if (length < 12 || length > LARGEST) throw new Error("expected a record of a frame");
    if (this.size < 4 + length) return null;
    this.#copy(4, true);
    return this.#copy(length, true);
  }

  #copy(count, remove) {
    const out = new Uint8Array(count);
    let [filled, used] = [0, 0];
    while (filled < count) {
      const piece = this.#pieces[used];
      const part = piece.subarray(0, count - filled);
      out.set(part, filled);
      filled += part.byteLength;
      if (!remove) used += 1;
      else if (part.byteLength === piece.byteLength) this.#pieces.shift();
      else this.#pieces[0] = piece.subarray(part.byteLength);
    }
    if (remove) this.size -= count;
    return out;
  }
}
