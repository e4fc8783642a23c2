"use strict";
// Charts of memory through time, on the inspection page and in the studio: a cursor, labels that stay, what a click means.
const memoryCharts = (() => {
  const cursorOf = (svg) => {
    const line = document.createElementNS("http://www.w3.org/2000/svg", "line");
    line.setAttribute("class", "cursor");
    line.setAttribute("y1", "60");
    line.setAttribute("y2", svg.getAttribute("height"));
    svg.append(line);
    return line;
  };
  /** Put the cursor at a position in time, and scroll there; `share` of the height is in view where a chart is higher than its box. */
  const moveCursor = (svg, position, share) => {
    const line = svg.querySelector(".cursor") || cursorOf(svg);
    const x = Number(svg.dataset.left) + Number(svg.dataset.step) * (position + 0.5);
    line.setAttribute("x1", x);
    line.setAttribute("x2", x);
    line.style.visibility = position < 0 ? "hidden" : "visible";
    const chart = svg.closest(".chart");
    chart.scrollLeft = x - chart.clientWidth / 2;
    const last = svg.getAttribute("height") - chart.clientHeight;
    if (last > 0) chart.scrollTop = last * share;
  };
  /** The position in time under the pointer, negative on the labels. */
  const positionAt = (svg, event) => {
    const x = event.clientX - svg.getBoundingClientRect().left - Number(svg.dataset.left);
    return Math.floor(x / Number(svg.dataset.step));
  };
  /** Keep titles and labels in view while a chart is scrolled. */
  const keepLabels = (chart) => {
    const pinned = chart.querySelector(".pinned");
    chart.addEventListener("scroll", () => pinned.setAttribute("transform", `translate(${chart.scrollLeft})`));
  };
  return { moveCursor, positionAt, keepLabels };
})();
