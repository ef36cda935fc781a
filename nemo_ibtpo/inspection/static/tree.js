// One tree: steps as boxes in the order of growth, the first trajectory of a branch straight on, later ones below it.

const tree = {colour: "value", size: "fit", rounds: null, search: "", beta: null, coef: null};
let shown = null; // what is drawn: see openTree

const SIZES = {
  fit: {label: "fit the window"},
  scores: {label: "scores", width: 46, height: 22, pitch: 31, gap: 14},
  text: {label: "text", width: 236, gap: 22}, // as high as the longest text asks for
  tokens: {label: "to scale of tokens", height: 20, pitch: 28, gap: 3},
};

function openNearest(run, step) {
  const kept = RUNS[run].trees.map((one) => one.step);
  go("tree", run, kept.reduce((best, one) => (Math.abs(one - step) < Math.abs(best - step) ? one : best)), 0);
}

// The columns of a record, with what follows from them.
function derive(record) {
  const nodes = record.nodes;
  const count = nodes.parent.length;
  const children = Array.from({length: count}, () => []);
  const depth = new Array(count).fill(0), before = new Array(count).fill(0), row = new Array(count).fill(0);
  for (let i = 1; i < count; i++) {
    const parent = nodes.parent[i];
    children[parent].push(i);
    depth[i] = depth[parent] + 1;
    before[i] = parent === 0 ? 0 : before[parent] + nodes.tokens[parent];
  }
  let rows = 0;
  const stack = [0];
  while (stack.length) { // a node lies in the row of its first child, whose row is the next free one
    const i = stack.pop();
    row[i] = i !== 0 && children[nodes.parent[i]][0] === i ? row[nodes.parent[i]] : (i === 0 ? 0 : ++rows);
    stack.push(...children[i].toReversed());
  }
  const branches = nodes.round.map((round, i) => i > 0 && round > nodes.round[nodes.parent[i]]);
  return {...nodes, count, children, depth, before, row, rows: rows + 1, branches, columns: Math.max(...depth)};
}

const gainOver = (value, expected, beta) => (expected > 0 ? value / expected : 1) - (1 + 1 / beta);

// Mean over the draws at a node of a number that belongs to its children.
function meanOverDraws(nodes, i, ofChild) {
  const children = nodes.children[i];
  const draws = children.reduce((total, child) => total + nodes.draws[child], 0);
  return children.reduce((total, child) => total + nodes.draws[child] * ofChild(child), 0) / draws;
}

// The scores for other constants; tree/ib_score.py states the formulas.
function rescore(nodes, settings, beta, coef) {
  const product = nodes.value.map((value, i) => (i === 0 ? 0 : gainOver(value, nodes.value[nodes.parent[i]], beta) * nodes.confidence[i]));
  const ib = nodes.children.map((children, i) => {
    if (!children.length) return null;
    const expected = meanOverDraws(nodes, i, (child) => nodes.value[child]);
    return (1 + beta) * meanOverDraws(nodes, i, (child) => gainOver(nodes.value[child], expected, beta) * nodes.confidence[child]);
  });
  if (settings.advantage !== "ibtpo" || nodes.advantage_global.includes(null)) return {...nodes, ib_score: ib};
  const total = product.map((local, i) => nodes.advantage_global[i] + (i === 0 ? 0 : coef * local));
  return {...nodes, ib_score: ib, advantage_local: product, advantage: total};
}

async function openTree(run, step, number) {
  const content = await readTrees(run, step);
  const record = content.trees[number];
  return {run, step, number, record, settings: content.settings, kept: derive(record), node: 0};
}

// The numbers in use: those of the file unless other constants are tried.
function scored() {
  const {settings, kept} = shown;
  const beta = tree.beta ?? settings.beta, coef = tree.coef ?? settings.ib_coef;
  return tree.beta === null && tree.coef === null ? kept : rescore(kept, settings, beta, coef);
}

const isShown = (nodes, i) => tree.rounds === null || nodes.round[i] <= tree.rounds;

