// The figures under the picture, in words and numbers.

import { bytes, rate, seconds } from "./format.js";

const $ = (id) => document.getElementById(id);

function figure(id, value, unit = "", note = "") {
  const place = $(id);
  place.textContent = value;
  if (unit) {
    const small = document.createElement("small");
    small.textContent = ` ${unit}`;
    place.append(small);
  }
  $(`${id}-note`).textContent = note;
}

/** Frames a second since the stages ran. */
export function speedOf(stats) {
  const running = (stats?.total ?? 0) - (stats?.opening ?? 0);
  return stats?.frames && running > 0 ? stats.frames / running : null;
}

export function showFigures(session) {
  if (!session) {
    for (const id of ["first", "count", "rate", "received"]) figure(id, "–");
    return;
  }
  const { job, store, transport } = session;
  const stats = job.stats ?? {};
  const there = stats.first_chunk == null ? "" : `decoded after ${seconds(stats.first_chunk)} s`;
  const shown = session.first === null ? null : session.first / 1000;
  const first = shown ?? stats.first_chunk;
  figure("first", seconds(first), first == null ? "" : "s", shown === null ? "" : there);

  const { total } = session;
  const missed = store.missed ? `${store.missed} not sent: the link was slow` : "";
  const gone = store.evicted ? `the oldest ${store.evicted} given up` : "";
  figure("count", String(session.decoded), total ? `of ${total}` : "", missed || gone || (total ? "decoded" : ""));

  const speed = speedOf(stats);
  const times = speed && session.rate ? `${rate(speed / session.rate)}× real time` : "";
  figure("rate", rate(speed), speed ? "frames/s" : "", times);

  const received = session.receivedBytes;
  const counted = store.received ? `${bytes(received / store.received).join(" ")} a frame` : "";
  if (transport === "mjpeg") figure("received", "–", "", "the browser's own");
  else if (transport === "file") figure("received", "MP4", "", "the finished file");
  else figure("received", ...(received ? bytes(received) : ["–"]), counted);
}

export function showLimit(session) {
  const limit = $("limit");
  const known = Boolean(session?.job.stats?.chunks && session.job.bottleneck);
  limit.classList.toggle("known", known);
  const idle = "The stage that limits the stream is named here.";
  limit.textContent = known ? session.job.bottleneck : idle;
}
