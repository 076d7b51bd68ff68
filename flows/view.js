"use strict";
const $ = (id) => document.getElementById(id);
const make = (name, more, ...inside) => { const node = Object.assign(document.createElement(name), more); node.append(...inside); return node; };
const about = JSON.parse($("about").textContent), token = JSON.parse($("token").textContent);
const SIDES = { axial: ["R", "L", "A", "P"], coronal: ["R", "L", "S", "I"], sagittal: ["A", "P", "S", "I"] };
const LABELS = { volume: "original", codes: "decoded", difference: "decoded − original" };
const GAINS = [0.5, 1, 2, 5, 10, 50];
const KEPT = 24; // planes that the page keeps
const UNREAD = 48; // grey of what is not there yet
const units = about.units === "rgb" ? "" : " " + about.units;
const number = (value) => (value === 0 ? 0 : Number(value.toPrecision(4))).toString().replace("-", "−");
const clamp = (value, low, high) => Math.min(high, Math.max(low, value));

// ---- What is looked at. at: voxel z, y, x of the cursor; depth: levels of the codes, one more for the bounded layer.
const deepest = about.levels + (about.bound === null ? 0 : 1);
const scanned = about.planes.find((each) => each.axis === 0) || about.planes[0];
const state = {
  plane: scanned.name, at: about.grid.map((size) => size >> 1), t: 0, depth: deepest, centre: about.windows[0].centre,
  width: about.windows[0].width, invert: about.inverse, gain: 1, zoom: 1, pan: [0, 0], cross: true, hover: null,
};
// The usual error is to be seen: a fifth of the difference's range, or more.
if (about.certificate) state.gain = GAINS.findLast((gain) => state.width / 2 / gain >= 5 * about.certificate.mean_error) ?? GAINS[0];
const plane = () => about.planes.find((each) => each.name === state.plane);
const isBounded = () => about.bound !== null && state.depth === deepest;

function pixelOf(at, p = plane()) {
  return [p.flip_rows ? about.grid[p.rows] - 1 - at[p.rows] : at[p.rows], p.flip_columns ? about.grid[p.columns] - 1 - at[p.columns] : at[p.columns]];
}
function voxelAt(row, column, p = plane()) {
  const at = [...state.at];
  at[p.rows] = p.flip_rows ? about.grid[p.rows] - 1 - row : row;
  at[p.columns] = p.flip_columns ? about.grid[p.columns] - 1 - column : column;
  return at;
}
const lps = (at) => about.affine.slice(0, 3).map((row) => row[0] * at[0] + row[1] * at[1] + row[2] * at[2] + row[3]);

// ---- Values of planes as the server gives them: one request of a tier on its way, then whatever is wanted by then.
class Tier {
  constructor(name) { this.name = name; this.kept = new Map(); this.failed = null; }
  key() {
    const more = this.name === "volume" ? "" : isBounded() ? "bounded" : state.depth;
    return new URLSearchParams({ tier: this.name, plane: state.plane, index: state.at[plane().axis], t: state.t, levels: more }).toString();
  }
  now() { return this.kept.get(this.key()); }
  async want() {
    if (this.busy) return;
    this.busy = true;
    for (let key = this.key(); !(this.kept.get(key)?.share === 1); key = this.key()) {
      try { this.keep(key, await this.ask(key)); this.failed = null; paint(); }
      catch (error) { this.failed = error.message; paint(); if (key === this.key()) break; }
    }
    this.busy = false;
  }
  async ask(key) {
    let answer;
    try { answer = await fetch("/slice?" + key + "&token=" + encodeURIComponent(token)); }
    catch { throw new Error("the viewer has ended: start voxbook view again"); }
    if (!answer.ok) {
      const json = answer.headers.get("Content-Type") === "application/json";
      const told = json ? await answer.json() : { message: "the viewer answers " + answer.status, hint: "" };
      throw new Error((told.error ? told.error + ": " : "") + told.message + (told.hint ? " (" + told.hint + ")" : ""));
    }
    const [rows, columns, channels = 1] = answer.headers.get("X-Shape").split(",").map(Number);
    const bytes = await answer.arrayBuffer();
    const values = answer.headers.get("X-Type") === "uint8" ? new Uint8Array(bytes) : new Float32Array(bytes);
    return { rows, columns, channels, values, share: Number(answer.headers.get("X-Share")) };
  }
  keep(key, data) {
    this.kept.delete(key);
    this.kept.set(key, data);
    while (this.kept.size > KEPT) this.kept.delete(this.kept.keys().next().value);
  }
}

