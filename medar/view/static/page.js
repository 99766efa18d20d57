"use strict";

/* The page: panels side by side, their shared controls, and the keyboard. */

const byId = (id) => document.getElementById(id);

const VIEWS = [3, 0, 1, 2, 4];
const STEPS = {
  ArrowLeft: [1, 0, 0], ArrowRight: [-1, 0, 0], ArrowUp: [0, 1, 0], ArrowDown: [0, -1, 0],
  PageUp: [0, 0, 1], PageDown: [0, 0, -1],
};

/* The help from its start: the browser scrolls to the button that it focuses, which is at the end. */
function showHelp() {
  byId("help").showModal();
  byId("help").scrollTop = 0;
}

class Page {
  constructor(facts) {
    this.facts = facts;
    this.opacity = 0.45;
    this.view = 3;
    this.measuring = false;
    this.link = facts.link;
    this.quiet = true;
    this.panels = facts.panels.map((one) => new Panel(one, this));
    this.active = this.panels[0];
    const first = JSON.stringify(this.panels[0]?.window);
    this.same = this.panels.every((one) => JSON.stringify(one.window) === first);
    this.#lay();
    this.#control();
  }

  #lay() {
    const count = this.panels.length;
    const main = byId("panels");
    main.dataset.columns = count === 0 ? 1 : count === 4 ? 2 : count > 4 ? Math.ceil(count / 2) : count;
    main.append(...this.panels.map((one) => one.box));
    document.body.classList.toggle("alone", count <= 1);
    const titles = this.panels.map((one) => one.facts.title).join(", ");
    document.title = `${titles || this.facts.cases[this.facts.index]} - medar view`;
    if (this.facts.error) main.append(element("p", "error", this.facts.error));
    byId("about").textContent = `medar ${this.facts.medar}, NiiVue ${this.facts.niivue}`;
    byId("opacity-of-labels").hidden = !this.panels.some((one) => one.facts.label);
    this.#legend();
  }

  #control() {
    for (const button of byId("views").children) {
      button.addEventListener("click", () => this.setView(Number(button.dataset.view)));
    }
    byId("link").value = this.link;
    byId("link").addEventListener("change", (event) => this.setLink(event.target.value));
    byId("same").checked = this.same;
    byId("same").addEventListener("change", (event) => {
      this.same = event.target.checked;
      if (this.same) this.setWindow(this.active, this.active.window);
    });
    this.#step();
    byId("measure").addEventListener("click", () => this.measure(!this.measuring));
    byId("save").addEventListener("click", () => this.save());
    const preset = byId("preset");
    const ct = this.panels.some((one) => one.facts.modality === "CT");
    preset.append(new Option("default", "own"));
    for (const [name, text] of ct ? Object.entries(this.facts.presets) : []) {
      preset.append(new Option(`${name} ${text}`, text));
    }
    preset.append(new Option("manual", "hand"));
    preset.addEventListener("change", () => this.#preset(preset.value));
    byId("opacity").addEventListener("input", (event) => this.setOpacity(event.target.value / 100));
    byId("ask").addEventListener("click", showHelp);
    window.addEventListener("resize", () => {
      for (const panel of this.panels) if (document.body.dataset.state === "ready") panel.fit();
    });
    for (const kind of ["keydown", "keyup"]) {
      window.addEventListener(kind, (event) => this.#key(event, kind === "keydown"), true);
    }
  }

  /* The cases of a folder have a page each. */
  #step() {
    const { cases, index } = this.facts;
    byId("cases").hidden = cases.length === 0;
    byId("case").append(...cases.map((title, k) => new Option(title, k, false, k === index)));
    byId("case").title = cases[index] ?? "";
    byId("count").textContent = `${index + 1} of ${cases.length}`;
    byId("case").addEventListener("change", (event) => this.goToCase(Number(event.target.value)));
    byId("previous").disabled = index === 0;
    byId("next").disabled = index === cases.length - 1;
    byId("previous").addEventListener("click", () => this.goToCase(index - 1));
    byId("next").addEventListener("click", () => this.goToCase(index + 1));
  }

  goToCase(index) {
    if (!(index in this.facts.cases) || index === this.facts.index) return;
    const { view, opacity, measuring } = this;
    const kept = { view, opacity, measuring, preset: byId("preset").value };
    sessionStorage.setItem("medar", JSON.stringify(kept));
    location.assign(`case-${index + 1}`);
  }

  /* Go on with the view of the case before. */
  #recall() {
    if (this.facts.cases.length === 0) return;
    const kept = JSON.parse(sessionStorage.getItem("medar") ?? "null");
    if (!kept || this.panels.length === 0) return;
    this.setView(kept.view);
    this.setOpacity(kept.opacity);
    this.measure(kept.measuring);
    const known = [...byId("preset").options].some((one) => one.value === kept.preset);
    if (known && kept.preset !== "hand") {
      byId("preset").value = kept.preset;
      this.#preset(kept.preset);
    }
  }

  async load() {
    if (this.panels.length === 0) return;
    for (const panel of this.panels) {
      try {
        await panel.load();
      } catch (error) {
        panel.message.textContent = `cannot be shown: ${error.message}`;
        throw error;
      }
    }
    this.setView(3);
    this.quiet = false;
    this.activate(this.panels[0]);
    this.start();
    this.#recall();
  }

  /* Place each crosshair in the middle of its volume or labels; linked ones follow the first. */
  start() {
    for (const panel of this.panels) panel.goTo(panel.facts.start);
    this.moved(this.panels[0]);
  }

  activate(panel) {
    this.active = panel;
    for (const one of this.panels) one.box.classList.toggle("active", one === panel);
  }

  /* Move the crosshairs of the other panels after that of one panel. */
  moved(panel) {
    if (this.quiet) return;
    this.quiet = true;
    panel.outside = false;
    panel.showPosition();
    for (const other of this.panels) {
      if (other === panel || this.link === "off") continue;
      if (this.link === "mm") other.goTo(panel.mm);
      else other.goToFraction(panel.fraction);
    }
    this.quiet = false;
  }

  setLink(kind) {
    this.link = kind;
    byId("link").value = kind;
    this.moved(this.active);
  }

  measure(on) {
    this.measuring = on;
    byId("measure").ariaPressed = String(on);
    document.body.classList.toggle("measuring", on);
    if (!on) for (const panel of this.panels) panel.measure([]);
  }

  async save() {
    if (this.panels.length === 0) return;
    const picture = await pictureOf(this.panels);
    const name = this.panels[0].facts.title.replace(/(\.nii)?(\.gz)?$/, "");
    const link = element("a", "");
    link.href = URL.createObjectURL(picture);
    link.download = `${name.replace(/[^\p{L}\p{N}._-]+/gu, "_").replace(/^\.+/, "")}.png`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }

  setView(kind) {
    this.view = kind;
    for (const button of byId("views").children) {
      button.setAttribute("aria-pressed", String(Number(button.dataset.view) === kind));
    }
    for (const panel of this.panels) panel.setView(kind);
  }

  /* Set the window of a panel, and of all panels of its modality if "same in all" is checked. */
  setWindow(panel, range, preset = "hand") {
    byId("preset").value = preset;
    for (const other of this.panels) {
      const follows = this.same && other.facts.modality === panel.facts.modality;
      if (other === panel || follows) other.setWindow(range);
    }
  }

  #preset(name) {
    if (name === "hand") return;
    for (const panel of this.panels) {
      if (name === "own") panel.setWindow(panel.facts.window);
      else if (panel.facts.modality === "CT") {
        const [level, width] = name.split("/").map(Number);
        panel.setWindow([level - width / 2, level + width / 2]);
      }
    }
  }

  setOpacity(opacity) {
    this.opacity = Math.min(Math.max(opacity, 0), 1);
    byId("opacity").value = Math.round(100 * this.opacity);
    for (const panel of this.panels) panel.setOpacity(this.opacity);
  }

  #legend() {
    const labels = new Map();
    for (const panel of this.panels) {
      for (const { value, name } of panel.facts.labels) labels.set(value, name);
    }
    for (const value of [...labels.keys()].sort((a, b) => a - b)) {
      byId("legend").append(this.#entry(value, labels.get(value)));
    }
  }

  #entry(value, name) {
    const entry = element("button", "");
    const [red, green, blue] = colourOf(value);
    const swatch = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    const square = document.createElementNS("http://www.w3.org/2000/svg", "rect");
    const looks = { width: "100%", height: "100%", rx: 2, fill: `rgb(${red} ${green} ${blue})` };
    for (const [key, look] of Object.entries(looks)) square.setAttribute(key, look);
    swatch.append(square);
    const volumes = this.panels.filter((one) => one.facts.label).map(
      (one) => one.facts.labels.find((label) => label.value === value)?.ml ?? 0,
    );
    entry.append(swatch, name ? `${value} ${name}` : `label ${value}`);
    entry.append(element("small", "", `${volumes.join(" | ")} ml`));
    entry.type = "button";
    entry.setAttribute("aria-pressed", "true");
    entry.title = "Volume in each panel with labels; click to hide or show";
    entry.addEventListener("click", () => {
      const hide = entry.getAttribute("aria-pressed") === "true";
      entry.setAttribute("aria-pressed", String(!hide));
      for (const panel of this.panels) {
        if (hide) panel.hidden.add(value);
        else panel.hidden.delete(value);
        panel.showLabels();
      }
    });
    return entry;
  }

  reset() {
    this.setLink(this.facts.link);
    this.setView(3);
    this.setOpacity(0.45);
    this.#preset("own");
    byId("preset").value = "own";
    for (const panel of this.panels) panel.niivue.setPan2Dxyzmm([0, 0, 0, 1]);
    this.start();
  }

  #key(event, down) {
    const typing = event.target.matches?.("input[type=number], select");
    if (typing || event.ctrlKey || event.altKey || event.metaKey || byId("help").open) return;
    if (event.target.matches?.("input[type=range]") && event.key.startsWith("Arrow")) return;
    // NiiVue has its own bindings for these keys.
    event.stopPropagation();
    if (!down) return;
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    if (!this.#act(key)) return;
    event.preventDefault();
  }

  #act(key) {
    const links = ["mm", "relative", "off"];
    if (key === "n") this.goToCase(this.facts.index + 1);
    else if (key === "p") this.goToCase(this.facts.index - 1);
    else if (this.panels.length === 0 && key !== "?") return false;
    else if (key === "m") this.measure(!this.measuring);
    else if (key === "Escape") for (const panel of this.panels) panel.measure([]);
    else if (key === "s") this.save();
    else if (key in STEPS) this.active.step(...STEPS[key]);
    else if ("12345".includes(key)) this.setView(VIEWS[Number(key) - 1]);
    else if (key === "l") this.setLink(links[(links.indexOf(this.link) + 1) % 3]);
    else if (key === "o") this.setOpacity(this.opacity > 0 ? 0 : 0.45);
    else if (key === "[") this.setOpacity(this.opacity - 0.1);
    else if (key === "]") this.setOpacity(this.opacity + 0.1);
    else if (key === "r") this.reset();
    else if (key === "?") showHelp();
    else return false;
    return true;
  }
}

/* The state of the page, for scripts and tests. */
const page = new Page(JSON.parse(byId("facts").textContent));
window.medar = {
  get crosshair() { return page.active.mm; },
  get view() { return page.view; },
  get link() { return page.link; },
  get panels() {
    return page.panels.map((one) => ({
      title: one.facts.title, synthetic: one.facts.synthetic, mm: one.mm, voxel: one.voxel,
      value: one.value, label: one.label?.value ?? 0, window: one.window, outside: one.outside,
      distance: one.distance,
    }));
  },
};
page.load().then(
  () => { document.body.dataset.state = "ready"; },
  (error) => { document.body.dataset.state = "failed"; throw error; },
);
