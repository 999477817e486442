// Asking: the conversation, each answer as it comes, what one says of it. The panel beside it is in why.js.

import { post, Refused, stream } from "./api.js";
import { byId, el, percent, seconds, milliseconds, svg } from "./dom.js";
import { panel } from "./why.js";

const MOST_TURNS = 8; // earlier turns that go with a question
const EXAMPLES = ["What is the capital of Ghana?", "Which river is the longest in Africa?", "What is the population of Iceland?"];
const THUMB = "M7 10v10H4V10h3Zm0 0 4-7c1.4 0 2.4 1 2.4 2.4V9H19a1.8 1.8 0 0 1 1.8 2.1l-1.2 7.2A2 2 0 0 1 17.6 20H7";

const thumb = (kind) => svg("svg", { viewBox: "0 0 24 24", "aria-hidden": "true", class: kind }, svg("path", { d: THUMB }));

export class Asking {
  // `state` gives what the gateway last said of itself; `wantKey` is called where a key is wanted.
  constructor(state, wantKey) {
    Object.assign(this, { state, wantKey });
    this.turns = [];
    this.going = null;
    this.looking = new AbortController();
    this.question = byId("question");
    this.listen();
    this.examples();
  }

  listen() {
    byId("composer").addEventListener("submit", (event) => (event.preventDefault(), this.send()));
    this.question.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) (event.preventDefault(), this.send());
    });
    this.question.addEventListener("input", () => this.fit());
    byId("stop").addEventListener("click", () => this.going?.abort());
    byId("fresh").addEventListener("click", () => this.fresh());
    byId("route-only").addEventListener("click", () => this.decide());
    document.addEventListener("keydown", (event) => {
      if (event.key !== "Escape") return;
      if (byId("options").open) byId("options").open = false;
      else this.going?.abort();
    });
  }

  examples() {
    const choose = (text) => () => ((this.question.value = text), this.send());
    byId("examples").replaceChildren(...EXAMPLES.map((text) => el("button", { type: "button", on: { click: choose(text) } }, text)));
  }

  fit() {
    this.question.style.height = "auto";
    this.question.style.height = `${this.question.scrollHeight + 2}px`;
  }

  fresh() {
    this.going?.abort();
    this.turns.forEach((turn) => turn.node.remove());
    this.turns = [];
    byId("welcome").hidden = false;
    byId("why").replaceChildren(el("p", { class: "empty" }, "The decision behind an answer stands here."));
    this.question.focus();
  }

  // --- a request ----------------------------------------------------------------------------------------------------

  body(question, more) {
    const earlier = this.turns.filter((turn) => turn.whole).slice(-MOST_TURNS);
    const messages = earlier.flatMap((turn) => [
      { role: "user", content: turn.question }, { role: "assistant", content: turn.text },
    ]);
    const budget = byId("budget").valueAsNumber, tokens = byId("tokens").valueAsNumber;
    const options = { return_decision: true, privacy: byId("privacy").value };
    if (Number.isFinite(budget)) options.latency_budget_s = budget;
    const body = { model: byId("model").value, messages: [...messages, { role: "user", content: question }], ruvllm: options, ...more };
    if (Number.isFinite(tokens)) body.max_tokens = tokens;
    return body;
  }

  taken() {
    const question = this.question.value.trim();
    if (!question || this.going) return null;
    this.question.value = "";
    this.fit();
    return question;
  }

  async send() {
    const question = this.taken();
    if (question !== null) await this.tell(this.begin(question), this.body(question, { stream: true, stream_options: { include_usage: true } }));
  }

  async decide() {
    const question = this.taken();
    if (question === null) return;
    const turn = this.begin(question);
    try {
      this.told(turn, await post("v1/route", this.body(question, {}), this.going.signal));
      turn.said.replaceChildren(el("span", { class: "faint" }, "decided, not answered"));
    } catch (error) {
      this.failed(turn, error, () => ((this.question.value = question), this.decide()));
    } finally {
      this.end(turn);
    }
  }

  async tell(turn, body) {
    try {
      for await (const chunk of stream("v1/chat/completions", body, this.going.signal)) this.piece(turn, chunk);
      turn.whole = turn.text !== "";
      if (turn.why) this.told(turn, { ...turn.why, usage: turn.usage });
    } catch (error) {
      this.failed(turn, error, () => this.again(turn));
    } finally {
      this.end(turn);
    }
  }

  piece(turn, chunk) {
    const text = chunk.choices[0]?.delta?.content;
    if (text) {
      turn.first ??= performance.now();
      turn.text += text;
      turn.said.textContent = turn.text;
      this.follow();
    }
    if (chunk.ruvllm) turn.why = chunk.ruvllm;
    if (chunk.usage) turn.usage = chunk.usage;
  }

  again(turn) {
    turn.node.remove();
    this.turns = this.turns.filter((each) => each !== turn);
    this.question.value = turn.question;
    this.send();
  }

  // --- a turn -------------------------------------------------------------------------------------------------------

  begin(question) {
    byId("welcome").hidden = true;
    const said = el("div", { class: "said going", "aria-busy": "true" });
    const below = el("div", { class: "below" });
    const node = el("article", { class: "turn" }, el("div", { class: "asked" }, el("p", {}, question)), said, below);
    const turn = { question, node, said, below, text: "", began: performance.now(), whole: false };
    this.turns.push(turn);
    byId("turns").append(node);
    this.going = new AbortController();
    this.busy(true);
    node.scrollIntoView({ block: "end" });
    return turn;
  }

  end(turn) {
    turn.said.classList.remove("going");
    turn.said.removeAttribute("aria-busy");
    this.going = null;
    this.busy(false);
    this.follow();
  }

  busy(going) {
    byId("send").hidden = going;
    byId("stop").hidden = !going;
    byId("route-only").disabled = going;
  }

  follow() {
    const turns = byId("turns");
    turns.scrollTop = turns.scrollHeight;
  }

  told(turn, why) {
    turn.why = why;
    const took = why.total_ms === undefined ? null : milliseconds(why.total_ms);
    const first = turn.first ? `first words after ${seconds((turn.first - turn.began) / 1000)}` : null;
    const notes = [`${why.context_bin} tokens of context`, why.confidence === null ? null : `${percent(why.confidence)} confident`, took, first].filter(Boolean);
    const reasons = el("button", { type: "button", class: "why-button", on: { click: () => this.show(turn, true) } }, "Why");
    turn.below.replaceChildren(
      el("span", { class: "tier" }, why.model), ...notes.map((note) => el("span", { class: "dot" }, note)),
      el("span", { class: "icons" }, reasons, ...(turn.whole ? this.verdicts(turn) : [])));
    this.show(turn, false);
  }

  show(turn, focus) {
    this.looking.abort();
    this.looking = new AbortController();
    this.turns.forEach((each) => each.node.classList.toggle("selected", each === turn));
    byId("why").replaceChildren(...panel(turn.why, this.state(), this.looking.signal));
    byId("why").scrollTop = 0;
    if (focus) byId("why").focus();
  }

  failed(turn, error, again) {
    if (error.name === "AbortError") {
      turn.below.replaceChildren(el("span", {}, "stopped"));
      return;
    }
    if (!(error instanceof Refused)) throw error;
    const retry = el("button", { type: "button", class: "plain", on: { click: again } }, "Try again");
    const wait = error.retry ? ` Try again in ${error.retry} s.` : "";
    const named = error.request ? el("span", { class: "mono" }, `request ${error.request}`) : null;
    turn.below.replaceChildren();
    turn.node.append(el("div", { class: "failure", role: "alert" }, el("span", {}, `${error.message}.${wait}`), named, retry));
    if (error.status === 401) this.wantKey(error.message);
  }

  // --- what one says of it ------------------------------------------------------------------------------------------

  verdicts(turn) {
    const status = el("span", { role: "status", class: "feedback-status" });
    const button = (name, kind, said) => {
      const made = el("button", { type: "button", "aria-label": name, title: name, "aria-pressed": "false" }, thumb(kind));
      made.addEventListener("click", () => this.rate(turn, said, status, made));
      return made;
    };
    const correct = el("button", { type: "button", "aria-expanded": "false" }, "Correct");
    correct.addEventListener("click", () => this.correct(turn, status, correct));
    return [status, button("Good answer", "up", { rating: 5 }), button("Bad answer", "down", { rating: 1 }), correct];
  }

  async rate(turn, said, status, button) {
    if (await this.feedback(turn, said, status)) {
      turn.below.querySelectorAll("[aria-pressed]").forEach((each) => each.setAttribute("aria-pressed", String(each === button)));
    }
  }

  async feedback(turn, said, status) {
    try {
      await post("v1/feedback", { request_id: turn.why.request_id, ...said });
      status.textContent = "Noted, thank you";
      return true;
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      status.textContent = error.message;
      if (error.status === 401) this.wantKey(error.message);
      return false;
    }
  }

  correct(turn, status, button) {
    const open = turn.node.querySelector(".correcting");
    button.setAttribute("aria-expanded", String(!open));
    if (open) return open.remove();
    const text = el("textarea", { rows: 2, "aria-label": "The right answer", placeholder: "The right answer" });
    const form = el("form", { class: "correcting" }, text,
      el("div", {}, el("button", { type: "submit", class: "main" }, "Send the correction"), el("span", { class: "faint" }, "It becomes a fact in memory, as yours.")));
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      if (text.value.trim() && (await this.feedback(turn, { correction: text.value.trim() }, status))) {
        form.remove();
        button.setAttribute("aria-expanded", "false");
        button.focus();
      }
    });
    turn.node.append(form);
    text.focus();
  }
}
