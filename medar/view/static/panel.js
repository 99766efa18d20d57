"use strict";

/* A volume with its label map: a NiiVue instance, a title above it, a readout below. */

const COLOURS = [
  [230, 97, 92], [94, 173, 235], [122, 201, 112], [240, 190, 80], [176, 132, 232], [84, 205, 196],
  [240, 140, 190], [190, 150, 105], [160, 205, 60], [120, 135, 240], [245, 140, 65], [170, 180, 190],
];

/* NiiVue's drag modes. */
const DRAG = { none: 0, move: 3, crosshair: 8 };

/* A label value has the same colour in all panels. */
function colourOf(value) {
  const index = (value - 1) % COLOURS.length;
  return COLOURS[index < 0 ? index + COLOURS.length : index];
}

function element(tag, kind, text = "") {
  const made = document.createElement(tag);
  made.className = kind;
  made.textContent = text;
  return made;
}

function svg(tag, attributes) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

/* The bytes of a file, embedded in the page or served. */
async function bytesOf(name) {
  const embedded = document.getElementById(name);
  if (embedded) {
    const text = atob(embedded.textContent);
    const bytes = new Uint8Array(text.length);
    for (let k = 0; k < text.length; k++) bytes[k] = text.charCodeAt(k);
    return bytes.buffer;
  }
  const response = await fetch(name);
  if (!response.ok) {
    throw new Error(`${response.status} ${response.statusText}; is medar view still running?`);
  }
  return response.arrayBuffer();
}

class Panel {
  constructor(facts, page) {
    this.facts = facts;
    this.page = page;
    this.hidden = new Set();
    this.window = [...facts.window];
    this.outside = false;
    this.points = [];
    this.box = element("section", "panel");
    this.box.append(this.#title(), this.#picture(), this.#readout());
  }

  #title() {
    const bar = element("div", "title");
    const { title, synthetic, modality, shape, spacing } = this.facts;
    const heading = element("h2", "", title);
    heading.title = title;
    bar.append(heading);
    if (synthetic) bar.append(element("span", "mark", "synthetic"));
    const size = `${shape.join(" × ")} voxels of ${spacing.join(" × ")} mm`;
    const facts = element("span", "facts", modality ? `${modality}, ${size}` : size);
    facts.title = facts.textContent;
    bar.append(facts);
    return bar;
  }

  #picture() {
    const box = element("div", "picture");
    this.canvas = document.createElement("canvas");
    this.canvas.setAttribute("aria-label", this.facts.title);
    this.message = element("p", "message", "loading ...");
    const inner = element("div", "inner");
    inner.append(this.canvas);
    this.marks = svg("svg", { class: "marks", preserveAspectRatio: "none" });
    box.append(inner, this.marks, this.message);
    let pressed = [0, 0];
    box.addEventListener("pointerdown", (event) => {
      this.page.activate(this);
      pressed = [event.clientX, event.clientY];
    }, true);
    // NiiVue has moved the crosshair when the button is released.
    box.addEventListener("pointerup", (event) => {
      const moved = Math.hypot(event.clientX - pressed[0], event.clientY - pressed[1]);
      if (!this.page.measuring || event.button !== 0 || event.shiftKey || moved > 4) return;
      const before = this.points.length === 1 ? this.points : [];
      if (this.#planeAt(event)) this.measure([...before, this.mm]);
    });
    // In NiiVue, the wheel zooms if the drag mode is panning.
    box.addEventListener("wheel", (event) => {
      this.niivue.opts.dragMode = event.ctrlKey ? DRAG.move : DRAG.none;
    }, true);
    // By default, NiiVue would set the window to its own percentiles.
    box.addEventListener("dblclick", (event) => {
      event.stopPropagation();
      this.page.setWindow(this, this.facts.window);
    }, true);
    box.addEventListener("pointermove", (event) => {
      if (event.buttons & 2) this.#drag(event.movementX, event.movementY);
    });
    return box;
  }

