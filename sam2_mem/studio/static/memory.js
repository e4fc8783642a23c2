// What the memory of the chosen object holds and reads on this frame, and why.

import { get } from "./api.js";
import { base, comparing, frames, show, step, store } from "./store.js";
import { setMemory, size } from "./timeline.js";

const element = (tag, properties = {}, ...children) => {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
};
const at = (id) => document.getElementById(id);
let kinds = {};
let turn = 0;

/** The colour of a kind of entry, as in the charts and on the inspection page. */
const style = (kind) => kinds[kind]?.[1] || "#4b5563";

const slotName = (slot) => (slot === null ? "no slot" : slot === -1 ? "prompt" : slot === -2 ? "merged" : `slot ${Number(slot.toFixed(1))}`);
const percent = (share) => `${(100 * share).toFixed(share < 0.1 ? 1 : 0)} %`;

function reasons(history, frame) {
  const past = history[frame];
  if (!past) return "";
  const entered = past.entered ? `entered on ${past.entered.on}: ${past.entered.reason}` : "";
  const left = past.left ? `${past.left.action} on ${past.left.on}: ${past.left.reason}` : "";
  return [entered, left].filter(Boolean).join("\n");
}

function card(entry, words, history, share) {
  const { frame, kind } = entry;
  const inside = frame === null
    ? element("span", { className: "several", textContent: `${entry.tokens} tokens` })
    : element("img", { src: `${base()}/frame/${frame}?width=160`, alt: `frame ${frame}`, loading: "lazy" });
  const name = element("span", { className: "kind", textContent: frame === null ? kind : `${kind} ${frame}` });
  name.style.background = style(kind);
  const body = [inside, name, element("span", { className: "words" }, ...words)];
  if (share !== undefined) {
    const bar = element("i");
    bar.style.width = `${100 * Math.min(1, share ?? 0)}%`;
    body.push(element("span", { className: "share" }, bar));
  }
  const button = element("button", { type: "button", title: reasons(history, frame) || kind }, ...body);
  if (frame !== null) button.addEventListener("click", () => show(frame));
  return element("li", {}, button);
}

/** Readings of one entry joined: its share is the mean over pathways. */
function joined(record) {
  const byEntry = new Map();
  for (const r of record.readings) {
    const key = r.frame === null ? `${r.kind}` : r.frame;
    const known = byEntry.get(key) || { ...r, mass: 0, pathways: new Set() };
    known.mass = r.mass === null || known.mass === null ? null : known.mass + r.mass / Math.max(1, record.pathways);
    known.pathways.add(r.pathway);
    byEntry.set(key, known);
  }
  return [...byEntry.values()].sort((a, b) => (b.mass ?? 0) - (a.mass ?? 0));
}

function fill(record) {
  const empty = (text) => element("li", { className: "none", textContent: text });
  kinds = record?.kinds || {};
  const values = store.views[store.run].get(store.frame)?.[store.object];
  const facts = [];
  if (values) {
    const mask = store.session.prompts[store.frame]?.[store.object] ? "prompted" : values[2] ? "tracked" : "object absent";
    facts.push(["mask", mask], ["predicted IoU", values[0].toFixed(2)], ["object score", values[1].toFixed(1)]);
  }
  if (record) {
    facts.push(["held", `${size(record.bytes)}, ${record.tokens} tokens`], ["pointers read", record.pointers]);
    if (record.pathways > 1) facts.push(["pathways", record.pathways]);
  }
  at("facts").replaceChildren(...facts.flatMap(([k, v]) => [element("dt", { textContent: k }), element("dd", { textContent: v })]));
  const read = record ? joined(record) : [];
  at("read").replaceChildren(...(read.length ? read.map((r) => card(r, [
    element("b", { textContent: r.mass === null ? "" : percent(r.mass) }), ` ${slotName(r.slot)}`,
    ...(r.pathways.size > 1 || !r.pathways.has(0) ? [`, pathways ${[...r.pathways].join(", ")}`] : []),
  ], record.history, r.mass)) : [empty(record ? "Nothing: a prompted frame, or the first one." : "Not tracked on this frame yet.")]));
  const taken = new Set(read.map((r) => r.frame));
  const held = (record?.entries || []).filter((e) => !taken.has(e.frame));
  at("held").replaceChildren(...(held.length ? held.slice(0, 24).map((e) => card(e, [
    e.score === null ? e.tokens ? `${e.tokens} tokens` : "no map" : `${e.score_name} ${Number(e.score.toFixed(2))}`,
  ], record.history)) : [empty("nothing")]));
  at("events").replaceChildren(...(record?.events.length ? record.events.map((e) => element("li", {},
    element("b", { textContent: `${e.action}${e.frame === null ? "" : ` ${e.frame}`}` }),
    `: ${e.reason}${e.score === null ? "" : ` (${Number(e.score.toFixed(3))}${e.limit === null ? "" : `, limit ${Number(e.limit.toFixed(3))}`})`}`,
  )) : [element("li", { textContent: "nothing" })]));
}

const chosen = () => store.session.objects.find((o) => o.id === store.object);

function heading() {
  at("memory-of").textContent = chosen() ? `of ${chosen().name}${comparing() ? `, ${store.session.policies[store.run].label}` : ""}, frame ${store.frame}` : "";
}

/** Masks that the object could have on the frame tracked last; one click takes another one. */
async function fillAlternatives(mine) {
  const { job, reached } = store.session, box = at("other-masks");
  const possible = !job && store.run === 0 && reached === store.frame && chosen();
  const news = possible ? await get(`${base()}/alternatives?obj_id=${store.object}`).catch(() => null) : null;
  if (mine !== turn) return;
  box.hidden = !news || news.frame !== store.frame || news.alternatives.length < 2;
  if (box.hidden) return;
  at("alternatives").replaceChildren(...news.alternatives.map((a) => {
    const name = element("span", { className: "kind", textContent: a.shown ? "shown" : `mask ${a.number + 1}` });
    name.style.background = a.shown ? "#1d4ed8" : "#4b5563";
    const words = element("span", { className: "words" }, element("b", { textContent: `IoU ${a.iou.toFixed(2)}` }), a.pathway ? ` pathway ${a.pathway}` : "");
    const button = element("button", { type: "button", title: "show this mask, and remember it" }, element("img", { src: a.picture, alt: `mask ${a.number + 1}` }), name, words);
    button.addEventListener("click", () => step({ kind: "choose", obj_id: store.object, number: a.number }));
    return element("li", {}, button);
  }));
}

async function update() {
  if (!store.session) return;
  const mine = ++turn, object = chosen();
  heading();
  await frames.get(store.frame).catch(() => {}); // the picture comes first
  if (mine !== turn) return;
  const { record } = object ? await get(`${base()}/memory/${store.frame}?obj_id=${store.object}&run=${store.run}`) : { record: null };
  if (mine !== turn) return;
  fill(record);
  setMemory(record);
  await fillAlternatives(mine);
}

export function setUp() {
  store.on("frame object", update);
  store.on("session", ({ changed, finished }) => {
    heading();
    if (finished || changed.includes(store.frame)) update();
  });
}
