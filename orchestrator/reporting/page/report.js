// The report's script: tables sort and filter, figures answer the mouse, arms switch on and off,
// pictures page through epochs. It reads the JSON of the tag #data, and draws with plotly, which
// lies compressed in the tag #plotly. A page of tables alone has neither and can use it, too.
"use strict";
(() => {
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const byId = (id) => document.getElementById(id);

// Returns a new element with properties and children.
function make(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

// Returns a label with a menu; `options` are [value, text], `changed` is called without arguments.
function menu(text, options, changed) {
  const select = make("select", { onchange: changed });
  for (const [value, name] of options) select.append(make("option", { value, textContent: name }));
  const label = make("label", { hidden: options.length < 2 }, text + " ", select);
  return { label, get value() { return select.value; }, set value(v) { select.value = v; } };
}

const data = byId("data") ? JSON.parse(byId("data").textContent) : null;
const hiddenArms = new Set();
let drawParallel = null;
const leftOut = new Set();  // trials that the filter of their table does not show
const redraws = [];  // functions that draw a figure, filter a table, show pictures anew

// ---- tables ----

// Returns the number that a cell begins with, NaN if it begins with none.
function numberOf(cell) {
  const text = cell.innerText.trim().replace(/−/g, "-").replace(/,(?=\d{3})/g, "");
  return parseFloat(/^[a-zτρ ]*([+-]?[\d.]+)/i.exec(text)?.[1]);
}

// Compares two cells; what is missing comes last in both directions.
function compare(a, b, sign) {
  const [x, y] = [numberOf(a), numberOf(b)];
  if (!isNaN(x) && !isNaN(y) && x !== y) return sign * (x - y);
  if (isNaN(x) !== isNaN(y)) return isNaN(x) - isNaN(y);
  return sign * a.innerText.localeCompare(b.innerText, "en", { numeric: true });
}

// Returns a function that tells whether a row has all words of the filter. A word such as mIoU>30
// compares the column whose heading begins so.
function rowTest(text, heads) {
  const tests = text.trim().split(/\s+/).filter(Boolean).map((word) => {
    const found = /^(.+?)(>=|<=|>|<|=)([+-]?[\d.]+)$/.exec(word.replace(/−/g, "-"));
    const name = found?.[1].toLowerCase();
    const column = found ? heads.findIndex((head) => head.toLowerCase().startsWith(name)) : -1;
    if (column < 0) return (row) => row.innerText.toLowerCase().includes(word.toLowerCase());
    const limit = parseFloat(found[3]);
    return (row) => {
      const value = numberOf(row.cells[column]);
      return { ">": value > limit, "<": value < limit, "=": value === limit,
        ">=": value >= limit, "<=": value <= limit }[found[2]];
    };
  });
  return (row) => tests.every((test) => test(row));
}

function activate(table) {
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const cells = [...table.tHead.rows[0].cells];
  const heads = cells.map((cell) => cell.innerText.trim());
  const armColumn = heads.indexOf("arm");
  cells.forEach((cell, column) => {
    const button = make("button", { type: "button", title: "sort" }, ...cell.childNodes);
    cell.append(button);
    button.onclick = () => {
      // numbers begin with the largest, words with A
      const numeric = rows.some((row) => !isNaN(numberOf(row.cells[column])));
      const now = cell.ariaSort;
      const ascending = now ? now === "descending" : !numeric;
      cells.forEach((other) => other.removeAttribute("aria-sort"));
      cell.ariaSort = ascending ? "ascending" : "descending";
      const sign = ascending ? 1 : -1;
      rows.sort((a, b) => compare(a.cells[column], b.cells[column], sign));
      body.append(...rows);
    };
  });
  const input = make("input", { type: "search", placeholder: "filter: words, or mIoU>30",
    ariaLabel: "filter the rows" });
  const count = make("span", { ariaLive: "polite" });
  const show = () => {
    const fits = rowTest(input.value, heads);
    for (const row of rows) {
      row.hidden = false;  // innerText of a hidden row is another
      const arm = row.dataset.arm ?? (armColumn < 0 ? "" : row.cells[armColumn]?.innerText.trim());
      row.hidden = hiddenArms.has(arm) || !fits(row);
      if (row.dataset.trial) leftOut[row.hidden ? "add" : "delete"](row.dataset.trial);
    }
    const shown = rows.filter((row) => !row.hidden).length;
    count.textContent = shown === rows.length ? "" : `${shown} of ${rows.length} rows`;
  };
  input.oninput = () => {
    show();
    if (rows[0].dataset.trial) drawParallel?.();
  };
  if (rows.length > 4) table.parentNode.before(make("div", { className: "filter" }, input, count));
  redraws.push(show);
}

all("table").filter((t) => t.tHead && t.tBodies[0]?.rows.length > 1).forEach(activate);
if (!data) return;

// ---- arms ----

const arms = data.arms.filter((arm) => data.trials.some((t) => t.arm === arm.name));
const shownArms = () => arms.filter((arm) => !hiddenArms.has(arm.name));
const dark = () => matchMedia("(prefers-color-scheme: dark)").matches
  && !document.documentElement.classList.contains("printing");
const redraw = () => redraws.forEach((draw) => draw());

// Returns an arm's colour, which is mixed with white on a dark page.
function shade(color, alpha = 1) {
  const mix = dark() ? 0.45 : 0;
  const parts = [1, 3, 5].map((i) => parseInt(color.slice(i, i + 2), 16));
  return `rgba(${parts.map((c) => Math.round(c + mix * (255 - c))).join()},${alpha})`;
}

function armsBar() {
  const bar = make("div", { className: "bar-of-arms", role: "group", ariaLabel: "arms shown" });
  const buttons = arms.map((arm) => {
    const button = make("button", { type: "button", textContent: arm.name, ariaPressed: "true" });
    button.style.setProperty("--arm", arm.color);
    button.onclick = () => {
      if (!hiddenArms.delete(arm.name)) hiddenArms.add(arm.name);
      button.ariaPressed = String(!hiddenArms.has(arm.name));
      redraw();
    };
    return button;
  });
  const every = make("button", { type: "button", textContent: "all arms", onclick: () => {
    hiddenArms.clear();
    buttons.forEach((button) => { button.ariaPressed = "true"; });
    redraw();
  } });
  every.style.setProperty("--arm", "transparent");
  bar.append(...buttons, every);
  byId("arms").before(bar);
}
if (arms.length > 1 && byId("arms")) armsBar();

// ---- pictures ----

function pictures(box) {
  const figures = all("figure.picture", box);
  const own = figures.map((figure) => {
    const { epochs, urls } = data.pictures[figure.dataset.arm];
    const image = figure.querySelector("img");
    return { figure, image, epochs, urls: [...urls, image.src] };
  });
  const names = own.map(({ figure }) => [figure.dataset.arm, figure.dataset.arm]);
  const epochs = [...new Set(own.flatMap((o) => o.epochs))].sort((a, b) => a - b);
  const show = () => {
    const epoch = epochs[slider.value];
    for (const { figure, image, epochs: has, urls } of own) {
      const arm = figure.dataset.arm;
      figure.hidden = arm !== left.value && arm !== right.value;
      figure.style.order = arm === left.value ? 0 : 1;
      // an arm without this epoch shows its last one before it, and says so
      const place = Math.max(0, has.findLastIndex((e) => Number(e) <= Number(epoch)));
      image.src = urls[place];
      figure.querySelector("figcaption span").textContent = has[place];
    }
    output.textContent = `${epoch} of ${epochs.at(-1)}`;
  };
  const left = menu("left", names, show);
  const right = menu("right", names, show);
  const slider = make("input", { type: "range", min: 0, max: epochs.length - 1,
    ariaLabel: "epoch", oninput: show });
  slider.value = epochs.length - 1;
  const output = make("output");
  const step = (text, by, title) => make("button", { type: "button", textContent: text, title,
    onclick: () => { slider.value = Number(slider.value) + by; show(); } });
  const paging = make("label", { hidden: epochs.length < 2 }, "epoch ",
    step("‹", -1, "epoch before"), slider, step("›", 1, "next epoch"), output);
  const controls = document.querySelector('[data-controls="pictures"]');
  controls.append(left.label, right.label, paging);
  controls.hidden = false;
  if (names.length > 1) right.value = names.at(-1)[0];
  show();
}
const box = document.querySelector("[data-pictures]");
if (box?.querySelector("figure")) pictures(box);

// ---- figures ----

// Returns text that plotly shows as it is: it reads a few tags.
const plain = (value) => String(value).replace(/&/g, "&amp;").replace(/</g, "&lt;")
  .replace(/>/g, "&gt;");
const digits = (value, metric, places = 2) => value === null || value === undefined ? "–"
  : `${(metric.factor === 100 ? value.toFixed(places) : Number(value.toPrecision(4)))}`
    .replace("-", "−");
const settingsOf = (trial) => Object.entries(trial.settings)
  .map(([name, value]) => `<br>${plain(name)} ${plain(value)}`).join("");
const metricOf = (key) => data.metrics.find((metric) => metric.key === key);
const metricMenu = (changed) => menu("metric", data.metrics.map((m) => [m.key, m.name]), changed);
const trialText = (trial) => `<b>${plain(trial.trial)}</b><br>${plain(trial.arm)}, `
  + `${trial.stage}, seed ${plain(trial.seed)}${settingsOf(trial)}`
  + `<br>${trial.state}${trial.by ? ` by ${plain(trial.by)}` : ""}`;

// Returns an axis of epochs, with ticks at whole numbers.
function epochAxis() {
  const most = Math.max(1, ...data.trials.map((t) => t.epochs.at(-1) ?? 1));
  return { title: { text: "epoch" }, dtick: Math.ceil(most / 10) };
}

// Returns plotly's layout in the colours of the page.
function layout(more) {
  const style = getComputedStyle(document.documentElement);
  const [ink, soft, line, paper] = ["--ink", "--soft", "--line", "--paper"]
    .map((name) => style.getPropertyValue(name));
  const axis = { gridcolor: line, zerolinecolor: line, linecolor: line, automargin: true };
  const { xaxis, yaxis, title, ...rest } = more;
  return {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", hovermode: "closest",
    font: { color: ink, size: 12, family: "system-ui, sans-serif" }, showlegend: false,
    margin: { l: 50, r: 16, t: 34, b: 44 }, height: 340, autosize: true,
    title: title && { text: title, x: 0, xanchor: "left", font: { size: 13 } },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: soft, activecolor: ink },
    hoverlabel: { bgcolor: paper, bordercolor: ink, font: { color: ink }, align: "left" },
    xaxis: { ...axis, ...xaxis }, yaxis: { ...axis, ...yaxis }, ...rest,
  };
}

// Adds a figure to a box and returns the function that draws it, first when the section is whole;
// `draw` returns the traces and the layout.
function figure(box, draw) {
  const node = make("div", { className: "plot" });
  box.append(make("div", {}, node));
  const config = { responsive: true, displaylogo: false,
    modeBarButtons: [["toImage", "resetScale2d"]] };
  const show = () => {
    const [traces, more] = draw(node.clientWidth);
    const first = !node.data;
    Plotly.react(node, traces, layout(more), config);
    if (first) node.on("plotly_click", ({ points }) => {
      if (points[0]?.customdata) open(points[0].customdata, "_blank", "noopener");
    });
  };
  redraws.push(show);
  return show;
}

// Calls `fill` with the box of a figure's name and the element for its menus, if the page has it.
function section(name, fill) {
  const place = document.querySelector(`[data-plot="${name}"]`);
  if (!place) return;
  const controls = make("div", { className: "controls" });
  const box = make("div", { className: "figures" });
  place.hidden = false;
  place.append(controls, box);
  const before = redraws.length;
  fill(box, controls);
  redraws.slice(before).forEach((draw) => draw());  // now every figure has its width
  const still = place.nextElementSibling;
  if (still?.classList.contains("static")) still.hidden = true;
}

// Returns the means of an arm's finished seeds by epoch, where all of them have a value.
function meanLine(members, key) {
  const epochs = new Map();
  for (const t of members) {
    (t.values[key] ?? []).forEach((v, i) => {
      if (v !== null) epochs.set(t.epochs[i], [...(epochs.get(t.epochs[i]) ?? []), v]);
    });
  }
  const most = Math.max(0, ...[...epochs.values()].map((v) => v.length));
  return [...epochs].filter(([, v]) => v.length === most).sort(([a], [b]) => a - b)
    .map(([epoch, v]) => [epoch, v.reduce((a, b) => a + b) / v.length, Math.min(...v),
      Math.max(...v)]);
}

// Returns the traces of one stage: a thin line for each trial, and the mean of each arm's seeds.
function curveTraces(stage, metric) {
  return shownArms().flatMap((arm) => {
    const members = data.trials.filter((t) => t.arm === arm.name && t.stage === stage);
    const thin = { x: [], y: [], text: [], customdata: [] };
    for (const t of members.filter((m) => m.values[metric.key])) {
      const text = trialText(t);
      t.values[metric.key].forEach((value, i) => {
        thin.x.push(t.epochs[i]);
        thin.y.push(value);
        thin.text.push(`${text}<br>epoch ${t.epochs[i]}: ${digits(value, metric)}`);
        thin.customdata.push(t.link);
      });
      for (const list of Object.values(thin)) list.push(null);  // a gap between two trials
    }
    const alone = stage !== "confirm";
    const traces = [{ ...thin, name: arm.name, mode: "lines+markers", connectgaps: false,
      hovertemplate: "%{text}<extra></extra>", marker: { size: alone ? 5 : 3, symbol: arm.symbol },
      line: { width: 1, dash: arm.dash, color: shade(arm.color, alone ? 0.9 : 0.5) } }];
    const curve = alone ? [] : meanLine(members.filter((t) => t.state === "done"), metric.key);
    if (curve.length) {
      const [x, y, low, high] = [0, 1, 2, 3].map((i) => curve.map((row) => row[i]));
      traces.push({ x: [...x, ...x.toReversed()], y: [...high, ...low.toReversed()], mode: "none",
        fill: "toself", fillcolor: shade(arm.color, 0.13), hoverinfo: "skip" });
      traces.push({ x, y, name: arm.name, mode: "lines", hoverinfo: "skip",
        line: { width: 2.5, dash: arm.dash, color: shade(arm.color) } });
    }
    return traces;
  });
}

function curves(box, controls) {
  const titles = { search: "Search: every trial", confirm: "Confirmation: each seed and the mean",
    train: "This training" };
  const chosen = metricMenu(() => draws.forEach((draw) => draw()));
  controls.append(chosen.label);
  const draws = Object.keys(titles).filter((s) => data.trials.some((t) => t.stage === s))
    .map((stage) => figure(box, () => {
      const metric = metricOf(chosen.value);
      return [curveTraces(stage, metric), { title: titles[stage],
        xaxis: epochAxis(), yaxis: { title: { text: metric.name } } }];
    }));
}

function diagnostics(box) {
  box.classList.add("three");
  for (const found of data.diagnostics) {
    figure(box, () => [shownArms().filter((arm) => found.curves[arm.name]).map((arm) => ({
      x: found.curves[arm.name][0], y: found.curves[arm.name][1], name: arm.name,
      mode: "lines+markers", marker: { symbol: arm.symbol, size: 5 },
      line: { dash: arm.dash, color: shade(arm.color), width: 1.6 },
      hovertemplate: `<b>${plain(arm.name)}</b><br>epoch %{x}: %{y:.4g}<extra></extra>`,
    })), { height: 260, title: found.title,
      xaxis: epochAxis(), yaxis: { title: { text: found.unit } },
      shapes: found.reference === null ? [] : [{ type: "line", xref: "paper", x0: 0, x1: 1,
        y0: found.reference, y1: found.reference, line: { dash: "dot", width: 1 } }] }]);
    box.lastChild.append(make("p", { className: "small", textContent: found.meaning }));
  }
}

function map(box, controls) {
  const names = [...new Set(data.cells.filter((c) => c.alignment).map((c) => c.arm))];
  const chosen = metricMenu(() => show());
  const arm = menu("arm", names.map((name) => [name, name]), () => show());
  const common = data.cells[0]?.epoch;
  const reading = menu("read at", [["best", "each trial's best epoch, or its last"],
    ["common", `epoch ${common}, which all reached`]], () => show());
  controls.append(arm.label, chosen.label, reading.label);
  box.style.gridTemplateColumns = "minmax(0, 720px)";
  const show = figure(box, (width) => {
    const metric = metricOf(chosen.value);
    const cells = data.cells.filter((c) => c.arm === arm.value || !c.alignment);
    const known = cells.filter((c) => c[reading.value][metric.key] !== null);
    const whole = known.filter((c) => !c.early);  // their scores set the scale
    const values = (whole.length > 1 ? whole : known).map((c) => c[reading.value][metric.key]);
    const trace = (members, x, xaxis, symbol) => ({
      x, y: members.map((c) => c.rho), xaxis, mode: "markers+text",
      text: members.map((c) => digits(c[reading.value][metric.key], metric, 1)),
      textposition: xaxis === "x" ? "bottom center" : "middle right",
      hovertext: members.map((c) => `<b>${plain(c.arm)}</b><br>τ ${c.tau}, ρ ${c.rho}<br>`
        + `${plain(metric.name)}: ${digits(c[reading.value][metric.key], metric)}<br>`
        + `${c.trials} trials, ${c.epochs} epochs${c.failed ? `, ${c.failed} failed` : ""}`
        + `${c.early ? "<br>stopped early" : ""}${c.confirmed ? "<br>confirmed" : ""}`),
      hovertemplate: "%{hovertext}<extra></extra>",
      marker: { symbol: members.map((c) => symbol + (c.early ? "-open" : "")),
        size: xaxis === "x" && width >= 500 ? 30 : 16,
        cmin: Math.min(...values), cmax: Math.max(...values),
        colorscale: dark() ? [[0, "#2f5484"], [1, "#b4d8ff"]] : [[0, "#b5d2f0"], [1, "#0b3d8c"]],
        showscale: xaxis === "x" && width >= 500, colorbar: { thickness: 12 },
        color: members.map((c) => c[reading.value][metric.key]),
        line: { color: getComputedStyle(box).color, width: members.map((c) => c.confirmed
          ? 3 : c.early ? 2 : 0) } },
    });
    const own = cells.filter((c) => c.alignment && !hiddenArms.has(c.arm));
    const beside = cells.filter((c) => !c.alignment && ["off", "random"].includes(c.arm)
      && !hiddenArms.has(c.arm));
    const products = [...new Set(own.map((c) => Number((c.tau * c.rho).toPrecision(6))))]
      .filter((p) => p > 0).slice(0, 8);
    const lines = products.map((p) => {
      const x = Array.from({ length: 30 }, (_, i) => p ** (1 - i / 29));
      return { x, y: x.map((v) => p / v), mode: "lines", hoverinfo: "skip",
        line: { dash: "dash", width: 1, color: "rgba(128,136,148,.5)" } };
    });
    const range = [-0.12, 1.12];
    return [[...lines, trace(own, own.map((c) => c.tau), "x", "square"),
      trace(beside, beside.map((c) => c.arm === "off" ? 0 : 1), "x2", "circle")],
    { height: 430, xaxis: { domain: [0, 0.7], range: [0, 1.12],
      title: { text: "τ (share of blocks called weak)" } },
      yaxis: { range, title: { text: "ρ (share of weak blocks hidden)" } },
      xaxis2: { domain: [0.74, 1], showgrid: false, range: [-0.3, 2],
        tickvals: [0, 1], ticktext: ["off", "random"] } }];
  });
}

function robust(box, controls) {
  box.style.gridTemplateColumns = "minmax(0, 1fr)";
  const references = ["off", "random"].filter((name) => data.robust.some((r) => r[name]));
  const view = menu("show", [["score", "mIoU"],
    ...references.map((name) => [name, `difference to ${name}`])], () => show());
  controls.append(view.label);
  const names = [...new Set(data.robust.map((r) => r.corruption))];
  const show = figure(box, (width) => {
    const shown = shownArms().filter((arm) =>
      data.robust.some((r) => r.arm === arm.name && r[view.value]));
    const traces = shown.map((arm, i) => {
      const own = data.robust.filter((r) => r.arm === arm.name && r[view.value]);
      const [mean, low, high] = [0, 1, 2].map((k) => own.map((r) => r[view.value][k]));
      const parts = own.map((r, k) => `<b>${plain(arm.name)}</b><br>${plain(r.corruption)} `
        + `${plain(r.severities)}<br>${mean[k]?.toFixed(2)} (${low[k]?.toFixed(2) ?? "–"} to `
        + `${high[k]?.toFixed(2) ?? "–"})<br>${r.seeds} seeds`
        + (r.drop === null ? "" : `<br>loses ${r.drop.toFixed(1)}% of its clean score`));
      return { x: own.map((r) => names.indexOf(r.corruption)
        + 0.7 * ((i + 0.5) / shown.length - 0.5)), y: mean, mode: "markers", name: arm.name,
        marker: { color: shade(arm.color), symbol: arm.symbol, size: width < 500 ? 6 : 9 },
        error_y: { type: "data", symmetric: false, thickness: 1.2, width: 2,
          color: shade(arm.color, 0.7), array: high.map((h, k) => h === null ? 0 : h - mean[k]),
          arrayminus: low.map((l, k) => l === null ? 0 : mean[k] - l) },
        text: parts, hovertemplate: "%{text}<extra></extra>" };
    });
    const means = traces.flatMap((t) => t.y);
    const [low, high] = [Math.min(0, ...means), Math.max(0, ...means)];
    const pad = 0.25 * (high - low || 1);
    return [traces, { height: 400, showlegend: true, legend: { orientation: "h", y: -0.14 },
      // intervals of two seeds are very long: the means set the range
      yaxis: { range: [low < 0 ? low - pad : low, high + pad], zeroline: true,
        title: { text: view.value === "score" ? "mIoU (%)" : `points over ${view.value}` } },
      xaxis: { tickvals: names.map((_, i) => i), ticktext: names.map(plain), showgrid: false },
      shapes: names.slice(1).map((_, i) => ({ type: "line", yref: "paper", y0: 0, y1: 1,
        x0: i + 0.5, x1: i + 0.5, line: { width: 0.5, color: "rgba(128,136,148,.5)" } })) }];
  });
}

function fronts(box, controls) {
  const names = data.fronts.map((view, i) => [i, `${view.y} by ${view.x}`]);
  const chosen = menu("show", names, () => show());
  controls.append(chosen.label);
  box.style.gridTemplateColumns = "minmax(0, 720px)";
  const words = make("p", { className: "small" });
  const show = figure(box, () => {
    const view = data.fronts[chosen.value];
    const front = view.front.map((name) => view.points.find((p) => p.arm === name));
    words.textContent = `On the front: ${view.front.join(", ")}. `
      + `${view.less ? "To the upper left" : "To the upper right"} is better; `
      + "bars: 95% t interval over seeds.";
    const half = (ends, i) => ends.map((e) => e[i] === null ? 0 : Math.abs(e[i] - e[0]));
    const bars = (ends, color) => ({ type: "data", symmetric: false, thickness: 1, width: 3, color,
      array: half(ends, 2), arrayminus: half(ends, 1) });
    const points = shownArms().flatMap((arm, i) => {
      const point = view.points.find((p) => p.arm === arm.name);
      return point ? [{ x: [point.x[0]], y: [point.y[0]], mode: "markers+text", name: arm.name,
        text: [plain(arm.name)], textfont: { color: shade(arm.color) },
        textposition: i % 2 ? "top right" : "bottom right",
        marker: { color: shade(arm.color), symbol: arm.symbol, size: 10 },
        error_y: bars([point.y], shade(arm.color, 0.6)),
        error_x: bars([point.x], shade(arm.color, 0.6)),
        hovertemplate: `<b>${plain(arm.name)}</b><br>${plain(view.x)}: %{x:.4g}<br>`
          + `${plain(view.y)}: %{y:.2f}<br>${point.seeds} seeds<extra></extra>` }] : [];
    });
    const shown = view.points.filter((p) => !hiddenArms.has(p.arm));
    const [xs, ys] = ["x", "y"].map((axis) => shown.map((p) => p[axis][0]));
    const room = (v) => 0.35 * (Math.max(...v) - Math.min(...v) || Math.abs(v[0]) || 1);
    const range = (v) => [Math.min(...v) - room(v), Math.max(...v) + room(v)];
    return [[{ x: front.map((p) => p.x[0]), y: front.map((p) => p.y[0]), mode: "lines",
      hoverinfo: "skip", line: { width: 1.5, dash: "dot", shape: view.less ? "hv" : "vh",
        color: "#8a93a0" } }, ...points], { height: 400,
      xaxis: { title: { text: view.x }, range: range(xs) },
      yaxis: { title: { text: view.y }, range: range(ys) } }];
  });
  box.after(words);
}

// Settings of a search by several metrics: those on their arm's front filled and joined, and the
// means of what was confirmed as rings.
function searched(box, controls) {
  const { metrics, settings } = data.searched;
  const pairs = metrics.flatMap((_, x) => metrics.map((_, y) => [x, y])).filter(([x, y]) => x < y);
  const names = pairs.map(([x, y], i) => [i, `${metrics[y].label} by ${metrics[x].label}`]);
  const chosen = menu("show", names, () => show());
  controls.append(chosen.label);
  box.style.gridTemplateColumns = "minmax(0, 720px)";
  const show = figure(box, () => {
    const [x, y] = pairs[chosen.value || 0];
    const at = (s, k) => s.values[k];
    const text = (s, values, more) => `<b>${plain(s.arm)}</b><br>${plain(s.text) || "–"}`
      + metrics.map((m, k) => `<br>${plain(m.label)}: ${values[k]?.toPrecision(4) ?? "–"}`).join("")
      + `<br>${more}`;
    const traces = shownArms().flatMap((arm) => {
      const own = settings.filter((s) => s.arm === arm.name);
      const front = own.filter((s) => s.front).sort((a, b) => at(a, x) - at(b, x));
      const rings = own.filter((s) => s.confirmed.length && s.confirmed[x][0] !== null
        && s.confirmed[y][0] !== null);
      const bars = (k) => ({ type: "data", symmetric: false, thickness: 1, width: 3,
        color: shade(arm.color, 0.6),
        array: rings.map((s) => (s.confirmed[k][2] ?? s.confirmed[k][0]) - s.confirmed[k][0]),
        arrayminus: rings.map((s) => s.confirmed[k][0] - (s.confirmed[k][1] ?? s.confirmed[k][0])) });
      const line = metrics.length > 2 ? [] : [{ x: front.map((s) => at(s, x)), mode: "lines",
        y: front.map((s) => at(s, y)), hoverinfo: "skip", showlegend: false,
        line: { width: 1.5, dash: "dot", shape: metrics[x].less ? "hv" : "vh",
          color: shade(arm.color, 0.7) } }];
      return [...line,
        { x: own.map((s) => at(s, x)), y: own.map((s) => at(s, y)), mode: "markers",
          name: arm.name, legendgroup: arm.name, marker: { color: shade(arm.color), size: 9,
            symbol: own.map((s) => arm.symbol + (s.front || arm.symbol.endsWith("-open")
              ? "" : "-open")), opacity: own.map((s) => s.front ? 1 : 0.55) },
          text: own.map((s) => text(s, s.values, `${s.trials} search trial(s)`
            + `${s.front ? ", on the front" : ""}`)),
          hovertemplate: "%{text}<extra></extra>" },
        { x: rings.map((s) => s.confirmed[x][0]), y: rings.map((s) => s.confirmed[y][0]),
          mode: "markers", showlegend: false, error_x: bars(x), error_y: bars(y),
          marker: { color: shade(arm.color), size: 17, symbol: "circle-open", line: { width: 3 } },
          text: rings.map((s) => text(s, s.confirmed.map((c) => c[0]),
            `confirmed, mean of ${s.seeds} seed(s)`)),
          hovertemplate: "%{text}<extra></extra>" }];
    });
    // intervals of two seeds are very long: the points set the range
    const range = (k) => {
      const values = settings.filter((s) => !hiddenArms.has(s.arm)).flatMap((s) =>
        [at(s, k), ...(s.confirmed.length ? [s.confirmed[k][0]] : [])]).filter((v) => v !== null);
      const [low, high] = [Math.min(...values), Math.max(...values)];
      const room = 0.15 * (high - low || Math.abs(low) || 1);
      return [low - room, high + room];
    };
    const title = (m) => ({ text: `${m.label}${m.less ? ", less is better" : ""}` });
    return [traces, { height: 420, showlegend: true, legend: { orientation: "h", y: -0.2 },
      xaxis: { title: title(metrics[x]), range: range(x) },
      yaxis: { title: title(metrics[y]), range: range(y) } }];
  });
}

// Returns an axis of the parallel coordinates: each trial's place in [0, 1], and [place, text] of
// its ticks.
function coordinate(label, values, names, scale = (v) => v) {
  const known = names ?? [...new Set(values)].sort((a, b) => a - b);
  const place = names ? (v) => names.indexOf(v) : scale;
  const [low, high] = [place(known[0]), place(known.at(-1))];
  const at = (v) => high > low ? (place(v) - low) / (high - low) : 0.5;
  const shown = names || known.length <= 8 ? known : [known[0], known.at(-1)];
  const text = (v) => typeof v === "number" ? String(Number(v.toPrecision(4))) : plain(v);
  return { label, places: values.map(at), ticks: shown.map((v) => [at(v), text(v)]) };
}

// Returns a setting as the choices of its axis name it.
function choice(value, known) {
  if (value === undefined) return "–";
  return known.find((name) => name === String(value) || Number(name) === value
    || Number(name) === Number(Number(value).toPrecision(4))) ?? "–";
}

// Parallel coordinates: arm, varied settings, seed, epochs and a score. Trials that the filter of
// the table of trials leaves out are pale.
function parallel(box, controls) {
  box.style.gridTemplateColumns = "minmax(0, 1fr)";
  const stages = [...new Set(data.trials.map((t) => t.stage))];
  const stage = menu("stage", [...stages.map((s) => [s, s]), ["", "all"]], () => show());
  const chosen = metricMenu(() => show());
  controls.append(stage.label, chosen.label);
  const show = figure(box, (width) => {
    const metric = metricOf(chosen.value);
    const trials = data.trials.filter((t) => (!stage.value || t.stage === stage.value)
      && !hiddenArms.has(t.arm) && t.best[metric.key] !== null);
    const settings = data.varied.map(({ name, kind, values }) => {
      const own = trials.map((t) => t.settings[name]);
      return kind === "choice" ? coordinate(name, own.map((v) => choice(v, values)), values)
        : coordinate(name, own, null, kind === "log" ? Math.log10 : undefined);
    });
    const axes = [coordinate("arm", trials.map((t) => t.arm), shownArms().map((arm) => arm.name)),
      ...settings, coordinate("seed", trials.map((t) => t.seed)),
      coordinate("epochs", trials.map((t) => t.epochs.at(-1) ?? 0)),
      coordinate(metric.name, trials.map((t) => t.best[metric.key]))];
    const trace = (color, width, member) => {
      const lines = { x: [], y: [], text: [], customdata: [] };
      trials.forEach((t, i) => {
        if (!member(t)) return;
        const score = `${plain(metric.name)}: ${digits(t.best[metric.key], metric)}`;
        axes.forEach((axis, k) => {
          lines.x.push(k);
          lines.y.push(axis.places[i]);
          lines.text.push(`${trialText(t)}<br>${score}`);
          lines.customdata.push(t.link);
        });
        for (const list of Object.values(lines)) list.push(null);
      });
      return { ...lines, mode: "lines+markers", hovertemplate: "%{text}<extra></extra>",
        line: { width, color }, marker: { size: 2 * width + 2 } };
    };
    const pale = trace("rgba(128,136,148,.25)", 1, (t) => leftOut.has(t.trial));
    const traces = shownArms().map((arm) => trace(shade(arm.color, 0.85), 1.6,
      (t) => t.arm === arm.name && !leftOut.has(t.trial)));
    const labels = axes.flatMap(({ label, ticks }, k) => [
      { x: k, y: 1.1, text: `<b>${plain(label)}</b>`, showarrow: false },
      ...ticks.map(([y, text]) => ({ x: k, y, text, showarrow: false, xanchor: "right",
        xshift: -5, font: { size: 11 } }))]);
    return [[pale, ...traces], { height: 380, width: Math.max(width, 95 * axes.length),
      margin: { l: 16, r: 16, t: 30, b: 16 }, annotations: labels,
      xaxis: { visible: false, range: [-0.75, axes.length - 0.6] },
      yaxis: { visible: false, range: [-0.06, 1.16] },
      shapes: axes.map((_, k) => ({ type: "line", x0: k, x1: k, y0: 0, y1: 1, layer: "below",
        line: { width: 1, color: "rgba(128,136,148,.8)" } })) }];
  });
  drawParallel = show;
}

// Unpacks plotly into a script of its own; the page's policy admits it by its hash.
async function unpack() {
  const packed = Uint8Array.from(atob(byId("plotly").textContent), (c) => c.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  document.head.append(make("script", { textContent: await new Response(stream).text() }));
  if (!window.Plotly) throw new Error("plotly did not start");
}

// A browser that cannot do this keeps the still figures.
unpack().then(() => {
  const parts = { fronts, searched, map, robust, curves, diagnostics, parallel };
  for (const [name, fill] of Object.entries(parts)) section(name, fill);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  const print = (on) => () => {
    document.documentElement.classList.toggle("printing", on);
    redraw();
  };
  addEventListener("beforeprint", print(true));
  addEventListener("afterprint", print(false));
  document.documentElement.dataset.drawn = "yes";
}).catch((error) => console.error(error));
})();
