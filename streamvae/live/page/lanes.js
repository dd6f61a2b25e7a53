// The lanes: which chunk each stage had when, on one clock, moving while the job runs.

const STAGES = ["decode", "download", "persist"];
const LANE = 26;
const BAR = 14;
const AXIS = 18;

/** Seconds that the moving window shows, and chunks that it shows at least. */
const WINDOW = 12;
const CHUNKS = 8;

export class Lanes {
  #request = 0;
  #last = 0;

  constructor(canvas, names) {
    this.canvas = canvas;
    this.names = names;
    this.session = null;
    this.calm = matchMedia("(prefers-reduced-motion: reduce)");
    new ResizeObserver(() => this.draw()).observe(canvas);
    this.#name(null);
  }

  show(session) {
    this.session = session;
    this.update();
  }

  /** Something is new: write the shares, draw, and keep moving while the job runs. */
  update() {
    this.#name(this.session?.job.stats);
    this.#schedule();
  }

  #schedule() {
    if (this.#request) return;
    this.#request = requestAnimationFrame((now) => {
      this.#request = 0;
      // Thirty times a second is smooth enough for bars, and leaves time for pictures.
      if (now - this.#last >= 32) {
        this.#last = now;
        this.draw();
      }
      if (this.session?.job.state === "running" && !this.calm.matches) this.#schedule();
    });
  }

  #name(stats) {
    const stages = stats?.stages ?? [];
    const running = (stats?.total ?? 0) - (stats?.opening ?? 0);
    const shares = STAGES.map((name) => {
      const busy = stages.find((stage) => stage.name === name)?.busy ?? 0;
      return running > 0 ? Math.min(1, Math.max(0, busy / running)) : 0;
    });
    const most = Math.max(...shares);
    if (this.names.children.length !== STAGES.length) {
      this.names.replaceChildren(...STAGES.map((name) => {
        const item = document.createElement("li");
        item.dataset.lane = name;
        const label = document.createElement("span");
        label.textContent = name;
        const share = document.createElement("span");
        share.className = "share";
        item.append(label, share);
        return item;
      }));
    }
    STAGES.forEach((name, place) => {
      const [label, share] = this.names.children[place].children;
      label.classList.toggle("limits", most > 0.3 && shares[place] === most);
      share.textContent = stages.length ? `${Math.round(100 * shares[place])} %` : "";
    });
    const words = STAGES.map((name, place) => `${name} ${Math.round(100 * shares[place])} %`);
    const label = stages.length ? `Busy: ${words.join(", ")}` : "Nothing has been decoded yet";
    this.canvas.setAttribute("aria-label", label);
  }

  /** The part of time on show: all of a job that is over, the last seconds of one that runs. */
  #window() {
    const { job, heard } = this.session;
    const told = job.stats?.total ?? 0;
    const since = job.state === "running" ? (performance.now() - heard) / 1000 : 0;
    const now = told + Math.min(since, 1);
    if (job.state !== "running") return [0, Math.max(now, 0.5)];
    const chunks = job.stats?.chunks ?? 0;
    const long = Math.max(WINDOW, chunks ? (CHUNKS * told) / chunks : 0);
    return [Math.max(0, now - long), Math.max(now, long)];
  }

  draw() {
    const { canvas } = this;
    const [width, height] = [canvas.clientWidth, canvas.clientHeight];
    const ratio = devicePixelRatio || 1;
    if (!width) return;
    if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
      canvas.width = Math.round(width * ratio);
      canvas.height = Math.round(height * ratio);
    }
    const context = canvas.getContext("2d");
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, width, height);
    const style = getComputedStyle(canvas);
    const colour = (name) => style.getPropertyValue(`--${name}`);
    const [from, to] = this.session ? this.#window() : [0, WINDOW];
    const at = (seconds) => ((seconds - from) / (to - from)) * width;
    this.#grid(context, colour, width, from, to, at);
    if (!this.session) return;
    context.save();
    context.beginPath();
    context.rect(0, 0, width, STAGES.length * LANE);
    context.clip();
    for (const span of this.session.spans.values()) {
      const lane = STAGES.indexOf(span.stage === "settle" ? "download" : span.stage);
      const begin = span.device_begin ?? span.begin;
      const end = span.device_end ?? span.end;
      if (lane < 0 || end < from || begin > to) continue;
      const left = at(begin);
      const long = Math.max(at(end) - left - 1, 2);
      context.fillStyle = colour(STAGES[lane]);
      context.beginPath();
      context.roundRect(left, lane * LANE + (LANE - BAR) / 2, long, BAR, Math.min(4, long / 2));
      context.fill();
    }
    context.restore();
  }

  #grid(context, colour, width, from, to, at) {
    const lanes = STAGES.length * LANE;
    context.fillStyle = colour("raised");
    for (let lane = 0; lane < STAGES.length; lane += 1) {
      context.beginPath();
      context.roundRect(0, lane * LANE + (LANE - BAR) / 2, width, BAR, 4);
      context.fill();
    }
    const step = stepFor((to - from) / Math.max(2, Math.floor(width / 90)));
    context.font = `11px ${getComputedStyle(document.body).fontFamily}`;
    context.textBaseline = "alphabetic";
    for (let tick = Math.ceil(from / step) * step; tick <= to + 1e-9; tick += step) {
      const x = Math.min(Math.max(at(tick), 0.5), width - 0.5);
      context.fillStyle = colour("line");
      context.fillRect(Math.round(x) - 0.5, 0, 1, lanes + 4);
      context.fillStyle = colour("muted");
      context.textAlign = x < 12 ? "left" : x > width - 18 ? "right" : "center";
      context.fillText(`${Number(tick.toFixed(3))} s`, x, lanes + AXIS - 3);
    }
  }
}

/** 1, 2 or 5 times a power of ten, at least `least`. */
function stepFor(least) {
  const power = 10 ** Math.floor(Math.log10(least));
  return [1, 2, 5, 10].map((each) => each * power).find((each) => each >= least);
}