// Decoded minus original, colours averaged; its mean and largest size, of what is there.
function differenceOf(a, b) {
  if (a.of === b) return a.difference;
  const n = a.rows * a.columns, values = new Float32Array(n);
  let sum = 0, largest = 0, count = 0;
  for (let i = 0; i < n; i++) {
    let total = 0;
    for (let c = 0; c < a.channels; c++) total += b.values[i * a.channels + c] - a.values[i * a.channels + c];
    const value = values[i] = total / a.channels;
    if (value === value) { const size = Math.abs(value); sum += size; count++; if (size > largest) largest = size; }
  }
  a.of = b;
  a.difference = { rows: a.rows, columns: a.columns, channels: 1, values, share: Math.min(a.share, b.share), mean: count ? sum / count : NaN, largest };
  return a.difference;
}

const tiers = { volume: new Tier("volume"), ...(about.levels ? { codes: new Tier("codes") } : {}) };
function dataOf(name) {
  if (name !== "difference") return tiers[name].now();
  const a = tiers.volume.now(), b = tiers.codes.now();
  return a && b ? differenceOf(a, b) : undefined;
}
function textOf(data, at) {
  if (!data) return "…";
  const [row, column] = pixelOf(at), first = (row * data.columns + column) * data.channels;
  const found = [...data.values.slice(first, first + data.channels)];
  return found.some(Number.isNaN) ? "…" : found.map(number).join(", ") + units;
}

