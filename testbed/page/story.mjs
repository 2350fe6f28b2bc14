// The story of a house, told by its page: first run, a mesh of its own, members, things, exits, a daemon that ends and comes back.
// The lab, which started this program on a host of the home's LAN, does by the name of it what is not done in a page: see
// page_browser_test.go.
import assert from "node:assert/strict";
import jsQR from "jsqr";
import { PNG } from "pngjs";
import { browse, picture, sizes, turn, visit } from "./browser.mjs";
import { judge } from "./judge.mjs";
import { lab, tell } from "./lab.mjs";

const [url, tv, printer] = process.argv.slice(2); // of the page; addresses of two things
const password = "open sesame, please";

const browser = await browse();
const page = await visit(browser);
try {
  await firstRun();
  await members();
  await things();
  await exits();
  await system();
  await everyPage();
  await restart();
  assert.deepEqual(page.complaints, [], "what the browser complained of");
} catch (e) {
  await page.screenshot({ path: `${process.env.SHOTS ?? "/tmp"}/failed.png` }).catch(() => undefined);
  tell(await page.locator("body").innerText().catch(() => ""));
  throw e;
} finally {
  await browser.close();
}
process.exit(0);

async function firstRun() {
  await page.goto(url);
  await page.getByRole("heading", { name: "Welcome home" }).waitFor();
  await picture(page, "wizard-1-password");
  await judge(page, "wizard: password");
  await page.getByLabel("New password").fill(password);
  await page.getByLabel("Once more").fill("something else");
  await page.getByRole("button", { name: "Next" }).click();
  await page.getByRole("alert").filter({ hasText: "not the same" }).waitFor();
  await page.getByLabel("Once more").fill(password);
  await page.getByRole("button", { name: "Next" }).click();
  await page.getByRole("heading", { name: "Which mesh?" }).waitFor();
  await picture(page, "wizard-2-mesh");
  await judge(page, "wizard: mesh");
  await page.getByRole("button", { name: "Join a mesh" }).click();
  await picture(page, "wizard-2-join");
  await page.getByRole("button", { name: "Back" }).click();
  await page.getByRole("button", { name: "Start my own mesh" }).click();
  await page.getByRole("heading", { name: "What shall be reachable?" }).waitFor();
  await page.getByRole("switch").first().waitFor();
  assert.equal(await page.locator('[role="switch"][aria-checked="true"]').count(), 0, "something is shared before it was chosen");
  await picture(page, "wizard-3-share");
  await judge(page, "wizard: share");
  await page.getByRole("button", { name: "Next" }).click();
  await page.getByRole("button", { name: "Make an invitation" }).click();
  const line = await page.locator(".copy code").first().innerText();
  assert.equal(await decode(page.getByRole("img", { name: /joins a device/ })), line, "what the code says");
  await picture(page, "wizard-4-phone");
  await judge(page, "wizard: phone");
  await lab("join", line);
  await page.getByRole("button", { name: "To my house" }).click();
  await page.getByText(/^Connected as/).waitFor();
  await page.getByRole("link", { name: /1 of 1 member online/ }).waitFor();
  await picture(page, "home-phone");
}

// decode is what a camera reads from what is on the screen.
async function decode(image) {
  await image.evaluate((i) => i.decode());
  const shot = PNG.sync.read(await image.screenshot());
  return jsQR(new Uint8ClampedArray(shot.data), shot.width, shot.height)?.data;
}

async function members() {
  await lab("knock", "phone");
  await page.getByRole("heading", { name: "phone wants to join" }).waitFor();
  await picture(page, "home-at-the-door");
  await judge(page, "somebody at the door");
  await page.getByRole("button", { name: "Let in: phone" }).click();
  await lab("in", "phone");
  await page.getByRole("heading", { name: "phone wants to join" }).waitFor({ state: "detached" });
  await go("Sharing");
  await page.getByRole("button", { name: "Edit: phone" }).waitFor();
}

async function go(name) {
  await page.getByRole("navigation").getByRole("link", { name, exact: true }).click();
  await page.getByRole("heading", { level: 1, name }).waitFor();
}

function rowOf(text) {
  return page.locator("li.row").filter({ hasText: text });
}

async function things() {
  await go("Devices");
  const row = rowOf(printer);
  const toggle = row.getByRole("switch");
  await toggle.click();
  await page.getByRole("dialog").getByLabel("Name").fill("printer");
  await picture(page, "devices-name");
  await judge(page, "the name of a thing");
  const started = Date.now();
  await page.getByRole("button", { name: "Share it" }).click();
  await page.locator('li.row:has-text("printer") [role="switch"][aria-checked="true"]').waitFor();
  await page.getByRole("link", { name: /^printer/ }).click();
  const name = await page.locator(".copy code").first().innerText();
  assert.match(name, /^printer\./);
  await lab("open", name);
  tell(`from the switch to the printer's page by its name, on a phone outside: ${Date.now() - started} ms`);
  await picture(page, "device-printer");
  await judge(page, "a thing");
  await page.getByRole("switch", { name: /^Reachable/ }).click();
  await page.getByText("No member of the mesh can reach it now.").waitFor();
  await lab("shut", name);
  await page.locator('[role="switch"]:focus[aria-busy="false"]').waitFor(); // the router has answered; the switch has kept the focus
  await page.keyboard.press("Space");
  await page.locator('[role="switch"][aria-checked="true"]').first().waitFor();
  await lab("open", name);
}

