// Time: thumbnails, a row for every object with scores, prompts and what left memory, arcs to the frames that are read now.

import { wait } from "./api.js";
import { base, color, comparing, frames, show, store, thumbs } from "./store.js";

const canvas = document.getElementById("timeline");
const strip = document.getElementById("thumbs");
const hover = document.getElementById("hover");
const ROW = 22, TOP = 18, ARCS = 34, CURVE = 36;
/** All that is the same on every frame; drawn anew after `renew`. */
const ground = new OffscreenCanvas(1, 1);
let left = 96, memory = null, token = 0, renewed = false;

const length = () => store.session.frames;
const x = (frame) => left + ((frame + 0.5) / length()) * (canvas.clientWidth - left);
const frameAt = (clientX) => Math.floor(((clientX - canvas.getBoundingClientRect().left - left) / (canvas.clientWidth - left)) * length());

/** What the memory of the chosen object did on this frame; read here, drawn by the panel too. */
export function setMemory(record) {
  memory = record;
  draw();
}

function renew() {
  renewed = false;
  draw();
}

function draw() {
  if (!store.session) return;
  left = innerWidth <= 800 ? 8 : 96;
  const rows = TOP + Math.max(1, store.session.objects.length) * ROW, bottom = rows + (comparing() ? ROW : 0);
  const height = bottom + ARCS + CURVE, scale = devicePixelRatio;
  canvas.style.height = `${height}px`;
  const width = canvas.clientWidth, size = { width: Math.round(width * scale), height: Math.round(height * scale) };
  if (!renewed || ground.width !== size.width || ground.height !== size.height) {
    Object.assign(ground, size);
    drawGround(ground.getContext("2d"), scale, width, height, rows, bottom);
    renewed = true;
  }
  Object.assign(canvas, size);
  const pen = canvas.getContext("2d");
  pen.drawImage(ground, 0, 0);
  pen.scale(scale, scale);
  held(pen, TOP, bottom);
  arcs(pen, bottom + 2);
  pen.fillStyle = "#fff"; pen.fillRect(x(store.frame) - 1, 0, 2, height);
  canvas.setAttribute("aria-valuemax", length() - 1);
  canvas.setAttribute("aria-valuenow", store.frame);
}

function drawGround(pen, scale, width, height, rows, bottom) {
  pen.scale(scale, scale);
  pen.fillStyle = "#12151a"; pen.fillRect(left, 0, width - left, height);
  pen.font = "11px system-ui, sans-serif";
  ticks(pen, width);
  store.session.objects.forEach((object, row) => objectRow(pen, object, TOP + row * ROW, width));
  if (comparing()) differenceRow(pen, rows, width);
  label(pen, "reads", bottom + 6, "#7cc4ff");
  curves(pen, bottom + ARCS, width);
}

function ticks(pen, width) {
  const wanted = length() / Math.max(2, Math.floor((width - left) / 70));
  const step = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000].find((s) => s >= wanted) || 100000;
  pen.fillStyle = "#aeb7c6";
  for (let f = 0; f < length(); f += step) {
    pen.fillRect(x(f), TOP - 5, 1, 5);
    pen.fillText(f, Math.min(x(f) + 3, width - 30), 11);
  }
}

function label(pen, text, y, ink = "#eef1f6") {
  if (left < 50) return;
  pen.fillStyle = ink;
  pen.fillText(text.length > 13 ? `${text.slice(0, 12)}…` : text, 18, y + 15);
}

/** Calls `paint(position, width, values)` for every column of pixels that has tracked frames of an object. */
function columns(id, width, paint) {
  const cell = (width - left) / length(), byColumn = new Map();
  for (const [frame, summary] of store.views[store.run]) {
    const values = summary[id];
    if (!values) continue;
    const at = cell >= 1 ? frame : Math.floor(frame * cell);
    if (!byColumn.has(at)) byColumn.set(at, []);
    byColumn.get(at).push(values);
  }
  for (const [at, values] of byColumn) paint(cell >= 1 ? left + at * cell : left + at, Math.max(1, cell - (cell > 4 ? 1 : 0)), values);
}

