/**
 * The review desk: one item at a time in the reviewer's hands, settled without a reload. No answer is lost: it is kept
 * in this tab until the service has said what became of it, and sent again until then.
 */

import { isField, mountEditor, percent } from "./editor.js";
import { KEYS, assign, command, latin, printed, stroke } from "./keys.js";
import { reasonInWords } from "./reasons.js";
import { asWords, make, shown } from "./text.js";

const OUTBOX = "concord.outbox";
const DRAFTS = "concord.drafts";
const LONGEST_PAUSE = 60_000; // ms without input that still count as work on the item
const PROGRESS_EVERY = 15_000;
const LIKELY_ALIKE = 0.8; // similarity from which an item is ticked beforehand
const WAITING_AGAIN = 15_000;

const at = (id) => document.getElementById(id);
const given = JSON.parse(at("data").textContent);

let schema = given.schema;
let filters = given.filters;
let task = null;
let editor = null;
let proposed = null; // plain labels of the proposal; null where there is none, or it is hidden
let isBusy = false;
let done = []; // what can be taken back, last first: {review | bulk, ref, item, labels}
let renewal = 0;
let comeAgain = 0;
let progressAt = 0;
const work = { actions: 0, active: 0, last: 0 };

// --- talking to the service

const token = () => document.querySelector('meta[name="csrf"]');

function headers() {
  return { "Content-Type": "application/json", ...(token() ? { "X-CSRF-Token": token().content } : {}) };
}

async function call(method, path, body) {
  const response = await fetch(path, {
    method,
    headers: headers(),
    body: body === undefined ? undefined : JSON.stringify(body),
    signal: AbortSignal.timeout(30_000),
  });
  const text = await response.text();
  return { status: response.status, ok: response.ok, body: text ? JSON.parse(text) : null };
}

/** Ask until the service has answered: not while it is down, and not while nobody is signed in. */
async function persistently(method, path, body) {
  for (let tries = 0; ; tries += 1) {
    let reply = null;
    try {
      reply = await call(method, path, body);
      if (reply.status === 403 && (await takeNewToken())) continue;
    } catch {
      // no answer, or half of one
    }
    if (reply && reply.status < 500 && ![401, 408, 429].includes(reply.status)) {
      trouble("");
      return reply;
    }
    const kept = outbox().length ? "Your answer is kept here and will be sent again by itself." : "It will be asked again by itself.";
    if (reply?.status === 401) trouble(`Your session has ended. ${kept}`, true);
    else trouble(`${reply ? message(reply) : "The service does not answer."} ${kept}`);
    await pause(Math.min(500 * 2 ** tries, 8000));
  }
}

/** Who has signed in again, in another tab, has a session with another token. True where there is a new one. */
async function takeNewToken() {
  if (!token()) return false;
  const page = await (await fetch("/password")).text();
  const found = new DOMParser().parseFromString(page, "text/html").querySelector('meta[name="csrf"]')?.content;
  if (!found || found === token().content) return false;
  token().content = found;
  return true;
}

/** Wait, but not on after the reviewer has come back to the page or the network is there again. */
function pause(milliseconds) {
  return new Promise((resolve) => {
    const stop = new AbortController();
    const end = () => {
      stop.abort();
      clearTimeout(timer);
      resolve();
    };
    const timer = setTimeout(end, milliseconds);
    window.addEventListener("focus", end, { signal: stop.signal });
    window.addEventListener("online", end, { signal: stop.signal });
  });
}

function message(reply) {
  const text = reply.body?.detail?.message ?? `the service answered ${reply.status}`;
  return `${text.charAt(0).toUpperCase()}${text.slice(1)}.`;
}

function trouble(text, isSignedOut = false) {
  at("trouble").hidden = !text;
  at("sign-in").hidden = !isSignedOut;
  if (at("trouble-text").textContent !== text) at("trouble-text").textContent = text;
}

// --- what this tab keeps

