// What Vega-Lite cannot do by itself: parameters shared between charts that the page lays out, and a table that follows them.
"use strict";
(async () => {
  const page = JSON.parse(document.getElementById("page-data").textContent);
  const shared = [...Object.keys(page.given), "picked_tuple"];
  const charts = { ...page.charts, ...page.found };
  const unpacked = (columns) => {
    const names = Object.keys(columns);
    return (columns[names[0]] ?? []).map((_, i) => Object.fromEntries(names.map((name) => [name, columns[name][i]])));
  };
  const heads = unpacked(page.heads);
  const views = {};
  const signals = (view) => view.getState({ data: () => false, signals: () => true }).signals;
  const having = (name) => Object.values(views).filter((view) => view.shared.has(name));

  // ------------------------------------------------------------------------------------------------- shared parameters
  const current = new Map(); // what was spread last: the echo of it from the other charts is no news
  const news = new Map();
  let waiting = 0;
  let drawing = Promise.resolve();
  async function show(id) {
    const own = charts[id].datasets ?? {};
    const datasets = { heads: heads.map((head) => ({ ...head })) };
    for (const [name, values] of Object.entries(own)) datasets[name] = Array.isArray(values) ? values : unpacked(values);
    const view = (await vegaEmbed(document.getElementById(id), { ...charts[id], datasets }, {
      renderer: "svg", actions: false, config: page.config, logLevel: 1 /* errors */,
    })).view;
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
  async function showFound(id) {
    try {
      await show(id);
    } catch (error) { // of another command's files, which may hold anything
      document.getElementById(id).textContent = `cannot be drawn: ${error.message}`;
    }
  }
  const folded = (id) => document.getElementById(id).closest("details:not([open])");
  for (const id of Object.keys(page.charts)) if (!folded(id)) await show(id);
  for (const details of document.querySelectorAll("main details")) {
    details.addEventListener("toggle", () => {
      const ids = [...details.querySelectorAll(".chart")].map((chart) => chart.id);
      drawing = drawing.then(async () => { for (const id of ids) if (details.open && !(id in views)) await show(id); });
    });
  }
  for (const id of Object.keys(page.found)) await showFound(id);
  const main = views[page.main];

  // --------------------------------------------------------------------------------------------------------- the table
  const table = document.getElementById("top-heads-table");
  let sort = { field: "rank", down: false };
  const isGiven = () => Object.entries(page.given).every(([name, value]) => main.signal(name) === value);
  const number = (column, value) => (column.digits === undefined ? String(value) : value === null ? "" : value.toFixed(column.digits));
  function format(column, row) {
    if (column.given && !isGiven()) return "";
    const end = column.to === undefined ? "" : `–${number(column, row[column.to])}`;
    const mark = column.field === "p_top" && row.tossed ? "?" : "";
    return number(column, row[column.shown]) + end + mark;
  }
  const cell = (kind, text) => Object.assign(document.createElement(kind), { textContent: text });
  const kind = (column) => (column.wide ? "wide" : "");

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
      line.append(...page.columns.map((column) => Object.assign(cell("td", format(column, row)), { className: kind(column) })));
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
    shown.textContent = chosen ? page.columns.map((c) => `${c.title} ${format(c, chosen)}`).join(" · ") : "";
    shade(chosen ?? rows.find((row) => row.rank === 1));
  }

  // --------------------------------------------------------------------------------------- the table as a file, the tokens
  function csv() {
    const quoted = (value) => (/[",\r\n]/.test(value) ? `"${value.replaceAll('"', '""')}"` : value);
    const names = page.columns.flatMap((c) => (c.to === undefined ? [c.title] : [c.field, c.to]));
    const fields = page.columns.flatMap((c) => (c.to === undefined ? [c.shown] : [c.field, c.to]).map((name) => [c, name]));
    const lines = rankedHeads().filter((row) => row.rank <= main.signal("k")).sort((a, b) => a.rank - b.rank)
      .map((row) => fields.map(([c, name]) => (c.given && !isGiven() ? "" : String(row[name] ?? ""))));
    return [names, ...lines].map((line) => line.map(quoted).join(",") + "\n").join("");
  }
  document.getElementById("csv").addEventListener("click", () => {
    const link = cell("a", "");
    link.href = URL.createObjectURL(new Blob([csv()], { type: "text/csv" }));
    link.download = "top_heads.csv";
    link.click();
    URL.revokeObjectURL(link.href);
  });
  const tokens = document.querySelectorAll("#tokens .prompt i");
  for (const button of document.querySelectorAll("#tokens .run")) {
    button.addEventListener("click", () => { button.nextElementSibling.hidden = !button.nextElementSibling.hidden; });
  }
  let shaded = "";
  function shade(row) {
    const name = row.name in page.levels ? row.name : Object.keys(page.levels)[0];
    if (!tokens.length || shaded === name) return;
    shaded = name;
    const bytes = atob(page.levels[name]);
    const colour = (level) => (level > 8 ? `rgba(var(--weight), ${(level / 255 * 0.9).toFixed(2)})` : "");
    tokens.forEach((token, i) => {
      const level = bytes.charCodeAt(i);
      token.style.background = colour(level);
      token.title = ((level / 255) ** 2).toFixed(3);
    });
    for (const button of document.querySelectorAll("#tokens .run")) {
      const all = [...button.nextElementSibling.children].reduce((sum, token) => sum + Number(token.title), 0);
      button.style.background = colour(255 * Math.sqrt(Math.min(1, all)));
      button.title = all.toFixed(3);
    }
    document.getElementById("tokens-of").textContent = name;
  }
  const first = document.createElement("tr");
  for (const column of page.columns) {
    const head = document.createElement("th");
    Object.assign(head.dataset, { field: column.field, title: column.title });
    head.className = kind(column);
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
  window.headscore = { views, main, settled, rankedHeads, csv, ready: true };
})();
