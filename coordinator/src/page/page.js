"use strict";
const PHASES = ["pilot", "calibrate", "reduce", "solve", "commit", "apply", "export"];
const byId = (id) => document.getElementById(id);

/* Text goes into the page as text alone, never as markup. */
const element = (tag, text, className) => {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
};
const write = (node, text) => { if (node.textContent !== text) node.textContent = text; };
/* The path of a module: a narrow column breaks it where its parts end. */
const writePath = (node, path) => {
  if (node.textContent === path) return;
  node.replaceChildren(...path.split(/(?<=[._])/).flatMap((part) => [part, element("wbr")]));
};
const counted = (count, thing) => `${count} ${thing}${count === 1 ? "" : "s"}`;

const duration = (seconds) => {
  const whole = Math.round(seconds);
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 59.95) return `${seconds.toFixed(1)} s`;
  if (seconds < 3599.5) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
};
/* Times that tick: no tenths. */
const ticking = (seconds) => (seconds < 59.5 ? `${Math.round(seconds)} s` : duration(seconds));
/* Bytes as obsdiff writes them elsewhere. */
const bytes = (count) => {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  let value = count;
  for (; value >= 1024 && unit < units.length - 1; unit += 1) value /= 1024;
  return unit === 0 ? `${count} B` : `${value.toFixed(1)} ${units[unit]}`;
};
/* Part of a whole, where these are known. */
const bytesOf = (part, whole) => {
  if (part === null || whole === null) return part === null ? "" : bytes(part);
  const [first, second] = [bytes(part), bytes(whole)];
  const [number, unit] = first.split(" ");
  return `${second.endsWith(` ${unit}`) ? number : first} of ${second}`;
};
/* A rate as what it counts and its number. */
const rate = (perSecond, things) =>
  perSecond >= 1 ? [`${things} a second`, perSecond.toFixed(1)]
    : perSecond * 60 >= 1 ? [`${things} a minute`, (perSecond * 60).toFixed(1)]
      : [`${things} an hour`, (perSecond * 3600).toFixed(1)];

let job = null;
/* When the last snapshot came, by the browser's clocks. */
let arrived = 0;
let arrivedAt = 0;

/* Seconds since the coordinator started. */
const now = () => job.elapsed_seconds + (job.ending ? 0 : (performance.now() - arrived) / 1000);
const clockTime = (seconds) => new Date(arrivedAt - (job.elapsed_seconds - seconds) * 1000);

/* The rows of a table or list, changed in place so that focus and selection stay. `fill` gets a row and its entry. */
const rows = (parent, entries, make, fill) => {
  while (parent.children.length > entries.length) parent.lastElementChild.remove();
  entries.forEach((entry, i) => {
    if (!parent.children[i]) parent.append(make());
    fill(parent.children[i], entry, i);
  });
};
const tableRow = (...classes) => () => {
  const row = element("tr");
  classes.forEach((className, i) => {
    const cell = element(i === 0 ? "th" : "td", undefined, className);
    if (i === 0) cell.scope = "row";
    row.append(cell);
  });
  return row;
};

const pairs = (list, entries) => {
  rows(list, entries, () => {
    const pair = element("div");
    pair.append(element("dt"), element("dd"));
    return pair;
  }, (pair, [what, value]) => {
    write(pair.children[0], what);
    write(pair.children[1], value);
  });
};

const spent = (time) => time.seconds + (time.since_seconds === null ? 0 : Math.max(0, now() - time.since_seconds));

/* Whether the open package measures what pruning costs, before any is pruned. */
const surveys = () => job.package !== null && job.package < job.surveys;

const currentRate = () => {
  if (job.phase === "calibrate") {
    const paces = job.workers.filter((worker) => worker.shards_leased > 0 && worker.shard_seconds > 0);
    const perSecond = paces.reduce((sum, worker) => sum + 1 / worker.shard_seconds, 0);
    return perSecond > 0 ? rate(perSecond, "shards") : null;
  }
  const open = job.timeline.find((time) => time.since_seconds !== null && time.phase === "solve");
  const things = surveys() ? "probes" : "parts";
  return open && job.parts_solved > 0 && spent(open) > 0 ? rate(job.parts_solved / spent(open), things) : null;
};

