// Draws charts on a canvas. A chart is what the server sends; nothing here knows about pages.

export const FONT = "12px system-ui, sans-serif";

export function colours() {
  const style = getComputedStyle(document.documentElement);
  const read = (name) => style.getPropertyValue(name).trim();
  return {
    ink: read("--ink"), dim: read("--dim"), line: read("--line"), surface: read("--surface"), soft: read("--accent-soft"),
    good: read("--good"), bad: read("--bad"), warn: read("--warn"),
    series: [0, 1, 2, 3, 4, 5, 6, 7].map((number) => read(`--c${number}`)),
  };
}

export function format(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-4 || size >= 1e9)) return value.toExponential(2).replace("e+", "e");
  if (size >= 1000) return value.toLocaleString("en-US", { maximumFractionDigits: 1 });
  return String(Number(value.toPrecision(5)));
}

function formatTick(value) {
  const size = Math.abs(value);
  for (const [limit, unit] of [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e4, "k"]]) {
    const divisor = unit === "k" ? 1e3 : limit;
    if (size >= limit) return `${Number((value / divisor).toPrecision(4))}${unit}`;
  }
  return format(value);
}

function ticks(low, high, count, least = 0) {
  const rough = (high - low) / Math.max(1, count);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = Math.max(least, power * [1, 2, 5, 10].find((factor) => factor * power >= rough));
  const found = [];
  for (let place = Math.ceil(low / step - 1e-9); place * step <= high + step * 1e-9 && found.length < 50; place++) {
    found.push(Number((place * step).toPrecision(12)));
  }
  return found;
}

function logTicks(low, high, most) {
  const [first, last] = [Math.floor(Math.log10(low)), Math.ceil(Math.log10(high))];
  const powers = (last - first) * 2 > most ? [1] : (last - first) * 3 > most ? [1, 3] : [1, 2, 5];
  const stride = Math.ceil((last - first) / most);
  const found = [];
  for (let power = first; power <= last; power += stride) {
    for (const factor of powers) {
      const value = factor * 10 ** power;
      if (value >= low * 0.999 && value <= high * 1.001) found.push(Number(value.toPrecision(3)));
    }
  }
  return found;
}

function extent(lists) {
  let [low, high] = [Infinity, -Infinity];
  for (const list of lists) {
    for (const value of list) {
      if (value === null) continue;
      if (value < low) low = value;
      if (value > high) high = value;
    }
  }
  return [low, high];
}

function widen(low, high, share) {
  if (!(low <= high)) return [0, 1];
  if (low === high) return [low - Math.max(1e-9, Math.abs(low) * 0.1), high + Math.max(1e-9, Math.abs(high) * 0.1)];
  return [low - share * (high - low), high + share * (high - low)];
}

// Where the axes begin and end, and how values become pixels.
export function scalesOf(chart, width, height, window) {
  const shown = chart.series.filter((one) => !one.hidden);
  let [x0, x1] = window ?? widen(...extent(shown.map((one) => one.x)), 0);
  const inside = (one, list) => window ? list.filter((_, place) => one.x[place] >= x0 && one.x[place] <= x1) : list;
  const values = shown.flatMap((one) => one.kind === "band" ? [inside(one, one.low), inside(one, one.high)]
    : one.kind === "level" ? [one.y] : one.kind === "marks" ? [] : [inside(one, one.y)]);
  const log = chart.y.log && extent(values)[1] > 0;
  const usable = log ? values.map((list) => list.filter((value) => value > 0)) : values;
  let [y0, y1] = extent(usable);
  if (chart.y.range && !window && !log) [y0, y1] = [Math.max(y0, chart.y.range[0]), Math.min(y1, chart.y.range[1])];
  if (chart.y.zero && y0 >= 0) y0 = 0;
  if (log) {
    [y0, y1] = y0 <= y1 ? [y0 / 1.25, y1 * 1.25] : [0.1, 1];
  } else {
    const [low, high] = widen(y0, y1, 0.05);
    [y0, y1] = [chart.y.zero && y0 === 0 ? 0 : low, high];
  }
  const yTicks = log ? logTicks(y0, y1, Math.max(2, height / 40)) : ticks(y0, y1, Math.max(2, height / 60));
  const left = 14 + 7 * Math.max(...yTicks.map((tick) => formatTick(tick).length), 2);
  const [top, bottom, right] = [26, height - 36, width - 12];
  const toLog = log ? Math.log : (value) => value;
  const x = (value) => left + ((value - x0) / (x1 - x0)) * (right - left);
  const y = (value) => bottom - ((toLog(value) - toLog(y0)) / (toLog(y1) - toLog(y0))) * (bottom - top);
  const fromX = (pixel) => x0 + ((pixel - left) / (right - left)) * (x1 - x0);
  return { x, y, fromX, left, right, top, bottom, x0, x1, log, yTicks, xTicks: ticks(x0, x1, Math.max(2, width / 110), chart.x.whole ? 1 : 0) };
}