function objectRow(pen, object, y, width) {
  const chosen = object.id === store.object;
  pen.fillStyle = chosen ? "#232933" : "#191d24"; pen.fillRect(left, y + 1, width - left, ROW - 2);
  pen.fillStyle = color(object.id);
  if (left > 50) pen.fillRect(2, y + 6, 11, 11);
  label(pen, object.name, y, chosen ? "#fff" : "#c6cedb");
  const marks = [];
  columns(object.id, width, (at, size, values) => {
    const present = values.filter((v) => v[2]), iou = present.length ? Math.min(...present.map((v) => v[0])) : 0;
    const bar = present.length ? 3 + (ROW - 8) * Math.max(0, Math.min(1, iou)) : 2;
    pen.fillStyle = present.length ? color(object.id) : "#7d8797";
    pen.fillRect(at, y + ROW - 3 - bar, size, bar);
    if (values.some((v) => v[5] > 0)) marks.push(at + size / 2);
  });
  pen.fillStyle = "#ffffffb0";
  if (marks.length < 400) for (const at of marks) pen.fillRect(at - 0.75, y + 2, 1.5, 4);
  for (const [frame, byObject] of Object.entries(store.session.prompts)) if (byObject[object.id]) diamond(pen, x(Number(frame)), y + 8, 5);
}

function diamond(pen, at, y, r) {
  pen.beginPath(); pen.moveTo(at, y - r); pen.lineTo(at + r, y); pen.lineTo(at, y + r); pen.lineTo(at - r, y); pen.closePath();
  pen.fillStyle = "#ffd166"; pen.fill(); pen.lineWidth = 1; pen.strokeStyle = "#12151a"; pen.stroke();
}

function differenceRow(pen, y, width) {
  label(pen, "difference", y, "#ff9de2");
  const cell = Math.max(1, (width - left) / length());
  pen.fillStyle = "#ff40c8";
  for (const [frame, iou] of Object.entries(store.differences)) {
    const bar = (ROW - 4) * (1 - iou);
    pen.fillRect(x(Number(frame)) - cell / 2, y + ROW - 2 - bar, Math.max(1, cell - 1), bar);
  }
}

function held(pen, top, bottom) {
  if (!memory) return;
  const row = store.session.objects.findIndex((o) => o.id === store.object);
  pen.strokeStyle = "#7cc4ff"; pen.lineWidth = 1.5;
  for (const entry of memory.entries) if (entry.frame !== null && entry.tokens) pen.strokeRect(x(entry.frame) - 3, top + row * ROW + 3, 6, ROW - 6);
  pen.fillStyle = "#ffffff14"; pen.fillRect(x(store.frame) - 3, top, 6, bottom - top);
}

function arcs(pen, y) {
  if (!memory) return;
  const shares = new Map();
  for (const r of memory.readings) {
    if (r.frame !== null) shares.set(r.frame, (shares.get(r.frame) || 0) + (r.mass ?? 0.05) / Math.max(1, memory.pathways));
  }
  pen.strokeStyle = "#7cc4ff"; pen.lineCap = "round";
  for (const [frame, share] of shares) {
    const from = x(store.frame), to = x(frame), depth = Math.min(ARCS - 4, 8 + Math.abs(from - to) / 6);
    pen.globalAlpha = 0.45 + 0.55 * Math.min(1, share); pen.lineWidth = 1 + 7 * share;
    pen.beginPath(); pen.moveTo(from, y); pen.bezierCurveTo(from, y + depth, to, y + depth, to, y); pen.stroke();
  }
  pen.globalAlpha = 1;
}

/** Bytes and tokens held after every frame, each on its own scale, whose top is written on the left. */
function curves(pen, y, width) {
  pen.fillStyle = "#191d24"; pen.fillRect(left, y, width - left, CURVE);
  const bytes = curve(pen, y, 4, "#a3e635"), tokens = curve(pen, y, 3, "#f0abfc", [5, 3]);
  label(pen, bytes ? `≤ ${size(bytes)}` : "bytes", y - 2, "#a3e635");
  label(pen, tokens ? `≤ ${tokens} tokens` : "tokens", y + 14, "#f0abfc");
}

function curve(pen, y, value, colour, dash = []) {
  const points = [];
  for (const [frame, summary] of store.views[store.run]) if (summary[store.object]?.[4]) points.push([frame, summary[store.object][value]]);
  points.sort((a, b) => a[0] - b[0]);
  const most = points.reduce((top, point) => Math.max(top, point[1]), 0);
  pen.strokeStyle = colour; pen.lineWidth = 1.5; pen.setLineDash(dash); pen.beginPath();
  points.forEach(([frame, amount], i) => {
    const at = y + CURVE - 3 - (CURVE - 7) * (amount / Math.max(1, most));
    if (i && frame - points[i - 1][0] <= 1) pen.lineTo(x(frame), at);
    else pen.moveTo(x(frame), at);
  });
  pen.stroke();
  pen.setLineDash([]);
  return most;
}

