// A request as a command and as a program, to copy.

const quoted = (text) => `'${text.replaceAll("'", `'\\''`)}'`;

export function asCurl(base, body, hasKey) {
  const lines = [`curl -N ${base}/v1/chat/completions`, `-H 'Content-Type: application/json'`];
  if (hasKey) lines.push(`-H "Authorization: Bearer $OPENAI_API_KEY"`);
  lines.push(`-d ${quoted(JSON.stringify(body, null, 2))}`);
  return lines.join(" \\\n  ");
}

function literal(value, indent = "") {
  const more = indent + "    ";
  if (value === null) return "None";
  if (value === true) return "True";
  if (value === false) return "False";
  if (Array.isArray(value)) {
    return `[\n${value.map((each) => `${more}${literal(each, more)},\n`).join("")}${indent}]`;
  }
  if (typeof value === "object") {
    const pairs = Object.entries(value);
    return `{\n${pairs.map(([k, v]) => `${more}${JSON.stringify(k)}: ${literal(v, more)},\n`).join("")}${indent}}`;
  }
  return JSON.stringify(value);
}

export function asPython(base, body, hasKey) {
  const fields = Object.entries(body).filter(([name]) => name !== "stream_options");
  const key = hasKey ? "" : `, api_key="unused"`;
  return `from openai import OpenAI

client = OpenAI(base_url=${JSON.stringify(`${base}/v1`)}${key})
stream = client.chat.completions.create(
${fields.map(([name, value]) => `    ${name}=${literal(value, "    ")},\n`).join("")})
for chunk in stream:
    print(chunk.choices[0].delta.content or "", end="", flush=True)
`;
}
