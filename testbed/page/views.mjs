// Every place and every question of the page, each gone to by the keyboard alone, and what the page sends from there.
import assert from "node:assert/strict";
import { turn, visit } from "./browser.mjs";
import { devices, house, owner, states } from "./houses.mjs";
import { press, write } from "./judge.mjs";
import { serve } from "./standin.mjs";

// many are more things than fit without a search.
const many = Array.from({ length: 50 }, (_, i) => ({ ...devices[2], mac: `02:00:00:00:01:${String(i).padStart(2, "0")}`, name: `lamp-${i}` }));
const full = house(
  { exits: { ...states["all-well"].house.status.exits, rows: [...states["all-well"].house.status.exits.rows, { row: 3, sources: ["lan"], exits: ["cabin"], now: "direct" }] } },
  {},
  { devices: [...devices, ...many] },
);

// views looks at all of them.
export async function views(browser, look) {
  for (const view of [wizard, login, things, exits, sharing, system, update, onlyLooking, cutOff]) {
    const page = await visit(browser);
    await view(page, (name) => look(page, name));
    assert.deepEqual(page.complaints, [], view.name);
    await page.context().close();
  }
}

const button = (page, name) => page.getByRole("button", { name, exact: true });

// heading waits for one that has the focus.
const heading = (page, name) => page.locator("h1:focus", { hasText: name }).waitFor();

// question opens one by its button, and closes it: the focus is where it was.
async function question(page, opener, look, name, within = () => undefined) {
  await press(page, opener);
  const open = page.locator("dialog[open]").last();
  await open.waitFor();
  await look(name);
  await within(open);
  const before = await page.locator("dialog[open]").count();
  await page.keyboard.press("Escape");
  await page.waitForFunction((n) => document.querySelectorAll("dialog[open]").length < n, before);
  assert.ok(await opener.evaluate((e) => e === document.activeElement), `${name}: the focus is lost`);
}

async function wizard(page, look) {
  const standin = await serve({
    page: { ...owner, state: "setup", owner: false }, event: states["not-joined"],
    deeds: { "/v1/page/setup": () => standin.become(owner), "/v1/up": () => standin.tell(states["needs-login"]) },
  });
  await page.goto(standin.url);
  await heading(page, "Welcome home");
  await look("wizard-password");
  for (const label of ["New password", "Once more"]) await write(page, page.getByLabel(label), "open sesame, please");
  await press(page, button(page, "Next"));
  await heading(page, "Which mesh?");
  await look("wizard-mesh");
  await press(page, button(page, "Join a mesh"));
  await heading(page, "Join one");
  await write(page, page.getByLabel("Server of the mesh"), "tailscale up --login-server=https://headscale.example --auth-key=abc");
  await press(page, button(page, "Join"));
  await page.getByRole("img", { name: /login|log/i }).waitFor();
  assert.deepEqual(standin.sent["/v1/up"], { control: "https://headscale.example", authKey: "abc" });
  await look("wizard-join");
  standin.tell({ ...full, house: { ...full.house, home: false, status: { ...full.house.status, control: "https://headscale.example" } } });
  await press(page, button(page, "Next"));
  await heading(page, "What shall be reachable?");
  await look("wizard-share");
  await press(page, button(page, "Next"));
  await heading(page, "Bring your phone in");
  await look("wizard-phone");
  await press(page, button(page, "To my house"));
  await heading(page, "Home");
  await standin.close();
}

async function login(page, look) {
  const standin = await serve({ page: { ...owner, state: "login", retry: 7 }, event: full, deeds: { "/v1/page/login": () => owner } });
  await page.goto(standin.url);
  await page.getByText("The next one counts in 7 s").waitFor();
  await look("login");
  await write(page, page.getByLabel("Password"), "open sesame, please");
  await press(page, button(page, "Log in"));
  await heading(page, "Home");
  assert.deepEqual(standin.sent["/v1/page/login"], { password: "open sesame, please" });
  standin.become({ ...owner, state: "shut", text: "The first password can be set from home only, within an hour after the start." });
  await page.reload();
  await page.getByRole("heading", { name: "Not set up yet" }).waitFor();
  await look("shut");
  await page.route("**/v1/page", (route) => route.abort());
  await press(page, button(page, "Try again"));
  await page.reload();
  await page.getByRole("heading", { name: "The router does not answer" }).waitFor();
  await look("no-answer");
  await standin.close();
}

