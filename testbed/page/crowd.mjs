// A house of five hundred things and as many members: how soon its page is of use, and how soon it shows a change.
import assert from "node:assert/strict";
import { browse, picture, visit } from "./browser.mjs";
import { lab, tell } from "./lab.mjs";

const [url, things, members] = process.argv.slice(2);

const browser = await browse();
const page = await visit(browser);
try {
  await page.goto(url);
  const password = "open sesame, please";
  await page.getByLabel("New password").fill(password);
  await page.getByLabel("Once more").fill(password);
  await page.getByRole("button", { name: "Next" }).click();
  await page.getByRole("heading", { name: "Which mesh?" }).waitFor();
  await page.evaluate(() => sessionStorage.clear());

  const began = Date.now();
  await page.goto(`${url}/devices`);
  const all = page.getByRole("region", { name: "At home" }).getByRole("button", { name: /^Show all/ });
  await all.waitFor();
  tell(`${things} things and ${members} members: of use ${Date.now() - began} ms after the address was typed`);
  assert.ok((await page.locator("li.row").count()) <= 80, "all of them are drawn at once");
  await picture(page, "crowd-phone");

  assert.ok(Number((await all.innerText()).replace(/\D/g, "")) >= Number(things));
  const { took, count } = await all.evaluate(async (button) => {
    const before = performance.now();
    button.click();
    await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
    return { took: Math.round(performance.now() - before), count: document.querySelectorAll("li.row").length };
  });
  tell(`all of them: ${count} rows, drawn within ${took} ms`);

  await page.getByRole("searchbox").fill("00:00:00:4d");
  await page.locator("li.row", { hasText: "00:00:00:4d" }).first().waitFor();
  assert.equal(await page.locator(".card").first().locator("li.row").count(), 1);
  await page.getByRole("searchbox").fill("");
  await page.getByText(/In the mesh/).first().waitFor();
  await page.evaluate(() => { // a page that is busy begins to look before anybody comes
    globalThis.seen = new Promise((done) => {
      const count = () => [...document.querySelectorAll(".count")].map((c) => c.textContent).join();
      const first = count();
      new MutationObserver((_, o) => {
        if (count() === first) return;
        o.disconnect();
        done(Date.now());
      }).observe(document.body, { subtree: true, childList: true, characterData: true });
    });
  });
  const at = Date.now();
  await lab("arrive");
  tell(`one member comes: seen on the page ${(await page.evaluate(() => globalThis.seen)) - at} ms later`);
  assert.deepEqual(page.complaints, []);
} finally {
  await browser.close();
}
process.exit(0);
