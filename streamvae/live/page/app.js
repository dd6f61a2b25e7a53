// The page: jobs are begun, chosen, watched and cancelled; nothing goes on when it is left.

import { decodeDemo, decodeFile, health, jobs as listJobs, remove } from "./api.js";
import { Controls } from "./controls.js";
import { takeDropped } from "./dropping.js";
import { showFigures, showLimit, speedOf } from "./figures.js";
import { Shelf } from "./frames.js";
import { JobList } from "./jobs.js";
import { Lanes } from "./lanes.js";
import { Session } from "./session.js";
import { showServer, showWaiting } from "./status.js";
import { setUpTheme } from "./theme_switch.js";

const $ = (id) => document.getElementById(id);

const NOTES = {
  socket: "Every frame as a JPEG. The page acknowledges each: on a slow link frames are left out, and none is late.",
  fetch: "Every frame as a JPEG, in one chunked response.",
  mse: "H.264 in fragments: far fewer bytes, a moment later.",
  mjpeg: "The browser draws by itself: nothing to pause, no way back.",
  file: "The MP4 that the server has kept.",
};

const shelf = new Shelf();
const sessions = new Map(); // id -> Session, of the jobs that this page watches
const uploads = new Map(); // id -> {id, name, share, abort}
let others = new Map(); // id -> job, as the server lists them
let chosen = null;
let uploaded = 0;
let leaving = false;

const controls = new Controls({
  download: () => document.querySelector(`.job.chosen .job-download:not([hidden])`)?.click(),
  cancel: () => chosen && !sessions.get(chosen)?.over && cancel(chosen),
});
const lanes = new Lanes($("lanes"), $("lane-names"));
const list = new JobList($("jobs"), $("job-template"), { choose, cancel });

/* Beginning */

async function begin(name, ask) {
  notice();
  const began = performance.now();
  try {
    const job = await ask();
    const session = adopt(job, { mine: true, began });
    choose(session.id);
    say(`${name} is being decoded.`);
  } catch (error) {
    if (error.name !== "AbortError") notice(`${name}: ${error.message}`);
  }
}

function upload(file) {
  const id = `upload-${(uploaded += 1)}`;
  const abort = new AbortController();
  const entry = { id, name: file.name, state: "uploading", share: 0, abort };
  uploads.set(id, entry);
  paintJobs();
  const options = { signal: abort.signal, progress: (share) => { entry.share = share; paintJobs(); } };
  begin(file.name, () => decodeFile(file, fps(), options)).finally(() => {
    uploads.delete(id);
    paintJobs();
  });
}

const demo = () => begin("The demo", () => decodeDemo(fps()));

function fps() {
  const value = $("fps").valueAsNumber;
  return Number.isFinite(value) && value > 0 ? value : null;
}

function adopt(job, options = {}) {
  let session = sessions.get(job.id);
  if (!session) {
    session = new Session(job, { shelf, stage: $("stage"), changed, ...options });
    sessions.set(job.id, session);
    session.update(job);
  }
  return session;
}

/* Choosing and cancelling */

function choose(id) {
  if (uploads.has(id)) return;
  const session = sessions.get(id) ?? (others.has(id) ? adopt(others.get(id)) : null);
  if (!session) return;
  if (chosen && chosen !== id) {
    const before = sessions.get(chosen);
    before?.unlisten();
    if (before) before.store.watched = false;
    if (before?.element) before.element.hidden = true;
    if (before?.screen?.playing && before.over) before.screen.pause();
  }
  chosen = id;
  if (!session.screen) watch(session, $("transport").value);
  session.store.watched = true;
  session.listen();
  $("transport").value = session.transport;
  controls.show(session);
  lanes.show(session);
  changed(session);
}

function watch(session, transport) {
  const got = session.watch(transport);
  if (session.id === chosen || !chosen) $("transport").value = got;
}

async function cancel(id) {
  const upload_ = uploads.get(id);
  if (upload_) {
    upload_.abort.abort();
    return;
  }
  const session = sessions.get(id);
  const active = !["done", "failed", "cancelled"].includes((session?.job ?? others.get(id))?.state);
  if (active) session?.halt();
  try {
    await remove(id, { keep: active });
  } catch (error) {
    notice(error.message);
    return;
  }
  if (active) {
    session?.update({ state: "cancelled" });
    say("Cancelled.");
  } else {
    session?.close();
    sessions.delete(id);
    others.delete(id);
    if (chosen === id) chosen = null;
  }
  refresh();
  paint();
}

