// The frame with its masks and prompts, once or twice, and what the pointer says on it.

import { wait } from "./api.js";
import { chooseRun, color, comparing, frames, masks, promptOf, say, step, store } from "./store.js";

const views = ["first", "second"].map((id) => document.getElementById(id));
const overlay = new OffscreenCanvas(1, 1);
/** Milliseconds that a picture waits for its masks. */
const PATIENCE = 20;
let drag = null, pending = null, cursor = null, drawn = 0;

/** A colour as getImageData has it in 32 bits. */
const packed = (r, g, b, alpha) => ((alpha << 24) | (b << 16) | (g << 8) | r) >>> 0;
const [HERE, THERE, LINE] = [packed(255, 64, 200, 190), packed(60, 220, 255, 190), packed(0, 0, 0, 150)];
const shade = (hex, alpha) => packed(...[1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16)), alpha);

/** The part of the picture that masks take, with a margin. */
function area(layers, margin) {
  const left = Math.min(...layers.map((m) => m.x)) - margin, top = Math.min(...layers.map((m) => m.y)) - margin;
  const right = Math.max(...layers.map((m) => m.x + m.width)) + margin, bottom = Math.max(...layers.map((m) => m.y + m.height)) + margin;
  return { left, top, width: right - left, height: bottom - top };
}

/** The ids of a mask within an area around it. */
function plane(mask, { left, top, width, height }) {
  const data = new Uint8Array(width * height);
  for (let y = 0; y < mask.height; y++) data.set(mask.data.subarray(y * mask.width, (y + 1) * mask.width), (mask.y - top + y) * width + mask.x - left);
  return data;
}

/** Masks as a picture, and where it lies: tinted inside, opaque at the edge, with a dark line around, so that they show on any
 * ground; `other`: tint only where the two differ. */
function tinted(mask, other) {
  const edge = Math.max(1, Math.round(Math.min(store.session.width, store.session.height) / 360));
  const place = area(other ? [mask, other] : [mask], edge), { width, height } = place;
  const data = plane(mask, place), compared = other ? plane(other, place) : data;
  Object.assign(overlay, { width, height });
  const pen = overlay.getContext("2d"), image = pen.createImageData(width, height), out = new Uint32Array(image.data.buffer);
  const present = [...new Set(data)].filter(Boolean), alpha = Math.round(255 * store.opacity);
  const inner = new Uint32Array(256), outer = new Uint32Array(256), down = edge * width;
  for (const id of present) { inner[id] = shade(color(id), alpha); outer[id] = shade(color(id), 255); }
  for (let y = edge; y < height - edge; y++) {
    for (let i = y * width + edge, end = (y + 1) * width - edge; i < end; i++) {
      const id = data[i], l = data[i - edge], r = data[i + edge], u = data[i - down], d = data[i + down];
      if (compared[i] !== id) out[i] = id ? HERE : THERE;
      else if (id) out[i] = l === id && r === id && u === id && d === id ? inner[id] : outer[id];
    }
  }
  for (let i = 0; i < out.length; i++) {
    if (!data[i] && !out[i] && (data[i - edge] || data[i + edge] || data[i - down] || data[i + down])) out[i] = LINE;
  }
  pen.putImageData(image, 0, 0);
  return place;
}

/** The picture at once, and its masks as soon as they are there. */
export async function draw() {
  if (!store.session) return;
  const turn = ++drawn, frame = store.frame;
  const runs = comparing() ? [0, 1] : [0];
  const waiting = Promise.all(runs.map((run) => masks(run, frame)));
  const picture = await frames.get(frame);
  const early = await Promise.race([waiting, wait(PATIENCE)]);
  const show = (layers) => {
    if (turn !== drawn) return;
    for (const run of runs) paint(views[run], picture, layers[run], run === 1 ? layers[0] : null);
    document.body.dataset.shown = frame;
  };
  show(early || []);
  if (!early) show(await waiting);
  if (turn === drawn) document.body.dataset.masked = frame;
}

function paint(canvas, picture, mask, other) {
  const { width, height } = store.session;
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  const pen = canvas.getContext("2d");
  pen.drawImage(picture, 0, 0, width, height);
  if (mask) {
    const { left, top } = tinted(mask, other);
    pen.drawImage(overlay, left, top);
  }
  const unit = Math.max(1, canvas.width / (canvas.clientWidth || canvas.width));
  for (const [id, prompt] of Object.entries(store.session.prompts[store.frame] || {})) drawPrompt(pen, Number(id), prompt, unit);
  if (pending && pending.frame === store.frame) drawPrompt(pen, store.object, pending, unit);
  if (drag) drawDrag(pen, unit);
  if (cursor) drawCursor(pen, unit);
}

function stroke(pen, unit, colour, width = 2) {
  pen.lineWidth = (width + 2) * unit; pen.strokeStyle = "#000b"; pen.stroke();
  pen.lineWidth = width * unit; pen.strokeStyle = colour; pen.stroke();
}

function drawPrompt(pen, id, prompt, unit) {
  const faint = id === store.object ? 1 : 0.55;
  pen.globalAlpha = faint;
  if (prompt.box) {
    const [x0, y0, x1, y1] = prompt.box;
    pen.beginPath(); pen.rect(x0, y0, x1 - x0, y1 - y0); stroke(pen, unit, color(id));
  }
  (prompt.points || []).forEach(([x, y], i) => {
    const plus = prompt.labels[i] === 1, radius = 8 * unit, bar = 4 * unit;
    pen.beginPath(); pen.arc(x, y, radius, 0, 7); pen.fillStyle = plus ? "#15803d" : "#be123c"; pen.fill();
    pen.lineWidth = 2 * unit; pen.strokeStyle = "#fff"; pen.stroke();
    pen.beginPath(); pen.moveTo(x - bar, y); pen.lineTo(x + bar, y);
    if (plus) { pen.moveTo(x, y - bar); pen.lineTo(x, y + bar); }
    pen.stroke();
  });
  pen.globalAlpha = 1;
}