export function drawLines(ctx, chart, scales, paint) {
  drawAxes(ctx, scales, chart, paint);
  ctx.save();
  ctx.beginPath();
  ctx.rect(scales.left - 6, scales.top - 6, scales.right - scales.left + 12, scales.bottom - scales.top + 12);
  ctx.clip();
  for (const one of chart.series) if (!one.hidden) drawSeries(ctx, one, scales, paint);
  ctx.restore();
}

function drawAxes(ctx, scales, chart, paint) {
  const { left, right, top, bottom } = scales;
  ctx.font = FONT;
  ctx.lineWidth = 1;
  ctx.strokeStyle = paint.line;
  ctx.fillStyle = paint.dim;
  ctx.textBaseline = "middle";
  ctx.textAlign = "right";
  for (const tick of scales.yTicks) {
    const y = Math.round(scales.y(tick)) + 0.5;
    ctx.beginPath();
    ctx.moveTo(left, y);
    ctx.lineTo(right, y);
    ctx.stroke();
    ctx.fillText(formatTick(tick), left - 6, y);
  }
  ctx.textBaseline = "top";
  ctx.textAlign = "center";
  for (const tick of scales.xTicks) ctx.fillText(formatTick(tick), Math.min(scales.x(tick), right - 6), bottom + 6);
  ctx.textAlign = "right";
  ctx.fillText(chart.x.label, right, bottom + 22);
  ctx.textAlign = "left";
  ctx.fillText(chart.y.label, 2, 0);
  if (!chart.series.length) {
    ctx.textAlign = "center";
    ctx.fillText(chart.empty, (left + right) / 2, (top + bottom) / 2);
  }
}

function drawSeries(ctx, one, scales, paint) {
  const colour = paint.series[one.colour % 8];
  ctx.strokeStyle = ctx.fillStyle = colour;
  ctx.globalAlpha = one.opacity ?? 1;
  ctx.lineWidth = one.width ?? 1.5;
  ctx.lineJoin = "round";
  ctx.setLineDash(one.colour >= 8 || one.kind === "level" ? [6, 4] : []);
  const isShown = (value) => value !== null && (!scales.log || value > 0);
  if (one.kind === "band") {
    ctx.beginPath();
    one.x.forEach((x, place) => ctx.lineTo(scales.x(x), scales.y(scales.log ? Math.max(one.high[place], 1e-30) : one.high[place])));
    for (let place = one.x.length - 1; place >= 0; place--) {
      ctx.lineTo(scales.x(one.x[place]), scales.y(scales.log ? Math.max(one.low[place], 1e-30) : one.low[place]));
    }
    ctx.fill();
  } else if (one.kind === "level") {
    const y = scales.y(one.y[0]);
    ctx.beginPath();
    ctx.moveTo(scales.left, y);
    ctx.lineTo(scales.right, y);
    ctx.stroke();
  } else if (one.kind === "marks") {
    for (const x of one.x) ctx.fillRect(scales.x(x) - 1, scales.top, 2, 9);
  } else {
    if (one.kind === "line" || one.joined) {
      ctx.beginPath();
      one.x.forEach((x, place) => { if (isShown(one.y[place])) ctx.lineTo(scales.x(x), scales.y(one.y[place])); });
      if (one.kind === "points") ctx.globalAlpha = 0.5;
      ctx.stroke();
    }
    if (one.kind === "points" || one.x.length === 1) drawDots(ctx, one, scales, paint, isShown);
  }
  ctx.globalAlpha = 1;
  ctx.setLineDash([]);
}

function drawDots(ctx, one, scales, paint, isShown) {
  ctx.globalAlpha = 1;
  ctx.lineWidth = 1;
  ctx.strokeStyle = paint.surface;
  one.x.forEach((x, place) => {
    if (!isShown(one.y[place])) return;
    ctx.beginPath();
    ctx.arc(scales.x(x), scales.y(one.y[place]), one.x.length > 60 ? 2.5 : 4, 0, 7);
    ctx.fill();
    ctx.stroke();
  });
}

// The value of each series at a place, nearest point first.
export function valuesAt(chart, x) {
  return chart.series.filter((one) => !one.hidden && one.x.length && one.kind !== "marks").map((one) => {
    let [low, high] = [0, one.x.length - 1];
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (one.x[middle] < x) low = middle; else high = middle;
    }
    const place = Math.abs(one.x[low] - x) <= Math.abs(one.x[high] - x) ? low : high;
    const text = one.kind === "band" ? `${format(one.low[place])} to ${format(one.high[place])}` : format(one.y[place]);
    return { label: one.label, x: one.x[place], text };
  });
}

