// Reads the feed, keeps the last minutes of it, and shows what came. All text from the server is set as text.

import { blockMap, colour, dots, seconds, spark, stepBars, stepTimes } from "./charts.js";

const KEPT = { steps: 160, requests: 14, points: 4000, seconds: 120 };
const REASONS = {
  blocks: "free KV blocks", budget: "room in a step, or a slot", share: "its tenant's share", order: "others before it",
  gate: "the batch policy", tier: "its KV to come back",
};
const kept = { steps: [], requests: [], points: [], seconds: [] };
const rows = new Map();
let last = null, previous = null;

const LINE_S = 90;

const $ = (id) => document.getElementById(id);
const percent = (share) => (share === null || share === undefined ? "–" : `${(share * 100).toFixed(share > 0.0995 && share < 0.9995 ? 0 : 1)}%`.replace(".0%", "%"));
const whole = (number) => Math.round(number).toLocaleString("en");

function element(tag, classes = "", text = "") {
  const made = document.createElement(tag);
  if (classes) made.className = classes;
  if (text) made.textContent = text;
  return made;
}

function legend(id, entries) {
  $(id).replaceChildren(...entries.map(([name, text]) => {
    const item = element("li"), key = element("i");
    key.style.background = colour(name);
    item.append(key, text);
    return item;
  }));
}

// --- the feed ---------------------------------------------------------------------------------------------------

async function follow() {
  for (;;) {
    try {
      await read();
      status("ended: the server is gone, or draining", "bad");
    } catch (error) {
      if (error.name === "Refused") return ask(error.message);
      status("no connection, trying again", "bad");
    }
    await new Promise((done) => setTimeout(done, 2000));
    for (const name of Object.keys(kept)) kept[name].length = 0;  // a new feed begins with all that is kept there
  }
}

async function read() {
  const key = sessionStorage.getItem("jaxserve-admin-key");
  const answer = await fetch("/dashboard/feed", { headers: key ? { Authorization: `Bearer ${key}` } : {} });
  if (answer.status === 401 || answer.status === 403) {
    const body = await answer.json();
    throw Object.assign(new Error(key ? body.error.message : ""), { name: "Refused" });
  }
  if (!answer.ok) throw new Error(`status ${answer.status}`);
  $("gate").hidden = true;
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const events = (rest + value).split("\n\n");
    rest = events.pop();
    for (const event of events) take(JSON.parse(event.replace(/^data: /, "")));
  }
}

function ask(refusal) {
  $("gate").hidden = false;
  document.querySelector("main").hidden = true;
  $("refusal").textContent = refusal;
  status("needs the admin key", "");
}

function take(view) {
  for (const [name, most] of Object.entries(KEPT)) {
    if (name === "seconds" && view.seconds && view.seconds.length && kept.seconds.length
        && kept.seconds.at(-1).at_s === view.seconds[0].at_s) kept.seconds.pop();  // that second has gone on meanwhile
    kept[name].push(...(view[name] || []));
    kept[name].splice(0, kept[name].length - most);
  }
  if (view.now_s !== undefined) previous = last, last = view;
  head(view);
  if (last) show();
  if (last && !previous) openDetail();
}

function status(text, classes) {
  $("status").textContent = text;
  $("status").className = classes;
}

// --- the panels -------------------------------------------------------------------------------------------------

function head(view) {
  $("model").textContent = view.model || "";
  if (view.uptime_s) $("uptime").textContent = `up ${duration(view.uptime_s)} · ${view.version}`;
  const hangs = view.step_age_s > 10;
  if (view.alive === false) status("the engine has stopped", "bad");
  else if (hangs) status(`a step has been running for ${seconds(view.step_age_s)}`, "bad");
  else status(view.phase, view.phase === "ready" ? "good" : "");
}

