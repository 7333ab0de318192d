"use strict";
// The page without this script is whole; with it tables sort, and any two quantities are a figure. Text only ever goes
// through textContent and attributes, never through markup.

// --- tables that sort -------------------------------------------------------------------------------------------------

const asNumber = (text) => parseFloat(text.replace(/−/g, "-"));

function sortable(table) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const falling = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", falling ? "descending" : "ascending");
      const rows = [...body.rows].map((row) => {
        const text = row.cells[column].firstChild ? row.cells[column].firstChild.textContent.trim() : "";
        return { row, text, number: asNumber(text) };
      });
      const numeric = rows.every((r) => r.text === "" || !Number.isNaN(r.number));
      const known = rows.filter((r) => r.text !== "");
      known.sort((a, b) => (numeric ? a.number - b.number : a.text.localeCompare(b.text)) * (falling ? -1 : 1));
      body.append(...known.map((r) => r.row), ...rows.filter((r) => r.text === "").map((r) => r.row));
      table.classList.add("sorted");
    });
  });
}

document.querySelectorAll("table.sortable").forEach(sortable);

// --- any two quantities -----------------------------------------------------------------------------------------------

const SHAPES = {
  good: (r) => `M${-r} 0A${r} ${r} 0 1 0 ${r} 0A${r} ${r} 0 1 0 ${-r} 0Z`,
  average: (r) => `M${-r} ${-r}H${r}V${r}H${-r}Z`,
  poor: (r) => `M0 ${-1.3 * r}L${1.3 * r} 0L0 ${1.3 * r}L${-1.3 * r} 0Z`,
  stopped: (r) => `M0 ${-1.3 * r}L${1.2 * r} ${r}H${-1.2 * r}Z`,
};

function svg(name, attributes, text) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  Object.entries(attributes).forEach(([key, value]) => element.setAttribute(key, value));
  if (text !== undefined) element.textContent = text;
  return element;
}

function ticks(low, high, count) {
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * ([1, 2, 5, 10].find((s) => s * power >= rough) || 10);
  const found = [];
  for (let i = Math.ceil(low / step); i * step <= high; i++) found.push(i * step);
  return found;
}

function ranks(values) {
  return values.map((v) => {
    const below = values.filter((w) => w < v).length;
    return below + (values.filter((w) => w === v).length + 1) / 2;
  });
}

function pearson(x, y) {
  const mean = (v) => v.reduce((a, b) => a + b, 0) / v.length;
  const [mx, my] = [mean(x), mean(y)];
  let [xy, xx, yy] = [0, 0, 0];
  x.forEach((v, i) => {
    xy += (v - mx) * (y[i] - my);
    xx += (v - mx) ** 2;
    yy += (y[i] - my) ** 2;
  });
  return { r: xy / Math.sqrt(xx * yy), slope: xy / xx, at: (v) => my + (xy / xx) * (v - mx) };
}