function stored(name, otherwise) {
  try {
    return JSON.parse(sessionStorage.getItem(name)) ?? otherwise;
  } catch {
    return otherwise;
  }
}

function store(name, value) {
  try {
    sessionStorage.setItem(name, JSON.stringify(value));
  } catch {
    say("This browser keeps nothing for this page: an answer would not outlive a crash of the tab");
  }
}

const outbox = () => stored(OUTBOX, []);
const isSame = (one, other) => one.path === other.path && one.body.fence === other.body.fence;
const keep = (entry) => store(OUTBOX, [...outbox().filter((other) => !isSame(entry, other)), entry]);
const forget = (entry) => store(OUTBOX, outbox().filter((other) => !isSame(entry, other)));

function draft(item, labels) {
  const drafts = stored(DRAFTS, {});
  delete drafts[item];
  if (labels) drafts[item] = labels;
  store(DRAFTS, Object.fromEntries(Object.entries(drafts).slice(-20)));
}

// --- one thing at a time

async function alone(act) {
  if (isBusy) return;
  isBusy = true;
  at("item").setAttribute("aria-busy", "true");
  try {
    await act();
  } finally {
    isBusy = false;
    at("item").removeAttribute("aria-busy");
  }
}

/** Send an answer; true where the item is out of the reviewer's hands now. */
async function send(entry) {
  keep(entry);
  const reply = await persistently("POST", entry.path, entry.body);
  forget(entry);
  if (reply.ok) {
    draft(entry.item, null);
    done.unshift({ review: reply.body.review, item: entry.item, ref: entry.ref, labels: entry.labels });
    settledNow();
    say(entry.flag ? `${entry.ref} is flagged; a lead will look at it` : `${entry.ref} is settled`);
    return true;
  }
  if ([404, 409].includes(reply.status)) {
    draft(entry.item, null);
    lost(entry, message(reply));
    return true;
  }
  say(`Not settled: ${message(reply)}`, true);
  draft(entry.item, entry.labels);
  return false;
}

async function advance() {
  const reply = await persistently("POST", "/v1/reviews/next", wanted());
  if (reply.status === 204) return showEmpty();
  if (!reply.ok) {
    showEmpty();
    return say(message(reply), true);
  }
  await show(reply.body);
}

function wanted() {
  return Object.fromEntries(Object.entries(filters).filter(([, value]) => value));
}

// --- what a reviewer does

const commands = {
  settle,
  skip: () => alone(async () => {
    const before = task.item;
    await handBack();
    await advance();
    say(task?.item === before ? "This is the only item that waits" : "Skipped");
  }),
  flag: () => open("flag-dialog", at("flag-note")),
  undo: () => alone(() => takeBack(done[0])),
  bulk: () => alone(showSimilar),
  guideline: () => open("guideline-dialog", at("guideline-title")),
  keys: () => open("keys-dialog", at("keys-title")),
};

async function settle() {
  const [missing] = editor.missing();
  if (missing) {
    editor.focus(missing);
    return say(`${asWords(missing)} has no answer yet`, true);
  }
  const labels = editor.labels();
  const answer = proposed && alike(labels, proposed) ? { accept: true } : { labels };
  await alone(async () => {
    const body = { fence: task.fence, ...answer, note: at("note").value, ...effort() };
    if (await send({ path: `/v1/reviews/${task.item}/resolve`, body, item: task.item, ref: task.ref, labels })) await advance();
  });
}

async function flag() {
  const note = at("flag-note").value.trim();
  if (!note) return;
  at("flag-dialog").close();
  await alone(async () => {
    const body = { fence: task.fence, note };
    const entry = { path: `/v1/reviews/${task.item}/flag`, body, item: task.item, ref: task.ref, labels: editor.labels(), flag: true };
    if (!(await send(entry))) return;
    at("flag-note").value = "";
    await advance();
  });
}

async function handBack() {
  clearTimeout(renewal);
  await persistently("POST", `/v1/reviews/${task.item}/release`, { fence: task.fence });
}

