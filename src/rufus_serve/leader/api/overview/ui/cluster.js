import { html } from "./vendor/htm-preact.js";

const ms = (value) => (value == null ? "–" : value >= 100 ? value.toFixed(0) : value.toFixed(1));
const percent = (share) => (share == null ? "–" : `${Math.round(100 * share)} %`);
const spread = (found) => (found ? `${ms(found.p50)} / ${ms(found.p90)} / ${ms(found.p99)}` : "–");

function Tile({ name, value, note }) {
  return html`<div class="tile"><dt>${name}</dt><dd>${value}</dd><small>${note}</small></div>`;
}

function Sparkline({ values }) {
  const width = 600, height = 60, top = Math.max(1, ...values);
  const step = width / Math.max(1, values.length - 1);
  const points = values.map((v, i) => `${(i * step).toFixed(1)},${(height - 4 - (v / top) * (height - 8)).toFixed(1)}`);
  const label = `Output tokens a second over the last ${values.length} seconds, highest ${top.toFixed(0)}`;
  return html`<svg class="sparkline" role="img" aria-label=${label} viewBox=${`0 0 ${width} ${height}`}
    preserveAspectRatio="none"><polyline points=${points.join(" ")} /></svg>`;
}

function Meter({ label, share, text }) {
  return html`<div class="meter"><span>${label}</span>
    <meter min="0" max="1" value=${share} aria-label=${label}></meter><span>${text}</span></div>`;
}

/** Parts of a step one after another, as long as they take. */
function Parts({ parts }) {
  const entries = Object.entries(parts).filter(([, value]) => value > 0.005);
  if (!entries.length) return html`<p class="quiet">No steps in the last minute.</p>`;
  const total = entries.reduce((sum, [, value]) => sum + value, 0);
  let x = 0;
  const bars = entries.map(([name, value], index) => {
    const bar = { name, value, index, x, width: (1000 * value) / total };
    x += bar.width;
    return bar;
  });
  const label = `Parts of a step: ${entries.map(([n, v]) => `${n} ${ms(v)} ms`).join(", ")}`;
  return html`
    <svg class="parts" role="img" aria-label=${label} viewBox="0 0 1000 20" preserveAspectRatio="none">
      ${bars.map((bar) => html`<rect key=${bar.name} class=${`part${bar.index % 8}`} x=${bar.x} y="0"
        width=${bar.width} height="20"><title>${bar.name} ${ms(bar.value)} ms</title></rect>`)}
    </svg>
    <ul class="legend" aria-hidden="true">${bars.map((bar) => html`<li key=${bar.name}>
      <i class=${`part${bar.index % 8}`}></i>${bar.name} ${ms(bar.value)}</li>`)}</ul>`;
}

function Group({ group }) {
  const steps = Object.entries(group.step_ms).map(([phase, value]) => `${phase} ${ms(value)} ms`);
  const padding = Object.entries(group.padding).map(([phase, share]) => `${phase} ${percent(share)}`);
  return html`<article class="card" aria-label=${`Group ${group.group}`}>
    <h3>Group ${group.group} <span class=${`badge ${group.state}`}>${group.state}</span></h3>
    ${group.detail && html`<p class="trouble">${group.detail}</p>`}
    <dl class="facts">
      <div><dt>Epoch</dt><dd>${group.epoch}</dd></div>
      <div><dt>Restarts</dt><dd>${group.restarts}</dd></div>
      <div><dt>Last recovery</dt><dd>${group.recovery_s ? `${group.recovery_s.toFixed(1)} s` : "none"}</dd></div>
      <div><dt>Running / waiting</dt><dd>${group.running} / ${group.waiting}</dd></div>
      <div><dt>Step</dt><dd>${steps.join(", ") || "–"}</dd></div>
      <div><dt>Skew</dt><dd>${ms(group.skew_ms)} ms</dd></div>
      <div><dt>Padding</dt><dd>${padding.join(", ") || "–"}</dd></div>
    </dl>
    <${Meter} label="KV cache" share=${group.kv_usage} text=${percent(group.kv_usage)} />
    <${Meter} label="Prefix hits" share=${group.prefix_hit_rate || 0} text=${percent(group.prefix_hit_rate)} />
    <${Parts} parts=${group.parts_ms} />
  </article>`;
}

function Followers({ followers }) {
  const slowest = Math.max(1e-9, ...followers.map((each) => each.step_s));
  return html`<div class="scroll" tabindex="0" role="region" aria-label="Followers"><table>
    <caption>Followers</caption>
    <thead><tr>${["Follower", "Host", "Process", "Phase", "For", "Heard", "Step ms", "Loads", "Restarts"]
      .map((name) => html`<th scope="col" key=${name}>${name}</th>`)}</tr></thead>
    <tbody>${followers.map((each) => html`<tr key=${`${each.group}-${each.node_rank}`}>
      <th scope="row">${each.group}/${each.node_rank}</th><td>${each.host}</td><td>${each.pid || "–"}</td>
      <td><span class=${`badge ${each.phase === "ready" ? "ready" : "recovering"}`}>${each.phase}</span></td>
      <td>${each.phase_s.toFixed(0)} s</td><td>${each.silent_s.toFixed(1)} s ago</td>
      <td><meter min="0" max=${slowest} value=${each.step_s} aria-hidden="true"></meter> ${ms(1e3 * each.step_s)}</td>
      <td>${each.load_count}</td><td>${each.restarts}</td></tr>`)}</tbody>
  </table></div>`;
}

function Timeline({ moments }) {
  return html`<section aria-label="Timeline"><h2>Timeline</h2>
    <ol class="timeline">${moments.map((moment) => html`<li key=${`${moment.at}-${moment.what}`}>
      <time>${new Date(1e3 * moment.at).toLocaleTimeString()}</time>
      <span>group ${moment.group}: ${moment.what}</span></li>`)}</ol></section>`;
}

export function Cluster({ now, rates }) {
  const { load } = now;
  const total = (name) => now.groups.reduce((sum, group) => sum + group[name], 0);
  return html`
    ${!now.cluster_up && html`<p class="trouble" role="alert">${now.cluster_detail}</p>`}
    <dl class="tiles">
      <${Tile} name="Output" value=${load.output_tokens_per_s.toFixed(0)} note="tokens/s" />
      <${Tile} name="Prompts" value=${load.prompt_tokens_per_s.toFixed(0)} note="tokens/s" />
      <${Tile} name="Running" value=${total("running")} note=${`${total("waiting")} waiting`} />
      <${Tile} name="TTFT" value=${spread(load.ttft_ms)} note="ms, p50 / p90 / p99" />
      <${Tile} name="TPOT" value=${spread(load.tpot_ms)} note="ms, p50 / p90 / p99" />
      <${Tile} name="ITL" value=${spread(load.itl_ms)} note="ms, p50 / p90 / p99" />
    </dl>
    <${Sparkline} values=${rates} />
    <div class="cards">${now.groups.map((group) => html`<${Group} key=${group.group} group=${group} />`)}</div>
    <${Followers} followers=${now.followers} />
    <${Timeline} moments=${now.timeline} />
    <p class="quiet">rufus-serve ${now.version}</p>`;
}
