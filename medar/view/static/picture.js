"use strict";

/* The picture that is saved: what panels show, with titles, readouts and a legend. */

const INK = "#d5dae0", QUIET = "#8b95a1", GROUND = "#0f1215", SYNTHETIC = "#e3a857";
const MEASURED = "#f2e05c";

/* A PNG of panels as they are arranged on the page. */
async function pictureOf(panels) {
  const scale = window.devicePixelRatio;
  const boxes = panels.map((one) => one.box.getBoundingClientRect());
  const left = Math.min(...boxes.map((box) => box.left));
  const top = Math.min(...boxes.map((box) => box.top));
  const width = Math.max(...boxes.map((box) => box.right)) - left;
  const height = Math.max(...boxes.map((box) => box.bottom)) - top;
  const legend = legendOf(panels);
  const sheet = document.createElement("canvas");
  sheet.width = Math.round(width * scale);
  const context = sheet.getContext("2d");
  context.font = "12px system-ui, sans-serif";
  const rows = rowsOf(context, legend, width - 24);
  sheet.height = Math.round((height + 20 * rows.length + (rows.length ? 8 : 0)) * scale);
  context.scale(scale, scale);
  context.fillStyle = GROUND;
  context.fillRect(0, 0, width, sheet.height / scale);
  panels.forEach((panel, k) => drawPanel(context, panel, boxes[k].left - left, boxes[k].top - top));
  rows.forEach((row, k) => drawLegend(context, row, height + 18 + 20 * k));
  return new Promise((done) => { sheet.toBlob(done, "image/png"); });
}

function drawPanel(context, panel, left, top) {
  const place = (node) => {
    const box = node.getBoundingClientRect();
    const whole = panel.box.getBoundingClientRect();
    return [left + box.left - whole.left, top + box.top - whole.top, box.width, box.height];
  };
  // WebGL keeps its picture only until the end of the task that drew it.
  panel.niivue.drawScene();
  context.drawImage(panel.canvas, ...place(panel.canvas));
  const [x, y, wide, high] = place(panel.canvas);
  context.strokeStyle = MEASURED;
  context.lineWidth = 1.6;
  for (const mark of panel.marks.children) {
    const at = (name) => Number(mark.getAttribute(name));
    const across = (value) => x + (value * wide) / panel.canvas.width;
    const down = (value) => y + (value * high) / panel.canvas.height;
    context.beginPath();
    if (mark.tagName === "line") {
      context.moveTo(across(at("x1")), down(at("y1")));
      context.lineTo(across(at("x2")), down(at("y2")));
    } else {
      context.arc(across(at("cx")), down(at("cy")), 4, 0, 2 * Math.PI);
    }
    context.stroke();
  }
  const width = panel.box.getBoundingClientRect().width;
  const mark = panel.facts.synthetic ? "synthetic" : "";
  write(context, panel.facts.title, left + 12, top + 20, INK, width - 110, "600 13px");
  if (mark) write(context, mark, left + width - 84, top + 20, SYNTHETIC, 74, "600 12px");
  const texts = ["mm", "voxel", "value", "label", "distance"];
  const shown = texts.map((name) => panel[`${name}Text`].textContent).filter(Boolean).join("   ");
  const [, bottom, , tall] = place(panel.mmText.parentNode);
  write(context, shown, left + 12, bottom + tall / 2 + 4, panel.distance === null ? INK : MEASURED, width - 24, "12px");
}

/* A text that is cut to a width. */
function write(context, text, x, y, colour, width, font) {
  context.font = `${font} system-ui, sans-serif`;
  context.fillStyle = colour;
  let shown = text;
  while (shown && context.measureText(shown).width > width) shown = `${shown.slice(0, -2)}\u2026`;
  context.fillText(shown, x, y);
}

/* The visible labels of panels: name and colour. */
function legendOf(panels) {
  const labels = new Map();
  for (const panel of panels) {
    if (panel.page.opacity === 0) continue;
    for (const { value, name } of panel.facts.labels) {
      if (!panel.hidden.has(value)) labels.set(value, name || `label ${value}`);
    }
  }
  return [...labels].sort(([a], [b]) => a - b).map(([value, name]) => [name, colourOf(value)]);
}

function rowsOf(context, legend, width) {
  const rows = [];
  let used = Infinity;
  for (const [name, colour] of legend) {
    const length = context.measureText(name).width + 36;
    if (used + length > width) {
      rows.push([]);
      used = 0;
    }
    rows.at(-1).push([name, colour, used, width]);
    used += length;
  }
  return rows;
}

function drawLegend(context, row, y) {
  for (const [name, [red, green, blue], x, width] of row) {
    context.fillStyle = `rgb(${red} ${green} ${blue})`;
    context.fillRect(12 + x, y - 10, 11, 11);
    write(context, name, 28 + x, y, QUIET, width - x, "12px");
  }
}