// Effects with intervals: one row per arm, a dot per run, a band for effects that do not matter.
export function drawForest(ctx, chart, width, height, paint) {
  const reach = extent(chart.rows.map((row) => [...row.dots, row.low, row.high, row.effect]));
  const isEffect = chart.margin !== null;
  let [x0, x1] = isEffect ? widen(Math.min(reach[0], -chart.margin), Math.max(reach[1], chart.margin), 0.06) : widen(...reach, 0.06);
  if (isEffect) {
    const limit = 4 * Math.max(chart.margin, ...chart.rows.flatMap((row) => [...row.dots, row.effect ?? 0].map(Math.abs)));
    [x0, x1] = [Math.max(x0, -limit), Math.min(x1, limit)];
  }
  ctx.font = FONT;
  const names = Math.min(width * 0.38, Math.max(...chart.rows.map((row) => ctx.measureText(row.arm).width), 30) + 14);
  const verdicts = isEffect && width > 560 ? 110 : 0;
  const [left, right, top, bottom] = [names, width - 12 - verdicts, 8, height - 38];
  const x = (value) => left + ((Math.min(Math.max(value, x0), x1) - x0) / (x1 - x0)) * (right - left);
  const rowHeight = (bottom - top) / Math.max(1, chart.rows.length);
  ctx.fillStyle = paint.soft;
  if (isEffect) ctx.fillRect(x(-chart.margin), top, x(chart.margin) - x(-chart.margin), bottom - top);
  ctx.strokeStyle = paint.line;
  ctx.fillStyle = paint.dim;
  ctx.textAlign = "center";
  ctx.textBaseline = "top";
  for (const tick of ticks(x0, x1, Math.max(3, (right - left) / 90))) {
    ctx.fillText(formatTick(tick), x(tick), bottom + 6);
    ctx.strokeRect(Math.round(x(tick)) + 0.5, top, 0, bottom - top);
  }
  ctx.textAlign = "right";
  ctx.fillText(chart.label, width - 12, bottom + 22);
  ctx.strokeStyle = paint.dim;
  if (isEffect) ctx.strokeRect(Math.round(x(0)) + 0.5, top, 0, bottom - top);
  chart.rows.forEach((row, place) => drawArm(ctx, row, top + (place + 0.5) * rowHeight, { x, left, right, verdicts }, paint));
}

function drawArm(ctx, row, y, { x, left, right, verdicts }, paint) {
  const colour = { better: paint.good, worse: paint.bad, "no effect": paint.series[0], "": paint.series[0] }[row.verdict] ?? paint.dim;
  ctx.textBaseline = "middle";
  ctx.textAlign = "right";
  ctx.fillStyle = paint.ink;
  ctx.fillText(shorten(ctx, row.arm, left - 12), left - 10, y);
  ctx.fillStyle = ctx.strokeStyle = colour;
  ctx.globalAlpha = 0.45;
  for (const dot of row.dots) {
    ctx.beginPath();
    ctx.arc(x(dot), y, 3.5, 0, 7);
    ctx.fill();
  }
  ctx.globalAlpha = 1;
  if (row.low !== null && row.high !== null) {
    ctx.lineWidth = 2;
    ctx.beginPath();
    ctx.moveTo(x(row.low), y);
    ctx.lineTo(x(row.high), y);
    ctx.stroke();
    ctx.lineWidth = 1;
  }
  if (row.effect !== null) {
    ctx.beginPath();
    for (const [dx, dy] of [[0, -6], [6, 0], [0, 6], [-6, 0]]) ctx.lineTo(x(row.effect) + dx, y + dy);
    ctx.fill();
  }
  if (verdicts) {
    ctx.textAlign = "left";
    ctx.fillText(row.verdict, right + 14, y);
  }
}

function shorten(ctx, text, width) {
  if (ctx.measureText(text).width <= width) return text;
  let end = text.length;
  while (end > 1 && ctx.measureText(`${text.slice(0, end)}…`).width > width) end--;
  return `${text.slice(0, end)}…`;
}

// Counts by class and given class; each row is shaded by its shares.
export function drawMatrix(ctx, chart, width, height, paint) {
  ctx.font = FONT;
  const count = chart.classes.length;
  const names = Math.min(width * 0.3, Math.max(...chart.classes.map((name) => ctx.measureText(name).width)) + 14);
  const side = Math.max(4, Math.min((width - names - 12) / count, (height - 56) / count));
  chart.counts.forEach((row, line) => {
    const total = row.reduce((sum, value) => sum + value, 0) || 1;
    row.forEach((value, column) => {
      ctx.globalAlpha = 0.06 + 0.94 * (value / total);
      ctx.fillStyle = paint.series[0];
      ctx.fillRect(names + column * side, 8 + line * side, side - 2, side - 2);
      ctx.globalAlpha = 1;
      if (side < 24) return;
      ctx.fillStyle = value / total > 0.5 ? paint.surface : paint.ink;
      ctx.textAlign = "center";
      ctx.textBaseline = "middle";
      ctx.fillText(value.toLocaleString("en-US"), names + (column + 0.5) * side, 8 + (line + 0.5) * side);
    });
    if (side < 12) return;
    ctx.fillStyle = paint.ink;
    ctx.textAlign = "right";
    ctx.textBaseline = "middle";
    ctx.fillText(shorten(ctx, chart.classes[line], names - 10), names - 8, 8 + (line + 0.5) * side);
    ctx.textAlign = "center";
    ctx.textBaseline = "top";
    ctx.fillText(shorten(ctx, chart.classes[line], side - 2), names + (line + 0.5) * side, 12 + count * side);
  });
  ctx.fillStyle = paint.dim;
  ctx.textAlign = "left";
  ctx.textBaseline = "top";
  ctx.fillText("row: class; column: class that the model gave", names, 30 + count * side);
}