function places(nodes, available) {
  let size = SIZES[tree.size];
  const notes = 150; // what stands behind a leaf
  if (tree.size === "fit") {
    const fitting = Math.floor((available - notes) / (nodes.columns + 1)) - 4;
    size = fitting >= 56 ? {...SIZES.scores, height: 24, pitch: 34, width: Math.min(fitting - 10, 190)} : {
      width: Math.max(fitting, 13), height: 20, pitch: 29, gap: 4,
    };
  }
  if (tree.size === "text") {
    const lines = Math.max(...nodes.text.map((text) => Math.ceil((text.trim().length + 8) / 36)));
    size = {...size, height: 10 + 14 * Math.min(lines, 4), pitch: 22 + 14 * Math.min(lines, 4)};
  }
  if (tree.size !== "tokens") {
    const left = nodes.depth.map((depth) => 10 + depth * (size.width + size.gap));
    return {...size, left, widths: new Array(nodes.count).fill(size.width)};
  }
  const longest = Math.max(...nodes.before.map((before, i) => before + nodes.tokens[i] * (i > 0)));
  const scale = Math.max((available - notes - 40 - nodes.columns * size.gap) / longest, 0.02);
  const widths = nodes.tokens.map((tokens, i) => (i === 0 ? 24 : Math.max(tokens * scale, 5)));
  const left = new Array(nodes.count).fill(10);
  for (let i = 1; i < nodes.count; i++) left[i] = left[nodes.parent[i]] + widths[nodes.parent[i]] + size.gap;
  return {...size, left, widths};
}

function label(kind, number) {
  if (number === null) return "";
  if (kind === "share") return Number.isInteger(number) ? String(number) : number.toFixed(2).replace(/^0/, "");
  if (kind === "round") return String(number);
  const text = Math.abs(number) >= 10 ? String(Math.round(number)) : number.toFixed(Math.abs(number) >= 1 ? 1 : 2);
  return text.replace(/^(-?)0\./, "$1.").replace("-", "\u2212");
}

function drawTree(canvas) {
  const nodes = scored();
  const {kind} = COLOURS[tree.colour];
  const numbers = nodes[tree.colour];
  const scale = makeScale(kind, numbers.filter((_, i) => i > 0 || kind === "share"));
  const place = places(nodes, canvas.parentElement.clientWidth - 20);
  const top = (i) => 14 + nodes.row[i] * place.pitch;
  const width = Math.max(...place.left.map((left, i) => left + place.widths[i])) + 160;
  const height = 20 + nodes.rows * place.pitch;
  const links = element("svg", {width, height, "aria-hidden": "true"});
  const boxes = [];
  const wanted = tree.search.toLowerCase();
  const onPath = new Set(pathTo(nodes, shown.node));
  for (let i = 0; i < nodes.count; i++) {
    if (!isShown(nodes, i)) {
      boxes.push(null);
      continue;
    }
    const parent = nodes.parent[i];
    if (parent >= 0) {
      const from = place.left[parent] + place.widths[parent];
      const [y0, y1] = [top(parent) + place.height / 2, top(i) + place.height / 2];
      const bend = from + Math.min(place.gap / 2, 8);
      links.append(element("path", {
        class: `link${onPath.has(i) ? " on" : ""}`,
        d: y0 === y1 ? `M${from} ${y0}H${place.left[i]}` : `M${from} ${y0}H${bend}V${y1}H${place.left[i]}`,
      }));
    }
    const number = numbers[i];
    const rgb = number === null ? null : scale.colour(number);
    const style = {
      left: `${place.left[i]}px`, top: `${top(i)}px`, width: `${place.widths[i]}px`, height: `${place.height}px`,
    };
    if (rgb) Object.assign(style, {background: css(rgb), color: isBright(rgb) ? "#111" : "#fff"});
    const found = wanted && nodes.text[i].toLowerCase().includes(wanted);
    const box = element("div", {
      class: `node${rgb ? "" : " blank"}${i === shown.node ? " chosen" : ""}${wanted ? (found ? " found" : " other") : ""}`,
      role: "treeitem",
      id: `node-${i}`,
      "data-node": i,
      tabindex: i === shown.node ? 0 : -1,
      "aria-level": nodes.depth[i] + 1,
      "aria-selected": String(i === shown.node),
      "aria-label": `${i === 0 ? "prompt" : `step ${nodes.depth[i]}`}, round ${nodes.round[i]}, `
        + `${COLOURS[tree.colour].label} ${number ?? "none"}${nodes.reward[i] === null ? "" : `, reward ${nodes.reward[i]}`}`,
      style,
    });
    if (tree.size === "text") {
      box.append(element("b", {}, i === 0 ? "prompt" : label(kind, number)), " ", nodes.text[i].trim());
    } else if (place.widths[i] >= 110) {
      const excerpt = nodes.text[i].trim().slice(0, 60);
      box.append(element("span", {class: "line"}, element("b", {}, i === 0 ? "prompt" : label(kind, number)), ` ${excerpt}`));
    } else if (i === 0) {
      box.append("Q");
    } else if (place.widths[i] >= 22) {
      box.append(label(kind, number));
    }
    if (nodes.branches[i]) {
      box.append(element("i", {class: "born", title: `branched in round ${nodes.round[i]}`}, String(nodes.round[i])));
    }
    boxes.push(box);
    if (nodes.finish_reason[i] !== null) {
      boxes.push(element("div", {
        class: "leaf", style: {left: `${place.left[i] + place.widths[i] + 6}px`, top: `${top(i)}px`, lineHeight: `${place.height}px`},
      }, rewardMark(nodes.reward[i]), ` ${nodes.before[i] + nodes.tokens[i]} tok`,
      nodes.draws[i] > 1 ? ` \u00d7${nodes.draws[i]}` : "", nodes.finish_reason[i] === "length" ? " cut off" : ""));
    }
  }
  Object.assign(canvas.style, {width: `${width}px`, height: `${height}px`});
  clear(canvas, links, boxes);
  return scale;
}

