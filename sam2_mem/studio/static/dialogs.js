// What opens over the page: files, the memory policy and its fields, exports, keys.

import { Refused, get, post, remove, sendFile } from "./api.js";
import { attempt, attach, base, comparing, idle, open, say, show, store } from "./store.js";

const at = (id) => document.getElementById(id);
const make = (tag, properties = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
};

// -- files ------------------------------------------------------------------------------------------------------------

const KINDS = { folder: "folder", images: "frames", video: "video", session: "saved session" };

async function list(path) {
  const { path: here, items } = await get(`api/files?path=${encodeURIComponent(path)}`);
  at("place").textContent = `${store.start.folder}/${here}`;
  const entry = (text, kind, action) => {
    const button = make("button", { type: "button", textContent: text }, make("small", { textContent: kind }));
    button.addEventListener("click", () => attempt(action));
    return make("li", {}, button);
  };
  const rows = items.map((item) => entry(item.name, KINDS[item.kind], () => (item.kind === "folder" ? list(item.path) : start(item.path))));
  if (here) rows.unshift(entry("..", "up", () => list(here.split("/").slice(0, -1).join("/"))));
  const running = path === "" ? Object.entries(store.start.sessions).map(([key, name]) => entry(name, "open already", async () => { at("files").close(); attach(key); })) : [];
  at("listing").replaceChildren(...running, ...rows);
  if (!rows.length && !running.length) at("listing").append(make("li", { textContent: "No video, no folder of frames and no saved session here." }));
}

/** Do something in the dialog; what is refused is said there. */
async function inDialog(id, action) {
  at(id).textContent = "";
  try {
    await action();
  } catch (error) {
    at(id).textContent = error.message;
    if (!(error instanceof Refused)) throw error;
  }
}

async function upload() {
  const [file] = at("upload").files;
  if (!file) return;
  at("files-message").textContent = `Sending ${file.name}…`;
  const { path } = await sendFile(`api/uploads?name=${encodeURIComponent(file.name)}`, file);
  at("upload").value = "";
  await start(path);
}

async function openCamera() {
  const { key } = await post("api/camera", { index: Number(at("camera-index").value) });
  at("files").close();
  say("");
  attach(key);
}

async function start(path) {
  at("files").close();
  say("");
  await open(path);
}

export async function openFiles() {
  at("files-message").textContent = "";
  at("files").showModal();
  store.start = await get("api/start");
  await list("");
}

// -- policies ---------------------------------------------------------------------------------------------------------

let form = [];

async function showPolicy(name, values = {}) {
  at("policy-list").value = name;
  const { about, fields } = await get(`api/policies/${name}`);
  at("policy-about").textContent = about;
  form = fields;
  at("fields").replaceChildren(...form.map((field) => fieldRow(field, values[field.name] ?? field.value)));
}

function fieldRow(field, value) {
  let input;
  if (field.kind === "bool") input = make("input", { type: "checkbox", checked: value });
  else if (field.choices?.length) input = make("select", {}, ...field.choices.map((c) => make("option", { textContent: c, selected: c === value })));
  else input = make("input", { type: field.kind === "str" ? "text" : "number", value: value ?? "", placeholder: field.optional ? "none" : "" });
  if (field.kind === "int" || field.kind === "float") input.step = field.kind === "int" ? 1 : "any";
  input.name = field.name;
  const help = field.help ? [make("small", { textContent: field.help })] : [];
  return make("label", {}, make("span", { textContent: field.name }), input, ...help);
}

function fieldValues() {
  const values = {};
  for (const field of form) {
    const input = at("fields").querySelector(`[name="${field.name}"]`);
    const text = input.value.trim();
    const value = field.kind === "bool" ? input.checked : field.kind === "str" ? text : text === "" ? null : Number(text);
    const typed = field.optional && text === "" && field.kind !== "bool" ? null : value;
    if (typed !== field.value) values[field.name] = typed;
  }
  return values;
}

export async function openPolicies() {
  if (!store.session) return;
  const current = store.session.policies[0];
  at("end-compare").hidden = !comparing();
  at("policies").showModal();
  at("policy-message").textContent = "";
  const start = await get("api/start");
  options("network", Object.entries(start.networks), current.network);
  options("distiller", start.distillers.map((name) => [name, name]), current.distiller);
  options("bound", start.bounds.map((name) => [name, name]), current.bound);
  at("max-bytes").value = current.max_bytes === null ? "" : current.max_bytes / 1000;
  boundChanged();
  await showPolicy(current.name, current.fields);
}

function options(id, entries, chosen) {
  at(id).replaceChildren(...entries.map(([value, text]) => make("option", { value, textContent: text, selected: value === chosen })));
}

const boundChanged = () => { at("max-bytes").disabled = at("bound").value === "none"; };

