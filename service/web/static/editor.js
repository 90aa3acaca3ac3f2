/**
 * Choices and spans of one text, editable by mouse, keys and touch; used by /review and /adjudicate.
 *
 *     const editor = mountEditor(root, {text, schema, labels, onChange});
 *
 * schema: the body that GET /v1/schemas/{name} gives. labels: plain, {task: label | [{start, end, label}]}, in code
 * points; a task that is absent is not answered yet. Also taken: proposal (a result row, for its probabilities),
 * say(text, isMove) for what a screen reader should be told, onSettle() for a label key with Shift.
 */

import { assign, command, latin, stroke } from "./keys.js";
import { Text, below, make, renderMarked, shown } from "./text.js";

const HUES = 8;
const HIGHLIGHT = "concord-words";
let editors = 0;

export function mountEditor(root, given) {
  const editor = new Editor(root, given);
  return {
    labels: () => editor.labels(),
    set: (labels) => editor.set(labels),
    focus: (task, isStill) => editor.focus(task, isStill),
    destroy: () => editor.destroy(),
    key: (event) => editor.key(event),
    missing: () => editor.missing(),
  };
}

class Editor {
  constructor(root, { text, schema, labels = {}, onChange = () => {}, proposal = null, say = () => {}, onSettle = null }) {
    Object.assign(this, { root, onChange, say, onSettle, proposal: proposal ?? {} });
    this.text = new Text(text);
    this.number = editors += 1;
    this.choiceTasks = schema.tasks.filter((task) => task.kind === "choice");
    this.spansTask = schema.tasks.find((task) => task.kind === "spans") ?? null;
    this.keys = new Map(schema.tasks.map((task) => [task.name, assign(task.labels.map(shown))]));
    this.current = this.choiceTasks[0]?.name ?? null;
    this.history = [];
    this.range = null;
    this.anchor = null;
    this.stopping = new AbortController();
    this.take(labels);
    this.build();
    this.listen();
    this.show();
  }

  // --- what others ask

  labels() {
    const found = { ...this.choices };
    if (this.spansTask) {
      const withText = ({ start, end, label }) => ({ start, end, label, text: this.text.slice(start, end) });
      found[this.spansTask.name] = this.spans.map(withText);
    }
    return found;
  }

  set(labels) {
    this.remember();
    this.take(labels);
    this.select(null);
    this.show();
    this.onChange();
  }

  /** Names of the choices that have no answer yet. */
  missing() {
    return this.choiceTasks.map((task) => task.name).filter((name) => !(name in this.choices));
  }

  /** Go to a task, or to the text where there is none. isStill: the page does not move. */
  focus(task = this.current, isStill = false) {
    const field = this.fields.get(task);
    const place = field ? field.querySelector("input:checked") ?? field.querySelector("input") : this.pane;
    place.focus({ preventScroll: isStill });
  }

  destroy() {
    this.stopping.abort();
    this.unpaint();
    this.root.replaceChildren();
  }

  // --- the values

  take(labels) {
    this.choices = {};
    for (const { name } of this.choiceTasks) {
      if (typeof labels[name] === "string") this.choices[name] = labels[name];
    }
    const spans = this.spansTask ? labels[this.spansTask.name] ?? [] : [];
    this.spans = spans.map(({ start, end, label }) => ({ start, end, label })).sort((a, b) => a.start - b.start);
  }

  remember() {
    this.history.push(JSON.stringify([this.choices, this.spans]));
  }

  revert() {
    const before = this.history.pop();
    if (before === undefined) return this.tell("Nothing to undo in this item");
    [this.choices, this.spans] = JSON.parse(before);
    this.select(null);
    this.show();
    this.onChange();
    this.tell("Undone");
  }

  choose(task, label) {
    if (this.choices[task.name] !== label.name) {
      this.remember();
      this.choices[task.name] = label.name;
      this.show();
      this.onChange();
    }
    this.tell(`${title(task)}: ${shown(label)}`);
    const [next] = this.missing();
    if (next) this.focus(next);
  }

  /** Mark the selected words, or give the selected mark another label. */
  mark(label) {
    if (!this.range) {
      this.tell("Select words first, with the mouse or the arrow keys");
      return false;
    }
    const [start, end] = this.range;
    const index = this.spanAt(start, end);
    if (index < 0) {
      const other = this.overlapping(start, end);
      if (other) return this.refuse(other);
    }
    this.remember();
    if (index >= 0) this.spans[index].label = label.name;
    else this.insert({ start, end, label: label.name });
    this.changed();
    this.tell(`“${this.quoted(start, end)}” is ${shown(label)}`);
    return true;
  }

