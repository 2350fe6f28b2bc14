// The parts of the page that only turn values into others.
import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import test from "node:test";
import { transformWithEsbuild } from "vite";

const load = async (name) => {
  const { code } = await transformWithEsbuild(readFileSync(new URL(`./src/${name}`, import.meta.url), "utf8"), name);
  return import(`data:text/javascript;base64,${Buffer.from(code).toString("base64")}`);
};
const { apply, beat, lost, nothing, deviceKey } = await load("view.ts");
const { joining } = await load("join.ts");
const { Digest } = await load("sha256.ts");
const { added, moved, removed, row, written } = await load("exits.ts");

// random gives the same numbers below n each time.
function random(seed) {
  let x = seed;
  return (n) => {
    x = (1103515245 * x + 12345) & 0x7fffffff;
    return (x >> 8) % n;
  };
}

test("a view after any messages is what a simple model says", () => {
  for (let seed = 1; seed <= 50; seed++) {
    const pick = random(seed);
    let view = nothing;
    let model = { boot: "", peers: {}, devices: {}, nodes: {} };
    for (let step = 0; step < 100; step++) {
      const boot = `b${pick(20) === 0 ? step : model.boot.slice(1) || 0}`;
      const whole = pick(10) === 0;
      const some = (make) => Array.from({ length: pick(4) }, () => make(pick(8)));
      const e = {
        boot, whole, seq: step, time: new Date(1e12 + step).toISOString(),
        peers: some((n) => ({ name: `p${n}`, step })), peersGone: some((n) => `p${n}`),
        devices: some((n) => (n === 0 ? { mac: "", addresses: ["192.0.2.1"], step } : { mac: `m${n}`, addresses: [], step })), devicesGone: some((n) => (n === 0 ? "192.0.2.1" : `m${n}`)),
        nodes: some((n) => ({ id: n, step })), nodesGone: some((n) => n),
      };
      if (whole || boot !== model.boot) model = { boot, peers: {}, devices: {}, nodes: {} };
      for (const p of e.peers) model.peers[p.name] = p;
      for (const d of e.devices) model.devices[d.mac || d.addresses[0]] = d;
      for (const n of e.nodes) model.nodes[n.id] = n;
      for (const k of e.peersGone) delete model.peers[k];
      for (const k of e.devicesGone) delete model.devices[k];
      for (const k of e.nodesGone) delete model.nodes[k];
      view = apply(view, e, 1e12);
      for (const of of ["peers", "devices", "nodes"]) assert.deepEqual(Object.fromEntries(view[of]), model[of], `seed ${seed}, step ${step}`);
      assert.equal(view.live, true);
      assert.equal(view.skew, step);
    }
  }
});

test("what did not change is the same as before", () => {
  const before = apply(nothing, { boot: "b", whole: true, time: "2026-01-01T00:00:00Z", peers: [{ name: "a" }] }, 0);
  const after = apply(before, { boot: "b", time: "2026-01-01T00:00:01Z", devices: [{ mac: "m", addresses: null }] }, 0);
  assert.equal(after.peers, before.peers);
  assert.notEqual(after.devices, before.devices);
});

test("a lost stream leaves what was known, as of then, until a sign of life", () => {
  const live = apply(nothing, { boot: "b", whole: true, time: "2026-01-01T00:00:00Z", peers: [{ name: "a" }] }, 0);
  const gone = lost(live);
  assert.equal(gone.live, false);
  assert.equal(gone.at, Date.parse("2026-01-01T00:00:00Z"));
  assert.equal(gone.peers, live.peers);
  assert.equal(lost(gone), gone);
  assert.equal(beat(gone, "2026-01-01T00:00:15Z", 0).live, true);
});

test("a device without a MAC is known by its address", () => {
  assert.equal(deviceKey({ mac: "", addresses: ["192.0.2.1"] }), "192.0.2.1");
  assert.equal(deviceKey({ mac: "", addresses: null }), "");
});

test("a mesh is joined by what people have at hand", () => {
  for (const [text, key, want] of [
    ["https://a.example", "", { control: "https://a.example" }],
    [" a.example ", " k ", { control: "https://a.example", authKey: "k" }],
    ["http://192.0.2.1:8080", "", { control: "http://192.0.2.1:8080" }],
    ["tailscale up --login-server=https://a.example --auth-key=k", "", { control: "https://a.example", authKey: "k" }],
    ["sudo tailscale up --authkey k --login-server a.example", "other", { control: "https://a.example", authKey: "other" }],
  ])
    assert.deepEqual(joining(text, key), want);
});

test("rows are written as they were read", () => {
  for (const [exits, text] of [[["cabin"], "tv -> cabin"], [["cabin", "far", "direct"], "tv -> cabin, far, direct"], [["direct"], "tv -> direct"], [["block"], "tv -> block"], [["cabin", "block"], "tv -> cabin"]])
    assert.equal(written(row({ sources: ["tv"], exits })), text);
});

test("the row of the whole home stays last, whatever moves", () => {
  const pick = random(7);
  let rows = [];
  for (let step = 0; step < 500; step++) {
    const n = pick(3);
    if (n === 0 || rows.length === 0) rows = added(rows, { sources: pick(4) === 0 ? ["lan"] : [`m${step}`], exits: [`x${step}`], direct: false });
    else if (n === 1) {
      const after = moved(rows, pick(rows.length), pick(2) === 0 ? 1 : -1);
      assert.deepEqual(new Set(after), new Set(rows), "a row was lost");
      rows = after;
    } else if (rows.length > 6) rows = removed(rows, pick(rows.length));
    const at = rows.findIndex((r) => r.sources.includes("lan"));
    assert.ok(at < 0 || at === rows.length - 1, `step ${step}: the whole home is row ${at + 1} of ${rows.length}`);
  }
});

test("a digest is SHA-256, however its bytes come", () => {
  const pick = random(11);
  for (let length = 0; length < 300; length++) {
    const bytes = Uint8Array.from({ length }, () => pick(256));
    const digest = new Digest();
    for (let at = 0; at < length; ) {
      const some = bytes.subarray(at, at + 1 + pick(130));
      digest.update(some);
      at += some.length;
    }
    assert.equal(digest.hex(), createHash("sha256").update(bytes).digest("hex"), `${length} bytes`);
  }
  assert.equal(new Digest().update(new Uint8Array(1_000_000).fill(0x61)).hex(), "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0", "FIPS 180-2, B.3");
});

test("the catalogues have the same words, with the same holes", () => {
  const words = (l) => JSON.parse(readFileSync(new URL(`./src/words/${l}.json`, import.meta.url), "utf8"));
  const [en, de] = [words("en"), words("de")];
  const holes = (text) => (text.match(/\{\w+\}/g) ?? []).sort();
  assert.deepEqual(Object.keys(de), Object.keys(en));
  for (const key of Object.keys(en)) assert.deepEqual(holes(de[key]), holes(en[key]), key);
});