async function takeBack(entry) {
  if (!entry) return say("Nothing to take back");
  const reply = await persistently("POST", "/v1/reviews/undo", entry.bulk ? { bulk: entry.bulk } : { review: entry.review });
  done = done.filter((other) => (entry.bulk ? other.bulk !== entry.bulk : other.review !== entry.review));
  if (!reply.ok) return say(`Not taken back: ${message(reply)}`, true);
  const { undone, refused, task: again } = reply.body;
  const why = refused.length ? `; not taken back: ${refused.map((one) => one.why).join("; ")}` : "";
  say(`${undone.length === 1 ? "1 item" : `${undone.length} items`} taken back${why}`, refused.length > 0);
  progressAt = 0;
  if (again) {
    if (task && task.item !== again.item) await handBack();
    if (entry.labels) draft(again.item, entry.labels);
    await show(again);
  } else if (!task) {
    await advance();
  }
}

async function showSimilar() {
  say("Looking for similar items …");
  const reply = await persistently("GET", `/v1/reviews/${task.item}/similar?limit=100`);
  if (!reply.ok) return say(message(reply), true);
  say("");
  const { why, items } = reply.body;
  const same = Object.entries(why.labels).map(([name, label]) => `${asWords(name)} ${labelShown(name, label)}`);
  const codes = why.reasons.map((code) => asWords(code));
  at("bulk-why").textContent = items.length
    ? `Waiting items that the model gave the same labels (${same.join(", ")}) for the same reasons (${codes.join(", ")}), most alike first.`
    : "No other waiting item has the same labels and the same reasons.";
  const here = { item: task.item, ref: task.ref, text: task.text, similarity: 1 };
  at("bulk-list").replaceChildren(...[here, ...items].map(similarEntry));
  at("bulk-relabel").replaceChildren(...relabelOptions());
  at("bulk-note").value = "";
  countTicked();
  open("bulk-dialog", at("bulk-list").querySelector("input"));
}

function similarEntry({ item, ref, text, similarity }) {
  const box = make("input");
  box.type = "checkbox";
  box.value = item;
  box.checked = similarity >= LIKELY_ALIKE;
  const name = item === task.item ? `${ref} (this one)` : `${ref}, ${Math.round(100 * similarity)} % alike`;
  const excerpt = [...text.slice(0, 1200)].slice(0, 500).join("");
  return make("li", "", make("label", "", box, make("span", "soft", make("bdi", "", name)), make("span", "excerpt", excerpt)));
}

function relabelOptions() {
  const choices = schema.tasks.filter((one) => one.kind === "choice");
  return choices.flatMap((one) => one.labels.map((label) => {
    const option = make("option", "", `${asWords(one.name)}: ${shown(label)}`);
    option.value = JSON.stringify({ [one.name]: label.name });
    return option;
  }));
}

const ticked = () => [...at("bulk-list").querySelectorAll("input:checked")].map((box) => Number(box.value));

function countTicked() {
  const count = ticked().length;
  at("bulk-accept").textContent = `Accept ${count} as proposed`;
  at("bulk-set").textContent = `Relabel ${count}`;
  for (const id of ["bulk-accept", "bulk-set"]) at(id).disabled = count === 0;
}

function settleMany(body) {
  const items = ticked();
  at("bulk-dialog").close();
  return alone(async () => {
    const reply = await persistently("POST", "/v1/reviews/bulk", { items, ...body });
    if (!reply.ok) return say(`Nothing was settled: ${message(reply)}`, true);
    const { bulk, settled, refused } = reply.body;
    if (bulk) done.unshift({ bulk, ref: `${settled.length} items` });
    settledNow(settled.length);
    const why = [...new Set(refused.map((one) => one.why))].join("; ");
    say(`${settled.length} settled${refused.length ? `, ${refused.length} not: ${why}` : ""}. U takes them back.`, refused.length > 0);
    if (settled.includes(task.item)) await advance();
  });
}