async function things(page, look) {
  const standin = await serve({ page: owner, event: full, deeds: { "/v1/devices/expose": () => ({ ...devices[2], mesh: { name: "annas-phone.attic.mesh.internal", addresses: ["100.64.0.11"] } }) } });
  await page.goto(`${standin.url}/devices`);
  const row = (text) => page.locator("li.row", { hasText: text });
  await row("annas-phone").waitFor();
  await look("devices");
  const find = (text) => write(page, page.getByRole("searchbox"), text);
  await find("espressif");
  await row("lamp").first().waitFor({ state: "detached" });
  await question(page, row("Espressif").getByRole("switch"), look, "devices-name");
  await find("annas");
  await press(page, row("annas-phone").getByRole("switch"));
  await row("annas-phone").locator('[aria-checked="true"]:focus').waitFor();
  assert.deepEqual(standin.sent["/v1/devices/expose"], { device: devices[2].mac });
  await find("porch");
  await press(page, row("porch").getByRole("link"));
  await heading(page, "porch");
  await look("device-blocked");
  await turn(page, `/devices/${devices[0].mac}`);
  await heading(page, "printer");
  await page.getByRole("heading", { name: "Who reached it lately" }).waitFor();
  await look("device-shared");
  await press(page, button(page, "Wake up"));
  await page.getByText("The call is sent").waitFor();
  await turn(page, "/devices/02:00:00:00:09:09");
  await heading(page, "Not known any more");
  await look("device-gone");
  await turn(page, "/devices");
  await find("laptop");
  await press(page, row("laptop").getByRole("link"));
  await heading(page, "laptop");
  await press(page, button(page, "Ask it"));
  await page.getByText("It answered by the relay").waitFor();
  await look("member");
  standin.tell({ ...full, house: { ...full.house, expose: "all" } });
  await turn(page, "/devices");
  await page.getByText("Everything at home can be reached by the mesh.").waitFor();
  await look("devices-all");
  await standin.close();
}

async function exits(page, look) {
  const standin = await serve({ page: owner, event: full, deeds: { "/v1/settings": () => ({ id: "t1", what: ["exit.rows"], until: new Date(Date.now() + 9e4).toISOString() }) } });
  await page.goto(`${standin.url}/exit`);
  await press(page, button(page, "Ask the router"));
  await page.getByText("No rule is about it.").waitFor();
  await look("exit");
  await question(page, button(page, "Add a rule"), look, "exit-add", async (open) => {
    await press(page, open.getByLabel("kitchen"), "Space");
    await press(page, open.getByLabel("cabin"), "Space");
  });
  await question(page, button(page, "Edit: living-room-tv"), look, "exit-edit");
  await question(page, button(page, "Remove: living-room-tv"), look, "exit-remove", (open) => open.locator("button:focus", { hasText: "Cancel" }).waitFor()); // a key held down removes nothing
  const confirmed = page.waitForResponse("**/v1/settings/confirm");
  await press(page, button(page, "Move down: living-room-tv"));
  await confirmed;
  assert.match(standin.sent["/v1/settings"].rows[1], /^02:00:00:00:00:51 -> cabin/);
  assert.deepEqual(standin.sent["/v1/settings/confirm"], { id: "t1" });
  await standin.close();
}

async function sharing(page, look) {
  const standin = await serve({ page: owner, event: { ...full, house: { ...full.house, pending: states["somebody-at-the-door"].house.pending } } });
  await page.goto(`${standin.url}/sharing`);
  await press(page, button(page, "Let in: annas-laptop"));
  await press(page, button(page, "Make an invitation"));
  await page.getByRole("img", { name: /joins a device/ }).waitFor();
  assert.deepEqual(standin.sent["/v1/home/nodes/approve"], { code: "7KQMFX" });
  await look("sharing");
  await question(page, button(page, "Edit: cabin"), look, "sharing-member", (open) =>
    question(page, button(open, "Remove for good"), look, "sharing-member-remove"));
  await question(page, button(page, "Revoke: k1"), look, "sharing-revoke");
  await question(page, button(page, "Everything at home"), look, "sharing-all");
  await standin.close();
}

