"use strict";
const { columns, rows, places, datasets } = JSON.parse(document.getElementById("data").textContent);
const LATENCY = "latency_ms", TOP1 = "top1_percent";
const PLOTS = [["macs", "macs"], ["params", "params"], ["latency", LATENCY], ["size", "size_bytes"]];
const CONFIG = { displayModeBar: false, responsive: true };  // dragging zooms, a double click goes back
const byId = id => document.getElementById(id);
const state = { column: TOP1, descending: true, bounds: {} };

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

// A cell is [number, kind, where it comes from]; latencies are those of the chosen place.
function cell(row, key) {
  return key === LATENCY ? row.latencies[byId("place").value] : row.cells[key];
}

function shownNumber(column, figure) {
  return figure[0] / column.scale;
}

function written(column, figure) {
  const number = shownNumber(column, figure);
  const digits = column.digits ?? Math.max(0, 2 - Math.floor(Math.log10(Math.max(number, 1e-9))));
  return (figure[1] === "predicted" ? "≈ " : "") + number.toFixed(Math.min(digits, 4));
}

// -- which rows, in which order ------------------------------------------------------------------------------------

function fits(row) {
  const dataset = byId("dataset").value, family = byId("family").value;
  const text = byId("text").value.trim().toLowerCase();
  const classes = row.num_classes === null || datasets[dataset].includes(row.num_classes);
  if (row.dataset ? row.dataset !== dataset : !classes) return false;
  if (family && row.family !== family) return false;
  if (!row.label.toLowerCase().includes(text)) return false;
  return columns.every(column => {
    const bound = state.bounds[column.key];
    if (bound === undefined) return true;
    const figure = cell(row, column.key);
    if (!figure) return false;
    const number = shownNumber(column, figure);
    return column.least ? number >= bound : number <= bound;
  });
}

function sortValue(row, key) {
  return key === "label" || key === "family" ? row[key] : key === "resolution" ? row.resolution : cell(row, key)?.[0];
}

function compare(one, other) {
  const a = sortValue(one, state.column), b = sortValue(other, state.column);
  if (a == null || b == null) return (a == null) - (b == null);
  const order = typeof a === "string" ? a.localeCompare(b) : a - b;
  return state.descending ? -order : order;
}

// The rows that no other row beats: at least as accurate for less.
function front(visible, key) {
  const known = visible.filter(row => cell(row, key) && cell(row, TOP1));
  known.sort((a, b) => cell(a, key)[0] - cell(b, key)[0] || cell(b, TOP1)[0] - cell(a, TOP1)[0]);
  let best = -Infinity;
  return known.filter(row => cell(row, TOP1)[0] > best && ((best = cell(row, TOP1)[0]), true));
}

// -- table ---------------------------------------------------------------------------------------------------------

function heading(column) {
  const button = element("button", { type: "button", textContent: column.label, title: column.says });
  button.onclick = () => {
    state.descending = state.column === column.key ? !state.descending : Boolean(column.least);
    state.column = column.key;
    draw();
  };
  const th = element("th", { className: column.text ? "text" : "", scope: "col" }, button);
  th.dataset.key = column.key;
  return th;
}

function bound(column) {
  const th = element("th", { className: column.text ? "text" : "" });
  if (column.text) return th;
  const word = column.least ? "min" : "max";
  const input = element("input", { type: "number", step: "any", placeholder: word, title: `${word}imum of ${column.says}` });
  input.setAttribute("aria-label", input.title);
  input.dataset.key = column.key;
  input.oninput = () => {
    if (input.value === "" || Number.isNaN(input.valueAsNumber)) delete state.bounds[column.key];
    else state.bounds[column.key] = input.valueAsNumber;
    draw();
  };
  th.append(input);
  return th;
}

function tableCell(row, column) {
  const td = element("td", { className: column.text ? "text" : "", tabIndex: -1 });
  td.dataset.key = column.key;
  if (column.text || column.key === "resolution") {
    td.textContent = row[column.key] ?? "";
    td.title = column.key === "label" ? row.create : "";
    return td;
  }
  const figure = cell(row, column.key);
  if (!figure) return td;
  td.textContent = written(column, figure);
  td.title = figure[2];
  td.classList.toggle("predicted", figure[1] === "predicted");
  return td;
}

function drawTable(visible) {
  const ahead = new Set(front(visible, LATENCY));
  byId("table").tBodies[0].replaceChildren(...visible.map(row =>
    element("tr", { className: ahead.has(row) ? "front" : "" }, ...columns.map(column => tableCell(row, column)))));
  for (const th of document.querySelectorAll("thead th[data-key]"))
    th.setAttribute("aria-sort", th.dataset.key !== state.column ? "none" : state.descending ? "descending" : "ascending");
  const first = document.querySelector("tbody td");
  if (first) first.tabIndex = 0;
  byId("shown").textContent = `${visible.length} of ${rows.length} rows`;
}

