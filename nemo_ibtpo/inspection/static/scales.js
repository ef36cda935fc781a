// Colours. Cividis and a blue-orange scale keep their order for the common kinds of colour blindness and in grey.

const CIVIDIS = ["#00204d", "#123570", "#3b496c", "#575d6d", "#707173", "#8a8678", "#a59c74", "#c3b369", "#e1cc55", "#fdea45"];
const BLUE_ORANGE = ["#08519c", "#3182bd", "#6baed6", "#bdd7e7", "#f2f2f2", "#fdd0a2", "#fd8d3c", "#d94801", "#8c2d04"];
const ROUNDS = ["#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb", "#994455", "#44aa99", "#997700"];

const channels = (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));

function between(stops, share) {
  const place = Math.min(Math.max(share, 0), 1) * (stops.length - 1);
  const low = Math.min(Math.floor(place), stops.length - 2);
  const [a, b] = [channels(stops[low]), channels(stops[low + 1])];
  return a.map((channel, i) => Math.round(channel + (b[i] - channel) * (place - low)));
}

const css = ([r, g, b]) => `rgb(${r} ${g} ${b})`;
const isBright = ([r, g, b]) => 0.299 * r + 0.587 * g + 0.114 * b > 140;

// What a node can be coloured by; `kind` says which scale.
const COLOURS = {
  value: {label: "value", kind: "share"},
  ib_score: {label: "IB-Score", kind: "range"},
  advantage: {label: "advantage (global + local)", kind: "signed"},
  advantage_global: {label: "advantage, global part", kind: "signed"},
  advantage_local: {label: "advantage, local part", kind: "signed"},
  confidence: {label: "confidence \u03c0(step)", kind: "share"},
  round: {label: "round", kind: "round"},
};

// A scale over the numbers of one tree: {colour(number), low, high, stops}.
function makeScale(kind, numbers) {
  const known = numbers.filter((number) => number !== null);
  if (kind === "round") {
    return {colour: (round) => channels(ROUNDS[round % ROUNDS.length]), rounds: [...new Set(known)].sort((a, b) => a - b)};
  }
  if (!known.length) return {empty: true};
  let [low, high] = [0, 1];
  if (kind === "range") [low, high] = [Math.min(...known), Math.max(...known)];
  if (kind === "signed") {
    high = Math.max(...known.map(Math.abs), 1e-9);
    low = -high;
  }
  const stops = kind === "signed" ? BLUE_ORANGE.toReversed() : CIVIDIS;
  return {colour: (number) => between(stops, high > low ? (number - low) / (high - low) : 0.5), low, high, stops};
}