async function exits() {
  await lab("offer", "cabin");
  await go("Sharing");
  await page.getByRole("button", { name: "Edit: cabin" }).click();
  for (const prefix of ["0.0.0.0/0", "::/0"]) {
    const s = page.getByRole("dialog").getByRole("switch", { name: prefix });
    await s.click();
    await page.locator(`[role="switch"][aria-checked="true"][aria-label*="${prefix}"]`).waitFor();
  }
  await picture(page, "sharing-member");
  await judge(page, "a member of our mesh");
  await page.keyboard.press("Escape");
  await page.getByRole("dialog").waitFor({ state: "detached" });
  await go("Devices");
  await rowOf(tv).getByRole("link").click();
  const choice = page.getByLabel("Where it leaves");
  await choice.locator("option", { hasText: "By cabin" }).waitFor({ state: "attached" });
  await choice.selectOption({ label: "By cabin" });
  await page.getByText("Its internet goes out by cabin.").waitFor();
  await lab("leaves", "cabin");
  await picture(page, "device-tv");
  await go("Internet");
  await page.getByText("Leaves by cabin").waitFor();
  await picture(page, "exit-phone");
  await lab("off", "cabin");
  await go("Home");
  const trouble = page.locator("article.trouble.bad");
  await trouble.getByText(/^Blocked because: /).waitFor({ timeout: 60_000 });
  await lab("leaves", "nowhere");
  await picture(page, "home-exit-blocked");
  await go("Internet");
  await picture(page, "exit-blocked");
  await go("Home");
  await trouble.getByRole("button", { name: /^Go direct/ }).click();
  await trouble.waitFor({ state: "detached" });
  await lab("leaves", "home");
  await go("Internet");
  await page.getByRole("switch", { name: /^If no exit answers/, checked: false }).waitFor();
  await page.getByLabel("This thing").selectOption({ label: "The router itself" });
  await page.getByRole("button", { name: "Ask the router" }).click();
  await page.getByText("No rule is about it.").waitFor();
}

// system: a change of the settings is in force and confirmed, the log is live, the network is looked at, a backup is saved.
async function system() {
  await go("System");
  const snat = page.getByRole("switch", { name: "Devices see the router as the sender" });
  for (const on of ["false", "true"]) {
    await snat.click();
    await page.locator(`[role="switch"][aria-label^="Devices see"][aria-checked="${on}"]`).waitFor();
  }
  assert.equal(await page.getByRole("region", { name: "A change on trial" }).count(), 0);
  await page.getByRole("button", { name: "Open the log" }).click();
  await page.getByRole("log").getByText("the first password is set").waitFor();
  await page.getByRole("button", { name: "Close the log" }).click();
  await page.getByRole("button", { name: "Check the network" }).click();
  await page.getByText("UDP gets through").waitFor();
  const saved = page.waitForEvent("download");
  await page.getByRole("button", { name: "Save a backup" }).click();
  assert.match((await saved).suggestedFilename(), /^subnetd-backup-[\d-]+\.json$/);
}

// everyPage looks at each page in both sizes and both colours, and lets axe judge it: on a phone by day, on a desk by night.
async function everyPage() {
  const pages = ["/", "/devices", "/exit", "/sharing", "/system"];
  const looks = [["phone", false], ["desktop", true]];
  for (const [size, dark] of looks) {
    await page.setViewportSize(sizes[size]);
    await page.emulateMedia({ colorScheme: dark ? "dark" : "light" });
    for (const path of pages) {
      await turn(page, path);
      await page.waitForTimeout(300); // for settings and keys, which some pages ask for
      if (path === "/sharing") await page.getByRole("button", { name: "Make an invitation" }).click();
      if (path === "/sharing") await page.getByRole("img", { name: /joins a device/ }).waitFor();
      await picture(page, `${path.slice(1) || "home"}-${size}${dark ? "-dark" : ""}`);
      const look = `${path} ${size} ${dark ? "dark" : "light"}`;
      tell(`axe: ${look}: ${await judge(page, look)} minor of any kind`);
    }
  }
  await page.emulateMedia({ colorScheme: "light" });
  await page.setViewportSize(sizes.phone);
}

// restart: the page says so at once when it has lost the router, shows nothing as well that it does not know, and shows the truth
// when the daemon is back.
async function restart() {
  await go("Devices");
  assert.ok((await page.locator(".state.ok").count()) > 0);
  await lab("stop");
  await page.getByText(/^No contact with the router\. What you see is as of /).waitFor();
  for (const name of ["Devices", "Home", "Internet"]) {
    await go(name);
    assert.equal(await page.locator(".state.ok, .hero.ok").count(), 0, `${name} shows as well what it does not know`);
    assert.equal(await page.locator("main .button.main:not(:disabled), main [role=switch]:not(:disabled)").count(), 0, `${name} lets change what cannot be`);
  }
  await go("Home");
  await page.getByText(/^As of /).first().waitFor();
  await picture(page, "home-no-contact");
  await judge(page, "no contact");
  const back = Date.now();
  await lab("start");
  await page.getByRole("heading", { name: "Log in" }).waitFor();
  await picture(page, "login");
  await judge(page, "login");
  await page.getByLabel("Password").fill("wrong " + password);
  await page.getByRole("button", { name: "Log in" }).click();
  await page.getByRole("alert").waitFor();
  await page.getByLabel("Password").fill(password);
  await page.getByRole("button", { name: "Log in" }).click();
  await page.getByText(/^Connected as/).waitFor();
  tell(`the daemon started anew: the truth is on the page ${Date.now() - back} ms later, a login and a wrong password in between`);
  await go("Devices");
  await page.locator('li.row:has-text("printer") [role="switch"][aria-checked="true"]').waitFor();
}