function rewardMark(reward) {
  const [mark, kind] = reward === 1 ? ["\u2713", "right"] : reward === 0 ? ["\u2717", "wrong"] : ["~", "part"];
  return element("span", {class: `reward ${kind}`}, `${mark} ${short(reward)}`);
}

function pathTo(nodes, i) {
  const path = [];
  for (let at = i; at >= 0; at = nodes.parent[at]) path.push(at);
  return path.reverse();
}

function legend(scale) {
  const {label: name, kind} = COLOURS[tree.colour];
  if (scale.empty) return element("span", {class: "legend"}, `no step of this tree has this: ${name}`);
  if (kind === "round") {
    return element("span", {class: "legend"}, "round ", scale.rounds.map((round) => (
      element("i", {class: "swatch", style: {background: css(scale.colour(round))}}, String(round))
    )));
  }
  const ramp = element("i", {class: "ramp", style: {background: `linear-gradient(to right, ${scale.stops.join(",")})`}});
  return element("span", {class: "legend"}, `${name} `, signedOrPlain(kind, scale.low), ramp, signedOrPlain(kind, scale.high));
}

const signedOrPlain = (kind, number) => (kind === "share" ? short(number) : signed(number));

// Everything about one node. Numbers stand here as they stand in the file.
function details(nodes) {
  const i = shown.node;
  const exact = (number) => (number === null ? MISSING : String(typeof number === "number" && tried() ? Number(number.toPrecision(6)) : number));
  const candidates = nodes.ib_score.map((score, k) => [score, k]).filter(([score]) => score !== null).sort((a, b) => b[0] - a[0]);
  const rank = candidates.findIndex(([, k]) => k === i) + 1;
  const row = (name, value, field, meaning) => [
    element("dt", {title: meaning}, name),
    element("dd", field ? {"data-field": field} : {}, value),
  ];
  const list = element("dl", {},
    row("value", exact(nodes.value[i]), "value", "share of right answers below the step"),
    row("IB-Score", exact(nodes.ib_score[i]), "ib_score", "where another rollout tells most"),
    rank ? row("its rank", `${rank} of ${candidates.length} places to branch`) : null,
    i ? row("confidence \u03c0", exact(nodes.confidence[i]), "confidence", "probability of the step under the policy that sampled it") : null,
    row("advantage", exact(nodes.advantage[i]), "advantage", "what the loss uses"),
    row("\u2026 global", exact(nodes.advantage_global[i]), "advantage_global", "compared with the whole tree"),
    row("\u2026 local", exact(nodes.advantage_local[i]), "advantage_local", "compared with the parent step, before lambda"),
    row("round", String(nodes.round[i]), "round"),
    i ? row("draws", String(nodes.draws[i]), "draws", "times the step was sampled freely at its parent") : null,
    row("tokens", `${nodes.tokens[i]}${i ? `, from ${nodes.before[i]} on` : ""}`, "tokens"),
    nodes.reward[i] === null ? null : row("reward", exact(nodes.reward[i]), "reward"),
    nodes.finish_reason[i] === null ? null : row("ended by", nodes.finish_reason[i], "finish_reason"),
  );
  const children = nodes.children[i];
  const beta = tree.beta ?? shown.settings.beta;
  const expected = meanOverDraws(nodes, i, (child) => nodes.value[child]);
  const gain = (child) => gainOver(nodes.value[child], expected, beta);
  const table = children.length ? element("table", {class: "children"},
    element("caption", {}, "continuations"),
    element("thead", {}, element("tr", {}, ["", "draws", "value", "\u03b71", "\u03b72", "\u03b71\u00b7\u03b72"].map((text) => element("th", {scope: "col"}, text)))),
    element("tbody", {}, children.map((child) => element("tr", {},
      element("td", {}, element("button", {type: "button", onclick: () => select(child)}, nodes.text[child].trim().slice(0, 40) || "(blank)")),
      [String(nodes.draws[child]), short(nodes.value[child]), signed(gain(child)), short(nodes.confidence[child]), signed(gain(child) * nodes.confidence[child])]
        .map((text) => element("td", {}, text)),
    ))),
  ) : null;
  const path = pathTo(nodes, i);
  const response = element("div", {class: "response"}, path.map((at) => element("span", {
    class: at === 0 ? "prompt" : at === i ? "here" : "step", onclick: () => select(at),
  }, nodes.text[at])));
  return [
    element("h2", {}, i === 0 ? "prompt" : `step ${nodes.depth[i]} of its trajectory`),
    element("pre", {class: "text", "data-field": "text"}, nodes.text[i]),
    list,
    table,
    i ? element("details", {open: true}, element("summary", {}, "prompt and response up to here"), response) : null,
  ];
}

