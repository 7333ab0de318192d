"use strict";
// Follows a folder: asks for its facts every two seconds, and draws what changed. Whatever a run calls itself is written
// with textContent, never as markup.

const PERIOD = 2000;
const AT_WORK = ["training", "measuring"];
const ORDER = ["done", "training", "measuring", "failed", "stopped", "to do"];
const SVG = "http://www.w3.org/2000/svg";
const byId = (id) => document.getElementById(id);
let chosen = decodeURIComponent(location.hash.slice(1));
let drawn = {};

function element(name, { text, kind, ...attributes } = {}, ...children) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (kind) made.className = kind;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function duration(seconds) {
  if (seconds === null) return "";
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return `${(seconds / 3600).toFixed(1)} h`;
}

function number(value, share, digits = 4) {
  if (value === null) return "not finite";
  if (share) return `${(100 * value).toFixed(1)} %`;
  const size = Math.abs(value);
  return size !== 0 && (size < 0.001 || size >= 1e5) ? value.toExponential(1) : String(Number(value.toPrecision(digits)));
}

function summary(facts) {
  const left = facts.left === null ? "" : `; about ${duration(facts.left)} left`;
  if (!facts.study) {
    const [run] = facts.runs;
    const of = run.epochs ? `epoch ${run.epoch} of ${run.epochs}` : `epoch ${run.epoch}`;
    const numbers = Object.entries(run.numbers).map(([name, value]) => `; ${name} ${value}`);
    return `${run.state}, ${of}${left}${numbers.join("")}`;
  }
  const counts = ORDER.filter((state) => facts.states[state]).map((state) => `${facts.states[state]} ${state}`);
  return `${facts.runs.length} runs: ${counts.join(", ")}${left}`;
}

function drawBar(facts) {
  const parts = ORDER.slice(0, -1).map((state) => {
    const part = element("i", { kind: state });
    const share = facts.study
      ? (facts.states[state] || 0) / facts.runs.length
      : facts.runs[0].state === state ? (state === "done" ? 1 : facts.runs[0].epoch / (facts.runs[0].epochs || 1)) : 0;
    part.style.width = `${100 * Math.min(1, share)}%`;
    return part;
  });
  byId("bar").replaceChildren(...parts);
}

function drawFailures(facts) {
  const failed = facts.runs.filter((run) => run.state === "failed");
  byId("failures").hidden = !failed.length;
  byId("failures").querySelector("ul").replaceChildren(
    ...failed.map((run) => element("li", { text: `${run.name}: ${run.why}` }, element("span", { text: run.log }))),
  );
}

function drawPlan(facts) {
  byId("plan").hidden = !facts.study;
  const names = [...new Set(facts.runs.flatMap((run) => Object.keys(run.numbers)))];
  const heads = ["run", "state", "epoch", "left", ...names];
  byId("plan").querySelector("thead tr").replaceChildren(
    ...heads.map((text, place) => element("th", { text, kind: place > 2 ? "more" : "" })),
  );
  byId("plan").querySelector("tbody").replaceChildren(...facts.runs.map((run) => {
    const button = element("button", { text: run.name, type: "button" });
    button.addEventListener("click", () => choose(run.name));
    const epoch = run.epoch || AT_WORK.includes(run.state) ? `${run.epoch}/${run.epochs ?? "?"}` : "";
    const row = element("tr", { kind: run.name === chosen ? "chosen" : "" },
      element("td", {}, button),
      element("td", { text: run.state, kind: `state ${run.state}` }),
      element("td", { text: epoch }),
      element("td", { text: duration(run.left), kind: "more" }),
      ...names.map((name) => element("td", { text: run.numbers[name] ?? "", kind: "more" })));
    return row;
  }));
}

function choose(name) {
  chosen = name;
  history.replaceState(null, "", `#${encodeURIComponent(name)}`);
  drawn = {};
  look().then(() => byId("run").scrollIntoView({ behavior: "smooth" }));
}

