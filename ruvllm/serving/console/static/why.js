// The panel beside an answer: what decided, what else was near, where the time went, what memory gave.

import { get } from "./api.js";
import { cut, el, facts, milliseconds, percent } from "./dom.js";
import { graph, mark } from "./graph.js";

const STAGES = [
  ["embed", "Embed"], ["search", "Search"], ["features", "Features"], ["route", "Route"],
  ["assemble", "Assemble"], ["generate", "Generate"], ["store", "Store"],
];
const COLOURS = { embed: "c1", search: "c2", features: "c4", route: "c7", assemble: "c3", generate: "c6", store: "c5" };
const MOST_NODES = 8; // whose texts and links are fetched: those of the largest similarity

const part = (title, ...content) => el("section", { class: "part" }, title ? el("h3", {}, title) : null, ...content);

function shares(entries, chosen) {
  const rows = entries.map(([name, share]) => {
    const is = name === chosen ? "chosen" : "";
    const bar = el("div", { class: "track" }, el("i", { class: is, style: { width: `${100 * share}%` } }));
    return [el("dt", { class: is }, name), bar, el("dd", { class: is }, percent(share))];
  });
  return el("dl", { class: "shares" }, rows.flat());
}

function decided(why) {
  return part(null,
    el("div", {},
      el("div", { class: "verdict" }, why.model),
      el("p", { class: "reason" }, `${why.reason}; ${why.context_bin} tokens of context`)),
    el("div", { class: "figures" },
      el("div", { class: "figure" }, el("b", {}, percent(why.confidence)), el("span", {}, "confidence")),
      el("div", { class: "figure" }, el("b", {}, percent(why.propensity)), el("span", {}, "of such draws")),
      el("div", { class: "figure" }, el("b", {}, why.total_ms === undefined ? "–" : milliseconds(why.total_ms)), el("span", {}, "in all"))));
}

function alternatives(why, state) {
  const ranked = (names, probabilities) =>
    names.map((name, index) => [String(name), probabilities[index] ?? 0]).sort((one, other) => other[1] - one[1]);
  const tiers = ranked(state.tiers, why.model_probs);
  const bins = ranked(state.context_bins, why.context_probs).filter(([, share]) => share > 0); // few of them are routed
  if (!tiers.some(([, share]) => share > 0)) return part("Alternatives", el("p", { class: "faint" }, "no router was asked"));
  return [
    part("What the router thought of each model", shares(tiers, why.model)),
    bins.length ? part("and of each context width, in tokens", shares(bins, String(why.context_bin))) : null,
  ];
}

function times(why) {
  if (!why.stage_ms) return null;
  const taken = STAGES.filter(([name]) => why.stage_ms[name] !== undefined).map(([name, title]) => [name, title, why.stage_ms[name]]);
  const all = taken.reduce((sum, [, , ms]) => sum + ms, 0) || 1;
  const told = taken.map(([, title, ms]) => `${title} ${milliseconds(ms)}`).join(", ");
  return part("Where the time went",
    el("div", { class: "stack", role: "img", "aria-label": told },
      taken.map(([name, , ms]) => el("i", { class: COLOURS[name], style: { "flex-grow": ms / all } }))),
    el("ul", { class: "legend" }, taken.map(([name, title, ms]) =>
      el("li", {}, el("span", { class: `swatch ${COLOURS[name]}` }), title, el("b", {}, milliseconds(ms))))));
}

function versions(why) {
  const usage = why.usage;
  const cached = usage?.prompt_tokens_details?.cached_tokens;
  return part("Details", facts([
    ["Request", el("span", { class: "mono" }, why.request_id)],
    ["Sampling", `temperature ${why.temperature.toFixed(2)}, top_p ${why.top_p.toFixed(2)}`],
    ["Tokens", usage ? `${usage.prompt_tokens} asked (${cached ?? 0} kept from before), ${usage.completion_tokens} answered` : null],
    ["Cost", why.cost === undefined ? null : why.cost.toPrecision(2)],
    ["Write-back", why.writeback],
    ["Degraded", (why.degraded ?? []).join(", ")],
    ["Ruled out", Object.entries(why.excluded ?? {}).map(([name, reason]) => `${name}: ${reason}`).join("; ")],
    ["Router", why.router_version || "none was promoted yet"],
    ["Encoder", why.versions.encoder],
    ["Prompt", why.versions.prompt],
  ]));
}

// --- memory ----------------------------------------------------------------------------------------------------------

