/** /adjudicate: takes an item, gathers what the lead says of each task, settles it, and adds outcomes to gold. */

import { mountEditor } from "./editor.js";

const csrf = document.querySelector("meta[name=csrf]")?.content;
const $ = (selector, root = document) => root.querySelector(selector);

async function post(path, body, more = {}) {
  const headers = { "Content-Type": "application/json", ...(csrf ? { "X-CSRF-Token": csrf } : {}) };
  const response = await fetch(path, { method: "POST", headers, body: JSON.stringify(body), ...more });
  const found = response.status === 204 ? null : await response.json().catch(() => null);
  if (!response.ok) throw new Error(found?.detail?.message ?? `the service answered ${response.status}`);
  return found;
}

function isField(target) {
  return target instanceof HTMLElement && target.matches("input:not([type=radio], [type=checkbox]), textarea, select");
}

/** The form that puts decided items into a gold set; on both pages. */
function offerGold(form) {
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const told = $(".told", form);
    const items = [...form.querySelectorAll("[name=item]")].filter((one) => one.type === "hidden" || one.checked);
    if (!items.length) {
      told.textContent = "Tick at least one item.";
      return;
    }
    const name = form.elements.gold.value.trim();
    try {
      const found = await post(`/v1/gold/${encodeURIComponent(name)}/from-reviews`, { items: items.map((one) => Number(one.value)) });
      told.textContent = `In “${name}”: ${found.added} added, ${found.replaced} replaced, ${found.unchanged} there already.`;
      for (const one of items) if (one.type === "checkbox") one.disabled = !(one.checked = false);
    } catch (error) {
      told.textContent = error.message;
    }
  });
}

class Decision {
  constructor(data) {
    Object.assign(this, data);
    this.form = $("#decision");
    this.tasks = [...this.form.querySelectorAll("fieldset")];
    this.editors = new Map();
    this.current = this.tasks.find((task) => task.matches(".split")) ?? this.tasks[0];
    this.fence = null;
    this.settled = null;
    for (const task of this.tasks) {
      if (task.matches(".split")) continue;
      const first = $("input[value=A]", task);
      if (first && this.answers.length > 1) first.checked = true; // both say so
    }
  }

  async begin() {
    this.listen();
    await this.claim();
    if (this.fence === null) return;
    this.point(this.current);
    document.documentElement.dataset.ready = "";
  }

  /** Takes the item, or keeps it: asking again gives the same. */
  async claim() {
    try {
      const row = await post(`/v1/adjudications/${this.item}/claim`, {});
      this.fence = row.fence;
      this.names = new Map(row.answers.map((answer) => [answer.review, answer.reviewer]));
      const left = new Date(row.lease_until) - Date.now();
      clearTimeout(this.renewing);
      this.renewing = setTimeout(() => this.settled || this.claim(), Math.min(600_000, Math.max(5_000, left / 3)));
      if (row.own) this.tell("One of the answers is your own.");
    } catch (error) {
      this.fence = null;
      $("#settle").disabled = true;
      this.refuse(`You cannot decide this now: ${error.message}`);
    }
  }