  insert(span) {
    this.spans.push(span);
    this.spans.sort((a, b) => a.start - b.start);
  }

  remove(index = this.range ? this.spanAt(...this.range) : -1) {
    if (index < 0) return this.tell("Select a mark first");
    this.remember();
    const [{ start, end, label }] = this.spans.splice(index, 1);
    this.changed();
    this.tell(`“${this.quoted(start, end)}” is no ${this.labelShown(label)} any more`);
  }

  /** Move an edge of the selected mark, or of the selection. */
  resize(start, end) {
    const [from, to] = this.range;
    if (start === from && end === to) return this.tell("No further");
    const index = this.spanAt(from, to);
    if (index >= 0) {
      const other = this.overlapping(start, end, index);
      if (other) return this.refuse(other);
      this.remember();
      Object.assign(this.spans[index], { start, end });
    }
    this.range = [start, end];
    this.changed(index >= 0);
    this.tell(`“${this.quoted(start, end)}”`, true);
  }

  changed(isChange = true) {
    if (isChange) {
      this.show();
      this.onChange();
    }
    this.select(this.range);
  }

  spanAt(start, end) {
    return this.spans.findIndex((span) => span.start === start && span.end === end);
  }

  overlapping(start, end, except = -1) {
    return this.spans.find((span, k) => k !== except && span.start < end && start < span.end) ?? null;
  }

  refuse(other) {
    const what = `“${this.quoted(other.start, other.end)}” (${this.labelShown(other.label)})`;
    this.tell(`Marks cannot overlap: ${what} is in the way. Remove it, or move its edge, first.`);
    return false;
  }

  // --- keys

  /** Handle a key press; true where it was one of ours. */
  key(event) {
    if (event.defaultPrevented || isField(event.target)) return false;
    const mine = [stroke(event), latin(event)].some((name) => name && this.press(name));
    if (mine) event.preventDefault();
    return mine;
  }

  press(name) {
    const row = command(name);
    const inText = this.reading.contains(document.activeElement);
    const fits = row && (row.where === "page" || (inText && (row.where === "text" || this.range)));
    const act = fits ? this.actions[row.does] : undefined;
    if (act && !row.yields) {
      act();
      return true;
    }
    if (!row || row.yields) {
      if (this.pressLabel(name, inText && this.range !== null)) return true;
      if (act) act();
      return Boolean(act);
    }
    return false;
  }

  pressLabel(name, isForSpan) {
    const [, shift, key] = /^(Shift\+)?(.)$/u.exec(name) ?? [];
    if (!key) return false;
    const found = isForSpan ? this.labelOf(this.spansTask, key) : this.choiceOf(key);
    if (!found) return false;
    const [task, label] = found;
    if (isForSpan) {
      if (!this.mark(label)) return true;
    } else {
      this.current = task.name;
      this.choose(task, label);
    }
    if (shift && this.onSettle) this.onSettle();
    return true;
  }

  labelOf(task, key) {
    const k = this.keys.get(task.name).findIndex(({ digit, letter }) => key === digit || key === letter);
    return k < 0 ? null : [task, task.labels[k]];
  }

  /** In the task in focus; a letter that it lacks may be that of the only other task that has it. */
  choiceOf(key) {
    const focused = this.choiceTasks.find((task) => task.name === this.current);
    const here = focused ? this.labelOf(focused, key) : null;
    if (here || /\d/.test(key)) return here;
    const others = this.choiceTasks.map((task) => this.labelOf(task, key)).filter(Boolean);
    return others.length === 1 ? others[0] : null;
  }

