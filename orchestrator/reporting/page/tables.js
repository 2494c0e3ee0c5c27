// Tables that sort by a click on a heading and are filtered by words. It needs no data, so a page
// of tables alone can use it, too; the report's other parts share its helpers and its state.

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
