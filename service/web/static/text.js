/**
 * Texts as the service counts them. It counts code points; a browser counts UTF-16 units. Everything outside this
 * module and the page's own selection is in code points, end exclusive, in the text exactly as received.
 */

// As in service/words.py, where each choice has its reason.
const BARRIER = "\\x00-\\x08\\x0B\\x0C\\x0E-\\x1F\\x7F\\u{40000}-\\u{DFFFF}";
const UNSPACED = [
  "Han", "Hiragana", "Katakana", "Thai", "Lao", "Khmer", "Myanmar", "Tibetan",
].map((script) => `\\p{Script=${script}}`).join("");
const ALONE = new RegExp(`[${UNSPACED}]\\p{M}*`, "uy");
const LETTERS = new RegExp(`(?![${UNSPACED}])[\\p{L}\\p{N}_](?:(?![${UNSPACED}])[\\p{L}\\p{N}\\p{M}_])*`, "uy");
const NEITHER = new RegExp(`[\\p{White_Space}${BARRIER}]`, "uy");
const WORD_LENGTH = 64;
// Signs that belong to an amount or a number, unlike a full stop or a bracket.
const CORE = /^[\p{Sc}#@%&+°]/u;
const ABBREVIATIONS = { PER: "person", LOC: "location", ORG: "organization", MISC: "miscellaneous" };

const graphemes = new Intl.Segmenter("en", { granularity: "grapheme" });

export class Text {
  constructor(text) {
    this.text = text;
    this.wide = []; // code point offsets of what takes two units, ascending
    let points = 0;
    for (let unit = 0; unit < text.length; unit += 1, points += 1) {
      if (text.codePointAt(unit) > 0xffff) {
        this.wide.push(points);
        unit += 1;
      }
    }
    this.length = points;
    this.cachedWords = null;
    this.cachedRuns = null;
  }

  /** UTF-16 offset of a code point offset. */
  toUnits(point) {
    return point + below(this.wide.length, (k) => this.wide[k] < point);
  }

  /** Code point offset of a UTF-16 offset; one inside a pair counts as its end. */
  toPoints(unit) {
    return unit - below(this.wide.length, (k) => this.wide[k] + k + 1 < unit);
  }

  slice(start, end) {
    return this.text.slice(this.toUnits(start), this.toUnits(end));
  }

  /** [start, end] of each word, as `service.words.split_words`. */
  get words() {
    this.cachedWords ??= splitWords(this);
    return this.cachedWords;
  }

  /**
   * [start, end] of what the arrow keys step over: words without blanks between them, so that `88-K-4410` is one step;
   * punctuation around them, and each character of a script without spaces, is a step of its own.
   */
  get runs() {
    this.cachedRuns ??= joinWords(this);
    return this.cachedRuns;
  }

  /** Smallest range of whole words that holds [start, end); null where no word is touched. An empty range: the word there. */
  snapped(start, end) {
    const words = this.words;
    const first = below(words.length, (k) => words[k][1] <= start);
    const last = below(words.length, (k) => words[k][0] < Math.max(end, start + 1)) - 1;
    return first <= last ? [words[first][0], words[last][1]] : null;
  }
}

/** How many of the first n numbers hold, where those that do come first. */
export function below(n, holds) {
  let low = 0;
  let high = n;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (holds(middle)) low = middle + 1;
    else high = middle;
  }
  return low;
}

function splitWords(text) {
  const string = text.text;
  const words = [];
  let segments = null;
  let unit = 0;
  while (unit < string.length) {
    let end = matched(ALONE, string, unit) || matched(LETTERS, string, unit);
    if (!end) {
      const skipped = matched(NEITHER, string, unit);
      if (skipped) {
        unit = skipped;
        continue;
      }
      if (isPlain(string.charCodeAt(unit)) && isPlain(string.charCodeAt(unit + 1))) {
        end = unit + 1; // no cluster: nothing of ASCII joins what follows it
      } else {
        segments ??= graphemes.segment(string);
        const found = segments.containing(unit);
        end = found.index + found.segment.length;
      }
    }
    const last = text.toPoints(end);
    for (let start = text.toPoints(unit); start < last; start += WORD_LENGTH) {
      words.push([start, Math.min(start + WORD_LENGTH, last)]);
    }
    unit = end;
  }
  return words;
}