const tick = () => {
  if (!job) return;
  const passed = now();
  const left = job.left_seconds === null ? null : Math.max(0, job.left_seconds - (passed - job.elapsed_seconds));
  const tiles = [
    ["phase", job.ending ? job.ending.outcome : job.phase],
    ["packages finished", `${job.packages_committed} of ${job.packages}`],
  ];
  if (left !== null) tiles.push(["time left, about", ticking(left)]);
  tiles.push([job.ending ? "ran for" : "running for", ticking(passed)]);
  const speed = currentRate();
  if (speed) tiles.push(speed);
  if (!job.ending) tiles.push([job.workers.length === 1 ? "worker" : "workers", String(job.workers.length)]);
  pairs(byId("tiles"), tiles);
  const progress = byId("progress");
  progress.hidden = left === null && !(job.ending && job.ending.outcome === "done");
  const share = left === null ? 100 : Math.floor((100 * passed) / Math.max(passed + left, 1e-9));
  progress.setAttribute("aria-valuenow", String(share));
  progress.firstElementChild.style.width = `${share}%`;
  packages();
};

const packages = () => {
  const entries = [];
  const of = (wanted) => job.timeline.filter((time) => time.package === wanted);
  const before = of(null);
  const outside = (name, phase) => {
    const times = before.filter((time) => time.phase === phase);
    if (times.length) entries.push({ name, times, current: times.some((time) => time.since_seconds !== null), state: null });
  };
  outside("before", "pilot");
  for (let i = 0; i < job.packages; i += 1) {
    const current = job.package === i;
    const survey = i < job.surveys ? " (survey)" : "";
    const state = i < job.packages_committed ? "done" : current ? job.phase : "to come";
    entries.push({ name: `${i + 1}${survey}`, times: of(i), current, state });
  }
  outside("after", "export");
  const total = (times) => times.reduce((sum, time) => sum + spent(time), 0);
  const longest = Math.max(1e-9, ...entries.map((entry) => total(entry.times)));
  rows(byId("packages-rows"), entries, tableRow("", "", "", "number"), (row, { name, times, current, state }) => {
    row.className = current ? "current" : "";
    if (current) row.setAttribute("aria-current", "step"); else row.removeAttribute("aria-current");
    write(row.cells[0], name);
    write(row.cells[1], state || (current ? times[0].phase : "done"));
    row.cells[1].className = state === "to come" ? "quiet" : "";
    if (!row.cells[2].firstChild) row.cells[2].append(element("div", undefined, "stack"), element("span", "", "unseen"));
    const [stack, words] = row.cells[2].children;
    const shown = times.filter((time) => spent(time) > 0);
    rows(stack, shown, () => element("span"), (part, time) => {
      part.className = time.phase;
      part.style.width = `${(100 * spent(time)) / longest}%`;
      part.title = `${time.phase}: ${duration(spent(time))}`;
    });
    /* Said once a phase, not once a second. */
    write(words, shown.map((time) => (time.since_seconds === null ? `${time.phase} ${duration(time.seconds)}` : `${time.phase} under way`)).join(", "));
    write(row.cells[3], times.length ? (current ? ticking(total(times)) : duration(total(times))) : state === "done" ? "earlier" : "");
  });
  const seen = PHASES.filter((phase) => job.timeline.some((time) => time.phase === phase));
  rows(byId("legend"), seen, () => {
    const entry = element("span");
    entry.append(element("i"), element("b"), " ", element("span"));
    return entry;
  }, (entry, phase) => {
    entry.children[0].className = phase;
    write(entry.children[1], phase);
    write(entry.children[2], ticking(total(job.timeline.filter((time) => time.phase === phase))));
  });
};