// --- the item

async function show(next) {
  if (!schema || schema.name !== next.schema || schema.version !== next.version) {
    const reply = await persistently("GET", `/v1/schemas/${next.schema}?version=${next.version}`);
    if (!reply.ok) return say(message(reply), true);
    schema = reply.body.body;
  }
  task = next;
  proposed = task.proposal ? plain(task.proposal) : null;
  editor?.destroy();
  const before = stored(DRAFTS, {})[task.item];
  editor = mountEditor(at("editor"), {
    text: task.text,
    schema,
    labels: before ?? proposed ?? {},
    proposal: task.proposal,
    onChange: () => draft(task.item, editor.labels()),
    say: (text, isMove) => (isMove ? move(text) : say(text)),
    onSettle: settle,
  });
  showHead(before);
  showGuideline();
  showLabelKeys();
  fillFilters();
  at("note").value = "";
  at("item").hidden = false;
  at("empty").hidden = true;
  window.scrollTo(0, 0);
  clearTimeout(comeAgain);
  renewLater();
  Object.assign(work, { actions: 0, active: 0, last: performance.now() });
  const doubted = task.reasons.map((reason) => reason.task).find((name) => kind(name) === "choice");
  editor.focus(editor.missing()[0] ?? doubted, true);
  move(`Next item. ${[...at("reasons").children].map((one) => one.textContent).join(" ")} ${task.text.slice(0, 300)}`);
  refreshProgress();
}

function showHead(isDraft) {
  at("item-title").replaceChildren("Item ", make("bdi", "", task.ref));
  at("item-place").replaceChildren(`schema ${task.schema}, version ${task.version}`);
  const why = task.reasons.map((reason) => make("li", `reason ${reason.code}`, reasonInWords(reason, schema)));
  if (task.shown === false) why.unshift(make("li", "reason hidden-proposal", "This one comes without the model’s proposal, by lot: so that it is known what proposals do to people’s answers. Label it as you see it."));
  else if (!task.proposal && !why.length) why.push(make("li", "reason", "There is no proposal. Label it as you see it."));
  if (isDraft) why.push(make("li", "reason draft", "Your own labels from before are shown."));
  const complete = Object.entries(task.complete ?? {}).map(([name, share]) => `That no mention is missing in ${asWords(name)}: ${percent(share)} (model’s own).`);
  at("reasons").replaceChildren(...why);
  at("complete").textContent = complete.join(" ");
  const entries = Object.entries(task.meta ?? {});
  at("meta").hidden = !entries.length;
  at("meta-list").replaceChildren(...entries.flatMap(([name, value]) => [
    make("dt", "", make("bdi", "", name)),
    make("dd", "", make("bdi", "", typeof value === "string" ? value : JSON.stringify(value))),
  ]));
}

function showEmpty() {
  task = null;
  editor?.destroy();
  editor = null;
  clearTimeout(renewal);
  clearTimeout(comeAgain);
  at("item").hidden = true;
  at("empty").hidden = false;
  at("empty").focus();
  refreshProgress();
  comeAgain = setTimeout(() => alone(advance), WAITING_AGAIN);
}

function showGuideline() {
  at("guideline-name").replaceChildren(`${schema.name}, version ${schema.version}`);
  at("guideline-text").textContent = schema.guideline || schema.description || "This schema has no guideline.";
  at("definitions").replaceChildren(...schema.tasks.flatMap((one) => [
    make("h3", "", make("bdi", "", asWords(one.name))),
    ...(one.instruction ? [make("p", "soft", one.instruction)] : []),
    make("dl", "definitions", ...one.labels.flatMap((label) => [
      make("dt", "", make("bdi", "", shown(label))),
      make("dd", "", label.definition || "no definition"),
    ])),
  ]));
}

