/** Why a person looks at an item, in words: what was measured and the threshold that it was held against. */

import { percent } from "./editor.js";
import { asWords } from "./text.js";

export function reasonInWords({ code, task, label, value, threshold, detail }, schema) {
  const wanted = schema.tasks.find((one) => one.name === task)?.labels.find((one) => one.name === label);
  const name = wanted?.display || (label ? asWords(label) : "");
  const about = task ? asWords(task) : "labels";
  const [found, asked] = pair(value, threshold);
  const words = {
    low_confidence: () => unsure(about, name, `${found}, under the threshold of ${asked}`, detail),
    ambiguous: () => `${about}: “${name}” is only ${points(found)} ahead of “${detail ? asWords(detail) : "the next"}”, under the threshold of ${points(asked)}.`,
    low_agreement: () => `${about}: “${name}” has often been wrong: ${detail} agreed, ${found}, under the threshold of ${asked}.`,
    gold_mismatch: () => `${about} differs from gold: ${detail}.`,
    disagreement: () => `${about}: a second reading says otherwise: ${detail}.`,
    truncated: () => "The model’s answer was cut off, so something may be missing.",
    ungrounded: () => `The model named what does not stand in the text: ${detail}.`,
    failed: () => `The model could not label this text: ${detail}. You start from nothing.`,
    audit: () => `Nothing speaks against these labels: a fair sample, ${asked} of the accepted items drawn by lot, is looked at all the same.`,
  };
  return words[code]?.() ?? `${code}: ${detail ?? ""}`;
}

function unsure(about, name, numbers, detail) {
  if (detail?.startsWith("for at most")) {
    return `All labels together are right with ${numbers} (${detail}). Least sure: ${name ? `${about}, “${name}”` : about}.`;
  }
  if (!name) return `${about}: that none is missing has ${numbers}.`;
  return `${about}: ${detail ? `“${detail}” as ` : ""}“${name}” has ${numbers}.`;
}

const points = (share) => share.replace("%", "points");

/** Both numbers in per cent, with as many digits as tell them apart. */
function pair(value, threshold) {
  const both = [value, threshold];
  const isStated = both.every((number) => typeof number === "number");
  let digits = 0;
  while (isStated && value !== threshold && digits < 6 && percent(value, digits) === percent(threshold, digits)) digits += 1;
  return both.map((number) => (typeof number === "number" ? percent(number, digits) : "an unstated share"));
}
