// The page of the running state: readiness, queue, router, models, answers by model, and the trend of regret.

import { get, Refused } from "./api.js";
import { byId, el, facts, percent, seconds, svg } from "./dom.js";

const EVERY_MS = 2000;
const TIER_COLOURS = ["c1", "c2", "c3", "c4"];

const card = (title, kind, ...content) => el("section", { class: `card ${kind}` }, el("h3", {}, title), ...content);
const meter = (value, most) =>
  el("div", { class: "track" }, el("i", { class: "chosen", style: { width: `${most ? Math.min(100, (100 * value) / most) : 0}%` } }));

function ready(state) {
  const [word, kind] = !state.ready ? ["Not ready", "bad"] : state.degraded.length ? ["Ready, with less", "warn"] : ["Ready", "good"];
  const reasons = [...state.reasons, ...state.degraded];
  return card("Answers", "", el("div", { class: `big ${kind}` }, word),
    reasons.length ? el("ul", {}, reasons.map((reason) => el("li", {}, reason))) : el("p", { class: "faint" }, "Nothing is missing."));
}

function queue({ queue }) {
  return card("Queue", "",
    el("div", { class: "big" }, `${queue.running} running, ${queue.waiting} waiting`),
    facts([
      ["Running", [meter(queue.running, queue.slots), ` of ${queue.slots}`]],
      ["Waiting", [meter(queue.waiting, queue.places), ` of ${queue.places}`]],
      ["Tokens that wait", [meter(queue.waiting_tokens, queue.token_places), ` ${queue.waiting_tokens} of ${queue.token_places}`]],
    ]));
}

function router({ router, outbox, memory }) {
  return card("Router", "",
    el("div", { class: "big" }, router.version || "None promoted yet"),
    facts([
      ["Bundle", router.sha256 ? el("span", { class: "mono" }, router.sha256.slice(0, 16)) : null],
      ["Ledger read", `${seconds(router.stale_seconds)} ago`],
      ["To be scored", `${outbox.waiting} answers${outbox.waiting ? `, the oldest ${seconds(outbox.oldest_seconds)} old` : ""}`],
      ["Given up", outbox.failed ? `${outbox.failed} answers` : null],
      ["Memory", memory.nodes === null ? null : `${memory.nodes.toLocaleString("en")} nodes${memory.replica_ready ? "" : ", read from Postgres"}`],
    ]));
}

function models(state) {
  if (!state.models.length) return card("Models", "wide", el("p", {}, state.tiers.join(", ")));
  const head = el("tr", {}, el("th", {}, "Model"), el("th", {}, "State"), el("th", { class: "n" }, "Busy"), el("th", { class: "n" }, "Memory"), el("th", { class: "n" }, "Restarts"));
  const rows = state.models.map((model) => el("tr", {},
    el("td", {}, model.name),
    el("td", {}, el("span", { class: `is ${model.state}` }, model.detail ? `${model.state}: ${model.detail}` : model.state)),
    el("td", { class: "n" }, String(model.busy)),
    el("td", { class: "n" }, model.resident_mb ? `${model.resident_mb.toLocaleString("en")} MiB` : "–"),
    el("td", { class: "n" }, String(model.restarts))));
  return card("Models", "wide", el("table", {}, el("thead", {}, head), el("tbody", {}, rows)));
}

function answered({ answered }) {
  const entries = Object.entries(answered), all = entries.reduce((sum, [, count]) => sum + count, 0);
  if (!all) return card("Answers since the start", "", el("p", { class: "faint" }, "None yet."));
  const told = entries.map(([name, count]) => `${name} ${count}`).join(", ");
  return card("Answers since the start", "",
    el("div", { class: "big" }, all.toLocaleString("en")),
    el("div", { class: "stack", role: "img", "aria-label": told },
      entries.map(([, count], index) => el("i", { class: TIER_COLOURS[index % 4], style: { "flex-grow": count / all } }))),
    el("ul", { class: "legend" }, entries.map(([name, count], index) =>
      el("li", {}, el("span", { class: `swatch ${TIER_COLOURS[index % 4]}` }), name, el("b", {}, `${count} · ${percent(count / all)}`)))));
}

// --- regret ----------------------------------------------------------------------------------------------------------

const W = 1080, H = 220, LEFT = 52, RIGHT = 16, TOP = 14, BOTTOM = 30;