function showKeys() {
  at("keys-table").replaceChildren(...KEYS.map((row) => make("tr", "",
    make("td", "", ...row.keys.map((key) => make("kbd", "", printed(key)))),
    make("td", "", row.says),
  )));
}

/** The key map's second half: the keys of this schema's labels. */
function showLabelKeys() {
  at("label-keys").replaceChildren(...schema.tasks.map((one) => {
    const keys = assign(one.labels.map(shown));
    const rows = one.labels.map((label, k) => make("tr", "",
      make("td", "", ...[keys[k].digit, keys[k].letter].filter(Boolean).map((key) => make("kbd", "", printed(key)))),
      make("td", "", make("bdi", "", shown(label))),
    ));
    return make("table", "", make("caption", "", asWords(one.name)), make("tbody", "", ...rows));
  }));
}

function lost(entry, why) {
  const dismiss = make("button", "", "Dismiss");
  dismiss.type = "button";
  const note = make("div", "lost", make("p", "", make("strong", "", "Not saved: ", make("bdi", "", entry.ref)), ` ${why}`), make("p", "soft", `Your answer was: ${summary(entry)}`), dismiss);
  dismiss.addEventListener("click", () => {
    note.remove();
    editor?.focus();
  });
  at("lost").append(note);
}

function summary({ labels, body }) {
  const said = Object.entries(labels ?? {}).map(([name, value]) => {
    const words = typeof value === "string" ? labelShown(name, value) : value.map((span) => `“${span.text}” ${labelShown(name, span.label)}`).join(", ") || "none";
    return `${asWords(name)}: ${words}`;
  });
  return [...said, ...(body.note ? [`note: ${body.note}`] : [])].join("; ");
}

// --- progress

function settledNow(count = 1) {
  const number = at("mine-settled");
  number.textContent = String(Number(number.textContent) + count);
}

async function refreshProgress() {
  if (performance.now() - progressAt < PROGRESS_EVERY && progressAt) return;
  progressAt = performance.now();
  let reply;
  try {
    const batch = filters.batch ? `?batch=${encodeURIComponent(filters.batch)}` : "";
    reply = await call("GET", `/v1/reviews/progress${batch}`);
  } catch {
    return;
  }
  if (!reply.ok) return;
  const { waiting, held, for_others: forOthers, adjudication, mine, people } = reply.body;
  at("mine-settled").textContent = mine.settled;
  at("waiting").textContent = waiting - forOthers;
  at("more-progress").textContent = [
    `${mine.today} today`,
    mine.median_seconds === null ? "" : `half in under ${mine.median_seconds.toFixed(1)} s`,
    `${held} in hand`,
    adjudication ? `${adjudication} with a lead` : "",
  ].filter(Boolean).join(" · ");
  at("progress").hidden = false;
  const known = new Map(done.map((entry) => [entry.review ?? entry.bulk, entry]));
  const recent = mine.recent.filter((one) => one.undoable);
  const entries = recent.map((one) => known.get(one.bulk ?? one.review) ?? { review: one.review, bulk: one.bulk, ref: one.ref, item: one.item });
  done = [...new Map(entries.map((entry) => [entry.bulk ?? entry.review, entry])).values()];
  showRecent(mine.recent);
  showPeople(people);
}

function showRecent(recent) {
  at("recent").hidden = !recent.length;
  at("recent-list").replaceChildren(...recent.map((one) => {
    const parts = [make("bdi", "", one.ref), one.changed === null ? " without a proposal " : one.changed ? " corrected " : " as proposed ", new Date(one.at).toLocaleTimeString()];
    const entry = make("li", "", make("span", "", ...parts), " ");
    if (one.undoable) {
      const button = make("button", "", one.bulk ? "Take all of these back" : "Take back");
      button.type = "button";
      button.setAttribute("aria-label", `Take ${one.ref} back`);
      button.addEventListener("click", () => alone(() => takeBack(done.find((other) => other.review === one.review) ?? one)));
      entry.append(button);
    }
    return entry;
  }));
}