/* Painting: at most once for each picture of the screen */

let painting = 0;
let jobsPainted = 0;

function changed(session) {
  if (leaving) return;
  if (session.over && session.id === chosen) session.settled ??= settled(session);
  painting ||= requestAnimationFrame(() => {
    painting = 0;
    paint();
  });
}

/** A job has ended: say so once, and show the video where there is nothing else to see. */
function settled(session) {
  if (session.mine) say(`${session.job.name}: ${session.job.state}.`);
  refresh();
  return true;
}

function paint() {
  const session = sessions.get(chosen) ?? null;
  const empty = !session;
  $("empty").hidden = !empty;
  $("stage").classList.toggle("is-empty", empty);
  $("transport").querySelector("[value=file]").disabled = session?.job.state !== "done";
  $("transport-note").textContent = NOTES[$("transport").value];
  if (session?.element) {
    session.element.hidden = !(session.screen.index >= 0 || session.transport === "file");
  }
  showWaiting(session);
  controls.session = session;
  controls.update();
  showFigures(session);
  showLimit(session);
  if (lanes.session !== session) lanes.show(session);
  else lanes.update();
  if (performance.now() - jobsPainted > 150) paintJobs();
  else setTimeout(paintJobs, 200);
}

function paintJobs() {
  jobsPainted = performance.now();
  const merged = new Map(others);
  for (const session of sessions.values()) {
    merged.set(session.id, { ...session.job, frames: session.decoded });
  }
  const entries = [...merged.values()].map((job) => ({
    ...job,
    total: job.total ?? job.info?.frames ?? (job.state === "done" ? job.frames : null),
    speed: job.state === "running" ? speedOf(job.stats) : null,
  }));
  entries.sort((one, other) => String(other.created).localeCompare(String(one.created)));
  list.show([...[...uploads.values()].reverse(), ...entries], chosen);
  $("no-jobs").hidden = entries.length + uploads.size > 0;
}

function notice(text = "") {
  $("notice").hidden = !text;
  $("notice").textContent = text;
}

function say(text) {
  $("said").textContent = text;
}

/* What the server tells of everybody's jobs */

let refreshing = 0;

async function refresh() {
  clearTimeout(refreshing);
  let active = uploads.size > 0;
  try {
    const [well, told] = await Promise.all([health(), listJobs()]);
    showServer(well, told);
    others = new Map(told.map((job) => [job.id, job]));
    for (const [id, session] of sessions) {
      const job = others.get(id);
      if (job && !session.over) session.update(job);
      if (!job && session.over && id !== chosen) {
        session.close();
        sessions.delete(id);
      }
      active ||= !session.over;
    }
    paintJobs();
  } catch (error) {
    showServer(null);
    if (error.status === 401) notice(error.message);
  }
  if (!leaving && !document.hidden) refreshing = setTimeout(refresh, active ? 1000 : 4000);
}

/* Leaving: streams are closed and decodes of this page stopped, whatever the browser keeps */

function leave() {
  leaving = true;
  for (const session of sessions.values()) {
    if (session.mine && !session.over) remove(session.id, { leaving: true }).catch(() => {});
    session.close();
  }
  for (const { abort } of uploads.values()) abort.abort();
}

/* Wiring */

$("file").addEventListener("change", ({ target }) => {
  for (const file of target.files) upload(file);
  target.value = "";
});
for (const id of ["demo", "demo-empty"]) $(id).addEventListener("click", demo);
$("help-open").addEventListener("click", () => $("help").showModal());
$("transport").addEventListener("change", ({ target }) => {
  const session = sessions.get(chosen);
  if (session) watch(session, target.value);
  paint();
});

takeDropped(upload);
addEventListener("pagehide", leave);
addEventListener("pageshow", ({ persisted }) => persisted && location.reload());
document.addEventListener("visibilitychange", () => !document.hidden && refresh());

setUpTheme($("theme"), () => lanes.draw());
paint();
refresh();
