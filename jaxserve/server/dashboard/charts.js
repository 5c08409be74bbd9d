// Drawing on canvases: each function clears its canvas and draws plain data; colours come from the style sheet.

export function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

// A canvas at the screen's own resolution. Returns [context, width, height] in CSS pixels.
function begin(canvas) {
  const height = Number(canvas.getAttribute("height-css") || canvas.getAttribute("height"));
  canvas.setAttribute("height-css", height);
  canvas.style.height = `${height}px`;
  const width = canvas.clientWidth, scale = window.devicePixelRatio || 1;
  canvas.width = Math.round(width * scale);
  canvas.height = Math.round(height * scale);
  const context = canvas.getContext("2d");
  context.scale(scale, scale);
  context.font = '11px system-ui, "DejaVu Sans", sans-serif';
  return [context, width, height];
}

// A row of words below a chart, from its left edge to its right one: since when, and "now".
function axis(c, left, right, y, words) {
  c.fillStyle = colour("faint"); c.textBaseline = "alphabetic";
  words.forEach((word, i) => {
    c.textAlign = i === 0 ? "left" : i === words.length - 1 ? "right" : "center";
    c.fillText(word, left + ((right - left) * i) / (words.length - 1), y);
  });
}

// The last `span_s` seconds, a value each; `top`: what fills the height at least.
export function spark(canvas, values, name, span_s, top = 1) {
  const [c, width, height] = begin(canvas), foot = 15;
  const most = Math.max(top, ...values), step = width / Math.max(values.length - 1, 1), base = height - foot;
  const at = (i) => [i * step, base - 1 - (values[i] / most) * (base - 4)];
  c.beginPath();
  values.forEach((_, i) => c.lineTo(...at(i)));
  c.strokeStyle = colour(name); c.lineWidth = 1.6; c.lineJoin = "round"; c.stroke();
  c.lineTo(width, base); c.lineTo(0, base); c.closePath();
  c.globalAlpha = 0.14; c.fillStyle = colour(name); c.fill();
  c.globalAlpha = 1; c.font = c.font.replace("11px", "10px");
  axis(c, 0, width, height - 3, [`${span_s} s ago`, "now"]);
}

// One dot a request over the last `window_s`, on a logarithmic scale, with the objective as a dashed line.
export function dots(canvas, points, now, window_s, slo_s, name) {
  const [c, width, height] = begin(canvas);
  const left = 50, bottom = 19, top = 6;
  const values = points.map((p) => Math.max(p.seconds, 1e-4));
  if (slo_s) values.push(slo_s);
  let low = Math.min(...values, slo_s || 1), high = Math.max(...values, slo_s || 0.001);
  low = Math.max(low / 1.6, 1e-4); high = Math.max(high * 1.6, low * 10);
  const y = (s) => top + (height - top - bottom) * (1 - Math.log(s / low) / Math.log(high / low));
  const first = left + 3, last = width - 5, x = (t) => first + (last - first) * (1 - (now - t) / window_s);
  axis(c, first, last, height - 4, [`${window_s} s ago`, `${window_s / 2} s ago`, "now"]);
  c.textAlign = "right"; c.textBaseline = "middle";
  for (let power = Math.ceil(Math.log10(low)); 10 ** power <= high; power++) {
    const mark = 10 ** power;
    c.strokeStyle = colour("line"); c.beginPath(); c.moveTo(left, y(mark)); c.lineTo(width, y(mark)); c.stroke();
    if (!slo_s || Math.abs(y(mark) - y(slo_s)) > 13) {
      c.fillStyle = colour("faint"); c.fillText(seconds(mark), left - 6, y(mark));
    }
  }
  c.globalAlpha = 0.75;
  for (const p of points) {
    if (now - p.at_s > window_s) continue;
    const missed = p.slo_s !== null && p.seconds > p.slo_s;
    c.fillStyle = colour(missed ? "bad" : name);
    c.beginPath(); c.arc(x(p.at_s), y(Math.max(p.seconds, 1e-4)), 2.3, 0, 7); c.fill();
  }
  c.globalAlpha = 1;
  if (slo_s) {
    c.strokeStyle = colour("ink"); c.setLineDash([5, 4]);
    c.beginPath(); c.moveTo(left, y(slo_s)); c.lineTo(width, y(slo_s)); c.stroke(); c.setLineDash([]);
    c.fillStyle = colour("ink"); c.fillText(seconds(slo_s), left - 6, y(slo_s));
  }
}