function duration(total) {
  const minutes = Math.floor(total / 60);
  if (minutes < 1) return `${Math.floor(total)} s`;
  return minutes < 120 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

function show() {
  document.querySelector("main").hidden = false;
  tiles();
  tenants();
  pool();
  steps();
  waiting();
  requests();
}

// A value for each of the last seconds, 0 where nothing ran, without the second under way.
function lately(value) {
  const end = Math.floor(last.now_s), found = new Map(kept.seconds.map((s) => [s.at_s, value(s)]));
  return Array.from({ length: LINE_S }, (_, i) => found.get(end - LINE_S + i) || 0);
}

// Rows of (tenant, reason, count, lately), added up by reason, the most first.
function byReason(rows) {
  const sums = {};
  for (const row of rows) if (row.lately) sums[row.reason] = (sums[row.reason] || 0) + row.lately;
  return Object.entries(sums).sort((a, b) => b[1] - a[1]);
}

const total = (entries) => entries.reduce((sum, [, count]) => sum + count, 0);
const listed = (entries) => entries.map(([reason, count]) => `${reason} ${whole(count)}`).join(", ");

function tiles() {
  const output = lately((s) => s.output_tokens), prompt = lately((s) => s.prompt_tokens);
  const mean = (values) => whole(values.slice(-5).reduce((a, b) => a + b, 0) / 5);
  const line = (id, values, name, top) => spark($(id), values, name, LINE_S, top);
  $("out-rate").textContent = mean(output);
  $("in-rate").textContent = mean(prompt);
  line("out-spark", output, "decode");
  line("in-spark", prompt, "prefill");
  $("running").textContent = whole(last.running);
  $("running-of").textContent = `of at most ${whole(last.max_num_seqs)}`;
  line("running-spark", lately((s) => s.running), "decode", last.max_num_seqs);
  $("waiting").textContent = whole(last.waiting);
  const first = last.live.find((live) => live.waits_for !== null && live.waits_for !== "order");
  const why = first ? first.waits_for : last.waiting ? "order" : null;
  $("waiting-why").textContent = why ? `first for ${REASONS[why] || why}` : "nothing waits";
  line("waiting-spark", lately((s) => s.waiting), "queue");
  for (const [name, rows, none] of [["refused", last.refusals, "no refusals"], ["failed", last.failures, "no errors"]]) {
    const reasons = byReason(rows), count = total(reasons);
    $(name).textContent = whole(count);
    $(name).className = count ? "alarm" : "";
    $(`${name}-why`).textContent = listed(reasons) || none;
    line(`${name}-spark`, lately((s) => s[name]), "bad");
  }
  $("kv-usage").textContent = percent(last.kv.usage);
  $("kv-usage").className = last.kv.usage > 0.95 ? "alarm" : "";
  const { prefix_hits: hits, prefix_queries: queries } = last.kv;
  $("kv-hits").textContent = queries ? `prefix hits ${percent(hits / queries)}` : "";
  line("kv-spark", lately((s) => s.kv_usage), "used");
  const sum = (field) => kept.steps.reduce((all, step) => all + step[field], 0);
  const all = sum("padding") + sum("decodes") + sum("prefill_tokens");
  $("padding").textContent = all ? percent(sum("padding") / all) : "–";
  line("padding-spark", lately((s) => s.padding / Math.max(s.padding + s.decode_rows + s.prompt_tokens, 1)), "padding");
  const late = last.compilations_after_warmup, newest = last.compilations.at(-1);
  const since = newest ? last.now_s - newest.ended_s : Infinity;
  $("compilations").textContent = !late ? "no compilations while serving"
    : `${late} compiled while serving` + (newest ? `, the last ${duration(since)} ago` : "");
  $("compilations").className = since < 300 ? "missed" : "";
}

function tenants() {
  last.tenants.forEach((tenant, i) => {
    let row = rows.get(tenant.name);
    if (!row) {
      row = element("div", "tenant");
      row.innerHTML = '<div><div class="name"></div><div class="facts"></div></div>'
        + '<div><div class="measure ttft"></div><canvas height="87"></canvas></div>'
        + '<div><div class="measure tpot"></div><canvas height="87"></canvas></div>';
      rows.set(tenant.name, row);
      $("tenants").append(row);
    }
    const trouble = troubles(tenant);
    const quiet = !tenant.generation_tokens && !tenant.running && !tenant.waiting && !tenant.refused && !trouble.length;
    row.classList.toggle("quiet", quiet);
    row.classList.toggle("alarm", trouble.length > 0);
    row.querySelectorAll("canvas, .measure").forEach((part) => { part.hidden = quiet; });
    const shade = `t${i % 6}`, [ttft, tpot] = row.querySelectorAll("canvas");
    const name = row.querySelector(".name"), key = element("i", "key");
    key.style.background = colour(shade);
    name.replaceChildren(key, tenant.name);
    row.querySelector(".facts").replaceChildren(
      ...trouble.map((text) => element("div", "trouble", text)),
      ...(quiet ? ["no requests yet"] : facts(tenant)).map((text) => element("div", "", text)));
    if (quiet) return;
    measure(row.querySelector(".ttft"), "TTFT", tenant.ttft);
    measure(row.querySelector(".tpot"), "TPOT", tenant.tpot);
    for (const [canvas, kind] of [[ttft, "ttft"], [tpot, "tpot"]]) {
      const points = kept.points.filter((p) => p.kind === kind && p.tenant === tenant.name);
      dots(canvas, points, last.now_s, 120, tenant[kind].slo_s, shade);
    }
  });
}

// What is red about a tenant: it gets far less than its share, or a hundredth or more of its calls is refused or fails.
function troubles(tenant) {
  const found = [], starved = tenant.starved;
  if (starved && starved.now) found.push(
    `starved for ${duration(starved.seconds)}: gets ${percent(starved.got)} of the service, due ${percent(starved.due)}`);
  for (const [what, rows] of [["refused", last.refusals], ["failed", last.failures]]) {
    const reasons = byReason(rows.filter((row) => row.tenant === tenant.name)), count = total(reasons);
    const came = what === "refused" ? count + tenant.ended_lately : Math.max(count, tenant.ended_lately);
    if (count && count >= 0.01 * came) found.push(`${whole(count)} of ${whole(came)} ${what} in 30 s: ${listed(reasons)}`);
  }
  return found;
}

function facts(tenant) {
  const before = previous && previous.tenants.find((t) => t.name === tenant.name);
  const span = previous ? last.now_s - previous.now_s : 0;
  const rate = before && span > 0 ? (tenant.generation_tokens - before.generation_tokens) / span : 0;
  const found = [`${whole(rate)} tokens/s`, `${tenant.running} running, ${tenant.waiting} waiting`];
  if (tenant.waits_s !== null) found.push(`first waits ${seconds(tenant.waits_s)} for ${REASONS[tenant.waits_for] || tenant.waits_for}`);
  found.push(`${percent(tenant.blocks / poolSize())} of the KV pool`);
  if (tenant.refused) found.push(`${whole(tenant.refused)} refused since the start`);
  return found;
}

function measure(place, label, latency) {
  const over = latency.slo_s !== null && latency.p99 !== null && latency.p99 > latency.slo_s;
  const parts = [element("span", "label", label), element("span", "", `P50 ${seconds(latency.p50)}`),
                 element("strong", over ? "missed" : "", `P99 ${seconds(latency.p99)}`)];
  if (latency.slo_s !== null) {
    parts.push(element("span", "label", `objective ${seconds(latency.slo_s)}`));
    if (latency.attained !== null)
      parts.push(element("span", latency.attained < 0.99 ? "missed" : "met", `${percent(latency.attained)} in time`));
  }
  place.replaceChildren(...parts);
}

const poolSize = () => last.kv.free + last.kv.cached + last.kv.used + last.kv.shared || 1;

function pool() {
  const kv = last.kv, names = ["free", "cached", "used", "shared"];
  $("kv-unit").textContent = `${whole(poolSize())} blocks` + (kv.blocks_per_cell > 1 ? `, ${kv.blocks_per_cell} to a square` : "");
  blockMap($("kv-map"), kv.map, names);
  const meaning = { free: "free", cached: "free, content kept", used: "used", shared: "shared by several" };
  legend("kv-legend", names.map((name) => [name, `${meaning[name]} ${whole(kv[name])}`]));
  $("kv-tiers").replaceChildren(...kv.tiers.map((tier) => bar("tier", `${tier.name} tier`,
    [["queue", tier.used / tier.capacity]],
    `${whole(tier.used)} of ${whole(tier.capacity)} blocks, ${whole(tier.sequences)} swapped`)));
}

function bar(classes, label, parts, value) {
  const made = element("div", classes), track = element("div", "bar");
  for (const [name, share] of parts) {
    const part = element("i");
    part.style.width = `${100 * share}%`;
    part.style.background = colour(name);
    track.append(part);
  }
  made.append(element("span", "", label), track, element("span", "", value));
  return made;
}

function steps() {
  const newest = kept.steps.at(-1);
  stepBars($("steps"), kept.steps, last.now_s);
  stepTimes($("step-times"), kept.steps, last.now_s);
  legend("step-legend", [["decode", "decode rows"], ["prefill", "prompt tokens"], ["padding", "padding"], ["bad", "preempted"]]);
  if (newest) $("step-now").textContent = `last bucket ${newest.bucket}: ${newest.decodes} decodes, `
    + `${newest.prefill_tokens} prompt tokens, ${newest.padding} padding`;
  $("step-error").textContent = "line: measured; dots: predicted"
    + (last.prediction_error === null ? "" : `, median error ${percent(last.prediction_error)}`);
}

function waiting() {
  const reasons = Object.entries(last.waiting_by_reason).sort((a, b) => b[1] - a[1]);
  $("reasons").replaceChildren(...reasons.map(([reason, count]) =>
    bar("reason", REASONS[reason] || reason, [["queue", count / last.waiting]], whole(count))));
  const waits = last.live.filter((live) => live.waits_for !== null);
  $("live-none").hidden = waits.length > 0;
  $("live").hidden = waits.length === 0;
  $("live").tBodies[0].replaceChildren(...waits.slice(0, 10).map((live) => {
    const row = element("tr"), late = live.ttft_slo_s !== null && live.age_s > live.ttft_slo_s && !live.output_tokens;
    const name = element("td");
    name.append(link(live.id, short(live.id)));
    row.append(name, element("td", "", live.tenant), element("td", late ? "n missed" : "n", seconds(live.age_s)),
               element("td", "n", whole(live.prompt_tokens)), element("td", "", REASONS[live.waits_for] || live.waits_for));
    return row;
  }));
}

function requests() {
  legend("request-legend", [["queue", "queue"], ["prefill", "prefill"], ["decode", "decode"], ["stalled", "preempted"]]);
  const longest = Math.max(0.001, ...kept.requests.map((r) => r.queue_s + r.prefill_s + r.decode_s));
  $("requests").replaceChildren(...kept.requests.toReversed().map((r) => {
    const stalled = Math.min(r.stalled_s, r.decode_s), total = r.queue_s + r.prefill_s + r.decode_s;
    const parts = [["queue", r.queue_s], ["prefill", r.prefill_s], ["decode", r.decode_s - stalled], ["stalled", stalled]];
    const ended = r.reason === "stop" || r.reason === "length" ? `${r.prompt_tokens} + ${r.output_tokens} tok` : r.reason;
    const made = bar("request", "", parts.map(([name, s]) => [name, s / longest]), `${seconds(total)} · ${ended}`);
    made.firstChild.append(link(r.id, short(r.id)), element("span", "of", r.tenant));
    made.title = `${r.id}: queue ${seconds(r.queue_s)}, prefill ${seconds(r.prefill_s)}, decode ${seconds(r.decode_s)}, `
      + `preempted ${seconds(r.stalled_s)}, ${r.cached_tokens} cached tokens`;
    return made;
  }));
}

// --- one request ------------------------------------------------------------------------------------------------

const short = (id) => (id.length > 16 ? `${id.slice(0, 9)}…${id.slice(-5)}` : id);

function link(id, text) {
  const made = element("a", "", text);
  made.href = `#request/${encodeURIComponent(id)}`;
  made.title = id;
  return made;
}

// The address names a request: show where its time went.
async function openDetail() {
  const name = /^#request\/(.+)$/.exec(location.hash);
  if (!name) return;
  const id = decodeURIComponent(name[1]), known = kept.requests.find((r) => r.id === id);
  $("detail-id").textContent = id;
  $("detail-content").replaceChildren(...(known ? [table("As it ended", ended(known))] : []));
  if (!$("detail").open) $("detail").showModal();
  const told = await ofRequest(id);
  const parts = told.error ? [element("p", "faint", told.error)] : told.sequences.flatMap(ofSequence);
  $("detail-content").append(...parts);
}

function ended(r) {
  const ms = (value) => (value === null ? "–" : seconds(value));
  return [["tenant", r.tenant], ["ended with", r.reason], ["time to first token", ms(r.ttft_s)], ["queue", ms(r.queue_s)],
          ["prefill", ms(r.prefill_s)], ["decode", ms(r.decode_s)], ["preempted", r.preemptions ? `${r.preemptions} times, ${ms(r.stalled_s)}` : "never"],
          ["prompt tokens", `${whole(r.prompt_tokens)}, of them cached ${whole(r.cached_tokens)}`],
          ["output tokens", whole(r.output_tokens)]];
}

function ofSequence(sequence) {
  const parts = Object.entries(sequence.seconds).map(([part, s]) => [part, seconds(s)]);
  const why = sequence.preemptions.map((p) => ["preempted for", `${p.for}, ${p.fate}`]);
  return [table(`${sequence.id}: ${sequence.state}, ${seconds(sequence.total_s)}`, [...parts, ...why])];
}

function table(title, entries) {
  const made = element("table");
  made.append(element("caption", "", title));
  for (const [name, value] of entries) {
    const row = element("tr");
    row.append(element("th", "", name), element("td", "n", value));
    made.append(row);
  }
  return made;
}

// What the scheduler's journal knows; `id` may be one of a request's completions, "ID/2".
async function ofRequest(id) {
  const key = sessionStorage.getItem("jaxserve-admin-key"), headers = key ? { Authorization: `Bearer ${key}` } : {};
  for (const name of new Set([id, id.replace(/\/\d+$/, "")])) {
    const answer = await fetch(`/debug/requests/${encodeURIComponent(name)}`, { headers });
    const body = await answer.json();
    if (answer.ok) return body;
    if (answer.status !== 404) return { error: body.error.message };
  }
  return { error: "the scheduler's journal does not know it any more" };
}

$("detail").addEventListener("close", () => history.replaceState(null, "", location.pathname));
addEventListener("hashchange", openDetail);

// --- light and dark, the key ------------------------------------------------------------------------------------

function dark() {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

function theme(name) {
  document.documentElement.dataset.theme = name;
  localStorage.setItem("jaxserve-theme", name);
  if (last) show();
}

const stored = localStorage.getItem("jaxserve-theme");
if (stored) document.documentElement.dataset.theme = stored;
const label = () => { $("theme").textContent = dark() ? "light" : "dark"; };
$("theme").addEventListener("click", () => { theme(dark() ? "light" : "dark"); label(); });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { label(); if (last) show(); });
label();
$("gate").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("jaxserve-admin-key", $("key").value);
  $("key").value = "";
  follow();
});
addEventListener("resize", () => { if (last) show(); });
follow();