function chart(nights) {
  const most = Math.max(...nights.map((night) => night.high ?? night.regret), 1e-9) * 1.08;
  const x = (index) => LEFT + ((W - LEFT - RIGHT) * (nights.length === 1 ? 0.5 : index / (nights.length - 1)));
  const y = (value) => TOP + (H - TOP - BOTTOM) * (1 - Math.max(0, value) / most);
  const path = (points) => points.map(([px, py], index) => `${index ? "L" : "M"}${px.toFixed(1)} ${py.toFixed(1)}`).join(" ");
  const bounds = nights.map((night, index) => [night, index]).filter(([night]) => night.low !== null && night.high !== null);
  const upper = bounds.map(([night, index]) => [x(index), y(night.high)]), lower = bounds.map(([night, index]) => [x(index), y(night.low)]);
  const every = Math.ceil(nights.length / 12);
  return svg("svg", { class: "chart", viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": `Regret of ${nights.length} nights, last ${nights.at(-1).regret.toFixed(3)}` },
    [0, 0.5, 1].map((share) => [
      svg("line", { class: "axis", x1: LEFT, x2: W - RIGHT, y1: y(share * most), y2: y(share * most) }),
      svg("text", { x: LEFT - 8, y: y(share * most) + 4, "text-anchor": "end" }, (share * most).toFixed(2)),
    ]).flat(),
    upper.length > 1 ? svg("path", { class: "band", d: `${path(upper)} L${path(lower.reverse()).slice(1)} Z` }) : null,
    svg("path", { class: "trend", d: path(nights.map((night, index) => [x(index), y(night.regret)])) }),
    nights.map((night, index) => [
      svg("circle", { class: night.promoted ? "point promoted" : "point", cx: x(index), cy: y(night.regret), r: 4.5 },
        svg("title", {}, `night ${night.night}: ${night.regret.toFixed(3)}, ${night.promoted ? "promoted" : "not promoted"}`)),
      index % every ? null : svg("text", { x: x(index), y: H - 8, "text-anchor": "middle" }, `night ${night.night}`),
    ]).flat());
}

function table(nights) {
  const number = (value) => el("td", { class: "n" }, value === null ? "–" : value.toFixed(3));
  const rows = nights.toReversed().map((night) => el("tr", {},
    el("td", {}, String(night.night)), number(night.regret), number(night.low), number(night.high),
    el("td", { class: "n" }, night.n === null ? "–" : String(night.n)), el("td", { class: "n" }, night.promoted ? "yes" : "no")));
  const head = ["Regret", "Low", "High", "Questions", "Promoted"].map((name) => el("th", { class: "n" }, name));
  return el("table", {}, el("thead", {}, el("tr", {}, el("th", {}, "Night"), ...head)), el("tbody", {}, rows));
}

function regret({ nights }) {
  if (nights === null) return card("Regret, night by night", "full", el("p", { class: "faint" }, "Postgres is away; nobody knows at the moment."));
  if (!nights.length) return card("Regret, night by night", "full", el("p", { class: "faint" }, "No night has measured it yet; ruvllm cycle runs one."));
  return card("Regret, night by night", "full",
    el("p", { class: "faint" }, "Of the night's candidate against the oracle, on held-out questions; the band is its interval. A filled point was promoted. Less is better."),
    chart(nights),
    el("details", {}, el("summary", {}, "As a table"), table(nights)));
}

// --- the page --------------------------------------------------------------------------------------------------------

export class Running {
  // `seen` is called with every state that was read, or with null and why there is none.
  constructor(seen, wantKey) {
    Object.assign(this, { seen, wantKey, state: null, shown: false });
  }

  async look() {
    try {
      this.state = await get("v1/state");
      byId("running-trouble").textContent = "";
      this.seen(this.state, null);
      if (this.shown) this.draw();
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      byId("running-trouble").textContent = error.message;
      this.seen(null, error);
      if (error.status === 401 && this.shown) this.wantKey(error.message);
    }
  }

  draw() {
    const state = this.state;
    const open = byId("running-cards").querySelector("details")?.open;
    byId("running-cards").replaceChildren(ready(state), queue(state), router(state), models(state), answered(state), regret(state));
    const details = byId("running-cards").querySelector("details");
    if (details && open) details.open = true;
    byId("updated").textContent = `RuvLLM ${state.version}, read at ${new Date().toLocaleTimeString("en-GB")}`;
  }

  show(shown) {
    this.shown = shown;
    if (shown && this.state) this.draw();
  }

  // Looks for as long as the page is open; rarely while nobody sees it.
  async go() {
    for (;;) {
      if (!document.hidden) await this.look();
      await new Promise((then) => setTimeout(then, this.shown ? EVERY_MS : 3 * EVERY_MS));
    }
  }
}