function explorer(section, data) {
  const pick = (name) => section.querySelector(`[name=${name}]`);
  const [xs, ys] = [pick("x"), pick("y")];
  const [place, tip, said] = ["plot", "tip", "said"].map((name) => section.querySelector(`.${name}`));
  const methods = section.querySelector(".methods");
  data.quantities.forEach((quantity, i) => {
    [xs, ys].forEach((select) => select.append(new Option(quantity.label, i)));
  });
  [xs.value, ys.value] = [data.x, data.y];
  data.methods.forEach((method) => {
    const [label, box] = [document.createElement("label"), document.createElement("input")];
    Object.assign(box, { type: "checkbox", checked: true, value: method });
    label.append(box, ` ${method}`);
    methods.append(label);
  });
  const boxes = [...methods.querySelectorAll("input")];
  section.querySelectorAll("[data-every]").forEach((button) => {
    button.addEventListener("click", () => {
      boxes.forEach((box) => (box.checked = button.dataset.every === "all"));
      draw();
    });
  });
  const kinds = { last: pick("last"), "early-stopped": pick("stopped") };
  const text = (value, unit) =>
    unit === "share" ? `${(100 * value).toPrecision(3)} %` : `${Number(value.toPrecision(4))}`;

  function draw() {
    const [qx, qy] = [data.quantities[xs.value], data.quantities[ys.value]];
    const chosen = new Set(boxes.filter((box) => box.checked).map((box) => box.value));
    const points = data.points
      .map((p) => ({ ...p, x: p.values[xs.value], y: p.values[ys.value] }))
      .filter((p) => p.x !== null && p.y !== null && chosen.has(p.method) && kinds[p.network].checked);
    place.replaceChildren();
    tip.hidden = true;
    said.textContent = points.length ? "" : "No network has both, with these methods.";
    if (!points.length) return;
    const width = Math.max(280, place.clientWidth);
    const height = Math.round(Math.max(260, Math.min(520, 0.62 * width)));
    const [left, right, top, bottom] = [56, 14, 12, 44];
    const scale = (values, from, to) => {
      const [low, high] = [Math.min(...values), Math.max(...values)];
      const pad = 0.07 * (high - low || Math.abs(high) || 1);
      const at = (v) => from + ((v - low + pad) / (high - low + 2 * pad)) * (to - from);
      return { at, low: low - pad, high: high + pad };
    };
    const sx = scale(points.map((p) => p.x), left, width - right);
    const sy = scale(points.map((p) => p.y), height - bottom, top);
    const root = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "group" });
    root.setAttribute("aria-label", `${qy.label} against ${qx.label}`);
    ticks(sx.low, sx.high, width / 90).forEach((v) => {
      root.append(svg("line", { x1: sx.at(v), x2: sx.at(v), y1: top, y2: height - bottom, class: "grid" }));
      root.append(svg("text", { x: sx.at(v), y: height - bottom + 16, "text-anchor": "middle" }, text(v, qx.unit)));
    });
    ticks(sy.low, sy.high, height / 60).forEach((v) => {
      root.append(svg("line", { x1: left, x2: width - right, y1: sy.at(v), y2: sy.at(v), class: "grid" }));
      root.append(svg("text", { x: left - 6, y: sy.at(v) + 4, "text-anchor": "end" }, text(v, qy.unit)));
    });
    root.append(svg("text", { x: (left + width - right) / 2, y: height - 8, "text-anchor": "middle" }, qx.label));
    const middle = (top + height - bottom) / 2;
    const turned = { x: 12, y: middle, "text-anchor": "middle", transform: `rotate(-90 12 ${middle})` };
    root.append(svg("text", turned, qy.label));
    const models = points.filter((p) => !p.rescaled);  // the others are functionally equal to some of them
    const fit = models.length > 2 ? pearson(models.map((p) => p.x), models.map((p) => p.y)) : null;
    if (fit && Number.isFinite(fit.slope)) {
      const ends = [Math.min(...models.map((p) => p.x)), Math.max(...models.map((p) => p.x))];
      const [y1, y2] = ends.map((v) => sy.at(fit.at(v)));
      root.append(svg("line", { x1: sx.at(ends[0]), x2: sx.at(ends[1]), y1, y2, class: "fit" }));
      const rho = pearson(ranks(models.map((p) => p.x)), ranks(models.map((p) => p.y))).r;
      const coefficient = Number.isFinite(rho) ? `Spearman ${rho.toFixed(2).replace("-", "−")} over ` : "";
      const without = points.length > models.length ? `, ${points.length - models.length} rescaled ones left out` : "";
      said.textContent = `${coefficient}${models.length} networks${without}; the dotted line is a least-squares fit.`;
    }
    points.forEach((p) => {
      const link = svg("a", { href: `#${p.anchor}`, class: `point ${p.group || "none"}` });
      const name = `${p.title}, seed ${p.seed}${p.network === "last" ? "" : ", early-stopped"}`;
      const where = `${qx.label} ${text(p.x, qx.unit)}, ${qy.label} ${text(p.y, qy.unit)}`.replace(/-(?=\d)/g, "−");
      link.setAttribute("aria-label", `${name}: ${where}`);
      const shape = p.network === "last" ? SHAPES[p.group] || SHAPES.good : SHAPES.stopped;
      link.append(svg("path", { d: shape(5), transform: `translate(${sx.at(p.x)} ${sy.at(p.y)})` }));
      const show = () => {
        tip.replaceChildren();
        [name, where].forEach((line) => tip.append(Object.assign(document.createElement("div"), { textContent: line })));
        tip.hidden = false;
        const room = place.clientWidth - tip.offsetWidth;
        tip.style.left = `${Math.max(0, Math.min(room, sx.at(p.x) - tip.offsetWidth / 2))}px`;
        const above = sy.at(p.y) - tip.offsetHeight - 12;
        tip.style.top = `${above < 0 ? sy.at(p.y) + 12 : above}px`;
      };
      ["pointerenter", "focus"].forEach((event) => link.addEventListener(event, show));
      ["pointerleave", "blur"].forEach((event) => link.addEventListener(event, () => (tip.hidden = true)));
      root.append(link);
    });
    place.append(root, tip);
  }

  section.addEventListener("change", draw);
  window.addEventListener("resize", draw);
  section.hidden = false;
  draw();
}

const explore = document.getElementById("explore");
if (explore) explorer(explore, JSON.parse(document.getElementById("explore-data").textContent));
