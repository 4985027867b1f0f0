// Calls to the server, with the key that was asked for once. Kept for this tab only.

const KEY = "rufus-serve-key";

export const storedKey = () => sessionStorage.getItem(KEY) || "";

export function storeKey(key) {
  if (key) sessionStorage.setItem(KEY, key);
  else sessionStorage.removeItem(KEY);
}

/** Where the API is: the page is at BASE/ui/. */
export const base = () => new URL("..", document.baseURI).href.replace(/\/$/, "");

export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export async function call(path, { body, signal } = {}) {
  const headers = {};
  if (storedKey()) headers["Authorization"] = `Bearer ${storedKey()}`;
  if (body) headers["Content-Type"] = "application/json";
  const answer = await fetch(base() + path, {
    method: body ? "POST" : "GET",
    headers,
    body: body && JSON.stringify(body),
    signal,
    cache: "no-store",
  });
  if (!answer.ok) throw new Refused(answer.status, await words(answer));
  return answer;
}

async function words(answer) {
  const text = await answer.text();
  try {
    return JSON.parse(text).error.message;
  } catch {
    return text.slice(0, 300) || `HTTP ${answer.status}`;
  }
}

/** The data of server-sent events, parsed, until the stream ends. */
export async function* events(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  while (true) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const data = part.split("\n").filter((line) => line.startsWith("data:"))
        .map((line) => line.slice(5).trim()).join("\n");
      if (data && data !== "[DONE]") yield JSON.parse(data);
    }
  }
}