function showPeople(people) {
  at("people").hidden = !people?.length;
  at("people-rows").replaceChildren(...(people ?? []).map((one) => make("tr", "",
    make("td", "", make("bdi", "", one.reviewer)),
    ...[one.settled, one.today, one.median_seconds === null ? "" : `${one.median_seconds.toFixed(1)} s`, one.flagged].map((value) => make("td", "", String(value))),
  )));
}

// --- the lease

function renewLater() {
  clearTimeout(renewal);
  const left = new Date(task.lease_until) - Date.now();
  renewal = setTimeout(renew, Math.min(Math.max(left / 3, 2000), 120_000));
}

async function renew() {
  const held = task;
  if (!held || isBusy) return held && renewLater();
  let reply = null;
  try {
    reply = await call("POST", `/v1/reviews/${held.item}/renew`, { fence: held.fence });
  } catch {
    // the answer will tell
  }
  if (task !== held || isBusy) return;
  if (reply?.ok) task.lease_until = reply.body.lease_until;
  if (reply?.status === 409) {
    lost({ ref: held.ref, labels: editor.labels(), body: { note: at("note").value } }, message(reply));
    return alone(advance);
  }
  renewLater();
}

/** Nobody waits for who has gone. A page of this tab that took the item up again since keeps it: its lease is newer. */
function leave() {
  if (!task || outbox().length) return;
  fetch(`/v1/reviews/${task.item}/release`, {
    method: "POST",
    keepalive: true,
    headers: headers(),
    body: JSON.stringify({ fence: task.fence, lease_until: task.lease_until }),
  });
}

// --- filters

function fillFilters() {
  const names = schema?.tasks.map((one) => one.name) ?? [];
  options(at("filter-task"), [["", "any task"], ...names.map((name) => [name, asWords(name)])], filters.task);
  const here = task?.batch ?? filters.batch;
  options(at("filter-batch"), [["", "all batches"], ...(here ? [[here, `batch ${here.slice(0, 12)}`]] : [])], filters.batch);
  at("filter-reason").value = filters.reason ?? "";
  at("filter-order").value = filters.order ?? "uncertain";
}

function options(select, entries, chosen) {
  if (chosen && !entries.some(([value]) => value === chosen)) entries.push([chosen, chosen]);
  select.replaceChildren(...entries.map(([value, name]) => {
    const option = make("option", "", name);
    option.value = value;
    return option;
  }));
  select.value = chosen ?? "";
}

function refilter() {
  const chosen = Object.fromEntries(new FormData(at("filters")));
  return alone(async () => {
    filters = Object.fromEntries(Object.entries(chosen).filter(([name, value]) => value && !(name === "order" && value === "uncertain")));
    const query = new URLSearchParams(filters).toString();
    history.replaceState(null, "", query ? `?${query}` : location.pathname);
    progressAt = 0;
    if (task) await handBack();
    await advance();
  });
}

// --- words and values

function kind(name) {
  return schema.tasks.find((one) => one.name === name)?.kind;
}

function labelShown(name, label) {
  const found = schema.tasks.find((one) => one.name === name)?.labels.find((one) => one.name === label);
  return found ? shown(found) : label;
}

/** The labels of a result row alone. */
function plain(row) {
  const labels = {};
  for (const { name, kind: what } of schema.tasks) {
    if (what === "choice" && row[name]) labels[name] = row[name].label;
    if (what === "spans") labels[name] = (row[name] ?? []).map(({ start, end, label }) => ({ start, end, label }));
  }
  return labels;
}

function alike(one, other) {
  const bare = (labels) => schema.tasks.map(({ name }) => {
    const value = labels[name];
    return Array.isArray(value) ? value.map(({ start, end, label }) => [start, end, label]) : value ?? null;
  });
  return JSON.stringify(bare(one)) === JSON.stringify(bare(other));
}

function say(text, isBad = false) {
  at("said").classList.toggle("error", isBad);
  at("said").textContent = text;
}

