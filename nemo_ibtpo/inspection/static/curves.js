// Curves over the steps, one panel a metric, all runs in each; what differs between runs.

const MAIN = [
  "val/accuracy", "train/avg_rate", "train/eff_rate", "train/ib_score", "train/cov", "train/unique_tokens_per_prompt",
  "train/branch_depth_steps", "advantage/global_part_std", "advantage/local_part_std", "train/entropy", "train/policy_kl",
  "train/grad_norm", "mismatch/token_mult_prob_error", "perf/tokens_per_s", "perf/step_s",
];
const curves = {smoothing: 0.6, all: false, filter: ""};

// Exponential moving average, corrected for its start; gaps stay gaps.
function smooth(values, weight) {
  let sum = 0, total = 0;
  return values.map((value) => {
    if (value === null) return null;
    sum = weight * sum + (1 - weight) * value;
    total = weight * total + (1 - weight);
    return sum / total;
  });
}

function niceTicks(low, high, count) {
  const raw = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].find((factor) => factor * power >= raw) * power;
  const ticks = [];
  for (let k = Math.ceil(low / step); k * step <= high; k++) ticks.push(Number((k * step).toPrecision(12)));
  return ticks;
}

// Ticks in words; where they differ only after many digits, as a difference to the first.
function tickText(tick, ticks) {
  const step = ticks.length > 1 ? ticks[1] - ticks[0] : 0;
  if (step && step < 1e-3 * Math.abs(tick)) {
    return tick === ticks[0] ? String(Number(tick.toPrecision(6))) : `+${(tick - ticks[0]).toExponential(0)}`;
  }
  return short(tick);
}

const WIDTH = 340, HEIGHT = 180, LEFT = 52, RIGHT = 10, TOP = 8, BOTTOM = 22;

