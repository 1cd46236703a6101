// Charts of a page: each <figure class="chart"> names the address of its data. It is loaded when it comes into view.
import { colours, drawForest, drawLines, drawMatrix, format, scalesOf, valuesAt } from "./plot.js";

const charts = new Map();
const seen = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    const chart = charts.get(entry.target);
    if (!chart) continue;
    chart.isInView = entry.isIntersecting;
    if (chart.isInView) chart.load({ again: chart.isOld });
  }
}, { rootMargin: "300px" });

export function drawCharts() {
  for (const [figure] of charts) if (!figure.isConnected) charts.delete(figure);
  for (const figure of document.querySelectorAll("figure.chart")) {
    if (charts.has(figure)) continue;
    charts.set(figure, new Chart(figure));
    seen.observe(figure);
  }
}

export async function refreshCharts() {
  for (const chart of charts.values()) {
    if (chart.data && chart.isInView) await chart.load({ again: true });
    else chart.isOld = true; // loaded again when it comes into view
  }
}

export function redrawCharts() {
  for (const chart of charts.values()) chart.draw();
}

function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

class Chart {
  constructor(figure) {
    this.figure = figure;
    this.title = figure.dataset.title;
    this.hidden = new Set();
    this.window = null; // the range of x that is shown; null is all
    this.cursor = null; // the place that is read out, in units of x
  }

  async load({ again = false, full = false } = {}) {
    if (this.data && !again && !full) return;
    if (this.loading) { this.isStale = again; return; }
    this.loading = true;
    this.isStale = this.isOld = false;
    try {
      const address = new URL(this.figure.dataset.source, location.href);
      if (this.window) {
        address.searchParams.set("first", this.window[0]);
        address.searchParams.set("last", this.window[1]);
      }
      if (full || this.isFull) address.searchParams.set("full", "1");
      const answer = await fetch(address);
      if (!answer.ok) return this.fail(answer.status === 404 ? "This is not there any more." : "This could not be read.");
      this.data = await answer.json();
      this.isFull = !this.data.partial;
      this.build();
      this.draw();
    } catch {
      if (!this.data) this.fail("The dashboard does not answer.");
    } finally {
      this.loading = false;
    }
    if (this.data?.partial) await this.load({ full: true });
    else if (this.isStale) await this.load({ again: true });
  }

  fail(message) {
    if (this.data) return;
    const placeholder = this.figure.querySelector(".placeholder");
    if (placeholder) placeholder.textContent = message;
  }

  build() {
    if (!this.canvas) this.create();
    for (const one of this.data.series ?? []) one.hidden = this.hidden.has(one.label);
    const notes = [...(this.data.notes ?? [])];
    if (this.data.partial) notes.unshift("reading all steps; these are some of them …");
    this.note.textContent = notes.join("; ");
    this.note.hidden = notes.length === 0;
    const rows = this.data.rows?.length ?? 0;
    if (rows) this.figure.classList.toggle("rows-many", rows > 12);
    this.buildLegend();
    this.canvas.setAttribute("aria-label", this.describe());
  }

  create() {
    this.figure.querySelector(".placeholder")?.remove();
    this.canvas = element("canvas", { tabIndex: 0 });
    this.canvas.setAttribute("role", "img");
    this.plot = element("div", { className: "plot" }, this.canvas);
    this.legend = element("div", { className: "legend" });
    this.note = element("p", { className: "note" });
    this.readout = element("p", { className: "readout" });
    this.readout.setAttribute("aria-live", "polite");
    const button = (text, label, act) => {
      const made = element("button", { type: "button", className: "quiet", textContent: text, onclick: act });
      made.setAttribute("aria-label", `${label} ${this.title}`);
      return made;
    };
    this.whole = button("All", "Show the whole range of", () => this.zoom(null));
    this.whole.hidden = true;
    const save = element("div", { className: "save" }, this.whole,
      button("PNG", "Save as PNG:", () => this.savePicture()), button("CSV", "Save as CSV:", () => this.saveNumbers()));
    this.figure.append(save, this.legend, this.plot, this.readout, this.note);
    new ResizeObserver(() => this.draw()).observe(this.plot);
    this.listen();
  }

