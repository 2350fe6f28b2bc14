// Pages in a browser that trusts what its owner's folder says: each is URL=TEXT that it shows, or URL= if its certificate has to be
// refused.
import assert from "node:assert/strict";
import { chromium } from "playwright-core";
import { tell } from "./lab.mjs";

const [rules, ...pages] = process.argv.slice(2);

const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
  args: ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", `--host-resolver-rules=${rules}`],
});
try {
  for (const wish of pages) {
    const page = await browser.newPage(); // what is refused goes on to a page that says so
    const at = wish.indexOf("=");
    const [url, text] = [wish.slice(0, at), wish.slice(at + 1)];
    if (text === "") {
      await assert.rejects(page.goto(url), /net::ERR_CERT/, url);
    } else {
      await page.goto(url);
      await page.getByText(text).first().waitFor({ timeout: 10_000 });
    }
    tell(`${url} ${text === "" ? "is refused" : "opens"}`);
  }
} finally {
  await browser.close();
}
process.exit(0);
