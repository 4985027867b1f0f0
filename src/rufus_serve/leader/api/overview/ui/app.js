import { html, render, useEffect, useRef, useState } from "./vendor/htm-preact.js";
import { call, events, storedKey, storeKey } from "./api.js";
import { Cluster } from "./cluster.js";
import { Chat } from "./chat.js";

const RETRY_MS = 1000;
const HISTORY = 120;

/** The server's overview, once a second; what went wrong; and tokens/s of the last two minutes. */
function useOverview(key, onKeyWanted) {
  const [now, setNow] = useState(null);
  const [trouble, setTrouble] = useState("");
  const [rates, setRates] = useState([]);
  useEffect(() => {
    const stop = new AbortController();
    const follow = async () => {
      while (!stop.signal.aborted) {
        try {
          const answer = await call("/overview/events", { signal: stop.signal });
          for await (const event of events(answer)) {
            setNow(event);
            setTrouble("");
            setRates((past) => [...past, event.load.output_tokens_per_s].slice(-HISTORY));
          }
        } catch (error) {
          if (stop.signal.aborted) return;
          if (error.status === 401) return onKeyWanted(error.message);
          setTrouble(error.status ? error.message : "The server does not answer.");
          if (error.status === 403) return;
        }
        await new Promise((done) => setTimeout(done, RETRY_MS));
      }
    };
    follow();
    return () => stop.abort();
  }, [key]);
  return { now, trouble, rates };
}

function KeyDialog({ why, onKey }) {
  const dialog = useRef(null);
  useEffect(() => dialog.current.showModal(), []);
  const submit = (event) => {
    event.preventDefault();
    const key = event.target.elements.key.value.trim();
    if (key) onKey(key);
  };
  return html`<dialog ref=${dialog} aria-labelledby="key-title" onCancel=${(e) => e.preventDefault()}>
    <form onSubmit=${submit}>
      <h2 id="key-title">API key</h2>
      <p>${why}</p>
      <label>Key <input name="key" type="password" autocomplete="off" required autofocus /></label>
      <p class="quiet">It is kept for this tab only.</p>
      <button class="primary">Use it</button>
    </form>
  </dialog>`;
}

const TABS = { cluster: "Cluster", chat: "Chat" };

function App() {
  const [tab, setTab] = useState(location.hash === "#chat" ? "chat" : "cluster");
  const [key, setKey] = useState(storedKey());
  const [wanted, setWanted] = useState("");
  const { now, trouble, rates } = useOverview(key, setWanted);
  const choose = (name) => { setTab(name); history.replaceState(null, "", `#${name}`); };
  const useKey = (text) => { storeKey(text); setKey(text); setWanted(""); };
  const state = trouble ? "unreachable" : now?.state || "…";
  return html`
    <header>
      <h1>rufus-serve</h1>
      <span class="model">${now?.model}</span>
      <span class=${`badge ${state}`} role="status" aria-live="polite">${state}</span>
      <nav aria-label="Views">
        ${Object.entries(TABS).map(([name, title]) => html`
          <button key=${name} aria-current=${tab === name ? "page" : null}
            onClick=${() => choose(name)}>${title}</button>`)}
        ${key && html`<button onClick=${() => useKey("")}>Forget key</button>`}
      </nav>
    </header>
    ${trouble && html`<p class="trouble" role="alert">${trouble}</p>`}
    <main>
      <section hidden=${tab !== "cluster"} aria-label="Cluster">
        ${now ? html`<${Cluster} now=${now} rates=${rates} />` : html`<p class="quiet">Waiting for the server.</p>`}
      </section>
      <section hidden=${tab !== "chat"} aria-label="Chat">
        <${Chat} model=${now?.model || ""} onKeyWanted=${setWanted} />
      </section>
    </main>
    ${wanted && html`<${KeyDialog} why=${wanted} onKey=${useKey} />`}`;
}

const root = document.getElementById("app");
root.replaceChildren();
render(html`<${App} />`, root);