const tried = () => tree.beta !== null || tree.coef !== null;
let redraw = () => {};
let byKey = false; // the next tree was asked for by a key, and takes further keys

function select(node, focus = true) {
  shown.node = node;
  history.replaceState(null, "", `#tree/${shown.run}/${shown.step}/${shown.number}/${node}`);
  redraw();
  const box = document.getElementById(`node-${node}`);
  if (box && focus) {
    box.focus({preventScroll: true});
    box.scrollIntoView({block: "nearest", inline: "nearest"});
  }
}

function neighbour(nodes, direction) {
  const here = shown.node;
  let best = null;
  for (let i = 0; i < nodes.count; i++) {
    const rows = (nodes.row[i] - nodes.row[here]) * direction;
    if (rows <= 0 || !isShown(nodes, i)) continue;
    const distance = rows * 1000 + Math.abs(nodes.depth[i] - nodes.depth[here]);
    if (best === null || distance < best[0]) best = [distance, i];
  }
  return best ? best[1] : here;
}

function nextFound(nodes, direction) {
  const wanted = tree.search.toLowerCase();
  const found = [...nodes.text.keys()].filter((i) => wanted && isShown(nodes, i) && nodes.text[i].toLowerCase().includes(wanted));
  if (!found.length) return shown.node;
  if (direction > 0) return found.find((i) => i > shown.node) ?? found[0];
  return found.findLast((i) => i < shown.node) ?? found.at(-1);
}

function press(event) {
  if (event.ctrlKey || event.altKey || event.metaKey) return;
  const nodes = shown.kept;
  const children = nodes.children[shown.node].filter((child) => isShown(nodes, child));
  const moves = {
    ArrowRight: () => children[0] ?? shown.node,
    ArrowLeft: () => Math.max(nodes.parent[shown.node], 0),
    ArrowDown: () => neighbour(nodes, 1),
    ArrowUp: () => neighbour(nodes, -1),
    Home: () => 0,
    End: () => {
      let at = shown.node;
      for (;;) {
        const next = nodes.children[at].find((child) => isShown(nodes, child));
        if (next === undefined) return at;
        at = next;
      }
    },
    n: () => nextFound(nodes, 1),
    N: () => nextFound(nodes, -1),
  };
  if (Object.hasOwn(moves, event.key)) {
    event.preventDefault();
    select(moves[event.key]());
  } else if (event.key === "j" || event.key === "k") {
    byKey = true;
    turnTree(event.key === "j" ? 1 : -1);
  } else if (event.key === "c") {
    const names = Object.keys(COLOURS);
    tree.colour = names[(names.indexOf(tree.colour) + 1) % names.length];
    document.getElementById("colour").value = tree.colour;
    redraw();
    document.getElementById(`node-${shown.node}`)?.focus();
  } else if (event.key === "/") {
    event.preventDefault();
    document.getElementById("search").focus();
  }
}

