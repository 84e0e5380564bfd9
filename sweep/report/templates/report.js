"use strict";

// Tables: a click on a heading, or Enter or Space on it, sorts by its column; a second one turns the order round.
// Cells without a value stay at the end. `data-value` is a number; other cells compare as text, digits in it as numbers.
for (const table of document.querySelectorAll("table.sortable")) {
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    heading.append(button);
    heading.setAttribute("aria-sort", "none");
    button.addEventListener("click", () => {
      const order = heading.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
      headings.forEach((other) => other.setAttribute("aria-sort", other === heading ? order : "none"));
      sortRows(table.tBodies[0], column, heading.classList.contains("number"), order === "ascending" ? 1 : -1);
    });
  });
}

function sortRows(body, column, numeric, direction) {
  const keyOf = (row) => {
    const cell = row.cells[column];
    return numeric ? Number((cell.dataset.value ?? "NaN").replace("inf", "Infinity")) : cell.textContent;
  };
  const isMissing = (key) => (numeric ? Number.isNaN(key) : key === "");
  const compare = (a, b) => (numeric ? (a < b ? -1 : a > b ? 1 : 0) : a.localeCompare(b, "en", { numeric: true }));
  const rows = [...body.rows].map((row) => [keyOf(row), row]);
  rows.sort(([a], [b]) => isMissing(a) - isMissing(b) || (isMissing(a) ? 0 : direction * compare(a, b)));
  body.append(...rows.map(([, row]) => row));
}

// Figures: Plotly is packed into the page with gzip, and follows the colours of the page.
const dark = window.matchMedia("(prefers-color-scheme: dark)");

function colours(layout) {
  const style = getComputedStyle(document.documentElement);
  const [text, line, ground] = ["--text", "--line", "--ground"].map((name) => style.getPropertyValue(name).trim());
  const clear = "rgba(0,0,0,0)";
  const changes = { "font.color": text, "legend.bgcolor": clear, "modebar.bgcolor": clear, "modebar.color": line };
  for (const axis of Object.keys(layout).filter((key) => /^[xy]axis\d*$/.test(key))) {
    for (const part of ["gridcolor", "zerolinecolor", "linecolor"]) changes[`${axis}.${part}`] = line;
  }
  (layout.annotations ?? []).forEach((_, index) => { changes[`annotations[${index}].bgcolor`] = ground; });
  return changes;
}

async function unpacked(base64) {
  const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).text();
}

async function drawFigures(packed) {
  const script = document.createElement("script");
  script.textContent = await unpacked(packed.textContent);
  document.head.append(script);
  for (const element of document.querySelectorAll(".figure")) {
    const { data, layout } = JSON.parse(element.querySelector("script").textContent);
    const isNarrow = element.clientWidth < 600;
    if (isNarrow && data.length > 3) layout.showlegend = false;
    layout.legend = { ...layout.legend, ...(data.length > 3 ? {} : { orientation: "h", y: 1, yanchor: "bottom", x: 0 }) };
    const modeBar = { displayModeBar: isNarrow ? false : "hover", modeBarButtonsToRemove: ["select2d", "lasso2d"] };
    await Plotly.newPlot(element, data, layout, { ...modeBar, displaylogo: false, responsive: true });
    await Plotly.relayout(element, colours(element.layout));
  }
  dark.addEventListener("change", () => {
    for (const element of document.querySelectorAll(".figure")) Plotly.relayout(element, colours(element.layout));
  });
}

const packed = document.getElementById("plotly");
if (packed) {
  drawFigures(packed).catch((error) => {
    for (const element of document.querySelectorAll(".figure")) {
      element.textContent = `This browser cannot draw the figures (${error}). A browser of 2023 or later can.`;
    }
  });
}