  listen() {
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.settle();
    });
    this.form.addEventListener("focusin", (event) => {
      const task = event.target.closest("fieldset.question");
      if (task) this.current = task;
    });
    this.form.addEventListener("change", (event) => {
      const task = event.target.closest("fieldset.question");
      if (task && event.target.name === task.dataset.task) this.opened(task);
    });
    $("#reason").addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        this.settle();
      }
    });
    $("#open-proposal")?.addEventListener("click", () => this.openProposal());
    $("#leave").addEventListener("click", () => this.leave());
    document.addEventListener("keydown", (event) => this.key(event));
    addEventListener("pagehide", () => this.release({ keepalive: true }));
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing || event.defaultPrevented) return;
    const editor = event.target.closest?.(".own");
    if (event.key === "Escape") {
      if (editor) this.point(this.current);
      else if (isField(event.target)) event.target.blur();
      else if (!this.settled) this.leave();
      return;
    }
    if (editor || isField(event.target)) return;
    if (event.key === "Enter" && event.target.matches("body, main, input[type=radio]")) {
      event.preventDefault();
      if (!this.settled) this.settle();
      return;
    }
    const key = event.key.toLowerCase();
    const letters = this.answers.map((answer) => answer.letter);
    const taken = letters.find((letter, at) => key === letter.toLowerCase() || key === String(at + 1));
    const acts = {
      e: () => this.take("own"),
      m: () => this.take("M"),
      p: () => this.openProposal(),
      j: () => this.move(1),
      k: () => this.move(-1),
      r: () => $("#reason").focus(),
      g: () => { $("#guide").open = !$("#guide").open; },
      n: () => this.settled && $("#next").click(),
    };
    const act = taken ? () => this.take(taken) : acts[key];
    if (!act || (this.settled && key !== "n" && key !== "g")) return;
    event.preventDefault();
    act();
  }

  /** Take an answer for the task in hand, and go on to the next one without any. */
  take(letter) {
    const radio = $(`input[name="${this.current.dataset.task}"][value="${letter}"]`, this.current);
    if (!radio || radio.closest("[hidden]")) {
      this.tell(letter === "M" ? "Show the proposal first, with p." : "There is no such answer to this task.");
      return;
    }
    const task = this.current;
    radio.checked = true;
    this.opened(task);
    this.tell(`${task.dataset.task}: ${letter === "own" ? "another answer" : letter}`);
    if (letter === "own") return;
    const open = this.tasks.find((one) => !this.source(one));
    if (open) this.point(open);
    else $("#reason").focus();
  }

  /** Show the editor of a task where another answer is wanted, and hide it where not. */
  opened(task) {
    const place = $(".own", task);
    const isOwn = this.source(task) === "own";
    place.hidden = !isOwn;
    if (!isOwn) return;
    const name = task.dataset.task;
    if (!this.editors.has(name)) {
      const schema = { ...this.schema, tasks: this.schema.tasks.filter((one) => one.name === name) };
      const begin = this.answers.find((answer) => name in answer.labels)?.labels ?? this.proposal ?? {};
      const isSpans = task.dataset.kind === "spans";
      const labels = isSpans && name in begin ? { [name]: begin[name] } : {};
      const options = { text: this.text, schema, labels, onChange: () => {}, say: (text) => this.tell(text) };
      this.editors.set(name, mountEditor(place, options));
    }
    this.editors.get(name).focus();
  }

  source(task) {
    return $(`input[name="${task.dataset.task}"]:checked`, task)?.value ?? null;
  }

  /** What is said of a task; undefined where nothing is yet. */
  said(task) {
    const name = task.dataset.task;
    const source = this.source(task);
    if (source === "own") return this.editors.get(name)?.labels()[name];
    if (source === "M") return this.proposal[name];
    return this.answers.find((answer) => answer.letter === source)?.labels[name];
  }

  point(task) {
    this.current = task;
    const radio = $("input:checked", task) ?? $("input", task);
    radio.focus();
    task.scrollIntoView({ block: "nearest" });
  }

  move(by) {
    const at = this.tasks.indexOf(this.current) + by;
    if (at >= this.tasks.length) $("#reason").focus();
    else if (at >= 0) this.point(this.tasks[at]);
  }

  openProposal() {
    const button = $("#open-proposal");
    if (!button) return;
    const isOpen = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", isOpen);
    for (const side of this.form.querySelectorAll(".model")) side.hidden = !isOpen && !$("input:checked", side);
    this.tell(isOpen ? "The model's proposal is shown." : "The model's proposal is hidden.");
  }

  async settle() {
    const open = this.tasks.find((task) => this.said(task) === undefined);
    const reason = $("#reason");
    this.refuse("");
    if (open) {
      this.refuse(`${open.dataset.task}: expected an answer`);
      this.point(open);
    } else if (!reason.value.trim()) {
      this.refuse("Reason: expected why this is right");
      reason.focus();
    } else if (this.fence !== null && !this.isSettling) {
      await this.send(Object.fromEntries(this.tasks.map((task) => [task.dataset.task, this.said(task)])), reason.value.trim());
    }
  }

  async send(labels, reason) {
    this.isSettling = true;
    try {
      this.settled = await post(`/v1/adjudications/${this.item}/resolve`, { fence: this.fence, labels, reason });
      this.finish();
    } catch (error) {
      this.refuse(error.message);
    } finally {
      this.isSettling = false;
    }
  }

  finish() {
    clearTimeout(this.renewing);
    for (const field of this.form.querySelectorAll("input, textarea, button")) field.disabled = true;
    const people = this.answers.map(({ letter, review }) => `${letter} was ${this.names.get(review) ?? "somebody"}`);
    $("#names").textContent = people.length ? `${people.join(", ")}.` : "Nobody had answered it.";
    $("#done").hidden = false;
    $("#next").focus();
    this.tell("Settled.");
  }

  release(more) {
    if (this.fence === null || this.settled || this.isSettling) return Promise.resolve();
    const fence = this.fence;
    this.fence = null;
    clearTimeout(this.renewing);
    return post(`/v1/adjudications/${this.item}/release`, { fence }, more).catch(() => {});
  }

  async leave() {
    await this.release({});
    location.assign("/adjudicate");
  }

  tell(text) {
    $("#told").textContent = text;
  }

  refuse(text) {
    $("#problem").textContent = text;
  }
}

for (const form of document.querySelectorAll("#to-gold")) offerGold(form);
const data = $("#data");
if (data) {
  new Decision(JSON.parse(data.textContent)).begin();
} else {
  document.addEventListener("keydown", (event) => {
    if (event.key === "n" && !event.ctrlKey && !event.metaKey && !event.altKey && !isField(event.target)) $("#first")?.click();
  });
  document.documentElement.dataset.ready = "";
}