function turnTree(by) {
  const {run, step, number} = shown;
  const kept = RUNS[run].trees;
  const at = kept.findIndex((one) => one.step === step);
  if (kept[at].trees[number + by]) return go("tree", run, step, number + by);
  const next = kept[at + by];
  return next ? go("tree", run, next.step, by > 0 ? 0 : next.trees.length - 1) : undefined;
}

function chooser() {
  const {run, step, number, record} = shown;
  const kept = RUNS[run].trees;
  const trees = kept.find((one) => one.step === step).trees;
  const name = (tree, i) => `${i + 1}. ${(DATA.prompts[tree.prompt].question || "(empty)").slice(0, 60)} \u2014 R ${short(tree.reward)}${tree.mixed ? "" : ", alike"}`;
  const elsewhere = RUNS.flatMap((other, index) => other.trees.flatMap((one) => one.trees.map((tree, i) => ({index, step: one.step, i, tree}))))
    .filter((one) => one.tree.prompt === record.prompt_id && !(one.index === run && one.step === step));
  return element("div", {class: "bar"},
    RUNS.length > 1 ? choice("run", RUNS.map((one, i) => [i, one.label]), run, (chosen) => {
      if (RUNS[chosen].trees.length) openNearest(Number(chosen), step);
    }) : null,
    choice("step", kept.map((one) => [one.step, one.step]), step, (chosen) => go("tree", run, chosen, 0)),
    choice("tree", trees.map((one, i) => [i, name(one, i)]), number, (chosen) => go("tree", run, step, chosen)),
    element("button", {type: "button", onclick: () => turnTree(-1)}, "\u2190"),
    element("button", {type: "button", onclick: () => turnTree(1)}, "\u2192"),
    elsewhere.length ? element("span", {class: "note"}, "same prompt: ", elsewhere.slice(0, 12).map((one) => [
      element("a", {href: `#tree/${one.index}/${one.step}/${one.i}`}, `${RUNS.length > 1 ? `${RUNS[one.index].label} ` : ""}step ${one.step} (R ${short(one.tree.reward)})`), " ",
    ]), elsewhere.length > 12 ? `and ${elsewhere.length - 12} more` : "") : null,
  );
}

function constant(name, text, recorded) {
  const input = element("input", {
    type: "number", step: "any", min: name === "beta" ? 0.01 : 0, value: tree[name] ?? recorded, id: name,
    oninput: () => {
      const number = Number(input.value);
      tree[name] = input.value !== "" && number !== recorded && (name !== "beta" || number > 0) ? number : null;
      redraw();
    },
  });
  return element("label", {title: "try another value: scores are computed again from this tree"}, text, " ", input);
}

VIEWS.tree = {
  title: "Trees",
  async show(main, [run, step, number, node]) {
    const first = RUNS.findIndex((one) => one.trees.length);
    if (first < 0) {
      clear(main, element("p", {class: "note"}, "No trees were kept: logger.trees.period was 0, or no step has been trained yet."));
      return;
    }
    const kept = RUNS[run]?.trees.find((one) => one.step === Number(step));
    if (!kept?.trees[number ?? 0]) {
      openNearest(RUNS[run]?.trees.length ? Number(run) : first, Number.isFinite(Number(step)) ? Number(step) : Infinity);
      return;
    }
    const content = await openTree(Number(run), Number(step), Number(number ?? 0));
    if (!shown || shown.settings.beta !== content.settings.beta || shown.settings.ib_coef !== content.settings.ib_coef) {
      Object.assign(tree, {beta: null, coef: null});
    }
    shown = content;
    shown.node = Number(node) > 0 && Number(node) < shown.kept.count ? Number(node) : 0;
    drawView(main);
  },
};