function walk(event) {
  const steps = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
  const step = steps[event.key], from = event.target.closest("td");
  if (!step || !from) return;
  const next = from.parentNode.parentNode.rows[from.parentNode.rowIndex - 2 + step[0]]?.cells[from.cellIndex + step[1]];
  if (!next) return;
  event.preventDefault();
  from.tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
}

function tell(event) {
  const td = event.target.closest?.("td");
  if (!td?.title) return;
  const row = td.parentNode.cells[0].textContent, column = columns[td.cellIndex];
  byId("source").textContent = column.key === "label" ? td.title : `${row}, ${column.label}: ${td.textContent}, ${td.title}`;
}

// -- plots ---------------------------------------------------------------------------------------------------------

function points(visible, column) {
  const known = visible.filter(row => cell(row, column.key) && cell(row, TOP1));
  const predicted = known.map(row => cell(row, column.key)[1] === "predicted");
  return {
    x: known.map(row => shownNumber(column, cell(row, column.key))), y: known.map(row => cell(row, TOP1)[0]),
    text: known.map(row => row.label), mode: "markers", hovertemplate: "%{text}<br>%{x:.4~g} " + column.unit + ", %{y:.1f} %<extra></extra>",
    marker: { size: 7, color: "#4b8fd6", opacity: .75, symbol: predicted.map(p => p ? "circle-open" : "circle") },
  };
}

function steps(visible, column) {
  const ahead = front(visible, column.key);
  return {
    x: ahead.map(row => shownNumber(column, cell(row, column.key))), y: ahead.map(row => cell(row, TOP1)[0]),
    mode: "lines", line: { color: "#1f2328", width: 1.4, shape: "hv" }, hoverinfo: "skip",
  };
}

function drawPlots(visible) {
  for (const [name, key] of PLOTS) {
    const column = columns.find(column => column.key === key);
    const place = key === LATENCY ? places[byId("place").value] : null;
    const axis = { gridcolor: "#eef1f4", zeroline: false, linecolor: "#d8dee4" };
    const layout = {
      margin: { t: 34, r: 10, b: 42, l: 46 }, showlegend: false, hovermode: "closest", font: { family: "system-ui, sans-serif", size: 12 },
      title: { text: `Accuracy against ${column.label.split(",")[0]}${place ? `<br><sup>${escaped(place.label)}</sup>` : ""}`, font: { size: 13 }, x: 0, xanchor: "left" },
      xaxis: { ...axis, type: "log", title: { text: column.unit, standoff: 6 }, dtick: "D2", exponentformat: "none" },
      yaxis: { ...axis, title: { text: "top-1, %", standoff: 4 } }, paper_bgcolor: "#fff", plot_bgcolor: "#fff",
    };
    Plotly.react(byId(`plot-${name}`), [points(visible, column), steps(visible, column)], layout, CONFIG);
  }
}

// Plotly reads a few tags in texts.
function escaped(text) {
  return text.replaceAll("&", "&amp;").replaceAll("<", "&lt;");
}

// -- the page ------------------------------------------------------------------------------------------------------

function draw() {
  const visible = rows.filter(fits).sort(compare);
  drawTable(visible);
  drawPlots(visible);
}

function fill(select, entries) {
  select.replaceChildren(...entries.map(([value, textContent]) => element("option", { value, textContent })));
  select.onchange = draw;
}

function fillPlaces(select) {
  const groups = { measured: "measured", predicted: "published, else predicted" };
  for (const [kind, label] of Object.entries(groups)) {
    const own = Object.entries(places).filter(([, place]) => place.kind === kind);
    if (own.length) select.append(element("optgroup", { label }, ...own.map(([value, place]) => element("option", { value, textContent: place.label }))));
  }
  select.onchange = draw;
}

const families = [...new Set(rows.map(row => row.family))].filter(Boolean).sort();
fill(byId("family"), [["", "all"], ...families.map(name => [name, name])]);
fill(byId("dataset"), Object.keys(datasets).map(name => [name, name]));
fillPlaces(byId("place"));
const head = byId("table").tHead;
head.append(element("tr", {}, ...columns.map(heading)), element("tr", {}, ...columns.map(bound)));
byId("text").oninput = draw;
byId("choices").onsubmit = event => event.preventDefault();
byId("table").tBodies[0].onkeydown = walk;
byId("table").tBodies[0].addEventListener("focusin", tell);
byId("table").tBodies[0].addEventListener("mouseover", tell);
draw();
