// The list of objects, the tools, and what is said below the picture.

import { post } from "./api.js";
import { attempt, base, choose, color, promptOf, step, store } from "./store.js";

const at = (id) => document.getElementById(id);
const list = at("objects");
let added = null;

export function objects() {
  const known = store.session ? store.session.objects : [];
  const ids = known.map((o) => o.id);
  const fresh = added !== null && !ids.includes(added) ? added : ids.length ? null : 1;
  return fresh === null ? known : [...known, { id: fresh, name: `object ${fresh}`, fresh: true }];
}

export function addObject() {
  if (!store.session) return;
  const used = new Set(store.session.objects.map((o) => o.id));
  added = 1;
  while (used.has(added)) added++;
  choose(added);
  fill();
}

function row(object) {
  const item = document.createElement("li");
  item.setAttribute("aria-current", String(object.id === store.object));
  const swatch = document.createElement("i");
  swatch.style.background = color(object.id);
  const name = Object.assign(document.createElement("input"), { type: "text", value: object.name, ariaLabel: `name of object ${object.id}`, maxLength: 60 });
  name.disabled = Boolean(object.fresh);
  name.addEventListener("change", () => attempt(() => post(`${base()}/name`, { obj_id: object.id, name: name.value })));
  name.addEventListener("keydown", (event) => { if (event.key === "Enter") name.blur(); });
  const gone = Object.assign(document.createElement("button"), { type: "button", textContent: "×", title: `Remove ${object.name}`, ariaLabel: `remove ${object.name}` });
  gone.hidden = Boolean(object.fresh);
  gone.addEventListener("click", (event) => { event.stopPropagation(); step({ kind: "remove", obj_id: object.id }); });
  const values = store.views[0].get(store.frame)?.[object.id];
  const words = document.createElement("small");
  words.textContent = object.fresh ? "click on it" : !values ? "no mask on this frame" : values[2] ? `IoU ${values[0].toFixed(2)} · score ${values[1].toFixed(1)}` : "absent here";
  item.append(swatch, name, gone, words);
  item.addEventListener("click", () => choose(object.id));
  return item;
}

function fill() {
  if (!store.session || list.contains(document.activeElement) && document.activeElement.tagName === "INPUT") return;
  const all = objects();
  if (!all.some((o) => o.id === store.object)) return choose(all[0].id);
  list.replaceChildren(...all.map(row));
  at("clear").disabled = !promptOf(store.frame, store.object);
}

export function setTool(tool) {
  store.tool = tool;
  for (const button of document.querySelectorAll("[data-tool]")) button.setAttribute("aria-checked", String(button.dataset.tool === tool));
}

export function clearFrame() {
  if (promptOf(store.frame, store.object)) step({ kind: "clear", frame: store.frame, obj_id: store.object });
}

export function setUp() {
  at("add").addEventListener("click", addObject);
  at("clear").addEventListener("click", clearFrame);
  for (const button of document.querySelectorAll("[data-tool]")) button.addEventListener("click", () => setTool(button.dataset.tool));
  at("opacity").addEventListener("input", (event) => { store.opacity = event.target.value / 100; store.emit("opacity"); });
  store.on("frame object session opened", fill);
  store.on("opened", () => { added = null; });
  setTool("plus");
}
