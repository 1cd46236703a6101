// Shows tokens, distributions and classes. Everything that a model has written is shown as text.
import { entriesOf, entropy, reshape } from "./playground-shape.js";

const LEVELS = [1, 2, 4, 7, 11]; // bits; a token is coloured by how many of them its surprise exceeds
const ROWS_AT_ONCE = 20;
const SIGNS = { " ": "␣", "\n": "⏎", "\t": "⇥", "\r": "␍" };
// Control characters, and those that are invisible or turn the direction of text.
const UNSEEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u00a0\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]/g;

export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (key === "text") made.textContent = value;
    else made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children);
  return made;
}

function escaped(text) {
  return text.replace(UNSEEN, (one) => `\\u${one.charCodeAt(0).toString(16).padStart(4, "0")}`);
}

// A token in a list: spaces and line ends are signs.
export function label(token) {
  if (token.name && !token.text.replaceAll("\ufffd", "")) return `‹${token.name}›`;
  return escaped(token.text.replace(/[ \n\t\r]/g, (one) => SIGNS[one]));
}

// A token inside a text: line ends break the line too.
function inText(token) {
  if (token.name === "end of text" || (token.name && !token.text)) return `‹${token.name}›`;
  return escaped(token.text.replace(/\n/g, "⏎\n"));
}

export function percent(share) {
  if (share === 0) return "0%";
  if (share < 0.0001) return "<0.01%";
  return `${(100 * share).toFixed(share < 0.1 ? 2 : 1)}%`;
}

function bitsOf(token) {
  if (token.bits === null || token.bits === undefined) return "not predicted";
  return `${token.bits.toFixed(1)} bits`;
}

function describe(token) {
  const parts = [`“${label(token)}”`, bitsOf(token)];
  if (typeof token.bits === "number") parts.push(`the model gave it ${percent(2 ** -token.bits)}`);
  if (typeof token.chance === "number") parts.push(`chosen with ${percent(token.chance)}`);
  return parts.join(", ");
}

function level(token) {
  return typeof token.bits === "number" ? LEVELS.filter((limit) => token.bits >= limit).length : "none";
}

export function drawLegend(list) {
  const names = ["under 1 bit", ...LEVELS.map((limit, place) => (LEVELS[place + 1] ? `${limit} to ${LEVELS[place + 1]}` : `${limit} or more`))];
  list.replaceChildren(...names.map((text, place) => element("li", {}, element("span", { class: `token level-${place}`, text }))));
}

// The text of one model: tokens coloured by surprise, read by mouse, finger or arrow keys, and as a table.
export class TokenText {
  constructor(side) {
    this.box = side.querySelector(".text");
    this.readout = side.querySelector(".token-readout");
    this.rows = side.querySelector(".token-table tbody");
    this.tokens = [];
    this.box.addEventListener("pointerover", (event) => this.select([...this.box.children].indexOf(event.target)));
    this.box.addEventListener("click", (event) => this.select([...this.box.children].indexOf(event.target)));
    this.box.addEventListener("keydown", (event) => this.move(event));
  }

  move(event) {
    const last = this.tokens.length - 1;
    const place = { ArrowLeft: Math.max(0, this.at - 1), ArrowRight: Math.min(last, this.at + 1), Home: 0, End: last }[event.key];
    if (place === undefined) return;
    event.preventDefault();
    this.select(place);
  }

  select(place) {
    if (place < 0 || place >= this.tokens.length) return;
    this.box.querySelector(".at")?.classList.remove("at");
    this.box.children[place].classList.add("at");
    this.at = place;
    this.readout.textContent = `Token ${place + 1} of ${this.tokens.length}: ${describe(this.tokens[place])}`;
  }

  show(tokens, numTyped) {
    this.tokens = [];
    this.at = -1;
    this.box.replaceChildren();
    this.rows.replaceChildren();
    this.readout.textContent = "";
    tokens.forEach((token, place) => this.add(token, place < numTyped));
  }

  // Where the last tokens are the parts of one character, the first shows it, and the others a dot.
  joinParts() {
    const last = this.tokens.length - 1;
    for (let first = last - 1; first >= Math.max(0, last - 3) && this.tokens[first].bytes; first--) {
      const numbers = this.tokens.slice(first).flatMap((one) => one.bytes.split(" ").map((hex) => parseInt(hex, 16)));
      let text;
      try { text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(new Uint8Array(numbers)); } catch { continue; }
      for (let place = first; place <= last; place++) this.box.children[place].textContent = place === first ? inText({ text }) : "·";
      return;
    }
  }

