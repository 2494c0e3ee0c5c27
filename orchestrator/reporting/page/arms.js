// The report's arms switch on and off, and its pictures page through epochs. A page without data
// ends here.

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
  const every = make("button", { type: "button", className: "every", textContent: "all arms" });
  every.onclick = () => {
    hiddenArms.clear();
    buttons.forEach((button) => { button.ariaPressed = "true"; });
    redraw();
  };
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