async function system(page, look) {
  const standin = await serve({ page: owner, event: full });
  await page.goto(`${standin.url}/system`);
  await press(page, button(page, "Open the log"));
  await page.getByRole("log").getByText("something that the daemon says").first().waitFor();
  await press(page, button(page, "Check the network"));
  await page.getByText("home: 8 ms").waitFor();
  await press(page, button(page, "Join a mesh"));
  await page.getByLabel("Server of the mesh").waitFor();
  await look("system");
  await question(page, button(page, "Leave the mesh"), look, "system-leave");
  await question(page, button(page, "Restore"), look, "system-restore");
  await standin.close();
}

// update: where the router tells of its system, an image is sent, named by its SHA-256 (NIST's of "abc"), and what the router says is shown.
async function update(page, look) {
  const path = "/v1/system/image/ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
  const system = { version: "v1", note: "the system in slot b did not come up, so that slot a runs again" };
  const waits = house({ system: { version: "v1", waiting: true } });
  const standin = await serve({ page: owner, event: house({ system }), deeds: { [path]: () => (standin.tell(waits), { text: "version v2 is in slot b" }) } });
  await page.goto(`${standin.url}/system`);
  await page.getByText(system.note).waitFor();
  standin.tell(house({ system: { ...system, update: { done: 40, size: 100 } } }));
  assert.equal(await page.getByRole("progressbar", { name: "The image comes in" }).evaluate((e) => e.position), 0.4);
  await look("update-comes");
  assert.ok(await button(page, "Choose an image").isDisabled());
  standin.tell(house({ system }));
  const chooser = page.waitForEvent("filechooser");
  await press(page, button(page, "Choose an image"));
  await (await chooser).setFiles({ name: "image", mimeType: "application/octet-stream", buffer: Buffer.from("abc") });
  await page.getByText("version v2 is in slot b").waitFor();
  await page.getByText("The next start tries it, once").waitFor();
  assert.equal(standin.sent[path], "abc");
  await question(page, button(page, "Restart the router"), look, "update-restart");
  standin.tell(house());
  await page.getByRole("heading", { name: "The router's system" }).waitFor({ state: "detached" });
  await standin.close();
}

async function onlyLooking(page, look) {
  const standin = await serve({ page: { ...owner, owner: false, over: "mesh", who: "anna", member: "tablet.mesh.internal" }, event: full });
  await page.goto(`${standin.url}/devices`);
  await page.getByText("You are anna and may look, but change nothing.").waitFor();
  await look("only-looking");
  assert.equal(await page.locator("main [role=switch]:not(:disabled)").count(), 0);
  await standin.close();
}

// cutOff: a change of the page's address cuts the page off. It shows nothing as well that it does not know, and after 90 s, which pass
// for the page alone, the router is back as it was.
async function cutOff(page, look) {
  const trial = { id: "t2", what: ["web.listen"], until: new Date(Date.now() + 9e4).toISOString() };
  const standin = await serve({ page: owner, event: full, deeds: { "/v1/settings": () => (standin.tell({ ...full, house: { ...full.house, trial } }), trial) } });
  await page.clock.install();
  await page.goto(`${standin.url}/system`);
  await write(page, page.getByLabel("Where this page listens"), ":8412");
  await press(page, button(page, "Save"));
  const bar = page.getByRole("region", { name: "A change on trial" });
  await bar.getByRole("button", { name: "Keep it" }).waitFor();
  await standin.cut();
  await bar.getByText(/has not answered by this address/).waitFor();
  assert.ok(await bar.getByRole("button", { name: "Keep it" }).isDisabled());
  assert.equal(await page.locator(".state.ok").count(), 0);
  await look("trial-cut-off");
  await page.clock.fastForward(89_000);
  await bar.waitFor();
  await standin.back();
  standin.tell({ ...full, time: new Date(Date.parse(trial.until) + 1000).toISOString() });
  await page.clock.fastForward(10_000);
  await page.getByText("The change of web.listen was undone, as nobody kept it.").waitFor();
  assert.equal(await bar.count(), 0);
  assert.equal(await page.getByLabel("Where this page listens").inputValue(), ":8411");
  await look("trial-undone");
  await press(page, button(page, "Close"));
  await standin.close();
}
