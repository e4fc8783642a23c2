"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const slider = document.getElementById("frame");
  const number = document.getElementById("number");
  const chooser = document.getElementById("object");
  const play = document.getElementById("play");
  const place = new Map(data.frames.map((frame, index) => [frame, index]));
  const sections = [...document.querySelectorAll(".policy")];
  let timer = null;

  const make = (tag, properties = {}, ...children) => {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);
    return element;
  };
  const picture = (policy, object, index, text) => {
    const box = make("span", { className: "picture" });
    box.style.aspectRatio = `${data.size[1]} / ${data.size[0]}`;
    if (index === undefined) return box;
    box.append(make("img", { src: `data:image/jpeg;base64,${data.pictures[index]}`, alt: text }));
    const mask = policy.objects[object] && policy.objects[object].masks[index];
    if (mask) box.append(make("img", { src: `data:image/png;base64,${mask}`, alt: "" }));
    return box;
  };
  const percent = (share) => `${(100 * share).toFixed(1)} %`;
  const slotName = (slot) => (slot === null ? "no slot" : slot < 0 ? "prompt slot" : `slot ${slot}`);
  const badge = (kind, text) => {
    const [letter, color] = data.kinds[kind] || ["?", "#333"];
    const label = make("span", { className: "kind" }, make("b", { textContent: letter }), text);
    label.style.background = color;
    return label;
  };
  const card = (policy, object, [frame, kind, slot, tokens, share, pathways]) => {
    const where = frame === null ? kind : `${kind} ${frame}`;
    const inside = frame === null
      ? make("span", { className: "several", textContent: `${tokens} tokens of several frames` })
      : picture(policy, object, place.get(frame), `frame ${frame} with its mask`);
    const words = [slotName(slot), `${tokens} tokens`];
    if (share !== null) words.push(`read ${percent(share)}`);
    if (pathways.length > 1 || pathways[0] > 0) words.push(`pathways ${pathways.join(", ")}`);
    const body = [inside, badge(kind, where), make("span", { className: "words", textContent: words.join(", ") })];
    if (share !== null) {
      const bar = make("i");
      bar.style.width = `${Math.min(100, 100 * share)}%`;
      body.push(make("span", { className: "mass" }, bar));
    }
    if (frame === null) return make("li", {}, ...body);
    const go = make("button", { type: "button", title: `go to frame ${frame}` }, ...body);
    go.addEventListener("click", () => show(place.get(frame)));
    return make("li", {}, go);
  };
  const facts = (note) => {
    const rows = [["tokens held", note.tokens], ["kB held", (note.bytes / 1000).toFixed(1)], ["pointers read", note.pointers]];
    if (note.score) {
      const [iou, objectness, present, prompted] = note.score;
      rows.unshift(["mask", prompted ? "prompted" : present ? "tracked" : "object absent"], ["predicted IoU", iou], ["object score", objectness]);
    }
    return make("dl", {}, ...rows.flatMap(([k, v]) => [make("dt", { textContent: k }), make("dd", { textContent: v })]));
  };
  const heldTable = (note) => {
    const head = ["entry", "kind", "tokens", "score", "pathways"];
    const rows = note.held.map(([frame, kind, tokens, score, name, text, pathways]) => [
      frame === null ? "several" : `frame ${frame}`, kind, tokens,
      score === null ? text : `${name} ${score}${text ? "; " + text : ""}`, pathways.join(", "),
    ]);
    const line = (cells, tag) => make("tr", {}, ...cells.map((c) => make(tag, { textContent: c })));
    return make("table", {}, make("thead", {}, line(head, "th")), make("tbody", {}, ...rows.map((r) => line(r, "td"))));
  };

  const fill = (section, index, object) => {
    const policy = data.policies[Number(section.dataset.policy)];
    const own = policy.objects[object];
    const note = own ? own.notes[index] : null;
    const at = (selector) => section.querySelector(selector);
    at(".stage").replaceChildren(picture(policy, object, index, `frame ${data.frames[index]}, object ${object}`));
    at(".facts").replaceChildren(note ? facts(note) : make("p", { textContent: "This object is not tracked on this frame." }));
    const cards = note ? note.read.map((r) => card(policy, object, r)) : [];
    at(".read").replaceChildren(...(cards.length ? cards : [make("li", { className: "none", textContent: "Nothing was read." })]));
    const events = note ? note.events.map(([action, text]) => make("li", { className: action, textContent: text })) : [];
    at(".events").replaceChildren(...(events.length ? events : [make("li", { textContent: "nothing" })]));
    at(".held").replaceChildren(...(note ? [heldTable(note)] : []));
    for (const charts of section.querySelectorAll(".charts")) {
      charts.hidden = charts.dataset.object !== String(object);
      const first = own ? own.notes.findIndex((n) => n !== null) : 0;
      const share = Math.max(index - first, 0) / data.frames.length;
      for (const svg of charts.querySelectorAll("svg")) memoryCharts.moveCursor(svg, index - first, share);
    }
  };
  function show(index) {
    if (index === undefined) return;
    const wanted = Math.max(0, Math.min(data.frames.length - 1, index));
    slider.value = wanted;
    number.textContent = `${data.frames[wanted]} of ${data.frames[data.frames.length - 1]}`;
    slider.setAttribute("aria-valuetext", `frame ${data.frames[wanted]}`);
    for (const section of sections) fill(section, wanted, chooser.value);
  }
  const stop = () => {
    clearInterval(timer);
    timer = null;
    play.textContent = "Play";
    play.setAttribute("aria-pressed", "false");
  };
  const toggle = () => {
    if (timer) return stop();
    play.textContent = "Pause";
    play.setAttribute("aria-pressed", "true");
    timer = setInterval(() => (Number(slider.value) + 1 < data.frames.length ? show(Number(slider.value) + 1) : stop()), 150);
  };

  slider.max = data.frames.length - 1;
  for (const id of data.objects) chooser.append(make("option", { value: id, textContent: id }));
  slider.addEventListener("input", () => show(Number(slider.value)));
  chooser.addEventListener("change", () => show(Number(slider.value)));
  document.getElementById("back").addEventListener("click", () => show(Number(slider.value) - 1));
  document.getElementById("next").addEventListener("click", () => show(Number(slider.value) + 1));
  play.addEventListener("click", toggle);
  document.addEventListener("keydown", (event) => {
    if (event.target.closest("select, button, summary") || event.ctrlKey || event.metaKey || event.altKey) return;
    const steps = { ArrowLeft: -1, ArrowRight: 1, PageUp: 10, PageDown: -10, Home: -1e9, End: 1e9 };
    if (event.key === " ") toggle();
    else if (event.key in steps && !event.target.closest(".chart")) show(Number(slider.value) + steps[event.key]);
    else return;
    event.preventDefault();
  });
  for (const svg of document.querySelectorAll(".chart svg")) {
    svg.addEventListener("click", (event) => {
      const position = memoryCharts.positionAt(svg, event);
      const section = svg.closest(".policy");
      const own = data.policies[Number(section.dataset.policy)].objects[chooser.value];
      if (position >= 0) show(position + own.notes.findIndex((n) => n !== null));
    });
  }
  document.querySelectorAll(".chart").forEach(memoryCharts.keepLabels);
  show(0);
})();