  buildLegend() {
    // One entry per group: a line and its area are shown and hidden together.
    this.entries = (this.data.series ?? []).filter((one) => one.kind !== "band" || !one.group);
    const entries = this.entries.map((one) => {
      const sample = element("canvas", { width: 44, height: 20 });
      const made = element("button", { type: "button", title: "Show or hide" }, sample, one.label);
      made.setAttribute("aria-pressed", String(!one.hidden));
      made.onclick = () => {
        const hidden = !one.hidden;
        for (const other of this.data.series) {
          if (other !== one && (!one.group || other.group !== one.group)) continue;
          other.hidden = hidden;
          this.hidden[hidden ? "add" : "delete"](other.label);
        }
        made.setAttribute("aria-pressed", String(!one.hidden));
        this.draw();
      };
      return made;
    });
    const old = [...this.legend.querySelectorAll("button")];
    if (old.length === entries.length && old.every((made, place) => made.textContent === entries[place].textContent)) {
      old.forEach((made, place) => { made.onclick = entries[place].onclick; });
    } else {
      this.legend.replaceChildren(...entries);
    }
  }

  describe() {
    const { data } = this;
    if (data.kind === "forest") {
      const rows = data.rows.map((row) => `${row.arm}: ${row.verdict && `${row.verdict}, `}${data.heads[2]} ${format(row.effect)}`);
      return `${this.title}. ${rows.join("; ")}`;
    }
    if (data.kind === "matrix") return `${this.title}: ${data.classes.length} classes`;
    if (!data.series.length) return `${this.title}: ${data.empty}`;
    const parts = data.series.filter((one) => one.kind === "line" || one.kind === "points").map((one) =>
      `${one.label}: last ${format(one.y.at(-1))} at ${data.x.key} ${format(one.x.at(-1))}`);
    return `${this.title}. ${parts.join("; ")}. Arrow keys read values out, Enter narrows the range, Escape shows all.`;
  }

  draw() {
    if (!this.data || !this.canvas) return;
    const { width, height } = this.plot.getBoundingClientRect();
    if (width < 20) return;
    const ratio = devicePixelRatio || 1;
    this.canvas.width = Math.round(width * ratio);
    this.canvas.height = Math.round(height * ratio);
    const ctx = this.canvas.getContext("2d");
    ctx.scale(ratio, ratio);
    const paint = colours();
    this.paintOn(ctx, width, height, paint);
    if (this.scales) this.drawCursor(ctx, paint);
    this.legend.querySelectorAll("canvas").forEach((sample, place) => drawSample(sample, this.entries[place], paint));
  }

  paintOn(ctx, width, height, paint) {
    if (this.data.kind === "forest") drawForest(ctx, this.data, width, height, paint);
    else if (this.data.kind === "matrix") drawMatrix(ctx, this.data, width, height, paint);
    else {
      this.scales = scalesOf(this.data, width, height, this.window);
      drawLines(ctx, this.data, this.scales, paint);
    }
  }

  drawCursor(ctx, paint) {
    const { scales } = this;
    if (this.drag) {
      ctx.globalAlpha = 0.15;
      ctx.fillStyle = paint.ink;
      ctx.fillRect(this.drag[0], scales.top, this.drag[1] - this.drag[0], scales.bottom - scales.top);
      ctx.globalAlpha = 1;
    }
    if (this.cursor === null) return;
    ctx.strokeStyle = paint.dim;
    ctx.beginPath();
    ctx.moveTo(scales.x(this.cursor), scales.top);
    ctx.lineTo(scales.x(this.cursor), scales.bottom);
    ctx.stroke();
  }

  read(x) {
    this.cursor = x;
    if (x === null) {
      this.readout.textContent = "";
    } else {
      const found = valuesAt(this.data, x);
      const nearest = found.reduce((best, one) => Math.abs(one.x - x) < Math.abs(best - x) ? one.x : best, Infinity);
      const values = found.map((one) => `${one.label} ${one.text}`).join(" · ");
      this.readout.textContent = `${this.data.x.key} ${format(Number.isFinite(nearest) ? nearest : x)}: ${values}`;
    }
    this.draw();
  }

  zoom(window) {
    this.window = window;
    this.whole.hidden = window === null;
    this.draw();
    this.load({ again: true });
  }

  listen() {
    const at = (event) => {
      const { left, right } = this.scales;
      return Math.min(right, Math.max(left, event.clientX - this.canvas.getBoundingClientRect().left));
    };
    this.canvas.addEventListener("pointermove", (event) => {
      if (!this.scales) return;
      if (this.drag) this.drag[1] = at(event);
      this.read(this.scales.fromX(at(event)));
    });
    this.canvas.addEventListener("pointerleave", () => { this.drag = null; if (this.scales) this.read(null); });
    this.canvas.addEventListener("pointerdown", (event) => {
      if (this.scales && event.pointerType === "mouse") this.drag = [at(event), at(event)];
    });
    this.canvas.addEventListener("pointerup", () => {
      const drag = this.drag?.toSorted((a, b) => a - b);
      this.drag = null;
      if (drag && drag[1] - drag[0] > 8) this.zoom(drag.map(this.scales.fromX));
    });
    this.canvas.addEventListener("dblclick", () => { if (this.scales) this.zoom(null); });
    this.canvas.addEventListener("keydown", (event) => this.onKey(event));
  }

