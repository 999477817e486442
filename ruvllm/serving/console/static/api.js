// The gateway as the console asks it: JSON and event streams. Knows nothing of how anything is shown.

const BASE = new URL("../", document.baseURI); // the console's folder stands beside /v1, wherever a proxy puts both
const KEY = "ruvllm-key";

export const key = () => sessionStorage.getItem(KEY) ?? "";
export const keepKey = (text) => (text ? sessionStorage.setItem(KEY, text) : sessionStorage.removeItem(KEY));

// What the gateway refused. `status` 0: it was not reached. `retry` in seconds, null where trying again does not help.
export class Refused extends Error {
  constructor(status, message, code, retry, request) {
    super(message);
    Object.assign(this, { status, code, retry, request });
  }
}

async function refusal(response) {
  let told = {};
  try {
    told = (await response.json()).error ?? {};
  } catch {
    // something between here and the gateway answered: its status alone is known
  }
  const retry = Number(response.headers.get("retry-after")) || null;
  const message = told.message ?? `the gateway answered ${response.status}`;
  return new Refused(response.status, message, told.code ?? null, retry, response.headers.get("x-request-id"));
}

async function send(method, path, body, signal) {
  const headers = key() ? { authorization: `Bearer ${key()}` } : {};
  if (body !== undefined) headers["content-type"] = "application/json";
  const content = body === undefined ? undefined : JSON.stringify(body);
  let response;
  try {
    response = await fetch(new URL(path, BASE), { method, headers, body: content, signal, credentials: "omit", cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused(0, "the gateway does not answer; is it running?", null, 2, null);
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

export const get = async (path, signal) => (await send("GET", path, undefined, signal)).json();
export const post = async (path, body, signal) => (await send("POST", path, body, signal)).json();

// Objects of an event stream, as they come. An error in the stream is thrown as one before it would be.
export async function* stream(path, body, signal) {
  const response = await send("POST", path, body, signal);
  const request = response.headers.get("x-request-id");
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new Refused(0, "the connection ended in the middle of the answer", null, 1, request);
    rest += value;
    for (let end; (end = rest.indexOf("\n\n")) >= 0; rest = rest.slice(end + 2)) {
      for (const line of rest.slice(0, end).split("\n")) {
        if (!line.startsWith("data: ")) continue; // a ping
        if (line === "data: [DONE]") return;
        const said = JSON.parse(line.slice(6));
        if (said.error) throw new Refused(200, said.error.message, said.error.code, null, request);
        yield said;
      }
    }
  }
}