function drawDrag(pen, unit) {
  pen.beginPath();
  if (drag.tool === "box") {
    const [[x0, y0], [x1, y1]] = [drag.points[0], drag.points.at(-1)];
    pen.rect(x0, y0, x1 - x0, y1 - y0);
  } else {
    drag.points.forEach(([x, y], i) => (i ? pen.lineTo(x, y) : pen.moveTo(x, y)));
  }
  stroke(pen, unit, color(store.object));
}

function drawCursor(pen, unit) {
  const [x, y] = cursor, arm = 14 * unit;
  pen.beginPath(); pen.moveTo(x - arm, y); pen.lineTo(x + arm, y); pen.moveTo(x, y - arm); pen.lineTo(x, y + arm);
  stroke(pen, unit, "#ffd166");
}

/** Position of a pointer event in pixels of the video; the picture is fitted into its box. */
export function position(event) {
  const canvas = event.currentTarget, area = canvas.getBoundingClientRect();
  const scale = Math.min(area.width / canvas.width, area.height / canvas.height);
  const left = area.left + (area.width - canvas.width * scale) / 2, top = area.top + (area.height - canvas.height * scale) / 2;
  const inside = (value, most) => Math.max(0, Math.min(most, Math.round(10 * value) / 10));
  return [inside((event.clientX - left) / scale, canvas.width - 1), inside((event.clientY - top) / scale, canvas.height - 1)];
}

async function send(values) {
  pending = values;
  draw();
  await step({ kind: "prompt", obj_id: store.object, ...values });
  pending = null;
  draw();
}

export async function click(point, label) {
  const before = promptOf(store.frame, store.object);
  const kept = before && !before.outline ? before : {};
  await send({
    frame: store.frame,
    points: [...(kept.points || []), point],
    labels: [...(kept.labels || []), label],
    ...(kept.box ? { box: kept.box } : {}),
  });
}

async function endDrag() {
  const { tool, points, label } = drag;
  drag = null;
  const [start, end] = [points[0], points.at(-1)];
  const wide = Math.abs(end[0] - start[0]), high = Math.abs(end[1] - start[1]);
  if (tool === "outline" && points.length >= 8) return send({ frame: store.frame, outline: points });
  if (tool === "box" && wide > 3 && high > 3) {
    const box = [Math.min(start[0], end[0]), Math.min(start[1], end[1]), Math.max(start[0], end[0]), Math.max(start[1], end[1])];
    return send({ frame: store.frame, box });
  }
  if (tool === "box" || tool === "outline") {
    say(tool === "box" ? "Drag from one corner of the box to the other." : "Draw around the object in one stroke.");
    return draw();
  }
  return click(start, label);
}

/** Keys while the stage's own cursor is shown; true where one was used. */
export function cursorKey(event) {
  if (!cursor) return false;
  const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  if (event.key in moves) {
    const size = [store.session.width, store.session.height], length = event.shiftKey ? 1 : 8;
    cursor = cursor.map((value, axis) => Math.max(0, Math.min(size[axis] - 1, value + length * moves[event.key][axis])));
    draw();
    return true;
  }
  if (event.key === "Enter") { click([...cursor], store.tool === "minus" ? 0 : 1); return true; }
  if (event.key === "Escape") { toggleCursor(); return true; }
  return false;
}

export function toggleCursor() {
  cursor = cursor || !store.session ? null : [Math.round(store.session.width / 2), Math.round(store.session.height / 2)];
  if (cursor) views[0].focus();
  draw();
}

function captions() {
  const { policies, stale } = store.session, at = (id) => document.getElementById(id);
  at("beside").hidden = at("first-name").hidden = !comparing();
  if (!comparing()) return;
  ["first-name", "second-name"].forEach((id, run) => {
    at(id).textContent = policies[run].label;
    at(id).setAttribute("aria-pressed", String(store.run === run));
  });
  const iou = store.differences[store.frame];
  const agreement = iou === undefined ? "" : `IoU with the first ${iou.toFixed(2)} · pink: here only, blue: there only`;
  at("agreement").textContent = stale ? "older prompts: compare again" : agreement;
}

export function setUp() {
  ["first-name", "second-name"].forEach((id, run) => document.getElementById(id).addEventListener("click", () => chooseRun(run)));
  for (const canvas of views) {
    canvas.addEventListener("contextmenu", (event) => event.preventDefault());
    canvas.addEventListener("pointerdown", (event) => {
      if (!store.session || event.button === 1) return;
      canvas.setPointerCapture(event.pointerId);
      const minus = event.button === 2 || event.shiftKey || store.tool === "minus";
      drag = { tool: store.tool, points: [position(event)], label: minus ? 0 : 1 };
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!drag) return;
      drag.points.push(position(event));
      if (drag.tool === "box" || drag.tool === "outline") draw();
    });
    canvas.addEventListener("pointerup", () => drag && endDrag());
    canvas.addEventListener("pointercancel", () => { drag = null; draw(); });
  }
  store.on("frame object opacity differences", () => { if (store.session) captions(); draw(); });
  store.on("session", ({ changed }) => { captions(); if (changed.includes(store.frame)) draw(); });
  store.on("opened", () => { pending = drag = cursor = null; draw(); });
}