// Every KV block as a square, in the order of the pool; `states` are digits, `names` their colours.
export function blockMap(canvas, states, names) {
  const [c, width, height] = begin(canvas);
  if (!states.length) return;
  let side = Math.min(26, Math.floor(Math.sqrt((width * height) / states.length)));
  while (side > 2 && Math.ceil(states.length / Math.floor(width / side)) * side > height) side--;
  side = Math.max(side, 2);
  const columns = Math.max(Math.floor(width / side), 1), gap = side > 4 ? 1 : 0;
  const colours = names.map(colour);
  for (let i = 0; i < states.length; i++) {
    c.fillStyle = colours[Number(states[i])];
    c.fillRect((i % columns) * side, Math.floor(i / columns) * side, side - gap, side - gap);
  }
}

// The last steps that have room, and how much each of them gets: two pixels at least.
function fitting(steps, room) {
  const shown = steps.slice(-Math.floor(room / 2));
  return [shown, Math.max(room / Math.max(shown.length, 60), 2)];
}

// Below a chart of steps: how long ago its first, middle and last step ended.
function stepAxis(c, steps, left, width, y, now) {
  if (!steps.length) return;
  const ago = (step) => `${seconds(Math.max(now - step.ended_s, 0))} ago`;
  axis(c, left, width, y, [ago(steps[0]), ago(steps[Math.floor(steps.length / 2)]), ago(steps.at(-1))]);
}

// One bar a step: decode rows, prefill tokens and padding, stacked to the bucket's size; a red foot marks preemption.
export function stepBars(canvas, all, now) {
  const [c, width, whole] = begin(canvas), height = whole - 15;
  const left = 34, foot = 6, [steps, each] = fitting(all, width - left);
  stepAxis(c, steps, width - steps.length * each, width, whole - 4, now);
  const top = Math.max(8, ...steps.map((s) => s.decodes + s.prefill_tokens + s.padding));
  const scale = (tokens) => (Math.sqrt(tokens) / Math.sqrt(top)) * (height - foot - 8);
  c.textAlign = "right"; c.textBaseline = "middle";
  for (const mark of [top, Math.round(top / 4)]) {
    const y = height - foot - scale(mark);
    c.strokeStyle = colour("line"); c.beginPath(); c.moveTo(left, y); c.lineTo(width, y); c.stroke();
    c.fillStyle = colour("faint"); c.fillText(String(mark), left - 5, Math.max(y, 7));
  }
  steps.forEach((step, i) => {
    const x = width - (steps.length - i) * each;
    let below = 0;
    for (const [name, tokens] of [["decode", step.decodes], ["prefill", step.prefill_tokens], ["padding", step.padding]]) {
      const y0 = height - foot - scale(below), y1 = height - foot - scale(below + tokens);
      c.fillStyle = colour(name);
      c.fillRect(x, y1, Math.max(each - (each > 3 ? 1 : 0), 1), y0 - y1);
      below += tokens;
    }
    if (step.preempted) { c.fillStyle = colour("bad"); c.fillRect(x, height - foot + 1, Math.max(each - 1, 1), foot - 1); }
  });
}

// Measured step times as a line, predicted ones as dots.
export function stepTimes(canvas, all, now) {
  const [c, width, whole] = begin(canvas), height = whole - 15;
  const left = 50, [steps, each] = fitting(all, width - left);
  stepAxis(c, steps, width - steps.length * each, width, whole - 4, now);
  const ordered = steps.map((s) => s.seconds).sort((a, b) => a - b);
  const top = Math.max(1e-4, (ordered[Math.floor(ordered.length * 0.98)] || 0) * 1.25);
  const y = (s) => height - 4 - Math.min(s / top, 1) * (height - 12);
  c.textAlign = "right"; c.textBaseline = "middle";
  for (const mark of [top, top / 2, 0]) {
    c.strokeStyle = colour("line"); c.beginPath(); c.moveTo(left, y(mark)); c.lineTo(width, y(mark)); c.stroke();
    c.fillStyle = colour("faint"); c.fillText(seconds(mark), left - 5, Math.max(y(mark), 7));
  }
  const x = (i) => width - (steps.length - i - 0.5) * each;
  c.fillStyle = colour("queue");
  steps.forEach((s, i) => { if (s.predicted_s) c.fillRect(x(i) - 1, y(s.predicted_s) - 1, 2.4, 2.4); });
  c.beginPath();
  steps.forEach((s, i) => c.lineTo(x(i), y(s.seconds)));
  c.strokeStyle = colour("decode"); c.lineWidth = 1.4; c.lineJoin = "round"; c.stroke();
}

export function seconds(value) {
  if (value === null || value === undefined) return "–";
  if (value === 0) return "0";
  if (value < 0.001) return `${(value * 1e6).toFixed(0)} µs`;
  if (value < 0.01) return `${(value * 1000).toPrecision(2).replace(/\.0$/, "")} ms`;
  if (value < 0.9995) return `${(value * 1000).toFixed(0)} ms`;
  return value < 9.95 ? `${value.toPrecision(3).replace(/\.?0+$/, "")} s` : `${value.toFixed(0)} s`;
}
