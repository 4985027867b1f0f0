import { html, useEffect, useRef, useState } from "./vendor/htm-preact.js";
import { base, call, events, storedKey } from "./api.js";
import { asCurl, asPython } from "./snippets.js";

const NUMBERS = [
  { name: "temperature", label: "Temperature", value: "0.7", min: 0, max: 2, step: 0.1 },
  { name: "top_p", label: "Top p", value: "1", min: 0, max: 1, step: 0.05 },
  { name: "max_tokens", label: "Max tokens", value: "256", min: 1, step: 1 },
  { name: "seed", label: "Seed", value: "", min: 0, step: 1 },
  { name: "frequency_penalty", label: "Frequency penalty", value: "0", min: -2, max: 2, step: 0.1 },
  { name: "presence_penalty", label: "Presence penalty", value: "0", min: -2, max: 2, step: 0.1 },
];
const DEFAULTS = {
  ...Object.fromEntries(NUMBERS.map(({ name, value }) => [name, value])),
  system: "", stop: "", schema: "", logprobs: false,
};
const NEUTRAL = { top_p: "1", frequency_penalty: "0", presence_penalty: "0" };

/** The request's body; throws where the JSON schema is none. */
export function requestOf(model, settings, turns) {
  const messages = turns.map(({ role, content }) => ({ role, content }));
  if (settings.system.trim()) messages.unshift({ role: "system", content: settings.system });
  const body = { model, messages, stream: true, stream_options: { include_usage: true } };
  for (const { name } of NUMBERS) {
    if (settings[name] !== "" && settings[name] !== NEUTRAL[name]) body[name] = Number(settings[name]);
  }
  const stop = settings.stop.split("\n").filter(Boolean);
  if (stop.length) body.stop = stop;
  if (settings.schema.trim()) {
    const schema = JSON.parse(settings.schema);
    body.response_format = { type: "json_schema", json_schema: { name: "answer", schema } };
  }
  if (settings.logprobs) Object.assign(body, { logprobs: true, top_logprobs: 3 });
  return body;
}

/** 0 (sure) to 9 (a guess), for the colour of a token. */
const doubt = (logprob) => Math.min(9, Math.floor(10 * (1 - Math.exp(logprob))));

function Tokens({ tokens }) {
  return html`${tokens.map((each, index) => {
    const others = (each.top_logprobs || [])
      .map((other) => `${JSON.stringify(other.token)} ${(100 * Math.exp(other.logprob)).toFixed(1)} %`);
    return html`<span key=${index} class=${`token doubt${doubt(each.logprob)}`}
      title=${others.join("\n")}>${each.token}</span>`;
  })}`;
}

function Turn({ turn }) {
  const by = turn.role === "user" ? "You" : "Model";
  return html`<article class=${`turn ${turn.role}`} aria-label=${by}>
    <h3>${by}</h3>
    <div class="text">${turn.tokens?.length ? html`<${Tokens} tokens=${turn.tokens} />` : turn.content}</div>
    ${turn.note && html`<p class="quiet">${turn.note}</p>`}
    ${turn.error && html`<p class="trouble" role="alert">${turn.error}</p>`}
  </article>`;
}

function Settings({ settings, onChange }) {
  const set = (name) => (event) => onChange({
    ...settings,
    [name]: event.target.type === "checkbox" ? event.target.checked : event.target.value,
  });
  return html`<details class="settings"><summary>Settings</summary>
    <div class="grid">${NUMBERS.map(({ name, label, min, max, step }) => html`
      <label key=${name}>${label} <input type="number" name=${name} value=${settings[name]}
        min=${min} max=${max} step=${step} onInput=${set(name)} /></label>`)}</div>
    <label>System message <textarea rows="2" value=${settings.system} onInput=${set("system")}></textarea></label>
    <label>Stop strings, one a line <textarea rows="2" value=${settings.stop} onInput=${set("stop")}></textarea></label>
    <label>JSON schema of the answer
      <textarea rows="4" class="code" value=${settings.schema} onInput=${set("schema")}
        placeholder='{"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}'></textarea></label>
    <label class="check"><input type="checkbox" checked=${settings.logprobs} onChange=${set("logprobs")} />
      Colour tokens by their probability</label>
  </details>`;
}

