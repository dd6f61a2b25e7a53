// What the page asks of its server. Addresses are relative: the app may be mounted anywhere.

export const address = (path) => new URL(path, document.baseURI);
export const jobAddress = (id, part = "") => address(`jobs/${encodeURIComponent(id)}${part}`);

/** What the server answered, or an error in its own words. */
async function told(response) {
  const text = await response.text();
  let body = {};
  try {
    body = text ? JSON.parse(text) : {};
  } catch {
    // Not ours: a proxy's page, perhaps.
  }
  if (!response.ok) throw refusal(response.status, body, response.headers.get("Retry-After"));
  return body;
}

function refusal(status, body, retryAfter) {
  const detail = body.detail ?? body.error ?? `the server answered ${status}`;
  const words = {
    401: "This server wants its token: open it as /?token=… once.",
    503: `The server is busy: ${detail}${retryAfter ? `; try again in ${retryAfter} s` : ""}.`,
  };
  const error = new Error(words[status] ?? detail);
  error.status = status;
  return error;
}

export async function health() {
  const response = await fetch(address("healthz"), { cache: "no-store" });
  return response.json(); // 503 has a body as well
}

export async function jobs() {
  const body = await told(await fetch(address("jobs"), { cache: "no-store" }));
  return Array.isArray(body) ? body : body.jobs;
}

/**
 * Stop a job, and forget it unless `keep`. `leaving`: the request outlives the page.
 */
export async function remove(id, { keep = false, leaving = false } = {}) {
  const url = jobAddress(id);
  if (keep) url.searchParams.set("keep", "true");
  const response = await fetch(url, { method: "DELETE", keepalive: leaving });
  if (response.status !== 404) await told(response);
}

// A job waits for this page to watch, and ends when nobody watches any more.
const MANNERS = { start: "viewer", on_idle: "cancel" };

export async function decodeDemo(fps) {
  const body = { demo: true, ...MANNERS, ...(fps ? { fps } : {}) };
  const request = {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  };
  return told(await fetch(address("decode"), request));
}

/** Upload a file; `progress` hears the share that is sent. XMLHttpRequest: `fetch` tells none. */
export function decodeFile(file, fps, { progress, signal }) {
  const url = address("decode");
  for (const [name, value] of Object.entries({ name: file.name, ...MANNERS })) {
    url.searchParams.set(name, value);
  }
  if (fps) url.searchParams.set("fps", String(fps));
  return new Promise((done, failed) => {
    const request = new XMLHttpRequest();
    request.open("POST", url);
    request.setRequestHeader("Content-Type", "application/octet-stream");
    request.responseType = "text";
    request.upload.onprogress = ({ loaded, total }) => progress(total ? loaded / total : 0);
    request.onerror = () => failed(new Error("the upload broke off"));
    request.onabort = () => failed(new DOMException("cancelled", "AbortError"));
    request.onload = () => {
      let body = {};
      try {
        body = JSON.parse(request.responseText);
      } catch {
        // As above.
      }
      if (request.status < 300) done(body);
      else failed(refusal(request.status, body, request.getResponseHeader("Retry-After")));
    };
    signal.addEventListener("abort", () => request.abort(), { once: true });
    request.send(file);
  });
}