// ---- One picture each: original, decoded, difference.
class View {
  constructor(name) {
    this.name = name;
    this.canvas = make("canvas", { width: 1, height: 1 });
    this.canvas.setAttribute("role", "img");
    this.range = make("span", {});
    this.value = make("output", {});
    this.value.setAttribute("aria-label", LABELS[name] + " at the cursor");
    this.wait = make("div", { className: "wait", hidden: true });
    this.sides = ["left", "right", "top", "bottom"].map((side) => make("div", { className: "side " + side }));
    this.across = make("div", { className: "hair across" });
    this.down = make("div", { className: "hair down" });
    this.frame = make("div", { className: "frame" }, this.canvas, this.across, this.down);
    this.stage = make("div", { className: "stage" }, this.frame, ...this.sides, this.wait);
    this.stage.dataset.view = name;
    $("views").append(make("figure", {}, make("figcaption", {}, make("b", { textContent: LABELS[name] }), this.value, this.range), this.stage));
  }
  limits() {
    const reach = state.width / 2 / state.gain;
    return this.name === "difference" ? [-reach, reach] : [state.centre - state.width / 2, state.centre + state.width / 2];
  }
  paint() {
    const data = dataOf(this.name), [low, high] = this.limits();
    const failed = tiers[this.name]?.failed;
    this.range.textContent = number(low) + " to " + number(high) + units;
    if (failed && !data) { clearTimeout(this.late); this.late = null; this.say(failed); this.clear(); }
    else if (!data) this.late ??= setTimeout(() => { if (!dataOf(this.name)) this.say(this.name === "volume" ? "reading…" : "decoding…"); }, 250);
    else {
      if (this.late) { clearTimeout(this.late); this.late = null; }
      this.say(data.share < 1 ? failed || (this.name === "volume" ? "reading, " : "decoding, ") + Math.floor(100 * data.share) + " %" : "");
      const look = [low, high, state.invert].join();
      if (this.drawn !== data || this.look !== look) { this.fill(data, low, high); this.drawn = data; this.look = look; }
    }
    this.canvas.setAttribute("aria-label", LABELS[this.name] + ", " + state.plane + " slice " + (state.at[plane().axis] + 1));
  }
  say(text) { this.wait.textContent = text; this.wait.hidden = !text; }
  clear() { this.canvas.width = this.canvas.height = 1; this.drawn = null; }
  fill({ rows, columns, channels, values }, low, high) {
    if (this.canvas.width !== columns || this.canvas.height !== rows) Object.assign(this.canvas, { width: columns, height: rows });
    const context = this.canvas.getContext("2d"), image = context.createImageData(columns, rows);
    const pixels = new Uint32Array(image.data.buffer), scale = 1 / (high - low), n = rows * columns;
    const grey = (value) => { const share = clamp((value - low) * scale, 0, 1); return Math.round(255 * (state.invert ? 1 - share : share)); };
    const unread = 0xff000000 | UNREAD * 0x10101;
    for (let i = 0; i < n; i++) {
      const value = values[i * channels];
      if (value !== value) pixels[i] = unread;
      else if (this.name === "difference") { // blue below, red above, dark where they agree
        const x = clamp(2 * (value - low) * scale - 1, -1, 1), size = Math.abs(x);
        const red = 20 + size * ((x > 0 ? 255 : 92) - 20), green = 20 + size * ((x > 0 ? 104 : 160) - 20), blue = 22 + size * ((x > 0 ? 84 : 255) - 22);
        pixels[i] = 0xff000000 | Math.round(blue) << 16 | Math.round(green) << 8 | Math.round(red);
      } else if (channels < 3) pixels[i] = 0xff000000 | grey(value) * 0x10101;
      else pixels[i] = 0xff000000 | grey(values[i * channels + 2]) << 16 | grey(values[i * channels + 1]) << 8 | grey(value);
    }
    context.putImageData(image, 0, 0);
  }
  scale() { // CSS pixels per mm
    const { width_mm, height_mm } = plane();
    return state.zoom * Math.min((this.stage.clientWidth - 8) / width_mm, (this.stage.clientHeight - 8) / height_mm);
  }
  fit() {
    const { width_mm, height_mm, columns } = plane(), scale = this.scale();
    const wide = width_mm * scale, high = height_mm * scale;
    Object.assign(this.frame.style, {
      width: wide + "px", height: high + "px",
      left: (this.stage.clientWidth - wide) / 2 + state.pan[0] * scale + "px",
      top: (this.stage.clientHeight - high) / 2 + state.pan[1] * scale + "px",
    });
    this.canvas.classList.toggle("large", wide / about.grid[columns] > 3);
    this.sides.forEach((side, place) => { side.textContent = SIDES[state.plane][place]; side.hidden = !about.placed; });
  }
  mark() {
    const at = state.hover || state.at, { rows, columns } = plane(), [row, column] = pixelOf(at);
    this.across.hidden = this.down.hidden = !state.cross;
    this.across.style.top = 100 * (row + 0.5) / about.grid[rows] + "%";
    this.down.style.left = 100 * (column + 0.5) / about.grid[columns] + "%";
    this.value.textContent = textOf(dataOf(this.name), at);
  }
  voxel(event) {
    const box = this.frame.getBoundingClientRect(), { rows, columns } = plane();
    const row = Math.floor((event.clientY - box.top) / box.height * about.grid[rows]);
    const column = Math.floor((event.clientX - box.left) / box.width * about.grid[columns]);
    return row >= 0 && column >= 0 && row < about.grid[rows] && column < about.grid[columns] ? voxelAt(row, column) : null;
  }
}
const views = (about.levels ? ["volume", "codes", "difference"] : ["volume"]).map((name) => new View(name));