function panel(name) {
  const meta = DATA.metrics[name];
  const series = RUNS.map((run, index) => ({run, index, values: run.columns[name]})).filter(({values}) => values);
  const points = series.map(({run, index, values}) => {
    const steps = run.steps.filter((_, i) => values[i] !== undefined);
    const raw = values.filter((value) => value !== undefined);
    return {index, steps, raw, smoothed: name.startsWith("val/") ? raw : smooth(raw, curves.smoothing)};
  });
  const ends = name === "val/accuracy" ? ["val/accuracy_low", "val/accuracy_high"] : [];
  const seen = [points.map(({raw}) => raw), series.map(({run}) => ends.map((end) => run.columns[end] ?? []))].flat(Infinity)
    .filter((value) => typeof value === "number");
  const steps = points.flatMap((one) => one.steps);
  const head = element("h3", {title: meta ? meta.meaning : null}, name, element("small", {}, meta ? ` ${meta.unit}` : ""));
  const figure = element("figure", {class: "panel"}, head);
  if (!seen.length) {
    figure.append(element("p", {class: "note"}, "no finite value"));
    return figure;
  }
  let [low, high] = [Math.min(...seen), Math.max(...seen)];
  const margin = (high - low) * 0.06 || Math.abs(high) * 0.05 || 0.5;
  low -= margin;
  high += margin;
  const [first, last] = [Math.min(...steps), Math.max(...steps, Math.min(...steps) + 1)];
  const x = (step) => LEFT + ((step - first) / (last - first)) * (WIDTH - LEFT - RIGHT);
  const y = (value) => HEIGHT - BOTTOM - ((value - low) / (high - low)) * (HEIGHT - TOP - BOTTOM);
  const svg = element("svg", {viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": `${name} over the steps`});
  const ticks = niceTicks(low, high, 4);
  for (const tick of ticks) {
    svg.append(
      element("line", {class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: y(tick), y2: y(tick)}),
      element("text", {class: "tick", x: LEFT - 5, y: y(tick) + 3, "text-anchor": "end"}, tickText(tick, ticks)),
    );
  }
  for (const tick of niceTicks(first, last, 5)) {
    if (Number.isInteger(tick)) {
      svg.append(element("text", {class: "tick", x: x(tick), y: HEIGHT - 7, "text-anchor": "middle"}, short(tick)));
    }
  }
  const path = (one, values) => {
    let pen = "M";
    return one.steps.map((step, i) => {
      if (values[i] === null) {
        pen = "M";
        return "";
      }
      const part = `${pen}${x(step).toFixed(1)} ${y(values[i]).toFixed(1)}`;
      pen = "L";
      return part;
    }).join("");
  };
  if (name === "val/accuracy") {
    for (const {index, steps: own} of points.filter(({index: i}) => ends.every((end) => RUNS[i].columns[end]))) {
      const [lows, highs] = ends.map((end) => (RUNS[index].columns[end] ?? []).filter((value) => value !== undefined));
      const edge = (values) => own.map((step, i) => `${x(step).toFixed(1)} ${y(values[i]).toFixed(1)}`);
      const [there, back] = [edge(highs), edge(lows).reverse()];
      svg.append(element("path", {class: `band run-${index % 8}`, d: `M${[...there, ...back].join("L")}Z`}));
    }
  }
  for (const one of points) {
    if (one.smoothed !== one.raw && curves.smoothing > 0) {
      svg.append(element("path", {class: `line raw run-${one.index % 8}`, d: path(one, one.raw)}));
    }
    svg.append(element("path", {class: `line run-${one.index % 8}`, d: path(one, one.smoothed)}));
    if (one.steps.length < 25 && one.smoothed === one.raw) {
      one.steps.forEach((step, i) => one.raw[i] !== null && svg.append(
        element("circle", {class: `dot run-${one.index % 8}`, cx: x(step), cy: y(one.raw[i]), r: 2.5}),
      ));
    }
  }
  const cursor = element("line", {class: "cursor", y1: TOP, y2: HEIGHT - BOTTOM, visibility: "hidden"});
  svg.append(cursor);
  const reading = element("figcaption", {}, latest(points));
  const stepAt = (event) => {
    const box = svg.getBoundingClientRect();
    const place = ((event.clientX - box.left) / box.width) * WIDTH;
    return steps.reduce((best, step) => (Math.abs(x(step) - place) < Math.abs(x(best) - place) ? step : best));
  };
  svg.addEventListener("pointermove", (event) => {
    const step = stepAt(event);
    cursor.setAttribute("visibility", "visible");
    cursor.setAttribute("x1", x(step));
    cursor.setAttribute("x2", x(step));
    clear(reading, `step ${step}: `, points.map((one) => {
      const at = one.steps.indexOf(step);
      return at < 0 ? null : element("b", {class: `text run-${one.index % 8}`}, `${short(one.raw[at], 4)} `);
    }));
  });
  svg.addEventListener("pointerleave", () => {
    cursor.setAttribute("visibility", "hidden");
    clear(reading, latest(points));
  });
  svg.addEventListener("click", (event) => {
    const kept = RUNS.findIndex((run) => run.trees.length);
    if (kept >= 0) openNearest(kept, stepAt(event));
  });
  figure.append(svg, reading);
  return figure;
}

function latest(points) {
  return ["last: ", points.map((one) => element("b", {class: `text run-${one.index % 8}`}, `${short(one.raw.at(-1), 4)} `))];
}

const lastOf = (run, name) => (run.columns[name] ?? []).filter((value) => value !== undefined).at(-1);

function meanOf(run, name) {
  const known = (run.columns[name] ?? []).filter((value) => typeof value === "number");
  return known.length ? mean(known) : null;
}

function runTable() {
  const accuracy = (run, name) => {
    const value = lastOf(run, name);
    return value === undefined ? MISSING : percent(value);
  };
  const interval = (run) => `[${accuracy(run, "val/accuracy_low")}, ${accuracy(run, "val/accuracy_high")}]`;
  const firstAccuracy = (run) => percent((run.columns["val/accuracy"] ?? []).find((value) => value !== undefined));
  const rows = [
    ["steps", (run) => `${run.steps.at(-1) ?? 0} of ${run.max_steps ?? "?"}`],
    ["accuracy, first", firstAccuracy],
    ["accuracy, last", (run) => `${accuracy(run, "val/accuracy")} ${interval(run)}`],
    ["Avg-Rate", (run) => percent(meanOf(run, "train/avg_rate"))],
    ["Eff-Rate", (run) => percent(meanOf(run, "train/eff_rate"))],
    ["IB-Score", (run) => signed(meanOf(run, "train/ib_score"))],
    ["Cov(\u03b71, \u03b72)", (run) => signed(meanOf(run, "train/cov"))],
    ["tokens a prompt, unique", (run) => short(meanOf(run, "train/unique_tokens_per_prompt"), 4)],
    ["repeated", (run) => short(meanOf(run, "train/duplicated_tokens_per_prompt"), 4)],
    ["seconds a step", (run) => short(meanOf(run, "perf/step_s"))],
  ];
  return element("div", {class: "scroll"}, element("table", {class: "runs"},
    element("thead", {}, element("tr", {}, ["run", ...rows.map(([label]) => label)].map((text) => element("th", {scope: "col"}, text)))),
    element("tbody", {}, RUNS.map((run, i) => element("tr", {},
      element("th", {scope: "row"}, runChip(i)), rows.map(([, text]) => element("td", {}, text(run))),
    ))),
  ));
}

// What the runs were asked to do differently; where they wrote and logged to does not count.
function differenceTable() {
  const names = [...new Set(RUNS.flatMap((run) => Object.keys(run.config)))];
  const differing = names.filter((name) => {
    const first = JSON.stringify(RUNS[0].config[name]);
    return !/^(name|output_dir|logger\..*)$/.test(name) && RUNS.some((run) => JSON.stringify(run.config[name]) !== first);
  });
  if (RUNS.length === 1) return null;
  if (!differing.length) return element("p", {class: "note"}, "all settings are the same");
  return element("div", {class: "scroll"}, element("table", {class: "runs", id: "differences"},
    element("thead", {}, element("tr", {}, element("th", {scope: "col"}, "settings that differ"), RUNS.map((_, i) => element("th", {scope: "col"}, runChip(i))))),
    element("tbody", {}, differing.map((name) => element("tr", {},
      element("th", {scope: "row"}, element("code", {}, name)),
      RUNS.map((run) => element("td", {}, name in run.config ? JSON.stringify(run.config[name]) : MISSING)),
    ))),
  ));
}

VIEWS.curves = {
  title: "Curves",
  show(main) {
    const panels = element("div", {class: "panels"});
    const logged = new Set(RUNS.flatMap((run) => Object.keys(run.columns)));
    const draw = () => {
      const wanted = curves.filter.toLowerCase();
      const names = curves.all || wanted ? [...logged] : MAIN.filter((name) => logged.has(name));
      const shown = names.filter((name) => name.toLowerCase().includes(wanted));
      clear(panels, shown.map(panel), shown.length ? null : element("p", {class: "note"}, "no metric of that name"));
    };
    const smoothing = element("input", {
      type: "range", min: 0, max: 0.98, step: 0.02, value: curves.smoothing, id: "smoothing",
      oninput: () => { curves.smoothing = Number(smoothing.value); draw(); },
    });
    const filter = element("input", {
      type: "search", placeholder: "find a metric", value: curves.filter, "aria-label": "find a metric",
      oninput: () => { curves.filter = filter.value; draw(); },
    });
    clear(main,
      runTable(),
      differenceTable(),
      element("div", {class: "bar"},
        element("label", {}, "smoothing ", smoothing),
        choice("metrics", [["main", "main"], ["all", `all ${logged.size}`]], curves.all ? "all" : "main", (chosen) => {
          curves.all = chosen === "all";
          draw();
        }),
        filter,
        element("span", {class: "note"}, "a click on a curve opens the trees of that step; the table has accuracy on held-out problems, else means over steps"),
      ),
      panels,
    );
    draw();
  },
};
