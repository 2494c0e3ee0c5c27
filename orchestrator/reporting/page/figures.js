// What all figures share: plotly's layout in the colours of the page, texts, places. Then the
// curves of scores and of what the masks did.

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