  add(token, isTyped = false) {
    this.tokens.push(token);
    const kind = isTyped ? "" : " chosen";
    this.box.append(element("span", { class: `token level-${level(token)}${kind}`, title: describe(token), text: inText(token) }));
    if (token.bytes) this.joinParts();
    const share = typeof token.bits === "number" ? percent(2 ** -token.bits) : "–";
    const cells = [String(this.tokens.length), label(token), isTyped ? "typed" : "chosen", bitsOf(token), share];
    this.rows.append(element("tr", {}, ...cells.map((text) => element("td", { text }))));
  }
}

// The distribution of the next token as bars, which follow the sampling settings.
export class Bars {
  constructor(side, onPick) {
    this.list = side.querySelector(".bars");
    this.summary = side.querySelector(".summary");
    this.more = side.querySelector(".more");
    this.onPick = onPick;
    this.more.addEventListener("click", () => { this.numShown += ROWS_AT_ONCE; this.build(); });
    this.list.addEventListener("click", (event) => {
      const row = event.target.closest("button");
      if (row) this.onPick(this.distribution.top[Number(row.dataset.place)]);
    });
  }

  show(distribution, settings) {
    this.distribution = distribution;
    this.entries = entriesOf(distribution);
    this.before = reshape(this.entries);
    this.numShown = ROWS_AT_ONCE;
    this.settings = settings;
    this.build();
  }

  build() {
    const shown = this.distribution.top.slice(0, this.numShown);
    this.rows = shown.map((token, place) => element("button", { type: "button", class: "bar-row", "data-place": place },
      element("span", { class: "bar-token", text: label(token) }),
      element("span", { class: "bar-track", "aria-hidden": "true" }, element("span", { class: "fill" }), element("span", { class: "was" })),
      element("span", { class: "bar-share" })));
    this.others = element("p", { class: "others dim" });
    this.list.replaceChildren(...this.rows.map((row) => element("li", {}, row)), element("li", {}, this.others));
    this.more.hidden = this.numShown >= this.distribution.top.length;
    this.update(this.settings);
  }

  update(settings) {
    this.settings = settings;
    if (!this.distribution) return;
    const after = reshape(this.entries, settings);
    const longest = Math.max(this.before[0] ?? 0, after[0] ?? 0) || 1;
    this.rows.forEach((row, place) => {
      const [was, is] = [this.before[place], after[place]];
      row.classList.toggle("out", is === 0);
      row.querySelector(".fill").style.width = `${(100 * is) / longest}%`;
      row.querySelector(".was").style.left = `${(100 * was) / longest}%`;
      row.querySelector(".bar-share").textContent = percent(is);
      const words = is === 0 ? "left out by the settings" : percent(is);
      row.setAttribute("aria-label", `Continue with ${label(this.distribution.top[place])}: ${words}, before the settings ${percent(was)}`);
    });
    const sum = (values) => values.slice(this.rows.length).reduce((total, value) => total + value, 0);
    const numOthers = this.distribution.vocabulary - this.rows.length;
    this.others.textContent = numOthers > 0
      ? `${numOthers.toLocaleString("en")} other tokens: ${percent(sum(after))} (before the settings ${percent(sum(this.before))})` : "";
    const [was, is] = [entropy(this.entries, this.before), entropy(this.entries, after)];
    this.summary.textContent = `Uncertainty ${is.toFixed(2)} bits, like ${(2 ** is).toFixed(1)} equal choices; before the settings ${was.toFixed(2)} bits.`;
  }
}

// Classes with their probabilities, the most probable first.
export function drawClasses(list, probabilities) {
  const ranked = Object.entries(probabilities).sort((left, right) => right[1] - left[1]);
  list.replaceChildren(...ranked.map(([name, share]) => {
    const fill = element("span", { class: "fill" });
    fill.style.width = `${100 * share}%`;
    return element("li", { class: "bar-row" },
      element("span", { class: "bar-token", text: escaped(name) }),
      element("span", { class: "bar-track", "aria-hidden": "true" }, fill),
      element("span", { class: "bar-share", text: percent(share) }));
  }));
}
