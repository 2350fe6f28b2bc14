// What the page knows of the house, and how a message changes it. Values in, values out.
import type { Device, Event, HomeNode, House, Peer, Traffic } from "./status";

export interface View {
  boot: string;
  house: House | null; // null: nothing has come yet
  peers: ReadonlyMap<string, Peer>;
  devices: ReadonlyMap<string, Device>;
  nodes: ReadonlyMap<number, HomeNode>;
  traffic: Traffic | null;
  at: number; // the router's time of the last message, in milliseconds
  skew: number; // what the router's clock is ahead of this one, in milliseconds
  live: boolean; // the stream runs; else all of this is as of `at`
}

export const nothing: View = {
  boot: "",
  house: null,
  peers: new Map(),
  devices: new Map(),
  nodes: new Map(),
  traffic: null,
  at: 0,
  skew: 0,
  live: false,
};

// deviceKey is what a device is known by: its MAC, or its address if that is all there is.
export const deviceKey = (d: Device): string => d.mac || (d.addresses?.[0] ?? "");

// apply is the view after a message that came when this clock showed now.
export function apply(v: View, e: Event, now: number): View {
  const before = e.whole || e.boot !== v.boot ? nothing : v;
  const at = Date.parse(e.time);
  return {
    boot: e.boot,
    house: e.house ?? before.house,
    peers: merge(before.peers, e.peers, e.peersGone, (p) => p.name),
    devices: merge(before.devices, e.devices, e.devicesGone, deviceKey),
    nodes: merge(before.nodes, e.nodes, e.nodesGone, (n) => n.id),
    traffic: e.traffic ?? before.traffic,
    at,
    skew: at - now,
    live: true,
  };
}

// beat is the view after a sign of life.
export const beat = (v: View, time: string, now: number): View => {
  const at = Date.parse(time);
  return { ...v, at, skew: at - now, live: true };
};

// lost is the view when the stream has ended: the same, but only as of then.
export const lost = (v: View): View => (v.live ? { ...v, live: false } : v);

function merge<K, T>(before: ReadonlyMap<K, T>, changed: T[] | undefined, gone: K[] | undefined, key: (t: T) => K): ReadonlyMap<K, T> {
  if (!changed?.length && !gone?.length) return before;
  const after = new Map(before);
  for (const t of changed ?? []) after.set(key(t), t);
  for (const k of gone ?? []) after.delete(k);
  return after;
}