function parts() {
  const kilobytes = at("max-bytes").value.trim();
  const bytes = at("max-bytes").disabled || kilobytes === "" ? null : Math.round(1000 * Number(kilobytes));
  return { network: at("network").value, distiller: at("distiller").value, bound: at("bound").value, max_bytes: bytes };
}

async function send(where) {
  const choice = { name: at("policy-list").value, fields: fieldValues(), ...parts() };
  await inDialog("policy-message", async () => {
    await idle();
    say("");
    await post(`${base()}/${where}`, choice);
    at("policies").close();
  });
}

// -- exports ----------------------------------------------------------------------------------------------------------

const EXPORTS = [
  ["png", "PNG masks", "one picture of object ids for every frame", true],
  ["png_per_object", "PNG per object", "objects may overlap", false],
  ["rle", "COCO run lengths", "one JSON file", true],
  ["yolo", "YOLO polygons", "label files, pictures, data.yaml", false],
  ["overlay", "Overlay video", "the masks drawn in, H.264", false],
  ["davis2017", "DAVIS data set", "pictures, masks of ids, list of videos", false],
  ["youtubevos", "YouTube-VOS data set", "the same with its meta file", false],
  ["sav", "SA-V data set", "pictures, one mask per object", false],
  ["session", "Session", "opens here again as it is now; memory is in a second file, .session.state", true],
  ["script", "Python script", "repeats the session", false],
];

async function write() {
  const kinds = [...at("kinds").querySelectorAll("input:checked")].map((input) => input.value);
  at("written").textContent = "Writing…";
  try {
    await idle();
    const { written } = await post(`${base()}/export`, { kinds });
    at("written").textContent = `Written:\n${written.join("\n")}`;
  } catch (error) {
    at("written").textContent = error.message;
  }
}

// -- memory through time ----------------------------------------------------------------------------------------------

export async function openCharts() {
  if (!store.session) return;
  const { frames, drawings } = await get(`${base()}/charts/${store.frame}?obj_id=${store.object}&run=${store.run}`);
  if (!drawings.length) return say("This object is not tracked around here yet.");
  at("drawings").innerHTML = drawings.map((svg) => `<div class="chart" tabindex="0">${svg}</div>`).join("");
  at("charts").showModal();
  const position = frames.indexOf(store.frame);
  for (const svg of at("drawings").querySelectorAll(".chart > svg")) {
    memoryCharts.keepLabels(svg.parentElement);
    memoryCharts.moveCursor(svg, position, Math.max(0, position) / frames.length);
    svg.addEventListener("click", (event) => {
      const wanted = frames[memoryCharts.positionAt(svg, event)];
      if (wanted === undefined) return;
      show(wanted);
      at("charts").close();
    });
  }
}

// -- keys -------------------------------------------------------------------------------------------------------------

export const KEYS = [
  ["← →", "one frame; with Shift ten"], ["Home End", "first, last frame"], ["[ ]", "previous, next prompted frame"], ["Space", "play"],
  ["P N B L", "tool: on it, beside it, box, outline"], ["1 … 9", "choose an object"], ["A", "add an object"],
  ["C", "click with the keyboard: arrows move, Enter clicks"], ["T", "track forwards; Shift+T backwards"], ["Esc", "stop"],
  ["Ctrl+Z", "undo; with Shift redo"], ["Delete", "take back what was said on this frame"], [", .", "one frame back, on"], ["I", "memory through time"],
  ["O M E", "open, memory policy, export"], ["?", "this list"],
];

export function setUp() {
  at("policy-list").replaceChildren(...store.start.policies.map((p) => make("option", { textContent: p })));
  at("policy-list").addEventListener("change", (event) => showPolicy(event.target.value));
  at("upload").addEventListener("change", () => inDialog("files-message", upload));
  at("camera").addEventListener("click", () => inDialog("files-message", openCamera));
  at("bound").addEventListener("change", boundChanged);
  at("use").addEventListener("click", () => send("policy"));
  at("compare").addEventListener("click", () => send("compare"));
  at("end-compare").addEventListener("click", () => attempt(async () => { await remove(`${base()}/compare`); at("policies").close(); }));
  at("kinds").replaceChildren(...EXPORTS.map(([value, name, words, checked]) => make("label", {},
    make("input", { type: "checkbox", value, checked }), name, make("small", { textContent: ` – ${words}` }))));
  at("write").addEventListener("click", write);
  at("key-list").replaceChildren(...KEYS.flatMap(([keys, words]) => [
    make("dt", {}, ...keys.split(" ").flatMap((key) => [make("kbd", { textContent: key }), " "])), make("dd", { textContent: words })]));
}

export function openExports() {
  if (!store.session) return;
  at("written").textContent = "";
  at("exports").showModal();
}
