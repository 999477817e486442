// What memory found, as a graph: the question in the middle, what was found around it (the nearer, the more alike), and
// beyond each what it is linked to. Places are computed, not simulated: the same answer gives the same picture.

import { cut, svg } from "./dom.js";

const WIDTH = 392, HEIGHT = 300, MIDDLE = { x: WIDTH / 2, y: HEIGHT / 2 };
const MOST_FURTHER = 4; // linked nodes that are drawn of each that was found

const at = (angle, distance) => ({ x: MIDDLE.x + 1.28 * distance * Math.cos(angle), y: MIDDLE.y + distance * Math.sin(angle) });

function placed(hits, links) {
  const places = new Map();
  const similar = hits.map((hit) => hit.similarity);
  const least = Math.min(...similar), spread = Math.max(...similar) - least || 1;
  const wide = links.size ? 1 : 1.45; // room that no further node takes
  hits.forEach((hit, index) => {
    const angle = -Math.PI / 2 + (2 * Math.PI * index) / hits.length;
    places.set(hit.node, { ...at(angle, wide * (52 + 26 * (1 - (hit.similarity - least) / spread))), angle });
  });
  const shown = new Set(places.keys());
  hits.forEach((hit) => {
    const further = (links.get(hit.node) ?? []).filter((id) => !shown.has(id)).slice(0, MOST_FURTHER);
    further.forEach((id, index) => {
      shown.add(id);
      const { angle } = places.get(hit.node);
      const fan = ((index - (further.length - 1) / 2) * 1.5 * Math.PI) / Math.max(6, hits.length * 2);
      places.set(id, { ...at(angle + fan, 122), angle, further: true });
    });
  });
  return places;
}

function linked(edges) {
  const links = new Map();
  const add = (from, to) => links.set(from, [...(links.get(from) ?? []), to]);
  edges.forEach(({ src, dst }) => (add(src, dst), add(dst, src)));
  return links;
}

function line(from, to, kind, title) {
  const place = { x1: from.x, y1: from.y, x2: to.x, y2: to.y, class: kind };
  return svg("line", place, title ? svg("title", {}, title) : null);
}

function node(id, place, { kind, label, title, radius, pick }) {
  const choose = () => pick(id);
  const pressed = (event) => {
    if (event.key === "Enter" || event.key === " ") (event.preventDefault(), choose());
  };
  const role = { class: kind, role: "button", tabindex: 0, "aria-label": title, "data-node": id, on: { click: choose, keydown: pressed } };
  return svg("g", role,
    svg("circle", { cx: place.x, cy: place.y, r: radius }),
    label ? svg("text", { x: place.x, y: place.y }, label) : null,
    svg("title", {}, title));
}

// `hits` of the answer, `used` the ids that the prompt held, `edges` among the nodes, `texts` by id; `pick` is called
// with the id of the node that is chosen.
export function graph({ hits, used, edges, texts, pick }) {
  const places = placed(hits, linked(edges)), numbers = new Map(hits.map((hit, index) => [hit.node, index + 1]));
  const titleOf = (id) => cut(texts.get(id) ?? `node ${id}`, 160);
  const picture = svg("svg", {
    class: "graph", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "group",
    "aria-label": `The question, ${hits.length} nodes that were found, and what they are linked to`,
  });
  hits.forEach((hit) => picture.append(line(MIDDLE, places.get(hit.node), "found")));
  edges.forEach(({ src, dst, relation }) => {
    if (places.has(src) && places.has(dst)) picture.append(line(places.get(src), places.get(dst), "near", relation));
  });
  picture.append(svg("g", { class: "question" },
    svg("circle", { cx: MIDDLE.x, cy: MIDDLE.y, r: 15 }), svg("text", { x: MIDDLE.x, y: MIDDLE.y }, "Q"), svg("title", {}, "the question")));
  for (const [id, place] of places) {
    const number = numbers.get(id);
    const kind = place.further ? "further" : used.includes(id) ? "used" : "found";
    const title = `${number ? `${number}: ` : "linked: "}${titleOf(id)}`;
    picture.append(node(id, place, { kind, label: number ?? null, title, radius: place.further ? 7 : 12, pick }));
  }
  return picture;
}

export const mark = (picture, id) =>
  picture.querySelectorAll("[data-node]").forEach((each) => each.classList.toggle("picked", each.dataset.node === String(id)));