const workers = () => {
  const memory = new Map(job.memory.map((memory) => [memory.worker, memory]));
  const entries = job.workers.map((worker, i) => ({
    name: job.names[i], now: job.doing[i], shards: worker.shards_held, pace: worker.shard_seconds, fault: false, memory: memory.get(worker.worker),
  }));
  const gpus = job.memory.some((memory) => memory.gpu);
  byId("gpu-memory").hidden = !gpus;
  const left = [...job.workers_left].reverse();
  for (const worker of left) {
    const id = worker.worker;
    const earlier = Math.floor(id / 2 ** 32);
    const name = earlier === 0 ? String(id) : `${earlier + 1}.${id % 2 ** 32}`;
    const at = clockTime(worker.at_seconds).toLocaleTimeString();
    const drained = worker.why === "drained";
    entries.push({ name, now: drained ? `left at ${at}: drained` : `lost at ${at}: ${worker.why}`, shards: 0, pace: null, fault: !drained });
  }
  byId("workers").hidden = entries.length === 0;
  const lost = left.filter((worker) => worker.why !== "drained").length;
  const connected = job.ending ? "The job is over" : job.workers.length ? `${counted(job.workers.length, "worker")} connected` : "No worker is connected";
  write(byId("workers-words"), `${connected}${lost ? `, ${lost} lost on the way` : ""}.`);
  rows(byId("workers-rows"), entries, tableRow("", "", "number", "number", "number", "number"), (row, entry) => {
    write(row.cells[0], entry.name);
    write(row.cells[1], entry.now);
    row.cells[1].className = entry.fault ? "fault-words" : "";
    write(row.cells[2], entry.shards ? String(entry.shards) : "");
    write(row.cells[3], entry.pace === null ? "" : duration(entry.pace));
    write(row.cells[4], entry.memory ? bytesOf(entry.memory.peak_bytes, entry.memory.planned_bytes) : "");
    const gpu = entry.memory && entry.memory.gpu;
    write(row.cells[5], gpu ? bytesOf(gpu.used_bytes, gpu.total_bytes) : "");
    row.cells[5].hidden = !gpus;
  });
};

/* Walks through the cells of a focused grid by the arrow keys, and shows the words of the one that is reached: what a pointer sees as its
   title. */
const walks = new Map();
const showCell = (name) => {
  const list = byId(`${name}-cells`);
  const focused = document.activeElement === list && list.children.length > 0;
  const at = Math.min(walks.get(name) || 0, list.children.length - 1);
  walks.set(name, Math.max(0, at));
  [...list.children].forEach((cell, i) => cell.classList.toggle("reached", focused && i === at));
  const more = list.children.length > 1 ? " Arrow keys go to the others." : "";
  write(byId(`${name}-reached`), focused ? `${list.children[at].firstElementChild.textContent}.${more}` : "");
};
const walk = (name) => {
  const list = byId(`${name}-cells`);
  list.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    const cells = [...list.children];
    const last = cells.length - 1;
    const below = cells.findIndex((cell) => cell.offsetTop > cells[0].offsetTop);
    const line = below < 0 ? cells.length : below;
    const at = walks.get(name) || 0;
    const next = { ArrowLeft: at - 1, ArrowRight: at + 1, ArrowUp: at - line, ArrowDown: at + line, Home: 0, End: last }[event.key];
    if (next === undefined) return;
    event.preventDefault();
    if (next >= 0 && next <= last) walks.set(name, next);
    showCell(name);
  });
  list.addEventListener("focus", () => showCell(name));
  list.addEventListener("blur", () => showCell(name));
};
["shards", "parts"].forEach(walk);

/* A grid with a cell for each thing, or each group of them. */
const cells = (name, thing, grid, total, doing) => {
  const section = byId(name);
  section.hidden = total === 0 || grid.done.length === 0;
  if (section.hidden) return;
  const sum = (counts) => counts.reduce((a, b) => a + b, 0);
  const [done, running] = [sum(grid.done), sum(grid.running)];
  const size = grid.group_size;
  const each = size > 1 ? ` Each cell stands for ${counted(size, thing)}.` : "";
  write(byId(`${name}-words`), `${done} of ${counted(total, thing)} done, ${running} ${doing}, ${total - done - running} to come.${each}`);
  rows(byId(`${name}-cells`), grid.done, () => {
    const cell = element("li");
    cell.append(element("span", "", "unseen"));
    return cell;
  }, (cell, finished, i) => {
    const first = i * size;
    const last = Math.min(total, first + size);
    const count = last - first;
    const busy = grid.running[i];
    cell.className = busy > 0 ? "running" : finished === count ? "done" : "";
    cell.style.setProperty("--done", `${(100 * finished) / count}%`);
    const which = count === 1 ? `${thing} ${first + 1}` : `${thing}s ${first + 1} to ${last}`;
    const state = count === 1
      ? (finished ? "done" : busy ? doing : "to come")
      : `${finished} done, ${busy} ${doing}, ${count - finished - busy} to come`;
    const words = `${which}: ${state}`;
    if (cell.title !== words) cell.title = words;
    write(cell.firstElementChild, words);
  });
  showCell(name);
};