  #readout() {
    const bar = element("div", "readout");
    for (const name of ["mm", "voxel", "value", "label", "distance"]) {
      this[`${name}Text`] = element("span", name);
      bar.append(this[`${name}Text`]);
    }
    const range = element("span", "range", "window");
    this.bounds = ["black", "white"].map((name, k) => {
      const field = element("input", name);
      field.type = "number";
      field.step = "any";
      field.title = `${name} (${this.facts.title})`;
      field.addEventListener("change", () => {
        const range = this.window.with(k, field.valueAsNumber);
        this.page.setWindow(this, range[0] < range[1] ? range : this.window);
      });
      range.append(field);
      return field;
    });
    bar.append(range);
    return bar;
  }

  async load() {
    this.niivue = new niivue.Niivue({
      logLevel: "error",
      loadingText: "",
      backColor: [0, 0, 0, 1],
      fontColor: [0.92, 0.8, 0.45, 1],
      crosshairColor: [0.42, 0.71, 0.88, 0.8],
      crosshairWidthUnit: "mm",
      isRadiologicalConvention: true,
      showAllOrientationMarkers: true,
      multiplanarLayout: 2,
      multiplanarShowRender: 1,
      multiplanarPadPixels: 14,
      tileMargin: 14,
      show3Dcrosshair: true,
      dragAndDropEnabled: false,
      isNearestInterpolation: false,
      dragMode: DRAG.none,
    });
    this.niivue.setMouseEventConfig({
      leftButton: { primary: DRAG.crosshair, withShift: DRAG.move },
      rightButton: DRAG.none,
      centerButton: DRAG.move,
    });
    await this.niivue.attachToCanvas(this.canvas);
    const draw = this.niivue.drawScene.bind(this.niivue);
    this.niivue.drawScene = () => {
      draw();
      this.#mark();
    };
    this.niivue.onLocationChange = () => this.page.moved(this);
    await this.#add(this.facts.image, {
      colormap: "gray", cal_min: this.window[0], cal_max: this.window[1],
    });
    if (this.facts.label) await this.#add(this.facts.label, { opacity: this.page.opacity }, true);
    this.niivue.setScale(0.85);
    this.message.textContent = "";
    this.showWindow();
  }

  async #add(source, options, label = false) {
    const buffer = await bytesOf(source);
    const name = `${source}.nii.gz`;
    const volume = await niivue.NVImage.loadFromUrl({ url: buffer, name, ...options });
    if (label) volume.setColormapLabel(this.#colours());
    this.niivue.addVolume(volume);
  }

  /* Value k of the label map is the k-th label of the legend. */
  #colours() {
    const rows = this.facts.labels.map(({ value }) => colourOf(value));
    const table = { R: [0], G: [0], B: [0], A: [0], I: [0], labels: [""] };
    rows.forEach(([red, green, blue], k) => {
      table.R.push(red);
      table.G.push(green);
      table.B.push(blue);
      table.A.push(this.hidden.has(this.facts.labels[k].value) ? 0 : 255);
      table.I.push(k + 1);
      table.labels.push(String(this.facts.labels[k].value));
    });
    return table;
  }

  showLabels() {
    if (!this.facts.label) return;
    this.niivue.volumes[1].setColormapLabel(this.#colours());
    this.niivue.updateGLVolume();
  }

  setOpacity(opacity) {
    if (this.facts.label) this.niivue.setOpacity(1, opacity);
  }

  setView(kind) {
    this.niivue.setSliceType(kind);
    this.fit();
  }

  /* Set the width of the crosshair, which NiiVue takes in mm, to that of a line on the screen. */
  fit() {
    const [x, y, z] = this.facts.shape.map((count, k) => count * this.facts.spacing[k]);
    const [wide, high] = this.niivue.opts.sliceType === 3 ? [x + y, y + z] : [x, Math.max(y, z)];
    const pixel = Math.max(wide / this.canvas.clientWidth, high / this.canvas.clientHeight);
    this.niivue.opts.crosshairGap = 9 * pixel;
    this.niivue.setCrosshairWidth(1.5 * pixel);
  }

  setWindow(range) {
    this.window = [...range];
    [this.niivue.volumes[0].cal_min, this.niivue.volumes[0].cal_max] = range;
    this.niivue.updateGLVolume();
    this.showWindow();
  }

  /* Dragging right widens the window, up raises its level; 200 pixels correspond to its width. */
  #drag(right, down) {
    const [low, high] = this.window;
    const width = (high - low) * Math.exp(right / 200);
    const level = (low + high) / 2 - (down / 200) * (high - low);
    this.page.setWindow(this, [level - width / 2, level + width / 2]);
  }

  showWindow() {
    this.bounds.forEach((field, k) => { field.value = Number(this.window[k].toPrecision(4)); });
  }

  /* Set the measured points, of none to two, in scanner coordinates. */
  measure(points) {
    this.points = points;
    this.distanceText.textContent = points.length === 1 ? "click a second point" : "";
    if (points.length === 2) this.distanceText.textContent = `${this.distance.toFixed(1)} mm`;
    this.#mark();
  }

  /* The distance of both points in mm, or null. Scanner coordinates take spacing and obliquity
     into account. */
  get distance() {
    if (this.points.length < 2) return null;
    const [one, other] = this.points;
    return Math.hypot(...one.map((length, k) => length - other[k]));
  }

  /* Whether there is a slice, rather than the rendering or nothing, at an event. */
  #planeAt(event) {
    const box = this.canvas.getBoundingClientRect();
    const scale = this.canvas.width / box.width;
    const [x, y] = [(event.clientX - box.x) * scale, (event.clientY - box.y) * scale];
    return this.niivue.canvasPos2frac([x, y])[0] >= 0;
  }

  /* Draw the measured points in each plane whose slice they lie in. */
  #mark() {
    this.marks.replaceChildren();
    if (this.points.length === 0) return;
    const { width, height } = this.canvas;
    this.marks.setAttribute("viewBox", `0 0 ${width} ${height}`);
    const size = 4 * width / this.canvas.clientWidth;
    const here = this.fraction;
    const places = this.points.map((mm) => Array.from(this.niivue.mm2frac([...mm, 1], 0, true)));
    for (const [plane, axis] of [[0, 2], [1, 1], [2, 0]]) {
      const half = 0.51 / this.facts.shape[axis];
      const inside = places.filter((one) => Math.abs(one[axis] - here[axis]) <= half);
      const drawn = inside
        .map((one) => this.niivue.frac2canvasPosWithTile(one.with(axis, here[axis]), plane)?.pos)
        .filter(Boolean);
      this.marks.append(...drawn.map(([cx, cy]) => svg("circle", { cx, cy, r: size })));
      if (drawn.length < 2) continue;
      const [[x1, y1], [x2, y2]] = drawn;
      this.marks.append(svg("line", { x1, y1, x2, y2 }));
    }
  }

  get fraction() {
    return Array.from(this.niivue.scene.crosshairPos);
  }

  get mm() {
    return Array.from(this.niivue.frac2mm(this.niivue.scene.crosshairPos, 0, true)).slice(0, 3);
  }

  get voxel() {
    const voxel = this.niivue.frac2vox(this.niivue.scene.crosshairPos);
    return this.facts.shape.map((n, k) => Math.min(Math.max(Math.round(voxel[k]), 0), n - 1));
  }

  /* Move the crosshair to scanner coordinates, or to the nearest voxel if they are outside. */
  goTo(mm) {
    this.goToFraction(Array.from(this.niivue.mm2frac([...mm, 1], 0, true)));
  }

  goToFraction(position) {
    this.outside = position.some((one) => one < -1e-4 || one > 1 + 1e-4);
    const inside = position.map((one, k) => {
      const half = 0.5 / this.facts.shape[k];
      return Math.min(Math.max(one, half), 1 - half);
    });
    this.niivue.scene.crosshairPos = this.outside ? inside : position;
    this.niivue.drawScene();
    this.showPosition();
  }

  step(right, front, up) {
    this.niivue.moveCrosshairInVox(right, front, up);
  }

  get value() {
    const value = this.niivue.volumes[0].getValue(...this.voxel);
    return Number.isFinite(value) ? Number(value.toPrecision(6)) : value;
  }

  /* The label at the crosshair, or null. */
  get label() {
    if (!this.facts.label) return null;
    const index = Math.round(this.niivue.volumes[1].getValue(...this.voxel));
    return index > 0 ? this.facts.labels[index - 1] : null;
  }

  showPosition() {
    const letter = (length, ends) => `${ends[length < 0 ? 1 : 0]} ${Math.abs(length).toFixed(1)}`;
    const [x, y, z] = this.mm;
    const label = this.label;
    const position = `${letter(x, "RL")}   ${letter(y, "AP")}   ${letter(z, "SI")} mm`;
    const value = this.facts.modality === "CT" ? `${Number(this.value.toFixed(1))} HU` : `${this.value}`;
    const texts = {
      mm: position,
      voxel: `voxel ${this.voxel.join(", ")}`,
      value,
      label: label ? label.name || `label ${label.value}` : "",
    };
    for (const [name, text] of Object.entries(texts)) {
      this[`${name}Text`].textContent = this.outside ? "" : text;
    }
    this.message.textContent = this.outside ? "the crosshair is outside this volume" : "";
  }
}
