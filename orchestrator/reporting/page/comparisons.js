// Figures that compare settings and arms: the map of tau and rho, scores under corruption, the
// Pareto fronts of cost and score and of a search by several metrics.

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