// Side by side, or one above the other where that shows a wide picture larger.
function arrange() {
  const { width_mm, height_mm } = plane(), { clientWidth: wide, clientHeight: high } = $("views");
  const side = Math.min(wide / views.length / width_mm, (high - 31) / height_mm);
  const above = Math.min(wide / width_mm, (high / views.length - 31) / height_mm);
  $("views").classList.toggle("stacked", above > side);
  for (const view of views) view.fit();
}
function paint() {
  for (const view of views) view.paint();
  mark();
}
function mark() {
  for (const view of views) view.mark();
  const at = state.hover || state.at, names = ["z", "y", "x"], [l, p, s] = lps(at).map((value) => value.toFixed(1).replace("-", "−"));
  $("place").textContent = names.map((name, axis) => name + " " + at[axis]).join(", ") + (about.placed ? " · L " + l + ", P " + p + ", S " + s + " mm" : "");
  $("reading").textContent = views.map((view) => LABELS[view.name] + " " + view.value.textContent).join(" · ");
  const off = about.levels && dataOf("difference");
  $("sums").textContent = off && off.share === 1 ? "this slice: mean error " + number(off.mean) + ", largest " + number(off.largest) + units : "";
}
let saying;
function tell() { // for screen readers, once the cursor rests
  clearTimeout(saying);
  saying = setTimeout(() => { $("said").textContent = $("where").textContent + "; " + $("place").textContent + "; " + $("reading").textContent; }, 700);
}

function depthText() {
  if (isBounded()) return about.bound === 0 ? "lossless layer" : "bounded, ± " + number(about.bound) + units;
  const rung = about.certificate?.rungs?.find((each) => each.rung === "codes" && each.levels === state.depth);
  return state.depth + " of " + about.levels + (rung ? ", " + rung.psnr.toFixed(1) + " dB" : "");
}
function whenText() {
  const frame = about.frames[state.t] || {};
  const said = ["time_s" in frame ? number(frame.time_s) + " s" : "", "b_value" in frame ? "b " + number(frame.b_value) : "",
    "trigger_ms" in frame ? number(frame.trigger_ms) + " ms" : ""].filter(Boolean);
  return [state.t + 1 + " of " + about.timepoints, ...said].join(", ");
}
function show() {
  const { count, step_mm, axis } = plane();
  const at = state.at[axis];
  for (const button of $("planes").children) button.setAttribute("aria-pressed", String(button.dataset.plane === state.plane));
  $("invert").setAttribute("aria-pressed", String(state.invert));
  $("cross").setAttribute("aria-pressed", String(state.cross));
  Object.assign($("index"), { max: count - 1, value: at, disabled: count === 1 });
  $("where").textContent = at + 1 + " of " + count + (about.placed ? ", " + (at * step_mm).toFixed(1) + " mm" : "");
  $("when").textContent = whenText();
  if (about.levels) $("deep").textContent = depthText();
  $("t").value = state.t; $("levels").value = state.depth; $("gain").value = state.gain;
  if (document.activeElement !== $("centre")) $("centre").value = Number(state.centre.toPrecision(4));
  if (document.activeElement !== $("width")) $("width").value = Number(state.width.toPrecision(4));
  const known = about.windows.findIndex((each) => each.centre === state.centre && each.width === state.width);
  $("preset").value = known < 0 ? "" : String(known);
  const kept = { plane: state.plane, at: state.at, t: state.t, depth: state.depth, centre: state.centre, width: state.width, invert: Number(state.invert), gain: state.gain, zoom: state.zoom, pan: state.pan };
  history.replaceState(null, "", location.search + "#" + new URLSearchParams(kept));
  arrange();
  paint();
  tell();
  for (const tier of Object.values(tiers)) tier.want();
}
function move(by) { const { axis, count } = plane(); state.at[axis] = clamp(state.at[axis] + by, 0, count - 1); state.hover = null; show(); }
function nudge(down, right) {
  const p = plane(), [row, column] = pixelOf(state.at);
  state.at = voxelAt(clamp(row + down, 0, about.grid[p.rows] - 1), clamp(column + right, 0, about.grid[p.columns] - 1));
  state.hover = null; state.cross = true;
  show();
}
function usePlane(name) { Object.assign(state, { plane: name, zoom: 1, pan: [0, 0], hover: null }); show(); }
function usePreset(place) { const chosen = about.windows[place]; if (chosen) { state.centre = chosen.centre; state.width = chosen.width; show(); } }
// The point under the pointer (CSS pixels from the stage's middle) stays where it is.
function zoom(factor, x = 0, y = 0) {
  const before = views[0].scale();
  state.zoom = clamp(state.zoom * factor, 1, 40);
  const after = views[0].scale();
  pan(x / after - x / before, y / after - y / before);
}
function pan(x, y) { // in mm; the picture's middle never leaves the stage by more than half the picture
  const { width_mm, height_mm } = plane(), most = (1 - 1 / state.zoom) / 2;
  state.pan = [clamp(state.pan[0] + x, -width_mm * most, width_mm * most), clamp(state.pan[1] + y, -height_mm * most, height_mm * most)];
  show();
}