const percent = (part, whole) => `${((100 * part) / Math.max(whole, 1)).toFixed(2)}%`;
const blocks = () => {
  byId("blocks").hidden = job.blocks.length === 0;
  const sum = (key) => job.blocks.reduce((total, block) => total + block[key], 0);
  const gone = percent(sum("zeros"), sum("weights"));
  write(byId("blocks-words"), `Of the weights that are finished, ${gone} are zero or gone. The error is that of a linear's output on the calibration prompts, squared and relative, as a mean over the block.`);
  rows(byId("blocks-rows"), job.blocks, tableRow("", "", "number", "number"), (row, block) => {
    writePath(row.cells[0], block.name);
    if (!row.cells[1].firstChild) {
      row.cells[1].append(element("div", undefined, "stack"));
      row.cells[1].firstChild.append(element("span", undefined, "zeros"));
    }
    const share = percent(block.zeros, block.weights);
    row.cells[1].firstChild.firstChild.style.width = share;
    write(row.cells[2], share);
    write(row.cells[3], block.mean_error === null ? "" : block.mean_error.toPrecision(3));
  });
};

/* The events that are shown, the newest first; the ones that came since are put before them. */
let newest = "";
const events = () => {
  const list = byId("events");
  const keyed = job.events.map((event, i) => ({ ...event, key: `${event.at_seconds} ${event.words}`, i }));
  const known = keyed.findLastIndex((event) => event.key === newest);
  for (const event of keyed.slice(known + 1)) {
    const entry = element("li");
    const time = element("time", clockTime(event.at_seconds).toLocaleTimeString());
    time.dateTime = clockTime(event.at_seconds).toISOString();
    entry.append(time, element("span", event.fault ? `Fault: ${event.words}` : event.words, event.fault ? "fault-words" : ""));
    list.prepend(entry);
    newest = event.key;
  }
  while (list.children.length > 300) list.lastElementChild.remove();
  byId("events-region").hidden = list.children.length === 0;
  byId("events-none").hidden = list.children.length > 0;
};

const banner = (words, fault) => {
  const place = byId("banner");
  place.hidden = !words;
  place.className = fault ? "banner fault" : "banner";
  write(place, words);
};

const end = (ending) => {
  if (ending.outcome === "done") banner(`The job is done. The pruned pipeline is in ${job.output}.`, false);
  else if (ending.outcome === "cancelled") banner("The job was cancelled. Started again by the same command, it goes on from here.", true);
  else banner(`The job failed: ${ending.reason}. Started again by the same command, it goes on from here.`, true);
};

const show = (snapshot) => {
  job = snapshot;
  arrived = performance.now();
  arrivedAt = Date.now();
  const name = job.model.split("/").filter(Boolean).pop() || job.model;
  write(byId("title"), `Pruning ${name}`);
  document.title = `${job.ending ? job.ending.outcome : `${job.packages_committed} of ${job.packages}, ${job.phase}`}: ${name}, obsdiff`;
  write(byId("line"), job.line);
  write(byId("release"), `obsdiff ${job.release}`);
  byId("packages").hidden = false;
  byId("job").hidden = false;
  pairs(byId("facts"), [
    ["model", job.model], ["output", job.output], ["pattern", job.job.pattern], ["sparsity", job.job.sparsity], ["method", job.job.method],
    ["calibration", `${counted(job.job.prompts, "prompt")} of ${counted(job.job.steps, "step")}`],
  ]);
  workers();
  cells("shards", "shard", job.shard_grid, job.shards, "running");
  const survey = surveys();
  write(byId("parts-heading"), survey ? "Probes" : "Parts");
  cells("parts", survey ? "probe" : "part", job.part_grid, job.parts, survey ? "being made" : "being solved");
  blocks();
  events();
  tick();
  if (job.ending) end(job.ending); else banner("", false);
};

let source = null;
const connect = () => {
  source = new EventSource("events");
  source.addEventListener("job", (event) => {
    show(JSON.parse(event.data));
    if (job.ending) source.close();
  });
  source.addEventListener("error", () => {
    if (job && job.ending) return;
    const since = job ? ` What is shown is of ${new Date(arrivedAt).toLocaleTimeString()}.` : "";
    banner(`The connection to the coordinator is lost.${since} Trying again.`, true);
    /* A refused connection is not tried again by the browser itself. */
    if (source.readyState === EventSource.CLOSED) setTimeout(connect, 5000);
  });
};
connect();
setInterval(() => { if (job && !job.ending) tick(); }, 1000);
