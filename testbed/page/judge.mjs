// The page for everybody: axe's judgement, targets that a finger hits, and the keyboard alone.
import assert from "node:assert/strict";
import axe from "axe-core";

// judge wants no serious violation on what is shown, or in the question in front of it, and nothing too small for a finger. It gives
// the number of lesser violations.
export async function judge(page, what) {
  if (!(await page.evaluate(() => "axe" in globalThis))) await page.evaluate(axe.source);
  const { violations, small } = await page.evaluate(async () => {
    const shown = [...document.querySelectorAll("dialog[open]")].pop() ?? document.documentElement;
    const { violations } = await globalThis.axe.run(shown, { resultTypes: ["violations"] });
    const small = [...shown.querySelectorAll("button, select, input:not([type=file], [type=checkbox], [type=radio]), label.check, nav a, a.button, a.who, a.tile, a.back")]
      .filter((e) => e.checkVisibility() && e.getBoundingClientRect().height < 44)
      .map((e) => `${e.outerHTML.slice(0, 80)}: ${e.getBoundingClientRect().height}`);
    return { violations: violations.map((v) => ({ id: v.id, impact: v.impact, at: v.nodes.map((n) => n.target.join(" ")) })), small };
  });
  const grave = violations.filter((v) => v.impact === "serious" || v.impact === "critical");
  assert.deepEqual(grave, [], `axe: ${what}`);
  assert.deepEqual(small, [], `${what}: too small for a finger`);
  return violations.length;
}

// reach goes by the Tab key alone to what is wanted, and wants to see there that it is there.
export async function reach(page, wanted) {
  await wanted.waitFor();
  for (let steps = 0; steps < 80; steps++) {
    if (await wanted.evaluate((e) => e === document.activeElement)) return seen(page, wanted);
    await page.keyboard.press("Tab");
  }
  assert.fail(`the Tab key does not lead to ${wanted}`);
}

// seen wants the ring of the focus on something, and the something in sight.
async function seen(page, wanted) {
  const { ring, covered } = await wanted.evaluate((e) => {
    const box = e.getBoundingClientRect();
    const top = document.elementFromPoint(box.x + box.width / 2, box.y + box.height / 2);
    return { ring: [e, e.parentElement].some((x) => getComputedStyle(x).outlineStyle !== "none"), covered: top && (e.contains(top) || top.contains(e)) ? "" : (top?.outerHTML.slice(0, 120) ?? "nothing: it is out of sight") };
  });
  assert.ok(ring, `${wanted} has the focus and does not show it`);
  assert.equal(covered, "", `${wanted} has the focus and is covered`);
}

// press reaches something and presses a key there.
export async function press(page, wanted, key = "Enter") {
  await reach(page, wanted);
  await page.keyboard.press(key);
}

// write reaches a field and types into it.
export async function write(page, field, text) {
  await reach(page, field);
  await page.keyboard.press("ControlOrMeta+A");
  await page.keyboard.type(text);
}
