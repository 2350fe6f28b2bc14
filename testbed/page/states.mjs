// Every state that a house can be in is drawn on purpose: a picture of each, in both sizes, and axe's judgement. The house is a
// stand-in, as most of these states cannot be had in a lab at will.
import assert from "node:assert/strict";
import axe from "axe-core";
import { browse, picture, sizes, visit } from "./browser.mjs";
import { owner, states } from "./houses.mjs";
import { serve } from "./standin.mjs";

const browser = await browse();
const words = {
  "all-well": "All is well", "not-joined": "Not in a mesh", connecting: "Connecting", "needs-login": "Waits for a login", "waits-for-approval": "Waits for approval",
  "coordinator-unreachable": "has not been heard of for 11 minutes", "somebody-at-the-door": "annas-laptop wants to join", "clock-wrong": "The clock is wrong", "no-wan": "No way to the internet",
  "relay-only": "Only relayed connections", "exit-blocked": "Blocked because: cabin is off-line.", "prefix-overlap": "Two homes use the same addresses", "key-expires": "The membership runs out soon",
  "firewall-missing": "The firewall is not set up", "update-available": "A new version is there", "storage-full": "Storage is full",
};
let drawn = 0;
try {
  for (const [name, event] of Object.entries(states)) {
    const standin = await serve({ page: owner, event });
    const page = await visit(browser);
    await page.goto(standin.url);
    await page.getByText(words[name]).first().waitFor();
    await page.evaluate(axe.source);
    for (const [size, colorScheme] of [["phone", "light"], ["desktop", "dark"]]) {
      await page.setViewportSize(sizes[size]);
      await page.emulateMedia({ colorScheme });
      await picture(page, `state-${name}-${size}`);
      const { violations } = await page.evaluate(() => globalThis.axe.run(document, { resultTypes: ["violations"] }));
      const grave = violations.filter((v) => v.impact === "serious" || v.impact === "critical");
      assert.deepEqual(grave.map((v) => `${v.id}: ${v.nodes.map((n) => n.target.join(" ")).join(", ")}`), [], `axe: ${name} ${size}`);
      drawn++;
    }
    assert.deepEqual(page.complaints, [], name);
    await page.context().close();
    standin.close();
  }
} finally {
  await browser.close();
}
console.log(`${Object.keys(states).length} states, ${drawn} pictures, no serious violation`);
process.exit(0);
