// Puts the console together: its two pages, the theme, the key.

import { key, keepKey } from "./api.js";
import { Asking } from "./ask.js";
import { byId, el } from "./dom.js";
import { Running } from "./running.js";

const THEMES = ["system", "light", "dark"];
const NO_STATE = { tiers: [], context_bins: [], models: [] }; // before the gateway has said anything of itself

// --- the theme -------------------------------------------------------------------------------------------------------

function theme(wanted) {
  const name = THEMES.includes(wanted) ? wanted : "system";
  localStorage.setItem("ruvllm-theme", name);
  if (name === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = name;
  byId("theme-button").textContent = `Theme: ${name}`;
  return name;
}

let themed = theme(localStorage.getItem("ruvllm-theme"));
byId("theme-button").addEventListener("click", () => (themed = theme(THEMES[(THEMES.indexOf(themed) + 1) % THEMES.length])));

// --- the key ---------------------------------------------------------------------------------------------------------

const dialog = byId("key-dialog");

function wantKey(why) {
  if (dialog.open) return;
  if (why) byId("key-why").textContent = `${why}. A key is kept in this tab alone and forgotten when the tab closes.`;
  byId("key-field").value = key();
  dialog.showModal();
  byId("key-field").select();
}

function keyed(text) {
  keepKey(text);
  byId("key-button").textContent = text ? "API key: set" : "API key";
  dialog.close();
  running.look();
}

byId("key-button").addEventListener("click", () => wantKey(""));
byId("key-cancel").addEventListener("click", () => dialog.close());
byId("key-forget").addEventListener("click", () => keyed(""));
byId("key-form").addEventListener("submit", (event) => (event.preventDefault(), keyed(byId("key-field").value.trim())));

// --- what the gateway says of itself ---------------------------------------------------------------------------------

function health(is, text) {
  const shown = byId("health");
  if (shown.dataset.is === is && shown.textContent === text) return; // told once, not with every look
  shown.dataset.is = is;
  shown.textContent = text;
}

function models(tiers) {
  const select = byId("model"), known = [...select.options].slice(1).map((option) => option.value);
  if (known.join() === tiers.join()) return;
  select.replaceChildren(select.options[0], ...tiers.map((name) => el("option", { value: name }, name)));
}

function seen(state, error) {
  if (error) return health("bad", error.status === 401 ? "wants a key" : error.status === 0 ? "not reached" : "in trouble");
  models(state.tiers);
  if (!state.ready) return health("bad", "not ready");
  return state.degraded.length ? health("warn", "ready, with less") : health("good", "ready");
}

const running = new Running(seen, wantKey);
const asking = new Asking(() => running.state ?? NO_STATE, wantKey);

// --- the two pages ---------------------------------------------------------------------------------------------------

function turn() {
  const shows = location.hash === "#running";
  byId("ask-page").hidden = shows;
  byId("running-page").hidden = !shows;
  byId("to-ask").toggleAttribute("aria-current", !shows);
  byId("to-running").toggleAttribute("aria-current", shows);
  if (shows) byId("to-running").setAttribute("aria-current", "page");
  else byId("to-ask").setAttribute("aria-current", "page");
  document.title = shows ? "Running state · RuvLLM" : "RuvLLM console";
  running.show(shows);
  if (!shows) asking.question.focus();
}

addEventListener("hashchange", turn);
if (key()) byId("key-button").textContent = "API key: set";
turn();
running.go();