function shape(name, attributes, text) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

function chart({ title, share, lines }) {
  const [width, height, left, right, top, bottom] = [340, 190, 46, 10, 8, 22];
  const finite = Object.values(lines).flat().filter(([, value]) => value !== null);
  const [xs, ys] = [finite.map(([x]) => x), finite.map(([, y]) => y)];
  const [x0, x1] = [Math.min(...xs), Math.max(...xs)];
  let [y0, y1] = [Math.min(...ys), Math.max(...ys)];
  if (y0 === y1) [y0, y1] = [y0 - Math.abs(y0 || 1) / 10, y1 + Math.abs(y1 || 1) / 10];
  const x = (value) => left + (x1 === x0 ? 0.5 : (value - x0) / (x1 - x0)) * (width - left - right);
  const y = (value) => top + (1 - (value - y0) / (y1 - y0)) * (height - top - bottom);
  const svg = shape("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": title });
  const caption = element("figcaption", { text: title });
  if (finite.length) {
    for (const value of [y0, (y0 + y1) / 2, y1]) {
      svg.append(shape("line", { class: "axis", x1: left, x2: width - right, y1: y(value), y2: y(value) }));
      svg.append(shape("text", { x: left - 5, y: y(value) + 4, "text-anchor": "end" }, number(value, share, 3)));
    }
    for (const value of new Set([x0, x1])) {
      const anchor = x1 === x0 ? "middle" : value === x0 ? "start" : "end";
      svg.append(shape("text", { x: x(value), y: height - 6, "text-anchor": anchor }, `epoch ${value}`));
    }
  }
  for (const [split, points] of Object.entries(lines)) {
    const kind = ["train", "test"].includes(split) ? split : "other";
    const there = points.filter(([, value]) => value !== null);
    const group = shape("g", { class: kind });
    group.append(shape("polyline", { class: "line", points: there.map(([a, b]) => `${x(a)},${y(b)}`).join(" ") }));
    if (there.length) group.append(shape("circle", { cx: x(there.at(-1)[0]), cy: y(there.at(-1)[1]), r: 2.5 }));
    svg.append(group);
    caption.append(element("span", { text: `${split} ${number(points.at(-1)[1], share)}`, kind }));
  }
  return element("figure", {}, caption, svg);
}

function drawRun(curves) {
  byId("run").hidden = !curves;
  if (!curves) return;
  byId("run").querySelector("h2").textContent = byId("plan").hidden ? "Curves" : curves.name;
  byId("charts").replaceChildren(...curves.charts.map(chart));
  for (const part of ["log", "recipe"]) {
    byId(part).hidden = !curves[part];
    byId(part).querySelector("pre").textContent = curves[part];
  }
}

function changed(what, text) {
  const is = drawn[what] !== text;
  drawn[what] = text;
  return is;
}

async function look() {
  try {
    const text = await (await fetch("facts")).text();
    const facts = JSON.parse(text);
    const known = facts.runs.some((run) => run.name === chosen);
    if (!known) chosen = (facts.runs.find((run) => AT_WORK.includes(run.state)) ?? facts.runs[0]).name;
    if (changed("facts", text)) {
      byId("name").textContent = facts.name;
      document.title = `${summary(facts).split(";")[0]} · ${facts.name}`;
      byId("summary").textContent = summary(facts);
      drawBar(facts);
      drawFailures(facts);
      drawPlan(facts);
    }
    byId("summary").classList.remove("lost");
    const asked = await (await fetch(`curves?run=${encodeURIComponent(chosen)}`)).text();
    if (changed("curves", asked)) drawRun(JSON.parse(asked));
  } catch (error) {
    byId("summary").textContent = `no answer since ${new Date().toLocaleTimeString()}: is hookflat watch still running?`;
    byId("summary").classList.add("lost");
    drawn = {};
  }
}

async function follow() {
  await look();
  setTimeout(follow, PERIOD);
}

follow();