function matched(pattern, string, unit) {
  pattern.lastIndex = unit;
  return pattern.test(string) ? pattern.lastIndex : 0;
}

function isPlain(unit) {
  return !(unit >= 0x80); // also the end of the text, which is NaN
}

function joinWords(text) {
  const runs = [];
  let group = [];
  const close = () => {
    const isCore = group.map(([start, end]) => {
      const word = text.slice(start, end);
      return matched(LETTERS, word, 0) > 0 || CORE.test(word);
    });
    const first = isCore.indexOf(true);
    const last = isCore.lastIndexOf(true);
    group.forEach((word, k) => {
      if (first < 0 || k <= first || k > last) runs.push([word[0], word[1]]);
      else runs[runs.length - 1][1] = word[1];
    });
    group = [];
  };
  for (const word of text.words) {
    const alone = matched(ALONE, text.slice(...word), 0) > 0;
    if (group.length && (alone || group[group.length - 1][1] !== word[0])) close();
    group.push(word);
    if (alone) close();
  }
  close();
  return runs;
}

/**
 * Show a text in `root` with its spans as marks, and nothing but the text: `root.textContent` equals it.
 * spans: in reading order, never overlapping. describe(span, index): {tag, className}. Returns where each piece stands.
 */
export function renderMarked(root, text, spans, describe) {
  const pieces = [];
  const add = (parent, start, end) => {
    if (start === end) return;
    const node = document.createTextNode(text.slice(start, end));
    parent.append(node);
    pieces.push({ node, start: text.toUnits(start), end: text.toUnits(end) });
  };
  root.replaceChildren();
  let position = 0;
  spans.forEach((span, index) => {
    add(root, position, span.start);
    const mark = document.createElement("mark");
    const { tag, className } = describe(span, index);
    mark.className = className;
    mark.dataset.tag = tag;
    mark.dataset.index = index;
    root.append(mark);
    add(mark, span.start, span.end);
    position = span.end;
  });
  add(root, position, text.length);
  return new Pieces(root, pieces);
}

/** Between UTF-16 offsets of the whole text and places in the page. */
class Pieces {
  constructor(root, pieces) {
    this.root = root;
    this.pieces = pieces;
    this.starts = new Map(pieces.map((piece) => [piece.node, piece.start]));
  }

  range(start, end) {
    const range = document.createRange();
    if (this.pieces.length) {
      range.setStart(...this.place(start, false));
      range.setEnd(...this.place(end, true));
    }
    return range;
  }

  place(unit, isEnd) {
    const found = below(this.pieces.length, (k) => (isEnd ? this.pieces[k].end < unit : this.pieces[k].end <= unit));
    const piece = this.pieces[Math.min(found, this.pieces.length - 1)];
    return [piece.node, Math.min(unit, piece.end) - piece.start];
  }

  /** UTF-16 offset of a place inside the root; null for one outside. */
  unit(node, offset) {
    if (!this.root.contains(node)) return null;
    if (this.starts.has(node)) return this.starts.get(node) + offset;
    const next = node.childNodes[offset];
    const edge = document.createRange();
    edge.setStart(this.root, 0);
    if (next) edge.setEndBefore(next);
    else edge.setEnd(node, node.childNodes.length);
    return edge.toString().length;
  }
}

/** A name of a schema as words, as `service.schema.as_words`. */
export function asWords(name) {
  if (name in ABBREVIATIONS) return ABBREVIATIONS[name];
  const spaced = name.replace(/(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])/g, " ");
  return spaced.replace(/[\s_.\-/:]+/gu, " ").trim().toLowerCase();
}

/** What people read for a label of a schema. */
export function shown(label) {
  return label.display || asWords(label.name);
}

/** An element with a class and content: elements, or strings, which are text and never markup. */
export function make(tag, className = "", ...content) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.append(...content);
  return element;
}
