// A small distribution that needs no model: how often one word follows another, in a table made up for this page.
import { entriesOf, reshape } from "./playground-shape.js";

const FOLLOWING = {
  "": { the: 60, a: 25, every: 15 },
  the: { cat: 24, dog: 18, house: 14, model: 12, next: 10, red: 8, small: 8, tree: 6 },
  a: { small: 22, cat: 16, dog: 16, red: 14, house: 12, tree: 10, token: 10 },
  every: { cat: 25, model: 25, token: 25, effort: 25 },
  effort: { moves: 80, learns: 10, is: 10 },
  moves: { you: 60, the: 25, a: 15 },
  you: { and: 35, ".": 35, learns: 10, sees: 20 },
  cat: { sees: 34, sat: 26, is: 18, likes: 14, and: 8 },
  dog: { sees: 28, likes: 28, is: 20, sat: 14, and: 10 },
  house: { is: 50, and: 25, ".": 25 },
  tree: { is: 50, and: 20, ".": 30 },
  model: { learns: 45, sees: 25, is: 20, likes: 10 },
  next: { token: 85, house: 15 },
  token: { is: 55, and: 20, ".": 25 },
  red: { house: 50, tree: 20, dog: 15, cat: 15 },
  small: { model: 35, cat: 25, dog: 20, house: 20 },
  sees: { the: 55, a: 35, you: 10 },
  sat: { and: 40, ".": 60 },
  likes: { the: 50, a: 30, you: 20 },
  learns: { the: 45, a: 30, and: 25 },
  is: { red: 35, small: 40, the: 15, a: 10 },
  and: { the: 45, a: 25, sees: 15, likes: 15 },
  ".": { the: 60, a: 25, every: 15 },
};
const WORDS = Object.keys(FOLLOWING).filter((word) => word);
const ELSEWHERE = 0.4; // every word may follow every other, rarely

function textOf(word) {
  return word === "." ? word : ` ${word}`;
}

function distributionAfter(word) {
  const following = FOLLOWING[word] ?? FOLLOWING[""];
  const weights = WORDS.map((other) => (following[other] ?? 0) + ELSEWHERE);
  const total = weights.reduce((sum, weight) => sum + weight, 0);
  const top = WORDS.map((other, id) => ({ id, text: textOf(other), logp: Math.log(weights[id] / total) }));
  top.sort((left, right) => right.logp - left.logp || left.id - right.id);
  return { top, rest: [], vocabulary: WORDS.length };
}

// A random number from 0 to 1 that depends on a seed and a place alone (mulberry32, public domain).
function random(seed, place) {
  let state = (seed * 2654435761 + place * 40503 + 1) >>> 0;
  state = (state + 0x6d2b79f5) >>> 0;
  let mixed = Math.imul(state ^ (state >>> 15), state | 1);
  mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
  return ((mixed ^ (mixed >>> 14)) >>> 0) / 4294967296;
}

// Answers a question about continuing a text with the messages that the server would send for a model.
export function askExample(question, onMessage) {
  const typed = question.text.match(/[.]|[^\s.]+|\s+$/g) ?? [];
  const words = typed.filter((word) => word.trim());
  const tokens = [];
  let last = "";
  const add = (word, text, chance) => {
    const known = distributionAfter(last).top.find((one) => WORDS[one.id] === word.toLowerCase());
    const bits = known ? -known.logp / Math.LN2 : null;
    tokens.push({ id: known ? known.id : -1, text, bits, chance });
    last = word.toLowerCase();
  };
  words.forEach((word, place) => add(word, place ? textOf(word) : word));
  question.tokens.forEach((id) => add(WORDS[id], textOf(WORDS[id])));
  const strangers = words.filter((word) => !WORDS.includes(word.toLowerCase()));
  const notices = strangers.length ? [`the example knows few words, and not ${strangers.slice(0, 3).join(", ")}`] : [];
  onMessage({ model: { name: "built-in example", example: true, parameters: null, step: null }, notices, prompt: [...tokens] });
  for (let number = 0; number < question.max_tokens; number++) {
    const found = distributionAfter(last);
    const settings = { temperature: question.temperature, topK: question.top_k, topP: question.top_p, minP: question.min_p };
    const chances = reshape(entriesOf(found), settings);
    const place = placeOf(chances, random(question.seed, tokens.length));
    const word = WORDS[found.top[place].id];
    add(word, textOf(word), chances[place]);
    onMessage({ token: tokens[tokens.length - 1] });
  }
  onMessage({ next: distributionAfter(last), end: "length" });
}

function placeOf(chances, number) {
  let sum = 0;
  for (let place = 0; place < chances.length; place++) {
    sum += chances[place];
    if (number < sum) return place;
  }
  return chances.findLastIndex((chance) => chance > 0);
}
