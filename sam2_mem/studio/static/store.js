// What the page knows: the session as the server last told it, and what is chosen here. Parts listen for events by name.

import { Cache, Refused, get, part, picture, post, wait } from "./api.js";

const target = new EventTarget();

export const store = {
  start: null, key: null, session: null, frame: 0, object: 1, run: 0, tool: "plus", opacity: 0.45,
  page: Math.random().toString(36).slice(2), followingCamera: false,
  views: [new Map(), new Map()], versions: [new Map(), new Map()], differences: {}, following: false,
  on(name, listener) { for (const part of name.split(" ")) target.addEventListener(part, (event) => listener(event.detail)); },
  emit(name, detail) { target.dispatchEvent(new CustomEvent(name, { detail })); },
};

export const base = () => `api/sessions/${store.key}`;
export const color = (id) => store.start.colors[(id - 1) % store.start.colors.length];
export const comparing = () => store.session !== null && store.session.policies.length > 1;
export const promptOf = (frame, id) => store.session?.prompts[frame]?.[id];

/** Pixels of the page that a picture is wide, in steps. */
const detail = () => Math.min(1280, 320 * Math.ceil((document.getElementById("views").clientWidth * devicePixelRatio) / 320) || 1280);
export const frames = new Cache(60, (index) => picture(`${base()}/frame/${index}?width=${detail()}`));
export const thumbs = new Cache(400, (index) => picture(`${base()}/frame/${index}?width=160`));
const maskPictures = new Cache(60, async (key) => {
  const [run, index] = key.split(":");
  return ids(await part(`${base()}/mask/${index}?run=${run}&crop=true`));
});
/** Object ids of a frame under a run: one byte for every pixel of the part that has any; null where there are none. */
export async function masks(run, index) {
  if (!store.views[run].has(index)) return null;
  return maskPictures.get(`${run}:${index}:${store.versions[run].get(index)}`);
}

const paper = new OffscreenCanvas(1, 1);
function ids({ x, y, bitmap: { width, height }, bitmap }) {
  Object.assign(paper, { width, height });
  const pen = paper.getContext("2d", { willReadFrequently: true });
  pen.drawImage(bitmap, 0, 0);
  const pixels = new Uint32Array(pen.getImageData(0, 0, width, height).data.buffer);
  return { x, y, width, height, data: Uint8Array.from(pixels) }; // the lowest byte is red
}

export function say(text, good = false) {
  store.emit("message", { text, good });
}

/** Do something that may be refused, and show the reason. */
export async function attempt(action) {
  try {
    return await action();
  } catch (error) {
    say(error instanceof Refused ? error.message : String(error));
    if (!(error instanceof Refused)) throw error;
  }
}

/** Go to a frame. What the user does ends the following of a pass. */
export function show(frame, following = false) {
  if (!store.session) return;
  store.following &&= following;
  store.followingCamera &&= following;
  const last = store.session.frames - 1;
  store.frame = Math.max(0, Math.min(last, Math.round(frame)));
  store.followingCamera ||= !following && store.session.live && frame >= last;
  store.emit("frame");
}

export function choose(id) {
  store.object = id;
  store.emit("object");
}

/** Whose memory is shown, where two runs are compared. */
export function chooseRun(run) {
  store.run = run;
  store.emit("object");
}

/** Stop what is running, so that something else can be done; but not the repeating of a session, which only Stop ends. */
export async function idle() {
  const kind = store.session?.job?.kind;
  if (kind === "replay" || kind === "policy") throw new Refused("The steps of the session are being repeated: wait for the end, or press Stop.");
  if (store.session?.job) await post(`${base()}/stop`);
}

/** Tell the server of a prompt, a prompt taken back, or a removed object. */
export async function step(values) {
  store.followingCamera = false;
  await attempt(async () => {
    await idle();
    say("");
    const { absent } = await post(`${base()}/step`, values);
    if (absent) say("The network sees no object there on this frame. Draw its outline, which is taken as it is, or a box.");
  });
}

let watching = 0, wide = 0;
addEventListener("resize", () => {
  if (!store.session || detail() === wide) return;
  wide = detail();
  frames.clear();
  store.emit("frame");
});

export async function open(path, policy) {
  const opened = await post("api/sessions", { path, policy });
  attach(opened.key);
}

export function attach(key) {
  Object.assign(store, { key, session: null, frame: 0, object: 1, run: 0, differences: {}, followingCamera: false });
  history.replaceState(null, "", `#${key}`);
  for (const part of [...store.views, ...store.versions]) part.clear();
  for (const part of [frames, thumbs, maskPictures]) part.clear();
  watch(++watching, key);
}

/** Follow the session: one open question for what is new, again and again. */
async function watch(mine, key) {
  let since = 0, failures = 0;
  while (mine === watching) {
    try {
      const indexing = store.session && (!store.session.exact || store.session.indexed < store.session.frames);
      const patience = since ? (indexing && !store.session.live ? 0.3 : 10) : 0;
      const news = await get(`api/sessions/${key}/changes?since=${since}&wait=${patience}&page=${store.page}`);
      if (mine !== watching) return;
      failures = 0;
      take(news);
      since = news.version;
    } catch (error) {
      if (mine !== watching) return;
      say(error.message);
      if (error.status === 400 || ++failures > 30) return;
      await wait(1000);
    }
  }
}

function take(news) {
  const first = store.session === null, before = store.session;
  store.session = news.state;
  const changed = [];
  news.frames.forEach((byFrame, run) => {
    for (const [text, summary] of Object.entries(byFrame)) {
      const index = Number(text);
      store.versions[run].set(index, news.version);
      if (summary === null) store.views[run].delete(index);
      else store.views[run].set(index, summary);
      changed.push(index);
    }
  });
  if (news.state.message && news.state.messages !== before?.messages) say(news.state.message);
  if (!comparing()) store.run = 0;
  const ids = news.state.objects.map((o) => o.id);
  if (first) store.emit("opened");
  if (first && ids.length) choose(ids[0]);
  store.emit("session", { changed, finished: before?.job && !news.state.job ? before.job : null });
  if (changed.includes(store.frame) || first) store.emit("frame");
  if (first && store.session.live) store.followingCamera = true;
  if (store.session.live && store.followingCamera && !store.session.job) show(Infinity, true);
}