export const size = (bytes) => (bytes >= 1e6 ? `${(bytes / 1e6).toFixed(1)} MB` : `${Math.round(bytes / 1e3)} kB`);

async function fillStrip() {
  const mine = ++token, count = Math.max(3, Math.floor(strip.clientWidth / 74));
  const wanted = [...new Set(Array.from({ length: count }, (_, i) => Math.floor(((i + 0.5) * length()) / count)))];
  strip.replaceChildren(...wanted.map((index) => {
    const image = document.createElement("img");
    Object.assign(image, { alt: "", title: `frame ${index}`, draggable: false });
    image.addEventListener("click", () => show(index));
    return image;
  }));
  for (const [i, index] of wanted.entries()) {
    try {
      await thumbs.get(index); // waits for the index of a long file
    } catch {
      continue;
    }
    if (mine !== token) return;
    strip.children[i].src = `${base()}/frame/${index}?width=160`;
  }
}

/** A thumbnail of the frame under the pointer. */
async function preview(event) {
  const frame = store.session ? frameAt(event.clientX) : -1;
  hover.hidden = frame < 0 || frame >= length();
  if (hover.hidden || hover.dataset.frame === String(frame)) return place(event.clientX);
  hover.dataset.frame = frame;
  hover.querySelector("span").textContent = `frame ${frame}`;
  place(event.clientX);
  const { key } = store;
  await wait(80); // a click comes first, and a pointer that moves on wants none
  await frames.get(store.frame).catch(() => {});
  if (hover.dataset.frame !== String(frame)) return;
  await thumbs.get(frame).catch(() => {});
  if (hover.dataset.frame === String(frame) && key === store.key) hover.querySelector("img").src = `${base()}/frame/${frame}?width=160`;
}

function place(clientX) {
  hover.style.left = `${Math.max(4, Math.min(innerWidth - 168, clientX - 82))}px`;
}

export function setUp() {
  const seek = (event) => { if (store.session) show(frameAt(event.clientX)); };
  canvas.addEventListener("pointerdown", (event) => { canvas.setPointerCapture(event.pointerId); seek(event); });
  canvas.addEventListener("pointermove", (event) => { if (event.buttons) seek(event); preview(event); });
  canvas.addEventListener("pointerleave", () => { hover.hidden = true; });
  store.on("frame", draw);
  store.on("object session opened differences", renew);
  let counted = 0;
  store.on("opened", () => { counted = length(); fillStrip(); });
  store.on("session", () => {
    const isLonger = store.session.live ? length() > 1.5 * counted : store.session.exact && counted !== length();
    if (isLonger) { counted = length(); fillStrip(); }
  });
  addEventListener("resize", () => { if (store.session) { renew(); fillStrip(); } });
  document.getElementById("legend").innerHTML = [
    ['<path d="M5 0l5 5-5 5-5-5z" fill="#ffd166"/>', "prompt"],
    ['<rect y="3" width="10" height="7" fill="#4aa3ff"/>', "predicted IoU"],
    ['<rect y="8" width="10" height="2" fill="#7d8797"/>', "absent"],
    ['<rect x="1" y="1" width="8" height="8" fill="none" stroke="#7cc4ff" stroke-width="1.5"/>', "map held now"],
    ['<path d="M0 1q5 12 10 0" fill="none" stroke="#7cc4ff" stroke-width="2"/>', "read now, by share of attention"],
    ['<rect x="4" width="2" height="6" fill="#fff"/>', "an entry left"],
    ['<path d="M0 9L5 3l5 2" fill="none" stroke="#a3e635" stroke-width="1.5"/>', "bytes held"],
    ['<path d="M0 9L5 3l5 2" fill="none" stroke="#f0abfc" stroke-width="1.5" stroke-dasharray="3 2"/>', "tokens held"],
  ].map(([shape, text]) => `<li><svg width="11" height="11" viewBox="0 0 11 11">${shape}</svg>${text}</li>`).join("");
}
