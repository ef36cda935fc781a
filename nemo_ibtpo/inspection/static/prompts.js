// All prompts in one sortable table: those whose trees were kept, and the held-out problems.

const PAGE_ROWS = 50;
const prompts = {kind: "trees", sort: "ib", descending: true, page: 0, filter: "", run: "all"};

function treeRows() {
  return RUNS.flatMap((run, index) => {
    const byPrompt = new Map();
    run.trees.forEach(({step, trees}) => trees.forEach((tree, number) => {
      if (!byPrompt.has(tree.prompt)) byPrompt.set(tree.prompt, []);
      byPrompt.get(tree.prompt).push({step, number, ...tree});
    }));
    return [...byPrompt].map(([prompt, trees]) => ({
      run: index,
      prompt,
      trees,
      count: trees.length,
      step: trees.at(-1).step,
      first: trees[0].reward,
      last: trees.at(-1).reward,
      change: trees.length > 1 ? trees.at(-1).reward - trees[0].reward : null,
      eff: mean(trees.map((tree) => Number(tree.mixed))),
      ib: mean(trees.map((tree) => tree.ib)),
      tokens: mean(trees.map((tree) => tree.unique)),
    }));
  });
}

function validationRows() {
  return RUNS.flatMap((run, index) => Object.entries(run.held_out).map(([prompt, {steps, rewards, mixed}]) => ({
    run: index,
    prompt,
    count: rewards.length,
    step: steps.at(-1),
    first: rewards[0],
    last: rewards.at(-1),
    change: rewards.length > 1 ? rewards.at(-1) - rewards[0] : null,
    eff: mean(mixed.map(Number)),
  })));
}

const KINDS = {
  trees: {label: "training prompts with trees", rows: treeRows},
  validation: {label: "held-out problems", rows: validationRows},
};

const COLUMNS = [
  {key: "question", label: "prompt", text: (row) => DATA.prompts[row.prompt]?.question ?? row.prompt},
  {key: "run", label: "run", text: (row) => runChip(row.run), only: () => RUNS.length > 1},
  {key: "count", label: "times met", text: (row) => String(row.count)},
  {key: "step", label: "last step", text: (row) => String(row.step)},
  {key: "first", label: "reward, first", text: (row) => percent(row.first)},
  {key: "last", label: "reward, last", text: (row) => percent(row.last)},
  {key: "change", label: "reward change", text: (row) => (row.change === null ? MISSING : `${signed(100 * row.change)} pts`)},
  {key: "eff", label: "Eff-Rate", text: (row) => percent(row.eff)},
  {key: "ib", label: "IB-Score", text: (row) => signed(row.ib), only: () => prompts.kind === "trees"},
  {key: "tokens", label: "unique tokens", text: (row) => short(row.tokens), only: () => prompts.kind === "trees"},
];

function compare(key, descending) {
  const direction = descending ? -1 : 1;
  const of = key === "question" ? (row) => DATA.prompts[row.prompt]?.question ?? row.prompt : (row) => row[key];
  return (a, b) => {
    const [one, other] = [of(a), of(b)];
    if (one === other) return 0;
    if (one === null || one === undefined) return 1; // what is not known comes last either way
    if (other === null || other === undefined) return -1;
    return (one < other ? -1 : 1) * direction;
  };
}

function promptTable(redraw) {
  const wanted = prompts.filter.toLowerCase();
  const rows = KINDS[prompts.kind].rows()
    .filter((row) => prompts.run === "all" || row.run === Number(prompts.run))
    .filter((row) => COLUMNS[0].text(row).toLowerCase().includes(wanted))
    .sort(compare(prompts.sort, prompts.descending));
  const lastPage = Math.max(0, Math.ceil(rows.length / PAGE_ROWS) - 1);
  prompts.page = Math.min(prompts.page, lastPage);
  const columns = COLUMNS.filter((column) => !column.only || column.only());
  const heading = (column) => {
    const sorted = prompts.sort === column.key;
    const order = sorted ? (prompts.descending ? "descending" : "ascending") : "none";
    return element("th", {scope: "col", "aria-sort": order}, element("button", {
      type: "button",
      onclick: () => {
        Object.assign(prompts, {sort: column.key, descending: sorted ? !prompts.descending : column.key !== "question", page: 0});
        redraw();
      },
    }, column.label, sorted ? (prompts.descending ? " \u25be" : " \u25b4") : ""));
  };
  const cell = (row, column) => {
    if (column.key !== "question") return element("td", {}, column.text(row));
    const text = column.text(row);
    if (!row.trees) return element("td", {class: "question"}, text);
    const {step, number} = row.trees.at(-1);
    return element("td", {class: "question"}, element("a", {href: `#tree/${row.run}/${step}/${number}`}, text || "(empty)"));
  };
  const from = prompts.page * PAGE_ROWS;
  const turn = (by) => element("button", {
    type: "button",
    disabled: prompts.page + by < 0 || prompts.page + by > lastPage,
    onclick: () => { prompts.page += by; redraw(); },
  }, by < 0 ? "\u2190 previous" : "next \u2192");
  return [
    element("div", {class: "scroll"}, element("table", {class: "prompts"},
      element("thead", {}, element("tr", {}, columns.map(heading))),
      element("tbody", {}, rows.slice(from, from + PAGE_ROWS).map((row) => (
        element("tr", {}, columns.map((column) => cell(row, column)))
      ))),
    )),
    element("div", {class: "bar"},
      turn(-1), turn(1),
      element("span", {class: "note"}, rows.length ? `${from + 1} to ${Math.min(from + PAGE_ROWS, rows.length)} of ${rows.length}` : "nothing to show"),
    ),
  ];
}

VIEWS.prompts = {
  title: "Prompts",
  show(main) {
    const table = element("div");
    const draw = () => clear(table, promptTable(draw));
    const filter = element("input", {
      type: "search", placeholder: "find in prompts", value: prompts.filter, "aria-label": "find in prompts",
      oninput: () => { Object.assign(prompts, {filter: filter.value, page: 0}); draw(); },
    });
    clear(main,
      element("div", {class: "bar"},
        choice("show", Object.entries(KINDS).map(([key, {label}]) => [key, label]), prompts.kind, (kind) => {
          Object.assign(prompts, {kind, page: 0, sort: kind === "trees" ? prompts.sort : "change"});
          draw();
        }),
        RUNS.length > 1 ? choice("run", [["all", "all"], ...RUNS.map((run, i) => [i, run.label])], prompts.run, (run) => {
          Object.assign(prompts, {run, page: 0});
          draw();
        }) : null,
        filter,
      ),
      table,
    );
    draw();
  },
};