  get actions() {
    const words = () => this.text.words;
    const [start, end] = this.range ?? [0, 0];
    const first = (list, holds) => list[below(list.length, (k) => !holds(list[k]))];
    const last = (list, holds) => list[below(list.length, (k) => holds(list[k])) - 1];
    return {
      revert: () => this.revert(),
      jump: () => this.openJump(),
      find: () => this.openFinder(),
      remove: () => this.remove(),
      drop: () => this.select(null),
      right: () => this.step(1),
      left: () => this.step(-1),
      "extend-right": () => this.extend(1),
      "extend-left": () => this.extend(-1),
      up: () => this.line(-1),
      down: () => this.line(1),
      "word-right": () => this.go(first(words(), (word) => word[0] >= end)),
      "word-left": () => this.go(last(words(), (word) => word[1] <= start)),
      first: () => this.go(this.text.runs[0], true),
      last: () => this.go(this.text.runs.at(-1), true),
      "next-span": () => this.go(this.nextSpan(1)),
      "last-span": () => this.go(this.nextSpan(-1)),
      "start-left": () => this.resize(last(words(), (word) => word[0] < start)?.[0] ?? start, end),
      "start-right": () => this.resize(inside(first(words(), (word) => word[0] > start)?.[0], start, end) ?? start, end),
      "end-right": () => this.resize(start, first(words(), (word) => word[1] > end)?.[1] ?? end),
      "end-left": () => this.resize(start, inside(last(words(), (word) => word[1] < end)?.[1], start, end) ?? end),
    };
  }

  // --- moving

  /** Select a range and make it seen; with `whole`, the mark that it touches. */
  go(range, whole = false) {
    if (!range) return this.tell("There is no further one");
    const touched = whole ? this.overlapping(...range) : null;
    const target = touched ? [touched.start, touched.end] : [range[0], range[1]];
    this.anchor = target;
    this.select(target);
    this.pane.focus({ preventScroll: true });
    this.reveal();
    const span = this.spans[this.spanAt(...target)];
    this.tell(`“${this.quoted(...target)}”${span ? `, marked ${this.labelShown(span.label)}` : ""}`, true);
  }

  neighbour(range, direction) {
    const runs = this.text.runs;
    if (!range) return direction > 0 ? runs[0] : runs.at(-1);
    const k = direction > 0 ? below(runs.length, (i) => runs[i][0] < range[1]) : below(runs.length, (i) => runs[i][1] <= range[0]) - 1;
    return runs[k];
  }

  step(direction) {
    this.go(this.neighbour(this.range, direction), true);
  }

  /** Move the end of the selection that is not the anchor. */
  extend(direction) {
    if (!this.range) return this.step(direction);
    const [start, end] = this.range;
    const anchor = this.anchor ?? this.range;
    const shrinks = direction > 0 ? start < anchor[0] : end > anchor[1];
    const runs = this.text.runs;
    let range;
    if (shrinks && direction < 0) {
      range = [start, runs[below(runs.length, (k) => runs[k][1] < end) - 1]?.[1] ?? end];
    } else if (shrinks) {
      range = [runs[below(runs.length, (k) => runs[k][0] <= start)]?.[0] ?? start, end];
    } else {
      const next = this.neighbour(this.range, direction);
      if (!next) return this.tell("No further");
      range = direction > 0 ? [start, next[1]] : [next[0], end];
    }
    this.select(range);
    this.pane.focus({ preventScroll: true });
    this.reveal(direction > 0);
    this.tell(`“${this.quoted(...range)}”`, true);
  }

  line(direction) {
    if (!this.range) return this.step(direction);
    const boxes = [...this.seen(...this.range).getClientRects()];
    const box = direction < 0 ? boxes[0] : boxes.at(-1);
    const height = parseFloat(getComputedStyle(this.pane).lineHeight) || 24;
    this.pane.scrollTop += direction * height;
    const moved = this.seen(...this.range).getClientRects();
    const now = direction < 0 ? moved[0] : moved[moved.length - 1];
    const unit = this.unitAt(box.left + box.width / 2, now.top + now.height / 2 + direction * height);
    const runs = this.text.runs;
    const point = unit === null ? null : this.text.toPoints(unit);
    const run = point === null ? null : runs[Math.min(below(runs.length, (k) => runs[k][1] <= point), runs.length - 1)];
    if (!run || (run[0] < this.range[1] && this.range[0] < run[1])) return this.step(direction);
    this.go(run, true);
  }

  unitAt(x, y) {
    if (document.caretPositionFromPoint) {
      const place = document.caretPositionFromPoint(x, y);
      return place && this.pieces.unit(place.offsetNode, place.offset);
    }
    const place = document.caretRangeFromPoint?.(x, y);
    return place ? this.pieces.unit(place.startContainer, place.startOffset) : null;
  }

