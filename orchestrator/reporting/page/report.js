// The parallel coordinates of all trials, and the start: plotly, which lies compressed in the tag
// #plotly, is unpacked, and every figure is drawn.

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
  const opened = new Set();
  const print = (on) => () => {
    document.documentElement.classList.toggle("printing", on);
    for (const part of on ? document.querySelectorAll("details:not([open])") : opened) {
      part.open = on;
      opened.add(part);
    }
    if (!on) opened.clear();
    redraw();
  };
  addEventListener("beforeprint", print(true));
  addEventListener("afterprint", print(false));
  document.documentElement.dataset.drawn = "yes";
}).catch((error) => console.error(error));
