"use strict";
// Draws the facts in the page. Names and labels come from other people's data: they go into textContent and
// attributes only, and are never parsed as HTML.
(() => {
  const facts = JSON.parse(document.getElementById("facts").textContent);
  const root = document.documentElement;
  const $ = (selector, within = document) => within.querySelector(selector);
  const $$ = (selector, within = document) => [...within.querySelectorAll(selector)];

  function el(tag, attributes = {}, ...children) {
    const found = document.createElement(tag);
    for (const [k, v] of Object.entries(attributes)) {
      if (k.startsWith("on")) found.addEventListener(k.slice(2), v);
      else if (v === true) found.setAttribute(k, "");
      else if (v !== false && v != null) found.setAttribute(k, v);
    }
    found.append(...children.filter((c) => c != null));
    return found;
  }
  function svg(tag, attributes = {}, text) {
    const found = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [k, v] of Object.entries(attributes)) if (v != null) found.setAttribute(k, v);
    if (text != null) found.textContent = text;
    return found;
  }
  const dot = (run) => el("i", { class: `dot run-${run % 8}`, "aria-hidden": "true" });
  const rem = () => parseFloat(getComputedStyle(root).fontSize);
  const clamp = (x, low, high) => Math.min(high, Math.max(low, x));

  // -- numbers in words ----------------------------------------------------------------------------------------------

  function words(v) {
    if (v == null || !Number.isFinite(v)) return "–";
    const size = Math.abs(v);
    if (size !== 0 && (size < 1e-3 || size >= 1e6)) return v.toExponential(1).replace("e+", "e").replace("-", "−");
    const digits = size >= 100 ? 0 : size >= 10 ? 1 : size >= 1 ? 2 : 3;
    return v.toFixed(digits).replace("-", "−");
  }
  const plain = (v) => String(+v.toPrecision(4)).replace("-", "−");
  function tick(v, step) {
    const size = Math.abs(v);
    if (size >= 1e6 || (size !== 0 && size < 1e-3 && !(step >= 1e-4))) return v.toExponential(v / 10 ** Math.floor(Math.log10(size)) % 1 > 1e-6 ? 1 : 0).replace("e+", "e").replace("-", "−");
    if (size >= 1e4) return `${+(v / 1e3).toPrecision(3)}k`;
    const digits = step ? Math.max(0, -Math.floor(Math.log10(step) + 1e-9)) : 0;
    return (step ? v.toFixed(digits) : String(+v.toPrecision(3))).replace("-", "−");
  }
  function ticks(low, high, count) {
    const raw = 0.75 * (high - low) / Math.max(1, count), power = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= raw * 0.999);
    const found = [];
    for (let v = Math.ceil(low / step - 1e-9) * step; v <= high + step * 1e-9; v += step) found.push(Math.abs(v) < step * 1e-9 ? 0 : v);
    return { values: found, step };
  }
  function logTicks(low, high, count) {
    const found = [], a = Math.floor(Math.log10(low)), b = Math.ceil(Math.log10(high));
    const marks = b - a <= 2 ? [1, 2, 5] : [1], every = Math.max(1, Math.ceil((b - a) / Math.max(2, count)));
    for (let e = a; e <= b; e++) if (e % every === 0) for (const m of marks) {
      const v = m * 10 ** e;
      if (v >= low * 0.999 && v <= high * 1.001) found.push(v);
    }
    return { values: found, step: 0 };
  }

  // -- line charts: several series, one moment -------------------------------------------------------------------------

  const hidden = new Set(); // runs that are switched off
  const charts = []; // all charts, to redraw them
  const kinds = { trained: "", untrained: " untrained", pixels: " pixels" };

  /** Charts of one group show the same value of x. */
  class Group {
    constructor() { this.charts = []; this.x = null; }
    point(x) { this.x = x; for (const c of this.charts) c.point(x); }
  }

  function nearest(x, at) {
    let low = 0, high = x.length - 1;
    while (high - low > 1) {
      const mid = (low + high) >> 1;
      if (x[mid] < at) low = mid; else high = mid;
    }
    return Math.abs(x[high] - at) < Math.abs(x[low] - at) ? high : low;
  }

  function smoothed(y) {
    // Means over about a 20th of the curve, half before and half after each point: nothing lags.
    const keep = 1 - 1 / Math.max(1, y.length / 40);
    const pass = (values) => { let sum = 0, weight = 0; return values.map((v) => { sum = keep * sum + v; weight = keep * weight + 1; return [sum, weight]; }); };
    const before = pass(y), after = pass([...y].reverse()).reverse();
    return y.map((v, i) => (before[i][0] + after[i][0] - v) / (before[i][1] + after[i][1] - 1));
  }

  class Lines {
    /** spec: title, lines() -> [{run, name, kind, x, y}], log, logX, xName(), xTick, floor, group, smooth(), height */
    constructor(figure, spec) {
      Object.assign(this, { figure, spec, log: spec.log, raw: spec.lines });
      this.readout = el("div", { class: "readout" });
      this.svg = svg("svg", { tabindex: 0, role: "application" }); // so that screen readers pass the arrow keys on
      figure.append(this.readout, this.svg);
      if (spec.canLog !== false) {
        this.tool = el("button", { type: "button", class: "tool", "aria-pressed": String(this.log), "aria-label": `Logarithmic axis of ${spec.title}`, onclick: () => { this.log = !this.log; this.tool.setAttribute("aria-pressed", String(this.log)); this.draw(); } }, "log");
        figure.append(this.tool);
      }
      const table = el("div");
      figure.append(el("details", { ontoggle: (e) => { if (e.target.open) this.fill(table); } }, el("summary", { "aria-label": `Table of ${spec.title}` }, "table"), table));
      spec.group.charts.push(this);
      this.svg.addEventListener("pointermove", (e) => this.pointed(e));
      this.svg.addEventListener("pointerdown", (e) => this.pointed(e));
      this.svg.addEventListener("pointerleave", (e) => { if (e.pointerType === "mouse") spec.group.point(null); });
      // All charts of a group show the same moment; only the focused one reads it out.
      this.svg.addEventListener("focus", () => this.readout.setAttribute("aria-live", "polite"));
      this.svg.addEventListener("blur", () => { this.readout.removeAttribute("aria-live"); spec.group.point(null); });
      this.svg.addEventListener("keydown", (e) => this.key(e));
      charts.push(this);
      this.watcher = new ResizeObserver(() => this.draw());
      this.watcher.observe(figure);
    }
    pointed(e) {
      if (!this.scale) return;
      const box = this.svg.getBoundingClientRect();
      this.spec.group.point(this.scale.toX(clamp(e.clientX - box.left, this.scale.left, this.scale.right)));
    }
    key(e) {
      const x = [...new Set(this.shown.flatMap((s) => s.x))].sort((a, b) => a - b);
      if (!x.length) return;
      const now = this.spec.group.x, i = now == null ? x.length - 1 : nearest(x, now), far = Math.max(1, Math.round(x.length / 10));
      const to = { ArrowLeft: now == null ? i : i - 1, ArrowRight: now == null ? 0 : i + 1, PageUp: i + far, PageDown: i - far, Home: 0, End: x.length - 1 }[e.key];
      if (e.key === "Escape") this.spec.group.point(null);
      else if (to === undefined) return;
      else this.spec.group.point(x[clamp(to, 0, x.length - 1)]);
      e.preventDefault();
    }
    draw() {
      const { spec } = this, unit = rem(), width = this.figure.clientWidth, height = (spec.height || 9.5) * unit;
      if (!width) return;
      this.lines = spec.lines().filter((s) => s.x.length);
      for (const s of this.lines) s.mean = spec.smooth && spec.smooth() && s.y.length >= 60 ? smoothed(s.y) : null;
      this.shown = this.lines.filter((s) => s.run == null || !hidden.has(s.run));
      const used = this.shown.length ? this.shown : this.lines;
      const positive = (v) => !this.log || v > 0, x = used.flatMap((s) => s.x), y = used.flatMap((s) => s.y).filter(positive);
      this.svg.replaceChildren();
      this.svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
      this.svg.setAttribute("height", height);
      if (!x.length || !y.length) { this.scale = null; return; }
      let [x0, x1, y0, y1] = [Math.min(...x), Math.max(...x), Math.min(...y), Math.max(...y)];
      const floor = spec.floor != null && spec.floor > y0 - (y1 - y0) * 0.35 ? spec.floor : null;
      if (floor != null) y0 = Math.min(y0, floor);
      if (!spec.logX && x0 > 0 && x0 < (x1 - x0) / 15) x0 = 0;
      if (x0 === x1) { x0 -= spec.logX ? 0 : 0.5; x1 += 0.5; }
      if (this.log) { if (y0 === y1) { y0 /= 2; y1 *= 2; } y0 /= 1.06; y1 *= 1.06; }
      else { const pad = (y1 - y0 || Math.abs(y1) || 1) * 0.06; y0 = y0 >= 0 && y0 - pad < 0.15 * y1 ? 0 : y0 - pad; y1 += pad; }
      const count = (height / unit - 2) / 1.75, axis = this.log ? logTicks(y0, y1, count) : ticks(y0, y1, count);
      if (axis.values.length < 2) axis.values = [y0, y1];
      const labels = axis.values.map((v) => tick(v, axis.step));
      const left = Math.max(...labels.map((l) => l.length)) * unit * 0.43 + unit * 0.6, right = width - unit * 0.5, top = unit * 0.6, bottom = height - unit * 1.5;
      const fx = spec.logX ? Math.log : (v) => v, fy = this.log ? Math.log : (v) => v;
      const px = (v) => left + (fx(v) - fx(x0)) / (fx(x1) - fx(x0)) * (right - left), py = (v) => bottom - (fy(v) - fy(y0)) / (fy(y1) - fy(y0)) * (bottom - top);
      const toX = (p) => { const v = fx(x0) + (p - left) / (right - left) * (fx(x1) - fx(x0)); return spec.logX ? Math.exp(v) : v; };
      this.scale = { px, py, toX, left, right, top, bottom };
      const add = (...parts) => this.svg.append(...parts);
      axis.values.forEach((v, i) => add(svg("line", { class: "grid-line", x1: left, x2: right, y1: py(v), y2: py(v) }), svg("text", { x: left - unit * 0.4, y: py(v) + unit * 0.25, "text-anchor": "end" }, labels[i])));
      add(svg("line", { class: "axis-line", x1: left, x2: right, y1: bottom, y2: bottom }));
      const across = spec.xValues ? { values: spec.xValues, step: 0 } : spec.logX ? logTicks(x0, x1, (right - left) / unit / 4) : ticks(x0, x1, (right - left) / unit / 4.2);
      let last = -Infinity;
      for (const v of across.values) {
        const at = px(v), label = tick(v, across.step), half = label.length * unit * 0.22;
        if (at - half < last) continue;
        last = at + half + unit * 0.5;
        add(svg("text", { x: clamp(at, left, right - half), y: height - unit * 0.35, "text-anchor": "middle" }, label));
      }
      if (floor != null) add(svg("line", { class: "floor", x1: left, x2: right, y1: py(floor), y2: py(floor) }));
      const path = (s, ys) => {
        let d = "", down = false;
        s.x.forEach((v, i) => { if (!positive(ys[i])) { down = false; return; } d += `${down ? "L" : "M"}${px(v).toFixed(1)} ${py(ys[i]).toFixed(1)}`; down = true; });
        return d;
      };
      for (const s of this.shown) {
        const color = `run-${(s.color ?? s.run) % 8}${kinds[s.kind] || ""}`, ys = s.mean || s.y;
        if (s.mean) add(svg("path", { class: `line raw ${color}`, d: path(s, s.y) }));
        add(svg("path", { class: `line ${color}${s.own ? " own" : ""}`, d: path(s, ys) }));
        if (s.x.length <= 25) s.x.forEach((v, i) => { if (positive(ys[i])) add(svg("circle", { class: `end ${color}`, cx: px(v), cy: py(ys[i]), r: unit * 0.17 })); });
        else if (positive(ys.at(-1))) add(svg("circle", { class: `end ${color}`, cx: px(s.x.at(-1)), cy: py(ys.at(-1)), r: unit * 0.2 }));
      }
      this.marks = svg("g");
      add(this.marks);
      const ends = this.shown.map((s) => `${s.name} ${words(s.y.at(-1))}`).join(", ");
      this.svg.setAttribute("aria-label", `${spec.title}, last values: ${ends}. Arrow keys read the values.`);
      this.point(spec.group.x);
    }
    point(x) {
      if (!this.scale) { this.readout.replaceChildren(); return; }
      const { px, py, top, bottom, left, right } = this.scale, several = this.lines.length > 1;
      this.marks.replaceChildren();
      const items = [];
      if (x != null) {
        const at = clamp(px(x), left, right), here = `${this.spec.xName()} ${plain(x)}`, early = at < (left + right) / 2;
        this.marks.append(svg("line", { class: "cross", x1: at, x2: at, y1: top, y2: bottom }), svg("text", { class: "at", x: at + (early ? 4 : -4), y: top + rem() * 0.3, "text-anchor": early ? "start" : "end" }, here));
        items.push(el("span", { class: "hidden" }, here));
      }
      for (const s of this.shown) {
        if (x == null && this.shown.length > 6 && !s.own && (s.run == null || s.kind !== "trained")) continue;
        const i = x == null ? s.x.length - 1 : nearest(s.x, x), y = (s.mean || s.y)[i];
        if (x != null && Number.isFinite(py(y))) this.marks.append(svg("circle", { class: `spot run-${(s.color ?? s.run) % 8}`, cx: px(s.x[i]), cy: py(y), r: rem() * 0.25 }));
        items.push(el("span", several ? { title: s.name } : {}, several ? dot(s.kind === "pixels" ? 7 : s.color ?? s.run) : null, this.spec.named ? `${this.spec.named(s)} ${words(y)}` : words(y)));
      }
      this.readout.replaceChildren(...items);
    }
    fill(into) {
      // Fifty rows are enough; the log has them all.
      const x = [...new Set(this.lines.flatMap((s) => s.x))].sort((a, b) => a - b);
      const few = x.length <= 50 ? x : Array.from({ length: 50 }, (_, i) => x[Math.round(i * (x.length - 1) / 49)]);
      const head = el("tr", {}, el("th", { scope: "col" }, this.spec.xName()), ...this.lines.map((s) => el("th", { scope: "col", class: "n" }, s.name)));
      const body = [...new Set(few)].map((v) => el("tr", {}, el("td", {}, plain(v)), ...this.lines.map((s) => el("td", { class: "n" }, v < s.x[0] || v > s.x.at(-1) ? "–" : words(s.y[nearest(s.x, v)])))));
      into.replaceChildren(el("table", {}, el("thead", {}, head), el("tbody", {}, ...body)));
    }
  }

  // -- dots with intervals ------------------------------------------------------------------------------------------

  class Dots {
    /** spec: title, rows: [{label, marks: [{run, kind, value, low, high, name}]}], from, to */
    constructor(figure, spec) {
      Object.assign(this, { figure, spec });
      this.svg = svg("svg", { role: "img" });
      const table = el("div");
      figure.append(this.svg, el("details", { ontoggle: (e) => { if (e.target.open) this.fill(table); } }, el("summary", { "aria-label": `Table of ${spec.title}` }, "table"), table));
      charts.push(this);
      new ResizeObserver(() => this.draw()).observe(figure);
    }
    draw() {
      const { rows } = this.spec, unit = rem(), width = this.figure.clientWidth, step = unit * 1.75;
      if (!width) return;
      const marks = rows.flatMap((r) => r.marks).filter((m) => m.value != null), ends = marks.flatMap((m) => [m.value, m.low ?? m.value, m.high ?? m.value]);
      if (!marks.length) return;
      const span = Math.max(...ends) - Math.min(...ends) || 1;
      let low = this.spec.from ?? Math.min(...ends) - span * 0.08, high = this.spec.to ?? Math.max(...ends) + span * 0.08;
      const left = Math.min(width * 0.42, Math.max(...rows.map((r) => r.label.length)) * unit * 0.44 + unit), right = width - unit * 3.2, bottom = rows.length * step + unit * 0.6, height = bottom + unit * 1.4;
      const px = (v) => left + (v - low) / (high - low) * (right - left), most = Math.floor(left / (unit * 0.43));
      this.svg.replaceChildren();
      this.svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
      this.svg.setAttribute("height", height);
      const axis = ticks(low, high, (right - left) / unit / 4);
      for (const v of axis.values) this.svg.append(svg("line", { class: "grid-line", x1: px(v), x2: px(v), y1: unit * 0.4, y2: bottom }), svg("text", { x: px(v), y: height - unit * 0.3, "text-anchor": "middle" }, tick(v, axis.step)));
      rows.forEach((row, i) => {
        const y = unit * 0.4 + step * (i + 0.5), strong = row.marks.some((m) => m.kind === "trained");
        const short = row.label.length > most ? `${row.label.slice(0, most - 1)}…` : row.label, label = svg("text", { class: strong ? "strong" : "", x: 0, y: y + unit * 0.28 }, short);
        if (short !== row.label) label.append(svg("title", {}, row.label));
        this.svg.append(label);
        if (row.marks.length > 1) this.svg.append(svg("line", { class: "grid-line", x1: px(Math.min(...row.marks.map((m) => m.value ?? low))), x2: px(Math.max(...row.marks.map((m) => m.value ?? low))), y1: y, y2: y }));
        // Ours last: on top.
        for (const m of [...row.marks].reverse()) {
          if (m.value == null) continue;
          const kind = `run-${m.run % 8}${kinds[m.kind] || ""}`;
          if (m.low != null) this.svg.append(svg("line", { class: `interval ${kind}`, x1: px(m.low), x2: px(m.high), y1: y, y2: y }));
          const mark = svg("circle", { class: `value ${kind}`, cx: px(m.value), cy: y, r: unit * (m.kind === "trained" ? 0.34 : 0.27) });
          mark.append(svg("title", {}, `${m.name}: ${words(m.value)}${m.low == null ? "" : ` (${words(m.low)} to ${words(m.high)})`}`));
          this.svg.append(mark);
        }
        const first = row.marks[0];
        if (first && first.value != null) this.svg.append(svg("text", { class: strong ? "strong" : "", x: width, y: y + unit * 0.28, "text-anchor": "end" }, first.text ?? (this.spec.digits == null ? words(first.value) : first.value.toFixed(this.spec.digits))));
      });
      const all = marks.length <= 40 ? marks.map((m) => `${m.name} ${words(m.value)}`).join(", ") : `${marks.length} values, in the table below`;
      this.svg.setAttribute("aria-label", `${this.spec.title}: ${all}`);
    }
    fill(into) {
      const range = (m) => (m.low == null ? "" : `${words(m.low)} to ${words(m.high)}`);
      const body = this.spec.rows.flatMap((r) => r.marks).map((m) => el("tr", {}, el("th", { scope: "row" }, m.name), el("td", { class: "n" }, words(m.value)), el("td", { class: "n" }, range(m))));
      into.replaceChildren(el("table", {}, el("tbody", {}, ...body)));
    }
  }

  // -- the sections -------------------------------------------------------------------------------------------------

  const name = (run) => facts.runs[run].name;
  const alone = () => new Group();
  const training = new Group(), along = $("#curve-x"), smooth = $("#curve-smooth");
  if (facts.runs.some((r) => !r.steps_per_epoch) && along) { along.value = "step"; along.disabled = true; }
  const place = (line) => (along.value === "epoch" ? line.x.map((v) => v / facts.runs[line.run].steps_per_epoch) : line.x);

  const makers = {
    curve(figure) {
      const c = facts.curves[+figure.dataset.index];
      new Lines(figure, {
        title: c.title, log: c.log, canLog: c.lines.every((l) => Math.min(...l.y) > 0), floor: c.floor, group: training, height: 8.5,
        lines: () => c.lines.map((l, i) => ({ run: l.run, name: l.layer ? `${facts.runs.length > 1 ? `${name(l.run)}: ` : ""}${l.layer}` : name(l.run), color: l.layer ? i : undefined, kind: "trained", x: place(l), y: l.y })),
        named: c.lines.some((l) => l.layer) ? (s) => s.name : undefined,
        xName: () => (along.value === "epoch" ? "epoch" : "step"), smooth: () => c.noisy && smooth.checked,
      });
    },
    dots(figure) {
      const found = facts.accuracy[figure.dataset.list][+figure.dataset.index], percent = figure.dataset.list === "protocols";
      new Dots(figure, { title: found.title, digits: percent ? 1 : null, rows: found.rows.map((r) => ({ label: r.label, marks: [{ ...r, name: r.label }] })) });
    },
    details(figure) {
      const found = facts.accuracy.measures[+figure.dataset.index];
      const rows = found.rows.filter((r) => r.curve), label = rows[0].curve.label, x = rows[0].curve.x;
      const wide = x[0] > 0 && x.at(-1) / x[0] > 20;
      new Lines(figure, { title: found.title, log: false, logX: wide, xValues: x.length < 12 ? x : null, group: alone(), xName: () => label, named: (s) => s.name, lines: () => rows.map((r) => ({ run: r.run, name: r.label, kind: r.kind, x: r.curve.x, y: r.curve.y })) });
    },
    classes(figure) {
      const c = facts.accuracy.by_class;
      new Dots(figure, {
        title: c.title, digits: 0, from: 0, to: 100,
        rows: c.classes.map((label, k) => ({ label, marks: c.lines.map((l) => ({ run: l.run, kind: l.kind, name: `${label}, ${l.label}`, value: l.values[k] })) })),
      });
    },
    by_k(figure) {
      const lines = facts.accuracy.by_k;
      new Lines(figure, { title: "Accuracy by the number of neighbors", log: false, canLog: false, logX: true, xValues: lines[0].x, height: 14, group: alone(), xName: () => "neighbors", named: (s) => (s.kind === "trained" ? "" : s.kind), lines: () => lines.map((l) => ({ ...l, name: `${name(l.run)}, ${l.kind}` })) });
    },
    spectrum(figure) {
      new Lines(figure, {
        title: "Strength by dimension", log: true, logX: true, height: 17, group: alone(), xName: () => "dimension", named: (s) => (s.kind === "trained" ? "" : s.kind),
        lines: () => facts.runs.flatMap((r, run) => r.spectra.map((s) => ({ run, name: `${r.name}, ${s.kind}`, kind: s.kind, x: s.x, y: s.y }))),
      });
    },
    invariance(figure) {
      const s = facts.subspaces[+figure.dataset.index], sweep = s.invariance[+figure.dataset.sweep];
      new Lines(figure, {
        title: sweep.name, log: false, canLog: false, group: alone(), xName: () => sweep.strength, height: 12, named: (s) => s.name,
        lines: () => [
          ...sweep.lines.map((y, k) => ({ run: null, color: k, own: s.names[k] === sweep.name, name: s.names[k].replaceAll("_", " "), kind: "trained", x: sorted(sweep.values, sweep.values), y: sorted(y, sweep.values) })),
          { run: null, color: 7, name: "without masks", kind: "pixels", x: sorted(sweep.values, sweep.values), y: sorted(sweep.whole, sweep.values) },
        ],
      });
    },
    masks(figure) {
      const s = facts.subspaces[+figure.dataset.index], canvas = el("canvas", { role: "img", "aria-label": `Masks of ${s.names.join(", ")} over ${s.masks[0].length} dimensions` });
      const readout = el("div", { class: "readout" });
      figure.append(readout, el("div", { class: "masks" }, el("div", { class: "labels" }, ...s.names.map((n) => el("span", {}, n.replaceAll("_", " ")))), canvas));
      canvas.width = s.masks[0].length;
      canvas.height = s.masks.length;
      canvas.addEventListener("pointermove", (e) => {
        const box = canvas.getBoundingClientRect(), k = clamp(Math.floor((e.clientY - box.top) / box.height * canvas.height), 0, canvas.height - 1), d = clamp(Math.floor((e.clientX - box.left) / box.width * canvas.width), 0, canvas.width - 1);
        readout.textContent = `${s.names[k].replaceAll("_", " ")}, dimension ${d + 1}: ${words(s.masks[k][d] / 255 * s.top)}`;
      });
      const draw = () => {
        const context = canvas.getContext("2d"), image = context.createImageData(canvas.width, canvas.height), a = rgb("--sheet"), b = rgb("--accent");
        s.masks.flat().forEach((v, i) => { for (let c = 0; c < 3; c++) image.data[4 * i + c] = a[c] + (b[c] - a[c]) * v / 255; image.data[4 * i + 3] = 255; });
        context.putImageData(image, 0, 0);
      };
      charts.push({ draw });
      draw();
    },
  };
  const sorted = (values, by) => values.map((v, i) => [by[i], v]).sort((a, b) => a[0] - b[0]).map((p) => p[1]);

  // -- colors and themes -----------------------------------------------------------------------------------------------

  const value = (variable) => getComputedStyle(root).getPropertyValue(variable).trim();
  function rgb(variable) {
    const hex = value(variable).replace("#", "");
    return [0, 2, 4].map((i) => parseInt(hex.slice(i, i + 2), 16));
  }
  const redraw = () => { for (const c of charts) c.draw(); };

  const theme = $("#theme"), dark = matchMedia("(prefers-color-scheme: dark)");
  let chosen = null;
  const named = () => theme.replaceChildren(el("span", { "aria-hidden": "true" }, "◐"), el("span", { class: "word" }, ` Theme: ${chosen || "system"}`));
  try { chosen = localStorage.getItem("manyviews-theme"); } catch { /* pages from disk may not remember anything */ }
  function dress(next) {
    chosen = next;
    if (next) root.dataset.theme = next; else delete root.dataset.theme;
    named();
    try { if (next) localStorage.setItem("manyviews-theme", next); else localStorage.removeItem("manyviews-theme"); } catch { /* as above */ }
    redraw();
  }
  theme.hidden = false;
  theme.addEventListener("click", () => {
    const order = [null, ...(dark.matches ? ["light", "dark"] : ["dark", "light"])];
    dress(order[(order.indexOf(chosen) + 1) % 3]);
  });
  dark.addEventListener("change", redraw);
  // Paper is white.
  addEventListener("beforeprint", () => { root.dataset.theme = "light"; redraw(); });
  addEventListener("afterprint", () => dress(chosen));

  // -- the map ------------------------------------------------------------------------------------------------------

  const unpack = (text, kind) => {
    const raw = atob(text), bytes = new Uint8Array(raw.length);
    for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
    return new kind(bytes.buffer);
  };
  const load = (src) => new Promise((done, failed) => document.head.append(el("script", { src, onload: done, onerror: () => failed(new Error(`${src} is missing`)) })));

  class Atlas {
    constructor(info) {
      Object.assign(this, { info, n: info.count, scale: 1, x: 0, y: 0, picked: -1, over: -1, query: "", off: new Set(), maps: [], sheets: [], run: 0, frame: 0, pointers: new Map() });
      this.canvas = $("#map-canvas");
      this.context = this.canvas.getContext("2d");
      this.calm = matchMedia("(prefers-reduced-motion: reduce)");
      this.byCanvas();
      this.byKey();
      $("#map-filter").addEventListener("input", (e) => { this.query = e.target.value.trim().toLowerCase(); this.choose(); });
      $("#map-thumbs").addEventListener("change", () => this.draw());
      $("#map-in").addEventListener("click", () => this.zoom(1.6));
      $("#map-out").addEventListener("click", () => this.zoom(1 / 1.6));
      $("#map-fit").addEventListener("click", () => this.fit());
      $("#map-list").addEventListener("toggle", () => this.list());
      $("#map-color").addEventListener("change", () => this.paint());
      for (const radio of $$("#map-runs input")) radio.addEventListener("change", () => this.show(+radio.value));
    }

    async open() {
      await Promise.all([load(this.info.images), load(this.info.runs[0].src)]);
      const { names, labels } = window.manyviews.images;
      this.names = names.split("\n");
      this.labels = labels ? unpack(labels, Uint16Array) : null;
      const kinds = [["cluster", "by cluster"]];
      if (this.labels) kinds.unshift(["label", "by class"], ["predicted", "by neighbors: right or wrong"]);
      $("#map-color").append(...kinds.map(([v, text]) => el("option", { value: v }, text)));
      this.shown = new Uint8Array(this.n).fill(1);
      await this.show(0);
      $("#map-wait").hidden = true;
      charts.push({ draw: () => { this.recolor(); this.draw(); } });
      this.watcher = new ResizeObserver(() => this.resize());
      this.watcher.observe(this.canvas);
      this.resize();
      root.dataset.map = "ready";
    }

    /** Show the map of one run: every image moves from its old position to its new one. */
    async show(run) {
      this.run = run;
      if (!this.maps[run]) {
        const file = this.info.runs[run].src, key = `run-${run}`;
        if (!window.manyviews[key]) await load(file);
        const m = window.manyviews[key], positions = unpack(m.positions, Float32Array);
        this.maps[run] = { positions: this.normal(positions), clusters: unpack(m.clusters, Uint8Array), near: unpack(m.near, Uint32Array), kept: m.kept, predicted: m.predicted ? unpack(m.predicted, Uint16Array) : null, share: m.share ? unpack(m.share, Uint8Array) : null };
      }
      if (this.run !== run) return;
      const from = this.positions, to = this.maps[run].positions;
      this.map = this.maps[run];
      this.paint();
      if (!from || this.calm.matches) { this.positions = to; this.index(); this.draw(); }
      else {
        const start = performance.now(), between = new Float32Array(from.length);
        this.positions = between;
        const move = (now) => {
          if (this.run !== run) return;
          const t = clamp((now - start) / 600, 0, 1), s = t * t * (3 - 2 * t);
          for (let i = 0; i < between.length; i++) between[i] = from[i] + (to[i] - from[i]) * s;
          if (t < 1) { this.paintNow(); requestAnimationFrame(move); } else { this.positions = to; this.index(); this.draw(); }
        };
        requestAnimationFrame(move);
      }
      if (this.picked >= 0) this.card();
    }

    /** Scale positions so that the longer side of a map is [-1, 1]; `sides` are half the sides of all maps. */
    normal(p) {
      let [x0, x1, y0, y1] = [Infinity, -Infinity, Infinity, -Infinity];
      for (let i = 0; i < p.length; i += 2) { x0 = Math.min(x0, p[i]); x1 = Math.max(x1, p[i]); y0 = Math.min(y0, p[i + 1]); y1 = Math.max(y1, p[i + 1]); }
      const half = Math.max(x1 - x0, y1 - y0) / 2 || 1, cx = (x0 + x1) / 2, cy = (y0 + y1) / 2;
      for (let i = 0; i < p.length; i += 2) { p[i] = (p[i] - cx) / half; p[i + 1] = (p[i + 1] - cy) / half; }
      this.sides = [Math.max((x1 - x0) / 2 / half, this.sides?.[0] || 0.05), Math.max((y1 - y0) / 2 / half, this.sides?.[1] || 0.05)];
      return p;
    }

    // - colors and filters

    get kind() { return $("#map-color").value; }
    group(i) {
      if (this.kind === "label") return this.labels[i];
      if (this.kind === "predicted") return this.map.predicted[i] === this.labels[i] ? 0 : 1;
      return this.map.clusters[i];
    }
    get groups() {
      if (this.kind === "label") return this.info.classes;
      if (this.kind === "predicted") return ["right", "wrong"];
      return Array.from({ length: this.info.clusters }, (_, k) => `cluster ${k + 1}`);
    }
    recolor() {
      // Eight colors that everybody can tell apart, then lighter and darker ones; names are always a click away.
      const base = Array.from({ length: 8 }, (_, k) => rgb(`--c${k}`)), ink = rgb("--ink"), paper = rgb("--sheet");
      const darker = ink[0] < 128 ? ink : paper, lighter = darker === ink ? paper : ink;
      const mix = (a, b, t) => `rgb(${a.map((v, c) => Math.round(v + (b[c] - v) * t)).join(" ")})`;
      this.colors = this.groups.map((_, k) => mix(base[k % 8], [paper, darker, lighter][Math.floor(k / 8) % 3], [0, 0.45, 0.5][Math.floor(k / 8) % 3]));
      if (this.kind === "predicted") this.colors = [mix(base[2], paper, 0.35), mix(base[1], paper, 0)];
      this.faint = mix(ink, paper, 0.86);
      this.ink = value("--ink");
      this.paper = value("--sheet");
      this.accent = value("--accent");
      $$("#map-legend .dot").forEach((d, k) => d.style.setProperty("--c", this.colors[+d.parentElement.dataset.group]));
    }
    paint() {
      if (!this.map) return;
      this.off.clear();
      this.groupOf = new Uint16Array(this.n);
      const counts = new Uint32Array(this.groups.length);
      for (let i = 0; i < this.n; i++) counts[this.groupOf[i] = this.group(i)]++;
      const legend = $("#map-legend");
      legend.replaceChildren(...this.groups.flatMap((g, k) => counts[k] ? [el("button", {
        type: "button", "aria-pressed": "true", "data-group": k, title: "Click: hide or show. Double-click, or Shift and Enter: this one alone.",
        onclick: (e) => {
          // The first of the two clicks has hidden or shown it: undo that.
          if (e.detail > 1 && this.before) this.off = new Set(this.before); else this.before = new Set(this.off);
          if (e.shiftKey || e.detail > 1) this.only(k); else { if (this.off.has(k)) this.off.delete(k); else this.off.add(k); this.choose(); }
        },
      }, el("i", { class: "dot", "aria-hidden": "true" }), el("bdi", {}, g), el("span", { class: "n" }, counts[k].toLocaleString("en")))] : []));
      this.recolor();
      this.choose();
    }
    only(k) {
      const rest = this.groups.map((_, g) => g).filter((g) => g !== k);
      this.off = rest.every((g) => this.off.has(g)) && !this.off.has(k) ? new Set() : new Set(rest);
      this.choose();
    }
    choose() {
      if (!this.map) return;
      const q = this.query, classes = (this.info.classes || []).map((c) => c.toLowerCase().includes(q));
      if (q && !this.lower) this.lower = this.names.map((s) => s.toLowerCase());
      let count = 0;
      for (let i = 0; i < this.n; i++) {
        const fits = !this.off.has(this.groupOf[i]) && (!q || (this.labels && classes[this.labels[i]]) || this.lower[i].includes(q));
        count += this.shown[i] = fits ? 1 : 0;
      }
      for (const b of $$("#map-legend button")) b.setAttribute("aria-pressed", String(!this.off.has(+b.dataset.group)));
      $("#map-count").textContent = count === this.n ? `${this.n.toLocaleString("en")} images` : `${count.toLocaleString("en")} of ${this.n.toLocaleString("en")} images`;
      this.list();
      this.draw();
    }
    list() {
      const box = $("#map-list");
      if (!box.open || !this.names) return;
      const items = [];
      for (let i = 0; i < this.n && items.length < 200; i++) if (this.shown[i]) items.push(el("li", {}, el("button", { type: "button", onclick: () => { this.pick(i); this.center(i); } }, el("bdi", {}, this.names[i]), this.labels ? ` (${this.info.classes[this.labels[i]]})` : null)));
      $("ol", box).replaceChildren(...items);
    }

    // - the picture

    resize() {
      const ratio = devicePixelRatio || 1, { clientWidth: w, clientHeight: h } = this.canvas;
      if (!w || !h) return;
      Object.assign(this, { w, h, ratio });
      this.canvas.width = Math.round(w * ratio);
      this.canvas.height = Math.round(h * ratio);
      this.paintNow();
    }
    get unit() { return Math.min(this.w / this.sides[0], this.h / this.sides[1]) * 0.465 * this.scale; }
    screen(i) { return [this.w / 2 + (this.positions[2 * i] - this.x) * this.unit, this.h / 2 - (this.positions[2 * i + 1] - this.y) * this.unit]; }
    draw() { if (!this.frame) this.frame = requestAnimationFrame(() => { this.frame = 0; this.paintNow(); }); }
    paintNow() {
      if (!this.w || !this.positions) return;
      const { context: g, w, h, ratio, positions, unit } = this, left = w / 2 - this.x * unit, top = h / 2 + this.y * unit;
      g.setTransform(ratio, 0, 0, ratio, 0, 0);
      g.clearRect(0, 0, w, h);
      const r = clamp(0.28 * Math.sqrt(w * h / this.n) * this.scale ** 0.5, 1.1, 6), d = 2 * r, round = r > 1.6;
      const inside = []; // shown images on the canvas
      for (let i = 0; i < this.n; i++) {
        const x = left + positions[2 * i] * unit, y = top - positions[2 * i + 1] * unit;
        if (x < -40 || y < -40 || x > w + 40 || y > h + 40) continue;
        if (this.shown[i]) inside.push(i);
        else { g.fillStyle = this.faint; g.fillRect(x - 1, y - 1, 2, 2); }
      }
      const size = clamp(rem() * 2.2 * Math.sqrt(this.scale / 4), rem() * 1.6, rem() * 4.5), pictures = $("#map-thumbs").checked && inside.length * size * size < 0.55 * w * h && inside.length < 400 && (this.scale > 1.5 || inside.length < 120);
      if (!pictures) {
        // Draw one color after the other: changing the color costs more than drawing.
        const rows = Array.from(this.colors, () => []);
        for (const i of inside) rows[this.groupOf[i]].push(i);
        g.globalAlpha = inside.length > 4000 ? 0.75 : 0.88;
        rows.forEach((row, k) => {
          g.fillStyle = this.colors[k];
          if (round && inside.length < 6000) {
            g.beginPath();
            for (const i of row) { const x = left + positions[2 * i] * unit, y = top - positions[2 * i + 1] * unit; g.moveTo(x + r, y); g.arc(x, y, r, 0, 7); }
            g.fill();
          } else for (const i of row) g.fillRect(left + positions[2 * i] * unit - r, top - positions[2 * i + 1] * unit - r, d, d);
        });
        g.globalAlpha = 1;
      } else for (const i of inside) this.thumb(g, i, ...this.screen(i), size);
      if (this.picked >= 0) {
        const [x, y] = this.screen(this.picked);
        g.strokeStyle = this.ink;
        g.lineWidth = 1;
        for (const j of this.nearby(this.picked)) { const [a, b] = this.screen(j); g.globalAlpha = 0.55; g.beginPath(); g.moveTo(x, y); g.lineTo(a, b); g.stroke(); g.globalAlpha = 1; this.ring(g, a, b, pictures ? size * 0.75 : r + 2, 1.25); }
        if (!pictures) this.thumb(g, this.picked, x, y, rem() * 2.6);
        this.ring(g, x, y, pictures ? size * 0.75 : rem() * 2, 2);
      }
      if (this.over >= 0 && this.over !== this.picked) this.ring(g, ...this.screen(this.over), pictures ? size * 0.72 : r + 3, 2);
      if (this.aim) { g.strokeStyle = this.accent; g.lineWidth = 1.5; g.beginPath(); g.moveTo(w / 2 - 9, h / 2); g.lineTo(w / 2 + 9, h / 2); g.moveTo(w / 2, h / 2 - 9); g.lineTo(w / 2, h / 2 + 9); g.stroke(); }
    }
    ring(g, x, y, r, width) { g.strokeStyle = this.ink; g.lineWidth = width; g.beginPath(); g.arc(x, y, r, 0, 7); g.stroke(); }
    thumb(g, i, x, y, size) {
      const { side, columns } = this.info, sheet = this.sheet(i), k = i % columns ** 2;
      g.fillStyle = this.colors[this.groupOf[i]];
      g.fillRect(x - size / 2 - 2, y - size / 2 - 2, size + 4, size + 4);
      if (sheet.complete && sheet.naturalWidth) g.drawImage(sheet, (k % columns) * side, Math.floor(k / columns) * side, side, side, x - size / 2, y - size / 2, size, size);
    }
    sheet(i) {
      const k = Math.floor(i / this.info.columns ** 2);
      if (!this.sheets[k]) {
        this.sheets[k] = new Image();
        this.sheets[k].addEventListener("load", () => this.draw());
        this.sheets[k].src = this.info.sheets[k];
      }
      return this.sheets[k];
    }
    /** An element with the thumbnail of an image. */
    small(i, size) {
      const { side, columns, sheets } = this.info, per = columns ** 2, k = i % per, scale = size / side, sheet = Math.floor(i / per), rows = Math.ceil(Math.min(per, this.n - sheet * per) / columns);
      const box = el("span", { class: `thumb${size > 1.4 * side ? " pixels" : ""}`, role: "img", "aria-label": this.names[i] });
      box.style.width = box.style.height = `${size}px`;
      box.style.backgroundImage = `url("${sheets[sheet]}")`;
      box.style.backgroundSize = `${columns * size}px ${rows * size}px`;
      box.style.backgroundPosition = `${-(k % columns) * size}px ${-Math.floor(k / columns) * size}px`;
      return box;
    }

    // - finding images

    /** Sort images into the cells of a grid, to find the nearest one without checking all of them. */
    index() {
      const cells = 160, start = new Uint32Array(cells * cells + 1), of = new Uint32Array(this.n);
      const cell = (i) => clamp(Math.floor((this.positions[2 * i] + 1) / 2 * cells), 0, cells - 1) + cells * clamp(Math.floor((this.positions[2 * i + 1] + 1) / 2 * cells), 0, cells - 1);
      for (let i = 0; i < this.n; i++) start[(of[i] = cell(i)) + 1]++;
      for (let c = 0; c < cells * cells; c++) start[c + 1] += start[c];
      const next = start.slice(), items = new Uint32Array(this.n);
      for (let i = 0; i < this.n; i++) items[next[of[i]]++] = i;
      this.cells = { cells, start, items };
    }
    at(sx, sy, reach) {
      if (!this.cells) return -1;
      const { cells, start, items } = this.cells, wx = this.x + (sx - this.w / 2) / this.unit, wy = this.y - (sy - this.h / 2) / this.unit, far = reach / this.unit;
      const c = (v) => clamp(Math.floor((v + 1) / 2 * cells), 0, cells - 1);
      let best = -1, least = far * far;
      for (let row = c(wy - far); row <= c(wy + far); row++) for (let column = c(wx - far); column <= c(wx + far); column++) for (let k = start[row * cells + column]; k < start[row * cells + column + 1]; k++) {
        const i = items[k];
        if (!this.shown[i]) continue;
        const dx = this.positions[2 * i] - wx, dy = this.positions[2 * i + 1] - wy, square = dx * dx + dy * dy;
        if (square < least) { least = square; best = i; }
      }
      return best;
    }
    nearby(i) { return this.map.near.subarray(i * this.map.kept, (i + 1) * this.map.kept); }

    pick(i) {
      this.picked = i;
      this.card();
      this.draw();
    }
    card() {
      const card = $("#map-card"), i = this.picked;
      if (i < 0) { card.replaceChildren(); return; }
      const size = Math.round(rem() * 6), lines = [];
      if (this.labels) lines.push(el("b", {}, el("bdi", {}, this.info.classes[this.labels[i]])));
      if (this.map.predicted) { const right = this.map.predicted[i] === this.labels[i]; lines.push(el("span", { class: right ? "dim" : "predicted" }, `${right ? "Its neighbors agree" : `Its neighbors say ${this.info.classes[this.map.predicted[i]]}`}, ${Math.round(this.map.share[i] / 2.55)} % of the votes`)); }
      lines.push(el("span", { class: "name" }, el("bdi", {}, this.names[i])));
      const near = [...this.nearby(i)].map((j) => el("button", { type: "button", title: this.names[j] + (this.labels ? `, ${this.info.classes[this.labels[j]]}` : ""), onclick: () => { this.pick(j); this.center(j); } }, this.small(j, Math.round(rem() * 3.4))));
      const focused = card.contains(document.activeElement);
      card.replaceChildren(el("div", { class: "top" }, this.small(i, size), el("div", {}, ...lines.map((l) => el("div", {}, l)))), el("div", {}, el("p", { class: "dim" }, "Nearest to the encoder"), el("div", { class: "near" }, ...near)));
      if (focused) near[0]?.focus();
    }
    tip(i, x, y) {
      const tip = $("#tip");
      if (i < 0) { tip.hidden = true; return; }
      if (+tip.dataset.image !== i || tip.hidden) tip.replaceChildren(this.small(i, Math.round(rem() * 6)), ...(this.labels ? [el("b", {}, el("bdi", {}, this.info.classes[this.labels[i]]))] : []), el("span", { class: "name" }, el("bdi", {}, this.names[i])));
      tip.dataset.image = i;
      tip.hidden = false;
      const box = tip.getBoundingClientRect();
      tip.style.left = `${x + 16 + box.width > innerWidth ? Math.max(4, x - 16 - box.width) : x + 16}px`;
      tip.style.top = `${clamp(y + 16, 4, innerHeight - box.height - 4)}px`;
    }

    // - moving

    zoom(factor, sx = this.w / 2, sy = this.h / 2) {
      const before = this.unit, next = clamp(this.scale * factor, 1, 200), wx = (sx - this.w / 2) / before, wy = (sy - this.h / 2) / before;
      this.scale = next;
      const after = this.unit;
      this.x += wx - (sx - this.w / 2) / after;
      this.y -= wy - (sy - this.h / 2) / after;
      this.moved();
    }
    pan(dx, dy) { this.x -= dx / this.unit; this.y += dy / this.unit; this.moved(); }
    fit() { Object.assign(this, { scale: 1, x: 0, y: 0 }); this.moved(); }
    center(i) { this.x = this.positions[2 * i]; this.y = this.positions[2 * i + 1]; this.scale = Math.max(this.scale, 4); this.moved(); }
    moved() {
      const room = this.scale === 1 ? 0.4 : 1.1;
      this.x = clamp(this.x, -room, room);
      this.y = clamp(this.y, -room, room);
      this.canvas.classList.toggle("zoomed", this.scale > 1);
      this.draw();
    }
    byCanvas() {
      const c = this.canvas, spot = (e) => { const box = c.getBoundingClientRect(); return [e.clientX - box.left, e.clientY - box.top]; };
      let far = 0;
      // At full view, scrolling down scrolls the page, so that the map does not catch the reader.
      c.addEventListener("wheel", (e) => {
        if (!this.positions || (e.deltaY > 0 && this.scale === 1 && !e.ctrlKey)) return;
        e.preventDefault();
        this.zoom(Math.exp(-e.deltaY * (e.deltaMode ? 0.05 : e.ctrlKey ? 0.01 : 0.002)), ...spot(e));
      }, { passive: false });
      c.addEventListener("pointerdown", (e) => {
        if (e.button) return; // a context menu may swallow the release
        this.aim = false;
        far = this.pointers.size ? 99 : 0;
        this.pointers.set(e.pointerId, spot(e));
        c.setPointerCapture(e.pointerId);
        if (e.pointerType === "mouse") c.classList.add("held");
      });
      c.addEventListener("pointermove", (e) => {
        if (!this.positions) return;
        const [x, y] = spot(e), before = this.pointers.get(e.pointerId);
        if (!before) {
          this.over = this.at(x, y, 14);
          c.classList.toggle("over", this.over >= 0);
          this.tip(this.over, e.clientX, e.clientY);
          this.draw();
          return;
        }
        far += Math.hypot(x - before[0], y - before[1]);
        const other = [...this.pointers].find(([id]) => id !== e.pointerId);
        this.pointers.set(e.pointerId, [x, y]);
        if (other) {
          const [ox, oy] = other[1], now = Math.hypot(x - ox, y - oy), then = Math.hypot(before[0] - ox, before[1] - oy);
          this.pan((x - before[0]) / 2, (y - before[1]) / 2);
          this.zoom(now / Math.max(1, then), (x + ox) / 2, (y + oy) / 2);
        } else if (far > 4) { this.tip(-1); this.over = -1; this.pan(x - before[0], y - before[1]); }
      });
      const up = (e) => {
        const here = spot(e), known = this.pointers.delete(e.pointerId);
        c.classList.remove("held");
        if (known && far <= 6 && e.type === "pointerup") {
          const i = this.at(...here, e.pointerType === "mouse" ? 14 : 26);
          this.pick(i);
          if (e.pointerType !== "mouse") this.tip(i, e.clientX, e.clientY);
        }
      };
      c.addEventListener("pointerup", up);
      c.addEventListener("pointercancel", up);
      c.addEventListener("pointerleave", (e) => { if (e.pointerType === "mouse") { this.over = -1; this.tip(-1); this.draw(); } });
      addEventListener("scroll", () => this.tip(-1), { passive: true });
    }
    byKey() {
      const c = this.canvas;
      c.addEventListener("keydown", (e) => {
        const keys = {
          ArrowLeft: () => this.pan(60, 0), ArrowRight: () => this.pan(-60, 0), ArrowUp: () => this.pan(0, 60), ArrowDown: () => this.pan(0, -60),
          "+": () => this.zoom(1.4), "=": () => this.zoom(1.4), "-": () => this.zoom(1 / 1.4), "0": () => this.fit(),
          Enter: () => this.pick(this.at(this.w / 2, this.h / 2, 1e4)), " ": () => this.pick(this.at(this.w / 2, this.h / 2, 1e4)), Escape: () => { this.pick(-1); this.tip(-1); },
        };
        if (!keys[e.key] || e.ctrlKey || e.metaKey || e.altKey) return;
        e.preventDefault();
        this.aim = true;
        keys[e.key]();
      });
      c.addEventListener("focus", () => { this.aim = c.matches(":focus-visible"); this.draw(); });
      c.addEventListener("blur", () => { this.aim = false; this.draw(); });
    }
  }

  // -- begin --------------------------------------------------------------------------------------------------------

  if (chosen === "light" || chosen === "dark") root.dataset.theme = chosen; else chosen = null;
  named();
  for (const cell of $$("[data-heat]")) cell.style.setProperty("--v", cell.dataset.heat);
  for (const figure of $$("[data-chart]")) makers[figure.dataset.chart](figure);

  const controls = $("#curve-controls");
  if (controls && facts.curves.length) {
    controls.hidden = false;
    $(".legend", controls)?.append(...facts.runs.map((r, run) => el("button", { type: "button", "aria-pressed": "true", onclick: (e) => {
      if (hidden.has(run)) hidden.delete(run); else hidden.add(run);
      e.currentTarget.setAttribute("aria-pressed", String(!hidden.has(run)));
      redraw();
    } }, dot(run), el("bdi", {}, r.name))));
    along.addEventListener("change", () => { training.x = null; redraw(); });
    smooth.addEventListener("change", redraw);
  }

  const links = new Map($$(".rail li a").map((a) => [a.hash.slice(1), a]));
  const seen = new IntersectionObserver((entries) => {
    for (const e of entries) if (e.isIntersecting) {
      for (const a of links.values()) a.removeAttribute("aria-current");
      const here = links.get(e.target.id);
      here?.setAttribute("aria-current", "true");
      if (here && here.closest("ol").scrollWidth > here.closest("ol").clientWidth) here.closest("ol").scrollTo({ left: here.offsetLeft - 60 });
    }
  }, { rootMargin: "-15% 0px -75% 0px" });
  for (const section of $$("section[id]")) seen.observe(section);

  root.dataset.charts = "ready";
  // Charts first. The map comes later, because its names and positions are large.
  if (facts.map) addEventListener("load", () => {
    new Atlas(facts.map).open().catch((error) => { $("#map-wait").textContent = `The map could not be opened: ${error.message}.`; });
  });
})();