  nextSpan(direction) {
    const [start, end] = this.range ?? [-1, -1];
    const ordered = direction > 0 ? this.spans : [...this.spans].reverse();
    const found = ordered.find((span) => (direction > 0 ? span.start >= Math.max(end, 0) && span.start !== start : span.end <= (start < 0 ? Infinity : start)));
    const span = found ?? ordered[0];
    return span && [span.start, span.end];
  }

  // --- jumping

  openJump() {
    this.jumpFrom = this.range;
    this.jumpBox.hidden = false;
    this.jumpField.value = "";
    this.jumpField.focus();
  }

  jump() {
    const wanted = this.jumpField.value.toLocaleLowerCase();
    if (!wanted) return;
    const text = this.text;
    const begins = ([start]) => text.text.slice(text.toUnits(start), text.toUnits(start) + 2 * wanted.length).toLocaleLowerCase().startsWith(wanted);
    const after = this.jumpFrom?.[1] ?? 0;
    const starts = [...text.runs, ...text.words];
    const found = starts.find((run) => run[0] >= after && begins(run)) ?? starts.find(begins);
    this.jumpField.setAttribute("aria-invalid", found ? "false" : "true");
    if (!found) return this.tell(`No word begins with ${this.jumpField.value}`, true);
    this.anchor = found;
    this.select(found);
    this.reveal();
    this.tell(`“${this.quoted(...found)}”`, true);
  }

  closeJump(extends_) {
    const [from, found] = [this.jumpFrom, this.range];
    this.jumpBox.hidden = true;
    this.pane.focus({ preventScroll: true });
    if (!found) return;
    if (extends_ && from) {
      this.anchor = from;
      this.select([Math.min(from[0], found[0]), Math.max(from[1], found[1])]);
      this.tell(`“${this.quoted(...this.range)}”`, true);
    } else {
      this.go(found, true);
    }
  }

  // --- the page

  build() {
    this.pane = make("div", "text");
    this.pane.tabIndex = 0;
    this.pane.dir = "auto";
    this.pane.setAttribute("role", "group");
    this.pane.setAttribute("aria-label", "Text");
    this.fields = new Map();
    this.finders = new Map();
    this.jumpField = make("input");
    this.jumpField.type = "text";
    this.jumpField.autocomplete = "off";
    this.jumpBox = make("label", "jump", "Jump to the word that begins with ", this.jumpField);
    this.jumpBox.hidden = true;
    this.list = make("ul", "marks");
    this.list.setAttribute("aria-label", "Marks in the text");
    this.reading = make("div", "reading");
    if (this.spansTask) this.reading.append(this.buildMarking());
    this.reading.append(this.jumpBox, this.pane);
    if (this.spansTask) this.reading.append(this.list);
    const answers = make("div", "answers", ...this.choiceTasks.map((task) => this.buildChoice(task)));
    answers.hidden = !this.choiceTasks.length;
    this.root.classList.add("editor");
    this.root.replaceChildren(this.reading, answers);
  }

  /** The labels of the spans task as buttons: one stop of Tab, arrow keys among them. */
  buildMarking() {
    const task = this.spansTask;
    const bar = make("div", "marking");
    bar.setAttribute("role", "group");
    bar.setAttribute("aria-label", `${title(task)}: label of the selected words`);
    const entries = task.labels.map((label, k) => {
      const button = make("button", `label hue-${k % HUES}`, ...caps(this.keys.get(task.name)[k]), make("bdi", "", shown(label)));
      button.type = "button";
      button.tabIndex = -1; // by its key; a screen reader finds it all the same
      button.title = label.definition;
      button.addEventListener("mousedown", (event) => event.preventDefault()); // keeps the selection
      button.addEventListener("click", () => this.mark(label));
      return [label, button];
    });
    bar.append(...this.buildFinder(task, entries, (label) => this.mark(label), () => this.pane.focus()));
    bar.append(...entries.map(([, button]) => button));
    const remove = make("button", "label remove", make("kbd", "", "Del"), "remove");
    remove.type = "button";
    remove.tabIndex = -1;
    remove.addEventListener("mousedown", (event) => event.preventDefault());
    remove.addEventListener("click", () => this.remove());
    bar.append(remove);
    return bar;
  }