function drawView(main) {
  const {record, settings, kept} = shown;
  const rounds = Math.max(...kept.round);
  const canvas = element("div", {
    class: "canvas", role: "tree", "aria-label": "tree of reasoning steps",
    "data-tree": `${shown.run}/${shown.step}/${shown.number}`, onkeydown: press,
    onclick: (event) => {
      const box = event.target.closest(".node");
      if (box) select(Number(box.dataset.node));
    },
  });
  const tip = element("div", {class: "tip", hidden: true});
  canvas.addEventListener("pointerover", (event) => {
    const box = event.target.closest(".node");
    if (!box) return;
    const i = Number(box.dataset.node), nodes = scored();
    clear(tip, element("b", {}, `value ${short(nodes.value[i])}  IB ${signed(nodes.ib_score[i])}  A ${signed(nodes.advantage[i])}`),
      element("span", {}, nodes.text[i].trim().slice(0, 280)));
    tip.hidden = false;
    const at = box.getBoundingClientRect();
    tip.style.left = `${Math.max(8, Math.min(at.left, innerWidth - 380))}px`;
    tip.style.top = `${at.bottom + 8}px`;
  });
  canvas.addEventListener("pointerout", () => { tip.hidden = true; });
  const panel = element("section", {class: "details", "aria-live": "polite"});
  const legendPlace = element("span"), matches = element("span", {class: "note"}), triedNote = element("span", {class: "tried"});
  const search = element("input", {
    type: "search", id: "search", placeholder: "find in steps ( / )", value: tree.search, "aria-label": "find in steps",
    oninput: () => { tree.search = search.value; redraw(); },
    onkeydown: (event) => { if (event.key === "Enter") select(nextFound(scored(), 1)); },
  });
  const slider = element("input", {
    type: "range", min: 0, max: rounds, step: 1, value: tree.rounds ?? rounds, id: "rounds",
    oninput: () => {
      tree.rounds = Number(slider.value) === rounds ? null : Number(slider.value);
      if (!isShown(kept, shown.node)) shown.node = 0;
      redraw();
    },
  });
  const roundsNote = element("output", {});
  const colour = choice("colour", Object.entries(COLOURS).map(([key, {label: text}]) => [key, text]), tree.colour, (chosen) => {
    tree.colour = chosen;
    redraw();
  });
  colour.querySelector("select").id = "colour";
  redraw = () => {
    const nodes = scored();
    clear(legendPlace, legend(drawTree(canvas)));
    clear(panel, details(nodes));
    clear(roundsNote, `${tree.rounds ?? rounds} of ${rounds}`);
    const wanted = tree.search.toLowerCase();
    clear(matches, wanted ? `${nodes.text.filter((text) => text.toLowerCase().includes(wanted)).length} steps` : "");
    clear(triedNote, tried() ? "scores computed again for the values beside" : "");
  };
  const facts = [
    `${kept.finish_reason.reduce((sum, reason, i) => sum + (reason ? kept.draws[i] : 0), 0)} trajectories`,
    `${kept.tokens.slice(1).reduce((a, b) => a + b)} unique tokens`,
    `answer ${record.answer}`,
    kept.advantage.includes(null) && kept.advantage[0] === null ? "not trained on: all rewards are equal" : null,
  ].filter(Boolean);
  clear(main,
    chooser(),
    element("div", {class: "bar"},
      colour,
      choice("boxes", Object.entries(SIZES).map(([key, {label: text}]) => [key, text]), tree.size, (chosen) => {
        tree.size = chosen;
        redraw();
      }),
      rounds ? element("label", {}, "rounds ", slider, " ", roundsNote) : null,
      search, matches,
      constant("beta", "\u03b2", settings.beta),
      settings.ib_coef !== undefined ? constant("coef", "\u03bb", settings.ib_coef) : null,
      triedNote,
    ),
    element("div", {class: "bar slim"}, legendPlace, element("span", {class: "note"}, facts.join(" \u00b7 "))),
    element("div", {class: "split"}, element("div", {class: "frame"}, canvas), panel),
    element("p", {class: "note keys"}, "keys in the tree: arrows, Home, End \u00b7 j k next and previous tree \u00b7 c next colour \u00b7 / find, n N next and previous match. A number before a box is the round in which the branch was grown; what has none comes from the first trajectories."),
    tip,
  );
  redraw();
  if (byKey) document.getElementById(`node-${shown.node}`)?.focus();
  byKey = false;
}

addEventListener("resize", () => { if (document.querySelector(".canvas")) redraw(); });
