// A second house: its router is in no mesh and joins that of the first in its page's wizard, by the keyboard alone. Then a change of
// the page's address cuts its browser off, and its owner pulls the plug.
import assert from "node:assert/strict";
import { browse, picture, visit } from "./browser.mjs";
import { judge, press, write } from "./judge.mjs";
import { lab, tell } from "./lab.mjs";

const [url, server, key] = process.argv.slice(2);
const password = "open sesame, please";

const browser = await browse();
const page = await visit(browser);
const button = (name) => page.getByRole("button", { name, exact: true });
try {
  await page.goto(url);
  await join();
  await cutOff();
  assert.deepEqual(page.complaints, [], "what the browser complained of");
} catch (e) {
  tell(await page.locator("body").innerText().catch(() => ""));
  throw e;
} finally {
  await browser.close();
}
process.exit(0);

async function join() {
  await write(page, page.getByLabel("New password"), password);
  await write(page, page.getByLabel("Once more"), password);
  await press(page, button("Next"));
  await heading("Which mesh?");
  await press(page, button("Join a mesh"));
  await heading("Join one");
  await write(page, page.getByLabel("Server of the mesh"), server);
  await write(page, page.getByLabel("Key, if you have one"), key);
  await judge(page, "wizard: join");
  const began = Date.now();
  await press(page, button("Join"));
  await page.getByText("Connected as cottage").waitFor();
  tell(`joined ${Date.now() - began} ms after the button`);
  await judge(page, "wizard: joined");
  await picture(page, "cottage-joined");
  await press(page, button("Next"));
  await heading("What shall be reachable?");
  await press(page, button("Next"));
  await heading("Bring your phone in");
  await press(page, button("To my house"));
  await heading("Home");
  await page.getByText("Connected as cottage").waitFor();
}

// heading waits for a step's heading, which has the focus: a reader of the screen hears it.
async function heading(name) {
  await page.locator("h1:focus", { hasText: name }).waitFor();
}

async function cutOff() {
  await press(page, page.getByRole("navigation").getByRole("link", { name: "System" }));
  await heading("System");
  await write(page, page.getByLabel("Where this page listens"), ":8412");
  await press(page, button("Save"));
  const trial = page.getByRole("region", { name: "A change on trial" });
  await page.getByText(/^No contact with the router/).waitFor();
  await trial.getByText(/has not answered by this address/).waitFor();
  assert.ok(await trial.getByRole("button", { name: "Keep it" }).isDisabled(), "what cuts the page off can be kept by it");
  await picture(page, "cottage-cut-off");
  await lab("unplug");
  await heading("Log in");
  await write(page, page.getByLabel("Password"), password);
  await press(page, button("Log in"));
  await heading("System");
  await page.getByLabel("Where this page listens").waitFor();
  assert.equal(await page.getByLabel("Where this page listens").inputValue(), ":8411");
  assert.equal(await trial.count(), 0);
}