// Texts and links of what was found; what may not be read, or is gone, is left out and said. Two looks at a time: a key
// has few requests at once, and a question of its reader's may be among them.
async function around(hits, signal) {
  const found = { texts: new Map(), nodes: new Map(), edges: new Map(), refused: null }, waiting = [...hits];
  const look = async () => {
    for (let hit; (hit = waiting.shift()); ) {
      try {
        gather(found, await get(`v1/memory/${hit.node}/neighbours?hops=1&limit=16`, signal));
      } catch (error) {
        if (error.name === "AbortError") return;
        found.refused = error;
      }
    }
  };
  await Promise.all([look(), look()]);
  return { ...found, edges: [...found.edges.values()] };
}

function gather(found, { data, edges }) {
  for (const node of data) (found.texts.set(node.id, node.text), found.nodes.set(node.id, node));
  for (const edge of edges) found.edges.set(`${edge.src} ${edge.dst} ${edge.relation}`, edge);
}

function textOf(node, hit, used) {
  const tag = (name, kind = "") => el("span", { class: `tag ${kind}` }, name);
  return el("div", { class: "node-text" },
    el("div", { class: "tags" },
      used ? tag("in the prompt", "used") : null, tag(node.kind), tag(node.trust, node.trust),
      node.source ? tag(node.source) : null, node.writer ? tag(`by ${node.writer}`) : null, tag(`node ${node.id}`)),
    el("p", {}, node.text));
}

class Found {
  constructor(hits, used, { texts, nodes, edges }) {
    Object.assign(this, { hits, used, nodes });
    this.list = el("ul", { class: "nodes" });
    this.picture = graph({ hits, used, edges, texts, pick: (id) => this.pick(id, true) });
    this.ids = [...new Set([...hits.map((hit) => hit.node), ...nodes.keys()])].filter((id) => this.picture.querySelector(`[data-node="${id}"]`));
    this.open = null;
    this.draw();
  }

  draw() {
    this.list.replaceChildren(...this.ids.map((id) => this.row(id)));
  }

  row(id) {
    const index = this.hits.findIndex((hit) => hit.node === id), hit = this.hits[index], node = this.nodes.get(id);
    const line = node ? cut(node.text.replace(/\s+/g, " "), 120) : `${hit.kind} from ${hit.source || "nowhere named"}`;
    const open = this.open === id;
    return el("li", {},
      el("button", { type: "button", "aria-expanded": node ? String(open) : null, "data-row": id, disabled: !node, on: { click: () => this.pick(id, false) } },
        el("span", { class: "number" }, hit ? String(index + 1) : "↳"),
        el("span", { class: "line" }, line),
        el("span", { class: "score" }, hit ? hit.similarity.toFixed(3) : "linked")),
      open && node ? textOf(node, hit, this.used.includes(id)) : null);
  }

  pick(id, fromPicture) {
    if (!this.nodes.has(id)) return;
    this.open = this.open === id && !fromPicture ? null : id;
    this.draw();
    mark(this.picture, this.open);
    const row = this.list.querySelector(`[data-row="${id}"]`);
    if (fromPicture) row.scrollIntoView({ block: "nearest" });
    else row.focus();
  }
}

const dot = (colour, text) => el("span", {}, el("i", { style: { background: `var(${colour})` } }), text);

function memory(why, signal) {
  const hits = (why.hits ?? []).slice(0, MOST_NODES), used = why.used ?? [];
  if (!hits.length) return part("Memory", el("p", { class: "faint" }, "nothing was found"));
  const panel = part(`Memory: ${why.hits.length} found, ${used.length} in the prompt`, el("p", { class: "faint" }, "looking …"));
  around(hits, signal).then((found) => {
    const shown = new Found(hits, used, found);
    const legend = el("div", { class: "key-row" }, dot("--accent", "in the prompt"), dot("--s5", "found"), dot("--s4", "linked to these"));
    const refused = found.refused ? el("p", { class: "faint" }, `Not all texts can be shown: ${found.refused.message}`) : null;
    panel.replaceChildren(panel.firstChild, shown.picture, legend, shown.list, ...(refused ? [refused] : []));
    panel.dataset.ready = "yes";
  });
  return panel;
}

// The panel's content for the `ruvllm` object of an answer, or for a decision alone.
export function panel(why, state, signal) {
  return [decided(why), alternatives(why, state), times(why), memory(why, signal), versions(why)].flat().filter(Boolean);
}
