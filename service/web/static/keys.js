/**
 * The one table of keys: what the pages handle, the key map shows and prints, and the README lists.
 *
 * keys: as `stroke` names them. where: "page" everywhere but in fields (the arrows to the sides lead into the text from
 * the choices as well, among which those up and down choose); "text" in the text and the buttons above it;
 * "mark" there as well, once words or a mark are selected. A letter of a row with `yields` gives way to a label's own.
 * The table is plain JSON, so that tests can read it.
 */
export const KEYS = [
  {"does": "settle", "keys": ["Enter", "a"], "where": "page", "says": "Accept as it is shown, and go on"},
  {"does": "label", "keys": ["1 … 9", "0", "letter"], "where": "page", "says": "Choose the label with this key; in the text: mark the selected words with it"},
  {"does": "label-settle", "keys": ["Shift+1 … 9", "Shift+letter"], "where": "page", "says": "The same, and settle the item with it"},
  {"does": "find", "keys": ["="], "where": "page", "says": "Find a label by its name, where there are more than keys: Enter takes it, Shift+Enter settles with it"},
  {"does": "next-task", "keys": ["Tab", "Shift+Tab"], "where": "page", "says": "To the next or the last task"},
  {"does": "skip", "keys": ["s"], "where": "page", "says": "Skip: hand the item back unsettled"},
  {"does": "flag", "keys": ["f"], "where": "page", "says": "Flag a gap in the guideline, with a note"},
  {"does": "undo", "keys": ["u"], "where": "page", "says": "Take back the item settled last"},
  {"does": "bulk", "keys": ["x"], "where": "page", "says": "Similar items: settle many at once"},
  {"does": "guideline", "keys": ["g"], "where": "page", "says": "Guideline and definitions"},
  {"does": "keys", "keys": ["?"], "where": "page", "says": "This key map"},
  {"does": "revert", "keys": ["Ctrl+z"], "where": "page", "says": "Undo the last change within the item"},
  {"does": "jump", "keys": ["/"], "where": "page", "says": "Jump: type how a word begins; Enter takes it, Shift+Enter extends the selection to it"},
  {"does": "next-span", "keys": [".", "n"], "where": "page", "yields": true, "says": "To the next mark"},
  {"does": "last-span", "keys": [",", "p"], "where": "page", "yields": true, "says": "To the mark before"},
  {"does": "right", "keys": ["ArrowRight"], "where": "page", "says": "Into the text, and forward by words without blanks between them"},
  {"does": "left", "keys": ["ArrowLeft"], "where": "page", "says": "Into the text, and back"},
  {"does": "extend-right", "keys": ["Shift+ArrowRight"], "where": "page", "says": "Extend the selection forward"},
  {"does": "extend-left", "keys": ["Shift+ArrowLeft"], "where": "page", "says": "Extend the selection back"},
  {"does": "up", "keys": ["ArrowUp"], "where": "text", "says": "A line up"},
  {"does": "down", "keys": ["ArrowDown"], "where": "text", "says": "A line down"},
  {"does": "word-right", "keys": ["w"], "where": "text", "yields": true, "says": "Forward by one word, however small"},
  {"does": "word-left", "keys": ["b"], "where": "text", "yields": true, "says": "Back by one word, however small"},
  {"does": "first", "keys": ["Home"], "where": "text", "says": "To the first word"},
  {"does": "last", "keys": ["End"], "where": "text", "says": "To the last word"},
  {"does": "start-left", "keys": ["["], "where": "mark", "says": "Start one word earlier"},
  {"does": "start-right", "keys": ["{"], "where": "mark", "says": "Start one word later"},
  {"does": "end-right", "keys": ["]"], "where": "mark", "says": "End one word later"},
  {"does": "end-left", "keys": ["}"], "where": "mark", "says": "End one word earlier"},
  {"does": "remove", "keys": ["Delete", "Backspace"], "where": "mark", "says": "Remove the mark"},
  {"does": "drop", "keys": ["Escape"], "where": "mark", "says": "Select nothing"}
];

const NAMES = {
  ArrowRight: "→", ArrowLeft: "←", ArrowUp: "↑", ArrowDown: "↓", Escape: "Esc", Backspace: "⌫",
};

const BY_KEY = new Map(KEYS.flatMap((row) => row.keys.map((key) => [key, row])));
const SIGNS = new Set([...BY_KEY.keys()].filter((key) => key.length === 1 && !/[a-z]/.test(key)));

/** Letters that are a command everywhere and can be no label's. */
export const RESERVED = new Set(
  KEYS.filter((row) => !row.yields).flatMap((row) => row.keys).filter((key) => /^[a-z]$/.test(key)),
);
const YIELDING = new Set(KEYS.filter((row) => row.yields).flatMap((row) => row.keys).filter((key) => /^[a-z]$/.test(key)));

/**
 * A key press in the words of the table, or "" for one that is none of ours. Letters and digits are taken from where
 * they stand on the keyboard where the layout has no Latin letter or no digit there.
 */
export function stroke(event) {
  const graph = event.getModifierState("AltGraph");
  const control = (event.ctrlKey || event.metaKey) && !graph;
  if (event.isComposing || (event.altKey && !graph)) return "";
  if (SIGNS.has(event.key)) return control ? "" : event.key;
  const digit = /^(?:Digit|Numpad)(\d)$/.exec(event.code)?.[1];
  const key = digit ?? (event.key.length === 1 ? event.key.toLowerCase() : event.key);
  return `${control ? "Ctrl+" : ""}${event.shiftKey ? "Shift+" : ""}${key}`;
}

/** The letter that stands on this key of a Latin keyboard, with its Shift, for layouts that have another there. */
export function latin(event) {
  const letter = /^Key([A-Z])$/.exec(event.code)?.[1];
  return letter ? `${event.shiftKey ? "Shift+" : ""}${letter.toLowerCase()}` : "";
}

/** The row of the table for a stroke, or undefined. */
export function command(name) {
  return BY_KEY.get(name);
}

/**
 * A digit for each of the first ten labels and a letter for as many as there are: the first of its name where it is
 * free, else another of its name, else any. names: as shown, in the order of the schema. Returns [{digit, letter}].
 */
export function assign(names) {
  const taken = new Set(RESERVED);
  const letters = names.map((name) => {
    const first = [...name.toLowerCase()].find((letter) => /\p{L}/u.test(letter));
    if (first === undefined || taken.has(first)) return "";
    taken.add(first);
    return first;
  });
  names.forEach((name, k) => {
    const others = [...name.toLowerCase(), ..."abcdefghijklmnopqrstuvwxyz"].filter((letter) => /^[a-z]$/.test(letter));
    letters[k] ||= others.find((letter) => !taken.has(letter) && !YIELDING.has(letter)) ?? "";
    if (letters[k]) taken.add(letters[k]);
  });
  return letters.map((letter, k) => ({ digit: k < 10 ? String((k + 1) % 10) : "", letter }));
}

/** A key as it is printed on a keyboard. */
export function printed(key) {
  return key.split("+").map((part) => NAMES[part] ?? (part.length === 1 ? part.toUpperCase() : part)).join(" + ");
}
