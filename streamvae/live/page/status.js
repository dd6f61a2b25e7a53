// What is waited for, and how the server is.

const $ = (id) => document.getElementById(id);

/** At the top: whether the server answers, and what it is at. */
export function showServer(well, told = []) {
  const place = $("server");
  const ready = ["ready", "ok"].includes(well?.status);
  place.dataset.state = ready ? "ok" : "bad";
  const running = told.filter(({ state }) => state === "running").length;
  const waiting = told.filter(({ state }) => state === "queued").length;
  const busy = running ? `${running} decoding${waiting ? `, ${waiting} waiting` : ""}` : "ready";
  const words = ready ? busy : well?.status;
  const { family, device } = told.find(({ info }) => info)?.info ?? {};
  const where = document.createElement("span");
  where.textContent = family ? ` · ${family} on ${device}` : "";
  place.replaceChildren(words ?? "no answer from the server", where);
  place.title = place.textContent;
}

/** Over the picture: what is waited for, or what went wrong. */
export function showWaiting(session) {
  const words = session && waitingWords(session);
  $("waiting").hidden = !words;
  if (!words) return;
  $("waiting").classList.toggle("still", session.over || Boolean(session.error));
  $("waiting-text").textContent = words;
}

function waitingWords({ job, screen, error }) {
  if (job.state === "failed") return `It failed: ${job.error ?? "no reason was given"}`;
  if (error) return `No more frames: ${error}`;
  if (screen?.index >= 0) return "";
  if (job.state === "cancelled") return "Cancelled";
  if (job.state === "queued" && job.position) return `Number ${job.position} in the queue`;
  return job.state === "done" ? "" : "Waiting for the first frame";
}
