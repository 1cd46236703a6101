// What every page has: the theme button, copying of commands, filtering of tables, and live updates.
import { drawCharts, refreshCharts, redrawCharts } from "./charts.js";

const root = document.documentElement;

function isDark() {
  return root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

document.getElementById("theme").addEventListener("click", () => {
  root.dataset.theme = isDark() ? "light" : "dark";
  localStorage.setItem("theme", root.dataset.theme);
  redrawCharts();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redrawCharts);

document.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-copy]");
  if (!button) return;
  const text = button.parentElement.querySelector("code").textContent;
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    getSelection().selectAllChildren(button.parentElement.querySelector("code"));
    button.textContent = "Selected";
  }
  setTimeout(() => { button.textContent = "Copy"; }, 1500);
});

function filterRows() {
  const wanted = (document.getElementById("filter")?.value ?? "").toLowerCase();
  for (const row of document.querySelectorAll(".runs tbody tr")) {
    row.hidden = !row.textContent.toLowerCase().includes(wanted);
  }
}
document.addEventListener("input", (event) => { if (event.target.id === "filter") filterRows(); });

// A filter also opens the list of the studies' runs, where its matches may be.
document.addEventListener("input", (event) => {
  if (event.target.id === "filter" && event.target.value) document.getElementById("of-studies")?.setAttribute("open", "");
});

function showTimes() {
  const words = new Intl.RelativeTimeFormat("en", { numeric: "auto" });
  for (const one of document.querySelectorAll("time[datetime]")) {
    const at = new Date(one.getAttribute("datetime"));
    const seconds = (at - Date.now()) / 1000;
    if (!Number.isFinite(seconds)) continue;
    one.title = at.toLocaleString();
    const [size, unit] = [[60, "second"], [3600, "minute"], [86400, "hour"], [Infinity, "day"]]
      .find(([limit]) => Math.abs(seconds) < limit);
    const per = { second: 1, minute: 60, hour: 3600, day: 86400 }[unit];
    one.textContent = size ? words.format(Math.round(seconds / per), unit) : "";
  }
}

// Live updates: the server says that something has changed; the page is fetched anew and what differs is replaced.
async function refreshPage(page) {
  const answer = await fetch(location.href, { headers: { Accept: "text/html" } });
  if (!answer.ok) return void say("gone");
  const fresh = new DOMParser().parseFromString(await answer.text(), "text/html").getElementById("page");
  if (fresh) { merge(page, fresh); filterRows(); showTimes(); drawCharts(); }
}

// Makes one element like another, and leaves alone what is equal, charts, and what the user has typed or ticked.
function merge(old, fresh) {
  if (old.isEqualNode(fresh) || old.classList?.contains("chart")) return;
  if (old.nodeName !== fresh.nodeName || old.nodeType !== Node.ELEMENT_NODE) {
    old.replaceWith(document.importNode(fresh, true));
    return;
  }
  for (const { name } of [...old.attributes]) {
    if (!fresh.hasAttribute(name) && name !== "hidden" && name !== "open") old.removeAttribute(name);
  }
  for (const { name, value } of [...fresh.attributes]) if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  const [left, right] = [[...old.childNodes], [...fresh.childNodes]];
  left.slice(right.length).forEach((node) => node.remove());
  right.forEach((node, place) => {
    if (place < left.length) merge(left[place], node);
    else old.append(document.importNode(node, true));
  });
}

function say(state) {
  const shown = document.getElementById("live");
  shown.hidden = false;
  shown.dataset.state = state;
  shown.textContent = { on: "live", off: "not connected", gone: "gone" }[state];
}

function watch(page) {
  let source = null, first = true, busy = false, waiting = false;
  async function update() {
    if (busy) { waiting = true; return; }
    busy = true;
    try { await refreshPage(page); await refreshCharts(); } catch { say("off"); }
    busy = false;
    if (waiting) { waiting = false; update(); }
  }
  function open() {
    source = new EventSource(page.dataset.live);
    source.onopen = () => say("on");
    source.onerror = () => say("off");
    source.onmessage = () => { if (first) first = false; else update(); };
  }
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) { source?.close(); source = null; }
    else if (!source) { open(); update(); }
  });
  if (!document.hidden) open();
}

showTimes();
setInterval(showTimes, 15000);
drawCharts();
const page = document.getElementById("page");
if (page?.dataset.live) watch(page);