  buildChoice(task) {
    const said = this.proposal[task.name];
    const field = make("fieldset", "choice");
    field.dataset.task = task.name;
    field.append(make("legend", "", make("bdi", "", title(task))));
    if (task.instruction) field.append(make("p", "soft instruction", task.instruction));
    const options = make("div", task.labels.length > 6 ? "options many" : "options");
    const entries = task.labels.map((label, k) => [label, this.buildOption(task, label, k, said)]);
    options.append(...entries.map(([, option]) => option));
    field.append(...this.buildFinder(task, entries, (label) => this.choose(task, label), () => this.focus(task.name)));
    field.append(options);
    field.addEventListener("focusin", () => this.enter(task.name));
    this.fields.set(task.name, field);
    return field;
  }

  buildOption(task, label, k, said) {
    const input = make("input");
    input.type = "radio";
    input.name = `editor-${this.number}-${task.name}`;
    input.value = label.name;
    input.addEventListener("change", () => this.choose(task, label));
    const option = make("label", "option", input, make("span", "caps", ...caps(this.keys.get(task.name)[k])), make("bdi", "name", shown(label)));
    option.title = label.definition;
    const isProposed = said?.label === label.name;
    const likely = likelihood(said, label.name);
    if (isProposed) option.append(make("span", "proposed", "proposed"));
    if (likely) {
      const bar = make("span", "share");
      bar.style.setProperty("--share", String(likely.share));
      // What kind of number it is stands beside the first, and beside the others where they are of another kind.
      const isPlain = !isProposed && !isCalibrated(said);
      option.append(make("span", "likely", percent(likely.share), make("span", isPlain ? "unseen" : "", ` ${likely.kind}`)), bar);
    }
    return option;
  }

  /**
   * Where a task has more labels than there are keys: a field that shows only the labels whose names hold what is typed.
   * entries: [label, what shows it]. Enter takes the nearest; back() puts the focus where it was.
   */
  buildFinder(task, entries, take, back) {
    if (this.keys.get(task.name).every(({ digit, letter }) => digit || letter)) return [];
    const field = make("input");
    field.type = "search";
    field.autocomplete = "off";
    field.placeholder = `find one of ${task.labels.length}`;
    field.setAttribute("aria-label", `${title(task)}: find a label by its name`);
    let matches = [];
    const narrow = () => {
      const near = entries.map(([label, entry]) => ({ label, entry, nearness: nearness(shown(label), field.value) }));
      matches = field.value.trim() ? near.filter((one) => one.nearness).sort((a, b) => b.nearness - a.nearness) : [];
      for (const { entry, nearness } of near) entry.hidden = nearness === 0;
      point(0);
    };
    const point = (by) => {
      matches.push(...matches.splice(0, (by + matches.length) % (matches.length || 1)));
      for (const [, entry] of entries) entry.classList.toggle("found", entry === matches[0]?.entry);
    };
    const act = { ArrowDown: () => point(1), ArrowUp: () => point(-1), Escape: () => this.leaveFinders(back) };
    act.Enter = (withShift) => {
      const label = matches[0]?.label;
      if (!label) return this.tell(field.value ? `No label has “${field.value}” in its name` : "Type a part of the label’s name");
      this.leaveFinders(back);
      take(label);
      if (withShift && this.onSettle) this.onSettle();
    };
    field.addEventListener("input", narrow);
    field.addEventListener("keydown", (event) => {
      if (event.isComposing || !(event.key in act)) return;
      event.preventDefault();
      event.stopPropagation();
      act[event.key](event.shiftKey);
    });
    this.finders.set(task.name, field);
    return [make("label", "finder", make("kbd", "", "="), field)];
  }

  /** Show all labels again, and go back. */
  leaveFinders(back = () => {}) {
    for (const field of this.finders.values()) {
      if (!field.value) continue;
      field.value = "";
      field.dispatchEvent(new Event("input"));
    }
    back();
  }

  /** Of the marks where words are selected, else of the choice in focus. */
  openFinder() {
    const isForSpan = this.range && this.reading.contains(document.activeElement);
    const field = this.finders.get(isForSpan ? this.spansTask?.name : this.current ?? this.spansTask?.name);
    if (field) field.focus();
    else this.tell("Every label here has a key of its own");
  }

  enter(task) {
    this.current = task;
    for (const [name, field] of this.fields) field.classList.toggle("current", name === task);
  }

  show() {
    for (const [name, field] of this.fields) {
      for (const input of field.querySelectorAll("input")) input.checked = input.value === this.choices[name];
      field.classList.toggle("open", !(name in this.choices));
    }
    const hue = (label) => this.spansTask.labels.findIndex((one) => one.name === label) % HUES;
    const describe = (span) => ({ tag: this.labelShown(span.label), className: `span hue-${hue(span.label)}` });
    const top = this.pane.scrollTop;
    this.pieces = renderMarked(this.pane, this.text, this.spans, describe);
    this.pane.scrollTop = top;
    if (this.spansTask) this.showList(hue);
    this.leaveFinders();
    this.paint();
  }

