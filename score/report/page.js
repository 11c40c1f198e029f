// What Vega-Lite cannot do by itself: parameters shared between charts that the page lays out, and a table that follows them.
"use strict";
(async () => {
  const page = JSON.parse(document.getElementById("page-data").textContent);
  const columns = Object.keys(page.heads);
  const heads = page.heads.layer.map((_, i) => Object.fromEntries(columns.map((name) => [name, page.heads[name][i]])));
  const shared = [...page.parameters, "picked_tuple"];
  const views = {};
  const signals = (view) => view.getState({ data: () => false, signals: () => true }).signals;
  const having = (name) => Object.values(views).filter((view) => view.shared.has(name));

  // ------------------------------------------------------------------------------------------------- shared parameters
  const current = new Map(); // what was spread last: the echo of it from the other charts is no news
  const news = new Map();
  let waiting = 0;
  let drawing = Promise.resolve();
  async function show(id) {
    const values = { heads: heads.map((head) => ({ ...head })) };
    const embedded = await vegaEmbed(document.getElementById(id), { ...page.charts[id], datasets: values }, {
      renderer: "svg", actions: false, config: page.config, logLevel: 1 /* errors */,
    });
    const view = embedded.view;
    const known = signals(view);
    view.shared = new Set(shared.filter((name) => name in known));
    for (const name of view.shared) {
      if (current.has(name)) view.signal(name, current.get(name)); // it is drawn after the sliders were moved
      view.addSignalListener(name, (_, value) => {
        if (value === current.get(name)) return;
        news.set(name, value);
        clearTimeout(waiting); // later, as a chart cannot be run from within its own run, and many heads take their time
        waiting = setTimeout(spread, heads.length > 1000 ? 120 : 0);
      });
    }
    views[id] = view;
    await view.runAsync();
  }
  async function spread() {
    waiting = 0;
    for (const [name, value] of news) {
      current.set(name, value);
      for (const view of having(name)) if (view.signal(name) !== value) view.signal(name, value);
    }
    news.clear();
    await Promise.all(Object.values(views).map((view) => view.runAsync()));
    draw();
  }
  async function settled() {
    do {
      await drawing;
      await new Promise((done) => setTimeout(done, 10));
      await Promise.all(Object.values(views).map((view) => view.runAsync()));
    } while (waiting);
    draw();
  }
  const folded = (id) => document.getElementById(id).closest("details:not([open])");
  for (const id of Object.keys(page.charts)) if (!folded(id)) await show(id);
  for (const details of document.querySelectorAll("main details")) {
    details.addEventListener("toggle", () => {
      const ids = [...details.querySelectorAll(".chart")].map((chart) => chart.id);
      drawing = drawing.then(async () => { for (const id of ids) if (details.open && !(id in views)) await show(id); });
    });
  }
  const main = views[page.main];

  // --------------------------------------------------------------------------------------------------------- the table
  const table = document.getElementById("top-heads-table");
  let sort = { field: "rank", down: false };
  const format = (column, value) => (column.digits === undefined ? String(value) : value === null ? "" : value.toFixed(column.digits));
  const cell = (kind, text) => Object.assign(document.createElement(kind), { textContent: text });

  const datasets = Object.keys(main.getState({ data: () => true, signals: () => false }).data);
  const ranked = datasets.find((name) => main.data(name)?.length === heads.length && "place" in main.data(name)[0]);
  const rankedHeads = () => main.data(ranked); // the main chart's heads, as its transforms leave them

  function pickedHead(rows) {
    const tuple = main.signal("picked_tuple");
    return tuple && rows.find((row) => row.layer === tuple.values[0] && row[page.unit] === tuple.values[1]);
  }
  function pick(row) {
    const fields = main.signal("picked_tuple_fields");
    main.signal("picked_tuple", { unit: "", fields, values: [row.layer, row[page.unit]] }).runAsync();
  }
  function draw() {
    const rows = rankedHeads();
    const chosen = pickedHead(rows);
    const top = rows.filter((row) => row.rank <= main.signal("k"));
    const key = (row) => (sort.field === "name" ? row.layer * 1e6 + row[page.unit] : row[sort.field]);
    top.sort((a, b) => (key(a) - key(b)) * (sort.down ? -1 : 1) || a.rank - b.rank);
    const lines = top.map((row) => {
      const line = document.createElement("tr");
      line.append(...page.columns.map((column) => cell("td", format(column, row[column.shown]))));
      line.classList.toggle("picked", row === chosen);
      line.tabIndex = 0;
      line.addEventListener("click", () => pick(row));
      line.addEventListener("keydown", (event) => event.key === "Enter" && pick(row));
      return line;
    });
    table.tBodies[0].replaceChildren(...lines);
    for (const head of table.tHead.rows[0].cells) {
      const here = head.dataset.field === sort.field;
      head.ariaSort = here ? (sort.down ? "descending" : "ascending") : "none";
      head.firstChild.textContent = head.dataset.title + (here ? (sort.down ? " ▼" : " ▲") : "");
    }
    const shown = document.getElementById("picked");
    shown.hidden = !chosen;
    shown.textContent = chosen ? page.columns.map((c) => `${c.title} ${format(c, chosen[c.shown])}`).join(" · ") : "";
  }
  const first = document.createElement("tr");
  for (const column of page.columns) {
    const head = document.createElement("th");
    Object.assign(head.dataset, { field: column.field, title: column.title });
    const button = cell("button", column.title);
    button.addEventListener("click", () => {
      sort = { field: column.field, down: sort.field === column.field ? !sort.down : column.digits !== undefined };
      draw();
    });
    head.append(button);
    first.append(head);
  }
  table.tHead.append(first);
  draw();
  window.headscore = { views, main, settled, rankedHeads, ready: true };
})();