function move(text) {
  at("moved").textContent = text;
}

function effort() {
  return { seconds: Math.round(work.active / 100) / 10, actions: work.actions };
}

// --- input

function open(id, focused) {
  at(id).showModal();
  focused.focus();
}

function isAct(event) {
  const control = event.ctrlKey || event.metaKey;
  const isModifier = ["Shift", "Control", "Alt", "AltGraph", "Meta", "CapsLock"].includes(event.key);
  return !event.repeat && !isModifier && !(control && event.key !== "z") && !isField(event.target);
}

function onKey(event) {
  if (event.defaultPrevented || event.repeat || isField(event.target) || document.querySelector("dialog[open]")) return;
  const isButton = event.target.closest?.("button, a, summary");
  if (isButton && ["Enter", " "].includes(event.key)) return;
  if (isBusy) return event.preventDefault();
  if (editor?.key(event)) return;
  const row = [stroke(event), latin(event)].map(command).find((one) => one && commands[one.does]);
  if (!row || (!task && !["undo", "keys", "guideline"].includes(row.does))) return;
  event.preventDefault();
  commands[row.does]();
}

function listen() {
  document.addEventListener("keydown", (event) => {
    if (isBusy && !["Tab", "Escape"].includes(event.key) && !event.ctrlKey && !event.metaKey && !isField(event.target)) {
      event.preventDefault(); // meant for the item that is gone
      event.stopPropagation();
    } else if (isAct(event)) {
      work.actions += 1;
    }
  }, { capture: true });
  document.addEventListener("pointerup", (event) => {
    if (event.target.closest?.("button, label, input, .text")) work.actions += 1;
  }, { capture: true });
  for (const name of ["keydown", "pointermove", "pointerdown", "wheel", "scroll", "touchmove"]) {
    document.addEventListener(name, active, { capture: true, passive: true });
  }
  document.addEventListener("keydown", onKey);
  for (const button of document.querySelectorAll("[data-does]")) {
    button.addEventListener("click", () => (isBusy ? undefined : commands[button.dataset.does]()));
  }
  for (const button of document.querySelectorAll("dialog [data-close]")) {
    button.addEventListener("click", () => button.closest("dialog").close());
  }
  at("print-keys").addEventListener("click", () => window.print());
  at("flag-form").addEventListener("submit", (event) => {
    event.preventDefault();
    flag();
  });
  at("flag-note").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) flag();
  });
  at("note").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" && event.key !== "Escape") return;
    event.preventDefault();
    editor.focus();
  });
  at("bulk-list").addEventListener("change", countTicked);
  at("bulk-all").addEventListener("click", () => {
    const boxes = [...at("bulk-list").querySelectorAll("input")];
    const isAll = boxes.every((box) => box.checked);
    for (const box of boxes) box.checked = !isAll;
    countTicked();
  });
  at("bulk-accept").addEventListener("click", () => settleMany({ accept: true }));
  at("bulk-set").addEventListener("click", () => settleMany({ relabel: JSON.parse(at("bulk-relabel").value), note: at("bulk-note").value }));
  at("filters").addEventListener("change", refilter);
  at("filters").addEventListener("submit", (event) => event.preventDefault());
  window.addEventListener("pagehide", leave);
  window.addEventListener("pageshow", (event) => {
    if (event.persisted) alone(advance); // it was released when it was left
  });
}

function active() {
  const now = performance.now();
  if (now - work.last <= LONGEST_PAUSE) work.active += now - work.last;
  work.last = now;
}

async function begin() {
  listen();
  showKeys();
  fillFilters();
  const waiting = outbox();
  if (waiting.length) {
    await alone(async () => {
      for (const entry of waiting) await send(entry);
      await advance();
    });
  } else if (given.task) {
    await show(given.task);
  } else {
    showEmpty();
  }
  document.documentElement.dataset.ready = "yes";
}

begin();
