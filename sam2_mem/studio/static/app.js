// Puts the parts together: buttons, keys, playing.

import { get, post, wait } from "./api.js";
import * as dialogs from "./dialogs.js";
import * as memory from "./memory.js";
import * as objects from "./objects.js";
import * as stage from "./stage.js";
import { attempt, attach, base, choose, comparing, frames, idle, open, say, show, store } from "./store.js";
import * as timeline from "./timeline.js";

const at = (id) => document.getElementById(id);
let playing = false;

async function track(reverse) {
  if (!store.session?.objects.length) return say("Click on an object first.");
  await attempt(async () => {
    await idle();
    store.following = true;
    say("");
    await post(`${base()}/track`, { frame: store.frame, reverse });
  });
}

const stop = () => attempt(() => store.session?.job && post(`${base()}/stop`));
const history = (verb) => attempt(async () => { await idle(); say(""); await post(`${base()}/${verb}`); });

async function play() {
  playing = !playing;
  at("play").textContent = playing ? "Pause" : "Play";
  while (playing && store.session && store.frame < store.session.frames - 1) {
    const due = performance.now() + 1000 / store.session.fps;
    await frames.get(store.frame + 1).catch(() => {});
    if (!playing) break;
    show(store.frame + 1);
    await wait(Math.max(0, due - performance.now()));
  }
  playing = false;
  at("play").textContent = "Play";
}

function prompted(direction) {
  const known = Object.keys(store.session?.prompts || {}).map(Number).filter((f) => direction * (f - store.frame) > 0);
  if (known.length) show(known.reduce((a, b) => (direction * (a - b) < 0 ? a : b)));
}

const KEYS = {
  ArrowLeft: (e) => show(store.frame - (e.shiftKey ? 10 : 1)), ArrowRight: (e) => show(store.frame + (e.shiftKey ? 10 : 1)),
  Home: () => show(0), End: () => show(Infinity), " ": play, "[": () => prompted(-1), "]": () => prompted(1),
  p: () => objects.setTool("plus"), n: () => objects.setTool("minus"), b: () => objects.setTool("box"), l: () => objects.setTool("outline"),
  a: objects.addObject, c: stage.toggleCursor, t: (e) => track(e.shiftKey), Escape: stop, Delete: objects.clearFrame, Backspace: objects.clearFrame,
  i: () => attempt(dialogs.openCharts), ",": () => show(store.frame - 1), ".": () => show(store.frame + 1),
  o: () => attempt(dialogs.openFiles), m: () => attempt(dialogs.openPolicies), e: dialogs.openExports, "?": () => at("keys").showModal(),
};

function key(event) {
  if (event.target.closest("input[type=text], input[type=number], select, dialog[open]")) return;
  if (stage.cursorKey(event)) return event.preventDefault();
  if (event.ctrlKey || event.metaKey) {
    if (event.key.toLowerCase() !== "z" || event.altKey) return;
    history(event.shiftKey ? "redo" : "undo");
    return event.preventDefault();
  }
  if (event.altKey || (event.key === " " && event.target.tagName === "BUTTON")) return;
  const number = Number(event.key);
  const action = number >= 1 && number <= 9 ? () => objects.objects()[number - 1] && choose(objects.objects()[number - 1].id) : KEYS[event.key] || KEYS[event.key.toLowerCase()];
  if (!action || (event.target.type === "range" && event.key.startsWith("Arrow"))) return;
  action(event);
  event.preventDefault();
}

function progress() {
  const { job, exact, indexed, frames: length } = store.session;
  at("stop").hidden = !job;
  at("stop-camera").hidden = !store.session.live;
  at("tabs").hidden = store.session.pages < 2;
  at("track").hidden = at("track-back").hidden = Boolean(job);
  const indexing = !exact && !store.session.live && indexed < length;
  at("progress").hidden = !job && !indexing;
  const [done, total, text] = job ? [job.done, job.total, `${WORDS[job.kind] || job.kind} · ${job.done} of ${job.total}`] : [indexed, length, `noting where ${length} frames are · ${indexed}`];
  at("progress").querySelector("i").style.width = `${Math.min(100, (100 * done) / Math.max(1, total))}%`;
  at("progress").querySelector("span").textContent = text;
}
const WORDS = { track: "tracking", replay: "repeating the session", policy: "tracking under the new policy", compare: "tracking under the other policy", export: "writing", prompt: "one moment" };

async function news({ finished }) {
  const { session } = store;
  progress();
  at("undo").disabled = !session.undo;
  at("redo").disabled = !session.redo;
  at("policy-name").textContent = session.policies.map((p) => p.label).join(" | ");
  const tracking = (session.job || finished)?.kind === "track";
  if (store.following && tracking && session.reached !== null && session.reached !== store.frame) show(session.reached, true);
  if (comparing() && finished) {
    store.differences = await get(`${base()}/differences`);
    store.emit("differences");
  }
  if (!comparing()) store.differences = {};
  document.body.dataset.job = session.job ? session.job.kind : "";
}

function wire() {
  const click = (id, action) => at(id).addEventListener("click", action);
  click("open", () => attempt(dialogs.openFiles)); click("open-big", () => attempt(dialogs.openFiles));
  click("through-time", () => attempt(dialogs.openCharts));
  click("stop-camera", () => attempt(() => post(`${base()}/camera/stop`)));
  click("policy", () => attempt(dialogs.openPolicies)); click("export", dialogs.openExports); click("help", () => at("keys").showModal());
  click("undo", () => history("undo")); click("redo", () => history("redo"));
  click("back", () => show(store.frame - 1)); click("next", () => show(store.frame + 1)); click("play", play);
  click("track", () => track(false)); click("track-back", () => track(true)); click("stop", stop);
  addEventListener("keydown", key);
  store.on("message", ({ text, good }) => {
    at("message").hidden = !text;
    at("message").textContent = text;
    at("message").classList.toggle("good", good);
  });
  store.on("opened", () => {
    enable(true);
    at("empty").hidden = true;
    for (const id of ["views", "transport", "time"]) at(id).hidden = false;
    at("video").textContent = at("video").title = store.session.video;
  });
  store.on("session", news);
  store.on("frame session", () => { at("position").textContent = store.session ? `frame ${store.frame} of ${store.session.frames - 1}` : "–"; });
}

function enable(open) {
  for (const id of ["add", "clear", "undo", "redo", "policy", "export"]) at(id).disabled = !open;
}

async function main() {
  enable(false);
  store.start = await get("api/start");
  wire();
  for (const part of [dialogs, objects, stage, timeline, memory]) part.setUp();
  at("note").hidden = !store.start.note;
  at("note").textContent = store.start.note;
  const running = Object.entries(store.start.sessions), wanted = location.hash.slice(1);
  const known = running.find(([key]) => key === wanted) || running.find(([, name]) => name === store.start.first) || running.at(-1);
  if (known) {
    attach(known[0]);
    say(`${known[1]} was open already, and is as it was left; what was being tracked went on.`, true);
  } else if (store.start.first) await open(store.start.first);
}

attempt(main);
