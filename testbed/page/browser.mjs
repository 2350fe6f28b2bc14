// The browser of the tests: Debian's Chromium.
import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { chromium } from "playwright-core";

export const sizes = { phone: { width: 390, height: 844 }, desktop: { width: 1280, height: 800 } };

export const browse = () =>
  chromium.launch({ executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium", args: ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"] });

// visit opens a page of a size; what a browser complains of is collected, as nothing of it is right.
export async function visit(browser, { size = "phone", dark = false, language = "en" } = {}) {
  const context = await browser.newContext({ viewport: sizes[size], colorScheme: dark ? "dark" : "light", locale: language, reducedMotion: "reduce", deviceScaleFactor: size === "phone" ? 2 : 1 });
  const page = await context.newPage();
  page.complaints = [];
  page.on("pageerror", (e) => page.complaints.push(String(e)));
  page.on("console", (m) => {
    // Refusals are wanted now and then.
    if (m.type() === "error" && !/^Failed to load resource/.test(m.text())) page.complaints.push(m.text());
  });
  page.on("request", (r) => {
    if (new URL(r.url()).origin !== new URL(page.url() === "about:blank" ? r.url() : page.url()).origin && !r.url().startsWith("blob:")) page.complaints.push(`third party: ${r.url()}`);
  });
  page.setDefaultTimeout(20_000);
  return page;
}

// turn goes to another place of the page without loading it anew.
export const turn = (page, path) =>
  page.evaluate((p) => {
    history.pushState(null, "", p);
    dispatchEvent(new PopStateEvent("popstate"));
  }, path);

// picture keeps what the page looks like in the folder SHOTS, if there is one.
export async function picture(page, name) {
  const folder = process.env.SHOTS;
  if (!folder) return;
  mkdirSync(folder, { recursive: true });
  const size = page.viewportSize();
  const height = await page.evaluate(() => Math.max(innerHeight, document.body.scrollHeight));
  await page.setViewportSize({ width: size.width, height });
  await page.screenshot({ path: join(folder, `${name}.png`) });
  await page.setViewportSize(size);
}