// ---- Controls.
for (const each of about.planes) {
  const button = make("button", { textContent: each.name, type: "button", onclick: () => usePlane(each.name) });
  button.dataset.plane = each.name;
  $("planes").append(button);
}
about.windows.forEach((each, place) => $("preset").append(make("option", { value: String(place), textContent: each.name })));
$("preset").append(make("option", { value: "", textContent: "own" }));
for (const gain of GAINS) $("gain").append(make("option", { value: String(gain), textContent: "× " + gain }));
$("times").hidden = about.timepoints < 2; $("t").max = about.timepoints - 1;
$("depths").hidden = deepest < 2; $("levels").max = deepest;
$("gains").hidden = !about.levels;
$("planes").hidden = about.planes.length < 2;
$("slices").hidden = about.planes.every((each) => each.count === 1);

$("index").oninput = () => { state.at[plane().axis] = Number($("index").value); state.hover = null; show(); };
$("t").oninput = () => { state.t = Number($("t").value); show(); };
$("levels").oninput = () => { state.depth = Number($("levels").value); show(); };
$("gain").onchange = () => { state.gain = Number($("gain").value); show(); };
$("preset").onchange = () => usePreset($("preset").value === "" ? -1 : Number($("preset").value));
$("centre").oninput = () => { const value = $("centre").valueAsNumber; if (Number.isFinite(value)) { state.centre = value; show(); } };
$("width").oninput = () => { const value = $("width").valueAsNumber; if (value > 0) { state.width = value; show(); } };
$("invert").onclick = () => { state.invert = !state.invert; show(); };
$("cross").onclick = () => { state.cross = !state.cross; show(); };
$("in").onclick = () => zoom(1.5);
$("out").onclick = () => zoom(1 / 1.5);
$("fit").onclick = () => { state.zoom = 1; state.pan = [0, 0]; show(); };
$("help").onclick = () => $("keys").showModal();

// ---- Pointer: hover shows values, a click pins the cursor, drag pans, two fingers zoom, shift or right drag windows.
const fingers = new Map();
let dragged = 0, turned = 0, apart = 0;
const viewOf = (event) => views.find((view) => view.stage === event.target.closest?.(".stage"));
const spread = () => { const [a, b] = [...fingers.values()]; return Math.hypot(a.x - b.x, a.y - b.y); };
$("views").addEventListener("contextmenu", (event) => event.preventDefault());
$("views").addEventListener("pointerdown", (event) => {
  const view = viewOf(event);
  if (!view) return;
  view.stage.setPointerCapture(event.pointerId);
  fingers.set(event.pointerId, { x: event.clientX, y: event.clientY });
  dragged = fingers.size > 1 ? 99 : 0;
  if (fingers.size === 2) apart = spread();
});
$("views").addEventListener("pointermove", (event) => {
  const view = viewOf(event), finger = fingers.get(event.pointerId);
  if (!view) return;
  if (!finger) { state.hover = view.voxel(event); mark(); return; }
  const x = event.clientX - finger.x, y = event.clientY - finger.y;
  if (dragged <= 4) { dragged = Math.max(dragged, Math.hypot(x, y)); if (dragged <= 4) return; }
  fingers.set(event.pointerId, { x: event.clientX, y: event.clientY });
  state.hover = null;
  if (fingers.size === 2) {
    const box = view.stage.getBoundingClientRect(), now = spread();
    zoom(now / apart, event.clientX - box.left - box.width / 2 - state.pan[0] * view.scale(), event.clientY - box.top - box.height / 2 - state.pan[1] * view.scale());
    apart = now;
  } else if (event.buttons & 2 || event.shiftKey) {
    state.width *= Math.exp(x / 200); state.centre += y * state.width / 300; show();
  } else { view.stage.classList.add("panning"); pan(x / view.scale(), y / view.scale()); }
});
for (const kind of ["pointerup", "pointercancel"]) $("views").addEventListener(kind, (event) => {
  const view = viewOf(event);
  fingers.delete(event.pointerId);
  if (!view) return;
  view.stage.classList.remove("panning");
  const found = kind === "pointerup" && dragged <= 4 && event.button === 0 && view.voxel(event);
  if (found) { state.at = found; show(); }
});
$("views").addEventListener("pointerleave", () => { state.hover = null; mark(); });
$("views").addEventListener("wheel", (event) => {
  event.preventDefault();
  const view = viewOf(event);
  if (event.ctrlKey && view) {
    const box = view.stage.getBoundingClientRect();
    zoom(Math.exp(-event.deltaY / 300), event.clientX - box.left - box.width / 2 - state.pan[0] * view.scale(), event.clientY - box.top - box.height / 2 - state.pan[1] * view.scale());
    return;
  }
  turned += event.deltaY;
  if (Math.abs(turned) >= 30) { move(Math.sign(turned)); turned = 0; }
}, { passive: false });