  showList(hue) {
    const focused = [...this.list.querySelectorAll("button")].indexOf(document.activeElement);
    const entries = this.spans.map((span, k) => {
      const quote = this.quoted(span.start, span.end);
      const name = this.labelShown(span.label);
      const go = make("button", `go hue-${hue(span.label)}`, make("bdi", "quote", quote), make("bdi", "name", name));
      go.type = "button";
      const said = this.sureOf(span);
      if (said) go.append(make("span", "likely", percent(said.share), make("span", "unseen", ` ${said.kind}`)));
      go.addEventListener("click", () => this.go([span.start, span.end]));
      const drop = make("button", "drop", "×");
      drop.type = "button";
      drop.setAttribute("aria-label", `Remove ${name} ${quote}`);
      drop.addEventListener("click", () => this.remove(k));
      return make("li", "", go, drop);
    });
    const kinds = new Set(this.spans.map((span) => this.sureOf(span)?.kind).filter(Boolean));
    if (kinds.size) entries.push(make("li", "soft kinds", `numbers: ${[...kinds].join(", ")}`));
    if (!entries.length) entries.push(make("li", "soft", `No ${title(this.spansTask).toLowerCase()} marked`));
    this.list.replaceChildren(...entries);
    if (focused >= 0) (this.list.querySelectorAll("button")[focused] ?? this.pane).focus({ preventScroll: true });
  }

  sureOf({ start, end, label }) {
    const spans = this.proposal[this.spansTask.name] ?? [];
    const said = spans.find((one) => one.start === start && one.end === end && one.label === label);
    return said ? likelihood(said, label) : null;
  }

  select(range) {
    this.range = range;
    if (!range) this.anchor = null;
    const index = range ? this.spanAt(...range) : -1;
    for (const mark of this.pane.querySelectorAll("mark")) mark.classList.toggle("selected", Number(mark.dataset.index) === index);
    this.root.classList.toggle("has-selection", range !== null);
    this.paint();
  }

  /** The page's range of a selection. */
  seen(start, end) {
    return this.pieces.range(this.text.toUnits(start), this.text.toUnits(end));
  }

  paint() {
    this.unpaint();
    if (!this.range) return;
    const range = this.seen(...this.range);
    if (!globalThis.CSS?.highlights) {
      getSelection().removeAllRanges();
      getSelection().addRange(range);
      return;
    }
    if (!CSS.highlights.has(HIGHLIGHT)) CSS.highlights.set(HIGHLIGHT, new Highlight());
    CSS.highlights.get(HIGHLIGHT).add(range);
    this.painted = range;
  }

  unpaint() {
    if (this.painted) CSS.highlights.get(HIGHLIGHT)?.delete(this.painted);
    this.painted = null;
  }

  reveal(atEnd = false) {
    const native = getSelection();
    if (globalThis.CSS?.highlights && this.pane.contains(native.anchorNode)) native.removeAllRanges();
    const boxes = this.seen(...this.range).getClientRects();
    const box = boxes[atEnd ? boxes.length - 1 : 0];
    if (!box) return;
    const pane = this.pane.getBoundingClientRect();
    if (box.top < pane.top + 8) this.pane.scrollTop -= pane.top - box.top + pane.height / 3;
    else if (box.bottom > pane.bottom - 8) this.pane.scrollTop += box.bottom - pane.bottom + pane.height / 3;
  }

  // --- mouse and touch

