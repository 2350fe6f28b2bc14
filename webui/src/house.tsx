// How the house stands: one sentence, and what is not as it should be. Values in, values out.
import type { ComponentChildren } from "preact";
import { known, t, tn, tr, type Key } from "./i18n";
import type { ExitRow, House, Problem, Snapshot } from "./status";
import type { Tone } from "./parts";
import type { View } from "./view";
import { deviceName, lasting, short } from "./words";

// Stand is the state of the house in a word and a sentence.
export interface Stand {
  tone: Tone;
  word: string;
  sentence: ComponentChildren;
}

// Trouble is one thing that is not as it should be.
export interface Trouble {
  code: string;
  tone: Tone;
  title: string;
  cause: string; // the daemon's words
  fix: string; // the daemon's words
  since?: string | undefined;
  row?: ExitRow; // of a blocked exit
}

// grave are the codes of what keeps something from working at all; light, of what can wait.
const grave = new Set(["apply", "disk", "home", "identity", "key-expired", "locked", "exit-blocked", "clock", "no-wan", "firewall"]);
const light = new Set(["key-expiry", "update", "home-unreachable", "relay-only"]);

const toneOf = (code: string): Tone => (grave.has(code) ? "bad" : light.has(code) ? "info" : "warn");

export function stand(v: View): Stand {
  const h = v.house;
  if (!h) return { tone: "off", word: t("stand.loading"), sentence: t("stand.loading.text") };
  const s = h.status;
  switch (s.phase) {
    case "down":
      return { tone: "off", word: t("stand.down"), sentence: t("stand.down.text") };
    case "connecting":
      return { tone: "warn", word: t("stand.connecting"), sentence: tr("stand.connecting.text", { control: coordinator(h) }) };
    case "needs-login":
      return { tone: "info", word: t("stand.login"), sentence: tr("stand.login.text", { control: coordinator(h) }) };
    case "waiting":
      return { tone: "info", word: t("stand.waiting"), sentence: tr("stand.waiting.text", { control: coordinator(h) }) };
    case "cached":
      return { tone: "warn", word: t("stand.cached"), sentence: tr("stand.cached.text", { control: coordinator(h), time: contact(v, s) }) };
    case "joined":
      return joined(v, h);
  }
}

function joined(v: View, h: House): Stand {
  const s = h.status;
  const worst = troubles(v).reduce<Tone>((w, p) => (p.tone === "bad" || w === "bad" ? "bad" : p.tone === "warn" ? "warn" : w), "ok");
  const reached = [...v.devices.values()].filter((d) => d.mesh && !d.mesh.missing).length;
  const sentence = [
    ...tr("stand.joined.text", { name: strong(short(s.name ?? "")), mesh: strong(s.domain ?? "") }),
    " ",
    h.expose === "all" ? t("stand.reach.all") : tn("stand.reach", reached),
    " ",
    internet(s.exits.rows ?? []),
  ];
  const words: Record<Tone, Key> = { ok: "stand.ok", warn: "stand.warn", bad: "stand.bad", info: "stand.ok", off: "stand.ok" };
  return { tone: worst, word: t(words[worst]), sentence };
}

// strong marks what a sentence is about.
const strong = (text: string): ComponentChildren => <b>{text}</b>;

// internet says where the whole home's traffic leaves.
function internet(rows: readonly ExitRow[]): string {
  const whole = rows.find((r) => r.sources?.includes("lan"));
  const others = rows.filter((r) => r !== whole && r.now !== "direct").length;
  const now = whole?.now ?? "direct";
  const base = now === "direct" ? t("stand.internet.here") : now === "blocked" ? t("stand.internet.blocked") : t("stand.internet.exit", { exit: short(now) });
  return others > 0 ? `${base} ${tn("stand.internet.others", others)}` : base;
}

export const coordinator = (h: House): string => (h.home || h.status.control === "home" ? t("coordinator.home") : host(h.status.control));

// host is the part of a URL that says whose it is.
export function host(url: string): string {
  try {
    return new URL(url).host;
  } catch {
    return url;
  }
}

const contact = (v: View, s: Snapshot): string => (s.lastContact ? lasting(v.at - Date.parse(s.lastContact)) : t("stand.cached.unknown"));

// blockedRows are the rows whose sources have no internet although an exit was wished for.
export const blockedRows = (rows: readonly ExitRow[]): ExitRow[] =>
  rows.filter((r) => r.now === "blocked" && (r.exits ?? []).some((x) => x !== "block" && x !== "direct"));

// troubles are the worst first, then the oldest.
export function troubles(v: View): Trouble[] {
  const s = v.house?.status;
  if (!s) return [];
  const out: Trouble[] = [];
  for (const row of blockedRows(s.exits.rows ?? []))
    out.push({ code: "exit-blocked", tone: "bad", title: t("trouble.exit-blocked", { who: who(row, v) }), cause: row.why ?? "", fix: "", since: row.since, row });
  for (const p of s.problems ?? []) if (p.code !== "exit-blocked") out.push(told(p));
  if (s.error && s.phase !== "down") out.push({ code: "refused", tone: "warn", title: t("trouble.refused"), cause: s.error, fix: "" });
  if (s.phase === "joined" && !s.udp && s.homeRelay && (s.endpoints ?? []).length > 0)
    out.push({ code: "relay-only", tone: "info", title: t("trouble.relay-only"), cause: t("trouble.relay-only.text"), fix: "" });
  const rank = { bad: 0, warn: 1, info: 2, off: 3, ok: 4 };
  return out.sort((a, b) => rank[a.tone] - rank[b.tone] || (a.since ?? "9").localeCompare(b.since ?? "9"));
}

const told = (p: Problem): Trouble => ({
  code: p.code,
  tone: toneOf(p.code),
  title: known(`trouble.${p.code}`) ?? p.text,
  cause: known(`trouble.${p.code}`) ? p.text : "",
  fix: p.fix ?? "",
  since: p.since,
});

// who names the sources of a row as the house knows them.
export function who(row: ExitRow, v: View): string {
  const names = (row.sources ?? []).map((s) => sourceName(s, v));
  return new Intl.ListFormat(document.documentElement.lang || "en").format(names);
}

export function sourceName(source: string, v: View): string {
  if (source === "lan") return t("source.lan");
  if (source === "router") return t("source.router");
  const d = v.devices.get(source);
  return d ? deviceName(d) : source;
}
