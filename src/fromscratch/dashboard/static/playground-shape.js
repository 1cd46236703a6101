// Reshapes a distribution as generation/sampling.py does: temperature, then top-k, then top-p, then min-p.
//
// A distribution is { top: [{ logp }], rest: [[count, logp]] }: single tokens, the most probable first, and bins of the
// less probable ones, each with the number of its tokens and the logarithm of their mean probability.

// The entries of a distribution: a logarithm and a number of tokens each, in falling order.
export function entriesOf(distribution) {
  return [
    ...distribution.top.map(({ logp }) => ({ logp, count: 1 })),
    ...distribution.rest.map(([count, logp]) => ({ logp, count })),
  ];
}

// Probabilities of the entries (all tokens of a bin together) after the settings; an off setting is null.
export function reshape(entries, { temperature = 1, topK = null, topP = null, minP = null } = {}) {
  if (!entries.length) return [];
  if (temperature === 0) return entries.map((_, place) => (place === 0 ? 1 : 0));
  const highest = entries[0].logp;
  const scores = entries.map(({ logp }) => (logp - highest) / temperature);
  let counts = entries.map(({ count }) => count);
  if (topK !== null) counts = keepMostProbable(scores, counts, topK);
  if (topP !== null) counts = keepNucleus(scores, counts, topP);
  if (minP) counts = counts.map((count, place) => (scores[place] < Math.log(minP) ? 0 : count));
  return normalised(scores, counts);
}

function normalised(scores, counts) {
  const weights = scores.map((score, place) => (counts[place] ? counts[place] * Math.exp(score) : 0));
  const total = weights.reduce((sum, weight) => sum + weight, 0);
  return weights.map((weight) => weight / total);
}

// Tokens that tie with the last one that is kept are kept too.
function keepMostProbable(scores, counts, topK) {
  let before = 0;
  let lowest = -Infinity;
  for (let place = 0; place < scores.length && before < topK; place++) {
    lowest = scores[place];
    before += counts[place];
  }
  before = 0;
  return counts.map((count, place) => {
    const isSingle = count === 1;
    const kept = scores[place] < lowest ? 0 : isSingle ? 1 : Math.min(count, Math.max(0, topK - before));
    before += count;
    return kept;
  });
}

// Keeps a token if those before it have less than this probability together.
function keepNucleus(scores, counts, topP) {
  const probabilities = normalised(scores, counts);
  let before = 0;
  return counts.map((count, place) => {
    const each = count ? probabilities[place] / count : 0;
    const kept = before >= topP ? 0 : count <= 1 ? count : Math.min(count, Math.max(1, Math.ceil((topP - before) / each)));
    before += probabilities[place];
    return kept;
  });
}

// Entropy in bits; the tokens of a bin count as equally probable.
export function entropy(entries, probabilities) {
  return probabilities.reduce((sum, p, place) => (p > 0 ? sum - p * Math.log2(p / entries[place].count) : sum), 0);
}