  onKey(event) {
    if (!this.scales) return;
    const { x0, x1 } = this.scales;
    const step = (x1 - x0) / (event.shiftKey ? 10 : 50);
    const cursor = this.cursor ?? (event.key === "ArrowRight" ? x0 : x1);
    const moves = { ArrowLeft: cursor - step, ArrowRight: cursor + step, Home: x0, End: x1 };
    if (event.key in moves) this.read(Math.min(x1, Math.max(x0, moves[event.key])));
    else if (event.key === "Enter") this.zoom([cursor - (x1 - x0) / 4, cursor + (x1 - x0) / 4]);
    else if (event.key === "Escape") { this.read(null); if (this.window) this.zoom(null); }
    else return;
    event.preventDefault();
  }

  savePicture() {
    const { width, height } = this.plot.getBoundingClientRect();
    const entries = this.entries.filter((one) => !one.hidden);
    const top = 34 + 20 * entries.length;
    const canvas = element("canvas", { width: 2 * (width + 24), height: 2 * (height + top + 12) });
    const ctx = canvas.getContext("2d");
    const paint = colours();
    ctx.scale(2, 2);
    ctx.fillStyle = paint.surface;
    ctx.fillRect(0, 0, width + 24, height + top + 12);
    ctx.fillStyle = paint.ink;
    ctx.font = "600 15px system-ui, sans-serif";
    ctx.fillText(`${document.querySelector("h1").textContent.trim()}: ${this.title}`, 12, 24);
    ctx.font = "12px system-ui, sans-serif";
    entries.forEach((one, place) => {
      ctx.fillStyle = paint.series[one.colour % 8];
      ctx.fillRect(12, 38 + 20 * place, 18, 4);
      ctx.fillStyle = paint.ink;
      ctx.fillText(one.label, 38, 44 + 20 * place);
    });
    ctx.translate(12, top);
    this.paintOn(ctx, width, height, paint);
    canvas.toBlob((blob) => this.save(blob, "png"), "image/png");
    this.draw();
  }

  saveNumbers() {
    const { data } = this;
    const cell = (value) => {
      const text = value === null || value === undefined ? "" : String(value);
      const safe = typeof value === "string" && /^[=+\-@\t\r]/.test(text) ? `'${text}` : text; // spreadsheets run formulas
      return /[",\n\r]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
    };
    let rows;
    if (data.kind === "forest") {
      rows = [data.heads, ...data.rows.map((row) => [row.arm, row.verdict, row.effect, row.low, row.high, row.dots.join(" ")])];
    } else if (data.kind === "matrix") {
      rows = [["class", ...data.classes], ...data.counts.map((row, place) => [data.classes[place], ...row])];
    } else {
      rows = [["series", data.x.key, "value", "low", "high"], ...data.series.flatMap((one) =>
        (one.x.length ? one.x : [null]).map((x, place) => [one.label, x, one.y?.[place], one.low?.[place], one.high?.[place]]))];
    }
    this.save(new Blob([rows.map((row) => row.map(cell).join(",")).join("\n") + "\n"], { type: "text/csv" }), "csv");
  }

  save(blob, ending) {
    const name = `${document.querySelector("h1").textContent} ${this.title}`.replace(/[^A-Za-z0-9._-]+/g, "-").replace(/^-|-$/g, "");
    const link = element("a", { href: URL.createObjectURL(blob), download: `${name}.${ending}` });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }
}

function drawSample(canvas, one, paint) {
  const ctx = canvas.getContext("2d");
  ctx.clearRect(0, 0, 44, 20);
  if (!one) return;
  ctx.strokeStyle = ctx.fillStyle = paint.series[one.colour % 8];
  ctx.globalAlpha = one.kind === "band" ? 0.3 : Math.max(one.opacity ?? 1, 0.5);
  ctx.lineWidth = one.kind === "line" ? 2 * (one.width ?? 1.5) : 4;
  ctx.setLineDash(one.colour >= 8 || one.kind === "level" ? [10, 6] : []);
  if (one.kind === "band") return void ctx.fillRect(0, 3, 44, 14);
  if (one.kind === "marks") return void ctx.fillRect(20, 1, 4, 18);
  ctx.beginPath();
  if (one.kind === "points") { ctx.arc(22, 10, 7, 0, 7); ctx.fill(); return; }
  ctx.moveTo(0, 10);
  ctx.lineTo(44, 10);
  ctx.stroke();
}
