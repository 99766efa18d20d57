"use strict";

/* Sort tables by any column. Without this script, they stay in their order. */
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  const texts = (column) => [...table.tBodies[0].rows].map((row) => row.cells[column].textContent);
  heads.forEach((head, column) => {
    if (!head.textContent || new Set(texts(column)).size < 2) return;
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const sign = head.ariaSort === "ascending" ? -1 : 1;
      for (const other of heads) other.removeAttribute("aria-sort");
      head.ariaSort = sign > 0 ? "ascending" : "descending";
      sort(table.tBodies[0], column, sign);
    });
  });
}

/* Numbers by value, other cells by their text, with numbers in names in their order. */
function sort(body, column, sign) {
  const words = new Intl.Collator("en", { numeric: true });
  const value = (row) => {
    const cell = row.cells[column];
    return "value" in cell.dataset ? Number(cell.dataset.value) : cell.textContent.trim();
  };
  const rows = [...body.rows].map((row) => [value(row), row]);
  rows.sort(([one], [other]) => {
    const numbers = [one, other].map((x) => typeof x === "number");
    if (numbers[0] && numbers[1]) return sign * (one - other);
    if (numbers[0] !== numbers[1]) return numbers[0] ? -1 : 1;
    return sign * words.compare(one, other);
  });
  body.append(...rows.map(([, row]) => row));
}

/* Copy a command, and show it: not every browser lets a file use the clipboard. */
const note = document.createElement("p");
note.className = "copied";
note.role = "status";
note.hidden = true;
document.body.append(note);
let fading;
for (const button of document.querySelectorAll("button[data-command]")) {
  button.addEventListener("click", async () => {
    const { command } = button.dataset;
    let copied = true;
    try {
      await navigator.clipboard.writeText(command);
    } catch {
      copied = false;
    }
    const code = document.createElement("code");
    code.textContent = command;
    note.replaceChildren(copied ? "Copied, run it in a terminal: " : "Run in a terminal: ", code);
    note.hidden = false;
    if (!copied) getSelection().selectAllChildren(code);
    clearTimeout(fading);
    fading = setTimeout(() => { note.hidden = true; }, 15000);
  });
}

/* Volumes to scroll through: a JPEG of axial slices each, cut along any plane. */
class Stack {
  constructor(canvas) {
    this.canvas = canvas;
    Object.assign(this, JSON.parse(canvas.dataset.stack));
  }

  async load() {
    const picture = new Image();
    picture.src = this.canvas.dataset.src;
    await picture.decode();
    const sheet = document.createElement("canvas");
    [sheet.width, sheet.height] = [picture.naturalWidth, picture.naturalHeight];
    const context = sheet.getContext("2d", { willReadFrequently: true });
    context.drawImage(picture, 0, 0);
    const [width, height, depth] = this.shape;
    this.voxels = new Uint8Array(width * height * depth);
    for (let k = 0; k < depth; k++) {
      const left = (k % this.columns) * this.tile[0];
      const top = Math.floor(k / this.columns) * this.tile[1];
      const { data } = context.getImageData(left, top, width, height);
      for (let n = 0; n < width * height; n++) this.voxels[k * width * height + n] = data[4 * n];
    }
  }

  /* Number of slices of a plane. */
  count(plane) {
    return this.shape[{ sagittal: 0, coronal: 1, axial: 2 }[plane]];
  }

  index(plane, position) {
    return Math.min(Math.floor(position * this.count(plane)), this.count(plane) - 1);
  }

  /* Draw the slice at a position from 0 (right, posterior, inferior) to 1. */
  draw(plane, position) {
    if (!this.voxels) return;
    const [x, y, z] = this.shape;
    const [dx, dy, dz] = this.spacing;
    const k = this.index(plane, position);
    /* Columns, rows, their sizes in mm, and the voxel of a pixel. Voxels run from the patient's
       right to left, from anterior to posterior, from inferior to superior. */
    const [wide, high, across, down, voxel] = {
      axial: [x, y, dx, dy, (column, row) => (k * y + row) * x + column],
      coronal: [x, z, dx, dz, (column, row) => ((z - 1 - row) * y + (y - 1 - k)) * x + column],
      sagittal: [y, z, dy, dz, (column, row) => ((z - 1 - row) * y + (y - 1 - column)) * x + k],
    }[plane];
    [this.canvas.width, this.canvas.height] = [wide, high];
    this.canvas.style.aspectRatio = `${wide * across} / ${high * down}`;
    const context = this.canvas.getContext("2d");
    const picture = context.createImageData(wide, high);
    for (let row = 0, n = 0; row < high; row++) {
      for (let column = 0; column < wide; column++, n += 4) {
        picture.data.fill(this.voxels[voxel(column, row)], n, n + 3);
        picture.data[n + 3] = 255;
      }
    }
    context.putImageData(picture, 0, 0);
  }
}

class Stacks {
  constructor(figure) {
    figure.hidden = false;
    this.grid = figure.querySelector(".grid");
    this.slider = figure.querySelector("input");
    this.output = figure.querySelector("output");
    this.buttons = [...figure.querySelectorAll("[data-plane]")];
    this.stacks = [...figure.querySelectorAll("canvas")].map((canvas) => new Stack(canvas));
    for (const button of this.buttons) {
      button.addEventListener("click", () => this.cut(button.dataset.plane));
    }
    this.slider.addEventListener("input", () => this.show());
    this.grid.addEventListener("wheel", (event) => {
      if (document.activeElement !== this.grid) return; // else the page scrolls
      event.preventDefault();
      this.step(Math.sign(event.deltaY));
    }, { passive: false });
    this.grid.addEventListener("keydown", (event) => {
      const steps = { ArrowDown: -1, ArrowLeft: -1, ArrowUp: 1, ArrowRight: 1, PageDown: -5, PageUp: 5 };
      if (!(event.key in steps) || event.ctrlKey || event.altKey || event.metaKey) return;
      event.preventDefault();
      this.step(steps[event.key]);
    });
    this.grid.addEventListener("dblclick", (event) => {
      event.target.closest(".stack")?.classList.toggle("large");
    });
    this.cut("axial");
    new IntersectionObserver((entries, observer) => {
      if (!entries.some((one) => one.isIntersecting)) return;
      observer.disconnect();
      this.load();
    }, { rootMargin: "600px" }).observe(figure);
  }

  async load() {
    for (const stack of this.stacks) {
      await stack.load();
      stack.draw(this.plane, this.position);
    }
  }

  cut(plane) {
    this.plane = plane;
    for (const button of this.buttons) button.ariaPressed = String(button.dataset.plane === plane);
    this.show();
  }

  get position() {
    return this.slider.value / 1000;
  }

  /* Move by slices of the first volume. */
  step(by) {
    const count = this.stacks[0].count(this.plane);
    const index = Math.min(Math.max(this.stacks[0].index(this.plane, this.position) + by, 0), count - 1);
    this.slider.value = Math.round(1000 * (index + 0.5) / count);
    this.show();
  }

  show() {
    const [first] = this.stacks;
    this.output.textContent =
      `${first.index(this.plane, this.position) + 1} of ${first.count(this.plane)}`;
    for (const stack of this.stacks) stack.draw(this.plane, this.position);
  }
}

for (const figure of document.querySelectorAll(".stacks")) new Stacks(figure);