const STEPS = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -10, PageUp: 10, Home: -1e9, End: 1e9 };
const NUDGES = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
const KEYS = {
  w: () => usePreset((Number($("preset").value === "" ? -1 : $("preset").value) + 1) % about.windows.length),
  l: () => { if (about.levels) { state.depth = state.depth % deepest + 1; show(); } },
  d: () => { state.gain = GAINS[(GAINS.indexOf(state.gain) + 1) % GAINS.length]; show(); },
  i: () => $("invert").click(), x: () => $("cross").click(), "?": () => $("help").click(),
  "[": () => { state.t = Math.max(0, state.t - 1); show(); }, "]": () => { state.t = Math.min(about.timepoints - 1, state.t + 1); show(); },
  "+": () => $("in").click(), "=": () => $("in").click(), "-": () => $("out").click(), 0: () => $("fit").click(),
};
addEventListener("keydown", (event) => {
  const { target, key } = event;
  if (event.ctrlKey || event.metaKey || event.altKey || $("keys").open) return;
  const slides = target.type === "range";
  if (target.tagName === "SELECT" || target.tagName === "INPUT" && !slides) return;
  if (slides && target.id !== "index" && key in STEPS) return;
  if (event.shiftKey && key in NUDGES) nudge(...NUDGES[key]);
  else if (key in STEPS) move(STEPS[key]);
  else if (["1", "2", "3"].includes(key) && about.planes[key - 1]) usePlane(about.planes[key - 1].name);
  else if (key in KEYS) KEYS[key]();
  else return;
  event.preventDefault();
});
addEventListener("resize", () => { arrange(); });

// ---- As it was when the page was left: all of it is in the address.
const given = new URLSearchParams(location.hash.slice(1));
const within = (text, low, high, fallback) => text !== null && text !== "" && Number.isFinite(Number(text)) ? clamp(Number(text), low, high) : fallback;
const read = (name, low, high) => within(given.get(name), low, high, state[name]);
if (about.planes.some((each) => each.name === given.get("plane"))) state.plane = given.get("plane");
const places = (given.get("at") || "").split(","), pans = (given.get("pan") || "").split(",");
state.at = state.at.map((value, axis) => Math.round(within(places[axis] ?? null, 0, about.grid[axis] - 1, value)));
state.t = Math.round(read("t", 0, about.timepoints - 1));
state.depth = Math.round(read("depth", Math.min(1, deepest), deepest));
state.centre = read("centre", -1e9, 1e9); state.width = read("width", 1e-9, 1e9);
if (given.has("invert")) state.invert = given.get("invert") === "1";
if (GAINS.includes(Number(given.get("gain")))) state.gain = Number(given.get("gain"));
state.zoom = read("zoom", 1, 40);
state.pan = state.pan.map((value, place) => within(pans[place] ?? null, -1e5, 1e5, value));
show();
