// Every state that a house can be in is drawn on purpose, and every place and question of its page: a picture of each, in both sizes,
// and axe's judgement. The house is a stand-in, as most of these states cannot be had in a lab at will.
import assert from "node:assert/strict";
import { browse, picture, sizes, visit } from "./browser.mjs";
import { owner, states } from "./houses.mjs";
import { judge } from "./judge.mjs";
import { tell } from "./lab.mjs";
import { serve } from "./standin.mjs";
import { views } from "./views.mjs";

const words = {
  "all-well": "All is well", "not-joined": "Not in a mesh", connecting: "Connecting", "needs-login": "Waits for a login", "waits-for-approval": "Waits for approval",
  "coordinator-unreachable": "has not been heard of for 11 minutes", "somebody-at-the-door": "annas-laptop wants to join", "clock-wrong": "The clock is wrong", "no-wan": "No way to the internet",
  "relay-only": "Only relayed connections", "exit-blocked": "Blocked because: cabin is off-line.", "prefix-overlap": "Two homes use the same addresses", "key-expires": "The membership runs out soon",
  "firewall-missing": "The firewall is not set up", "update-available": "A new version is there", "storage-full": "Storage is full",
};
const looks = [["desktop", "dark"], ["phone", "light"]]; // the last is how a page is left
let drawn = 0;

// look draws what is shown in every look, and has it judged.
async function look(page, name) {
  for (const [size, colorScheme] of looks) {
    await page.setViewportSize(sizes[size]);
    await page.emulateMedia({ colorScheme });
    await picture(page, `${name}-${size}`);
    await judge(page, `${name} ${size}`);
    drawn++;
  }
}

const browser = await browse();
try {
  const standin = await serve({ page: owner, event: states["all-well"] });
  const page = await visit(browser);
  await page.goto(standin.url);
  for (const [name, event] of Object.entries(states)) {
    standin.tell(event);
    await page.getByText(words[name]).first().waitFor();
    await look(page, `state-${name}`);
    assert.deepEqual(page.complaints, [], name);
  }
  await page.context().close();
  await standin.close();
  tell(`${Object.keys(states).length} states, ${drawn} pictures, no serious violation`);
  await views(browser, look);
  tell(`and all else: ${drawn} pictures`);
} finally {
  await browser.close();
}
process.exit(0);
