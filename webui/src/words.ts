// Times, sizes and names as people say them.
import { current, t, tn } from "./i18n";
import type { Device, Peer } from "./status";

const minute = 60_000;
const hour = 60 * minute;
const day = 24 * hour;

// age is how long ago something was, in words.
export function age(ms: number): string {
  if (ms < 45_000) return t("age.now");
  if (ms < hour) return tn("age.minutes", Math.max(1, Math.round(ms / minute)));
  if (ms < day) return tn("age.hours", Math.round(ms / hour));
  return tn("age.days", Math.round(ms / day));
}

// lasting is how long something takes or is left, in words.
export function lasting(ms: number): string {
  if (ms < hour) return tn("for.minutes", Math.max(1, Math.round(ms / minute)));
  if (ms < 2 * day) return tn("for.hours", Math.round(ms / hour));
  return tn("for.days", Math.round(ms / day));
}

// clock is the time of day.
export const clock = (ms: number): string => new Date(ms).toLocaleTimeString(current(), { hour: "2-digit", minute: "2-digit" });

export const date = (iso: string): string => new Date(iso).toLocaleString(current(), { dateStyle: "medium", timeStyle: "short" });

const units = ["B", "kB", "MB", "GB", "TB"];

// bytes is a size with three digits at most.
export function bytes(n: number): string {
  let i = 0;
  while (n >= 1000 && i < units.length - 1) {
    n /= 1000;
    i++;
  }
  return `${n.toLocaleString(current(), { maximumFractionDigits: n < 10 && i > 0 ? 1 : 0 })} ${units[i] ?? ""}`;
}

// rate is bytes per span of time, in bits per second.
export function rate(n: number, seconds: number): string {
  let bits = (8 * n) / seconds;
  let i = 0;
  const names = ["bit/s", "kbit/s", "Mbit/s", "Gbit/s"];
  while (bits >= 1000 && i < names.length - 1) {
    bits /= 1000;
    i++;
  }
  return `${bits.toLocaleString(current(), { maximumFractionDigits: bits < 10 && i > 0 ? 1 : 0 })} ${names[i] ?? ""}`;
}

export const milliseconds = (ms: number): string =>
  `${ms.toLocaleString(current(), { maximumFractionDigits: ms < 10 ? 1 : 0 })} ms`;

// short is the first label of a name.
export const short = (name: string): string => name.split(".")[0] ?? name;

// deviceName is what a thing is called, or what can be said of it.
export const deviceName = (d: Device): string =>
  d.name ?? (d.maker ? t("device.of", { maker: d.maker }) : undefined) ?? d.addresses?.[0] ?? (d.mac || t("device.unnamed"));

const collator = (): Intl.Collator => new Intl.Collator(current(), { numeric: true, sensitivity: "base" });

// sortDevices puts what the mesh reaches first, then what is on, then by name.
export function sortDevices(devices: Iterable<Device>): Device[] {
  const order = collator();
  const rank = (d: Device): number => (d.mesh ? 0 : 2) + (d.online ? 0 : 1);
  return [...devices].sort((a, b) => rank(a) - rank(b) || order.compare(deviceName(a), deviceName(b)) || order.compare(a.mac, b.mac));
}

export function sortPeers(peers: Iterable<Peer>): Peer[] {
  const order = collator();
  return [...peers].sort((a, b) => Number(b.online) - Number(a.online) || order.compare(a.name, b.name));
}