function Copy({ name, text, onShown }) {
  const [done, setDone] = useState(false);
  const copy = async () => {
    onShown(text());
    // Browsers have a clipboard for https and localhost only.
    await navigator.clipboard?.writeText(text());
    setDone(Boolean(navigator.clipboard));
    setTimeout(() => setDone(false), 1500);
  };
  return html`<button type="button" onClick=${copy}>${done ? "Copied" : `Copy as ${name}`}</button>`;
}

/** Reads a stream into the last turn, asked for at `began`; `change` replaces that turn. */
async function follow(answer, began, change) {
  const turn = { role: "assistant", content: "", tokens: [] };
  let first = 0;
  for await (const event of events(answer)) {
    if (event.error) throw new Error(event.error.message);
    const choice = event.choices[0];
    if (choice?.delta?.content) {
      first = first || performance.now() - began;
      turn.content += choice.delta.content;
      turn.tokens.push(...(choice.logprobs?.content || []));
    }
    if (event.usage) {
      const seconds = (performance.now() - began - first) / 1e3;
      const count = event.usage.completion_tokens;
      turn.note = `${count} tokens, first after ${first.toFixed(0)} ms, then ${((count - 1) / seconds).toFixed(1)} a second`;
    }
    change({ ...turn });
  }
}

export function Chat({ model, onKeyWanted }) {
  const [turns, setTurns] = useState([]);
  const [draft, setDraft] = useState("");
  const [settings, setSettings] = useState(DEFAULTS);
  const [problem, setProblem] = useState("");
  const [shown, setShown] = useState("");
  const running = useRef(null);
  const [busy, setBusy] = useState(false);
  const end = useRef(null);
  useEffect(() => end.current?.scrollIntoView({ block: "nearest" }), [turns]);

  const body = (more = []) => requestOf(model, settings, [...turns.filter((t) => !t.error), ...more]);
  const next = () => (draft.trim() ? [{ role: "user", content: draft.trim() }] : []);

  const send = async (event) => {
    event?.preventDefault();
    if (busy || !draft.trim()) return;
    let asked;
    try {
      asked = body(next());
      setProblem("");
    } catch (error) {
      setProblem(`The JSON schema is not JSON: ${error.message}`);
      return;
    }
    const before = [...turns, ...next()];
    const change = (turn) => setTurns([...before, turn]);
    change({ role: "assistant", content: "" });
    setDraft("");
    setBusy(true);
    running.current = new AbortController();
    let last = { role: "assistant", content: "" };
    const keep = (turn) => change((last = turn));
    try {
      const began = performance.now();
      const { signal } = running.current;
      await follow(await call("/v1/chat/completions", { body: asked, signal }), began, keep);
    } catch (error) {
      if (error.status === 401) onKeyWanted(error.message);
      const stopped = error.name === "AbortError";
      change(stopped ? { ...last, note: "Stopped." } : { ...last, error: error.message });
    } finally {
      setBusy(false);
    }
  };
  const onKey = (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) send(event);
  };
  const snippet = (make) => () => make(base(), body(next()), Boolean(storedKey()));
  return html`
    <div class="turns" role="log" aria-live="polite" aria-label="Conversation">
      ${turns.map((turn, index) => html`<${Turn} key=${index} turn=${turn} />`)}
      <div ref=${end}></div>
    </div>
    <form class="ask" onSubmit=${send}>
      <label class="grow">Message
        <textarea name="message" rows="3" value=${draft} onInput=${(e) => setDraft(e.target.value)}
          onKeyDown=${onKey} placeholder="Enter sends, Shift+Enter begins a line"></textarea></label>
      <div class="buttons">
        ${busy
          ? html`<button type="button" class="primary" onClick=${() => running.current.abort()}>Stop</button>`
          : html`<button class="primary" disabled=${!draft.trim() || !model}>Send</button>`}
        <button type="button" onClick=${() => setTurns([])} disabled=${busy || !turns.length}>Clear</button>
        <${Copy} name="curl" text=${snippet(asCurl)} onShown=${setShown} />
        <${Copy} name="Python" text=${snippet(asPython)} onShown=${setShown} />
      </div>
      ${problem && html`<p class="trouble" role="alert">${problem}</p>`}
      ${shown && html`<pre class="scroll code" tabindex="0" aria-label="The request">${shown}</pre>`}
    </form>
    <${Settings} settings=${settings} onChange=${setSettings} />`;
}
