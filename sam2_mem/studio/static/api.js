// Requests to the server. Addresses are relative, so that they keep the token that the page was opened with.

export class Refused extends Error {}

async function ask(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path, options);
  } catch {
    throw new Refused("The studio does not answer; is it still running? What was exported or saved is on disk: start it again, and open the session.");
  }
  if (answer.ok) return answer;
  const text = await answer.text();
  let detail = text.trim() || `${answer.status} ${answer.statusText}`;
  try {
    const body = JSON.parse(text);
    detail = typeof body.detail === "string" ? body.detail : body.detail.map((d) => `${d.loc.join(".")}: ${d.msg}`).join("; ");
  } catch { /* plain text */ }
  throw Object.assign(new Refused(detail), { status: answer.status });
}

export const get = async (path) => (await ask(path)).json();
export const remove = async (path) => (await ask(path, { method: "DELETE" })).json();
export const post = async (path, body = {}) =>
  (await ask(path, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) })).json();

/** Send a file as it is. */
export const sendFile = async (path, file) => (await ask(path, { method: "POST", headers: { "content-type": "application/octet-stream" }, body: file })).json();

export const wait = (milliseconds) => new Promise((done) => setTimeout(done, milliseconds));

/** A picture; waits while the file is still being indexed up to its frame. */
export async function picture(path, patience = 120) {
  for (let attempt = 0; ; attempt++) {
    try {
      const blob = await (await ask(path)).blob();
      return await createImageBitmap(blob, { colorSpaceConversion: "none" });
    } catch (error) {
      if (error.status !== 503 || attempt >= patience) throw error;
      await wait(250);
    }
  }
}

/** A part of a picture, and where it lies. */
export async function part(path) {
  const answer = await ask(path);
  const [x, y] = answer.headers.get("x-origin").split(",").map(Number);
  return { x, y, bitmap: await createImageBitmap(await answer.blob(), { colorSpaceConversion: "none" }) };
}

/** Keeps the newest entries of what a function gives for a key. */
export class Cache {
  constructor(size, load) {
    Object.assign(this, { size, load, entries: new Map() });
  }
  get(key) {
    let entry = this.entries.get(key);
    if (entry) this.entries.delete(key);
    else {
      entry = this.load(key);
      entry.catch?.(() => this.entries.delete(key));
    }
    this.entries.set(key, entry);
    if (this.entries.size > this.size) this.entries.delete(this.entries.keys().next().value);
    return entry;
  }
  clear() {
    this.entries.clear();
  }
}
