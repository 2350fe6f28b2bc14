// Rows of exits as the owner's file has them, and how they change. Values in, values out.
import type { ExitRow } from "./status";

export interface Row {
  sources: string[];
  exits: string[]; // nodes, the best first
  direct: boolean; // if none of them answers, go without; else be blocked
}

export const row = (r: ExitRow): Row => ({
  sources: r.sources ?? [],
  exits: (r.exits ?? []).filter((x) => x !== "direct" && x !== "block"),
  direct: r.exits?.at(-1) === "direct",
});

// written is a row as it stands in the file.
export const written = (r: Row): string => {
  const to = r.direct ? [...r.exits, "direct"] : r.exits.length === 0 ? ["block"] : r.exits;
  return `${r.sources.join(", ")} -> ${to.join(", ")}`;
};

// catchAll reports whether the row is about all of the home: it belongs at the end.
export const catchAll = (r: Row): boolean => r.sources.includes("lan");

// moved is the rows with one of them a place up or down. The catch-all stays last.
export function moved(rows: readonly Row[], from: number, by: -1 | 1): Row[] {
  const out = [...rows];
  const a = out[from];
  const b = out[from + by];
  if (!a || !b || catchAll(a) || catchAll(b)) return out;
  out[from] = b;
  out[from + by] = a;
  return out;
}

// added is the rows with one more, before the catch-all; one that is a catch-all takes its place.
export function added(rows: readonly Row[], r: Row): Row[] {
  if (catchAll(r)) return [...rows.filter((x) => !catchAll(x)), r];
  return [...rows.filter((x) => !catchAll(x)), r, ...rows.filter(catchAll)];
}

export const replaced = (rows: readonly Row[], at: number, r: Row): Row[] => rows.map((x, i) => (i === at ? r : x));

export const removed = (rows: readonly Row[], at: number): Row[] => rows.filter((_, i) => i !== at);