  listen() {
    const { signal } = this.stopping;
    let pressed = false;
    let released = null; // the end of a press whose selection is still to be read
    const take = () => {
      if (released) this.fromPage(released.altKey, true);
      released = null;
    };
    this.root.addEventListener("keydown", (event) => {
      take(); // a key may come before the browser's turn to read the selection
      this.key(event);
    }, { signal });
    this.pane.addEventListener("mousedown", (event) => { pressed = event.button === 0; }, { signal });
    document.addEventListener("mouseup", (event) => {
      // The browser changes the selection after this event where a press on the selection ends without a drag.
      if (pressed) {
        released = event;
        setTimeout(take);
      }
      pressed = false;
    }, { signal });
    // Handles of a touch screen move the selection without a mouse.
    document.addEventListener("selectionchange", () => {
      if (!pressed && !getSelection().isCollapsed) this.fromPage(false, false);
    }, { signal });
    this.jumpField.addEventListener("input", () => this.jump(), { signal });
    this.jumpField.addEventListener("keydown", (event) => {
      if (event.isComposing || !["Enter", "Escape"].includes(event.key)) return;
      event.preventDefault();
      event.stopPropagation();
      if (event.key === "Escape") this.select(this.jumpFrom);
      this.closeJump(event.key === "Enter" && event.shiftKey);
    }, { signal });
    this.jumpField.addEventListener("blur", () => { this.jumpBox.hidden = true; }, { signal });
  }

  /** Take what is selected in the page: whole words, or exactly that; a click takes the mark or the word there. */
  fromPage(isExact, isMouse) {
    const selection = getSelection();
    if (!selection.rangeCount || !this.pane.contains(selection.anchorNode)) return;
    const ends = [this.pointOf(selection.anchorNode, selection.anchorOffset), this.pointOf(selection.focusNode, selection.focusOffset)];
    const [start, end] = ends.sort((a, b) => a - b);
    if (start === end && !isMouse) return;
    let range = isExact && end > start ? [start, end] : this.text.snapped(start, end);
    if (start === end && range && !(range[0] <= start && start <= range[1])) range = null;
    const touched = start === end && range ? this.overlapping(...range) : null;
    if (touched) range = [touched.start, touched.end];
    if (range && this.range && range[0] === this.range[0] && range[1] === this.range[1]) return;
    this.select(range);
    this.anchor = range;
  }

  pointOf(node, offset) {
    const unit = this.pieces.unit(node, offset);
    if (unit !== null) return this.text.toPoints(unit);
    const isBefore = this.pane.compareDocumentPosition(node) & Node.DOCUMENT_POSITION_PRECEDING;
    return isBefore ? 0 : this.text.length;
  }

  // --- words

  tell(text, isMove = false) {
    this.say(text, isMove);
  }

  labelShown(name) {
    const label = this.spansTask.labels.find((one) => one.name === name);
    return label ? shown(label) : name;
  }

  /** For messages: at most 60 characters of it. */
  quoted(start, end) {
    return end - start > 60 ? `${this.text.slice(start, start + 30)} … ${this.text.slice(end - 25, end)}` : this.text.slice(start, end);
  }
}

function title(task) {
  const words = task.name.replaceAll("_", " ");
  return words.charAt(0).toUpperCase() + words.slice(1);
}

function caps({ digit, letter }) {
  return [digit, letter].filter(Boolean).map((key) => make("kbd", "", key.toUpperCase()));
}

/** {share, kind} of a label: calibrated and the model's own confidence told apart; null where none was stated. */
function likelihood(said, name) {
  if (!said) return null;
  if (said.label === name && isCalibrated(said)) return { share: said.probability, kind: "calibrated" };
  const stated = said.label === name ? said : said.alternatives?.find((one) => one.label === name);
  return typeof stated?.confidence === "number" ? { share: stated.confidence, kind: "model’s own" } : null;
}

const isCalibrated = (said) => typeof said.probability === "number";

/** A share in per cent, in words that never say certain of what is not. */
export function percent(share, digits = 0) {
  const shownAs = (100 * share).toFixed(digits);
  if (Number(shownAs) === 100 && share < 1) return "over 99 %";
  if (Number(shownAs) === 0 && share > 0) return "under 1 %";
  return `${shownAs} %`;
}

/** 0 where a typed word is not in the name, 1 where all are, 2 where each begins a word of it, 3 where it is the name. */
function nearness(name, typed) {
  const [whole, words] = [name.toLocaleLowerCase(), typed.toLocaleLowerCase().split(/\s+/u).filter(Boolean)];
  if (!words.every((word) => whole.includes(word))) return 0;
  if (whole === words.join(" ")) return 3;
  return words.every((word) => whole.split(/[^\p{L}\p{N}]+/u).some((part) => part.startsWith(word))) ? 2 : 1;
}

function inside(offset, start, end) {
  return offset > start && offset < end ? offset : null;
}

/** Whether keys are typed into it. */
export function isField(target) {
  return target instanceof HTMLElement && target.matches("input:not([type=radio], [type=checkbox]), textarea, select");
}
