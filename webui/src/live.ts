// The one event stream: it is opened, watched, and opened again, and what it tells is the view that all of the page shows.
import { useEffect, useState } from "preact/hooks";
import * as api from "./api";
import type { Event, Page, Trial } from "./status";
import { apply, beat, lost, nothing, type View } from "./view";

const silence = 25_000; // ms after which a stream that says nothing is dead: the daemon says something every 15 s
const firstWait = 500; // ms
const longestWait = 8_000; // ms
const hidden = 60_000; // ms that a page nobody sees keeps its stream

let view: View = nothing;
const listeners = new Set<() => void>();

function set(v: View): void {
  if (v === view) return;
  view = v;
  for (const l of [...listeners]) l();
}

export const now = (): View => view;

// patch puts the router's answer to a change into the view at once; the stream tells the same a moment later.
export function patch(e: Pick<Event, "devices" | "nodes" | "house">): void {
  if (view.live) set({ ...apply(view, { ...e, boot: view.boot, seq: 0, time: new Date(view.at).toISOString() }, view.at - view.skew) });
}

// tried puts a change on trial into the view: the router may be out of reach by it before the stream tells of it.
export function tried(trial: Trial): void {
  if (view.house) set({ ...view, house: { ...view.house, trial } });
}

let anew = (): void => undefined;

// reopen asks the router anew who we are, and opens the stream again: the old one may go on by a way that is no more.
export const reopen = (): void => anew();

// listen calls f at each change until what it returns is called.
export function listen(f: () => void): () => void {
  listeners.add(f);
  return () => listeners.delete(f);
}

// useView is a part of the view, drawn anew when that part is another.
export function useView<T>(part: (v: View) => T): T {
  const [, again] = useState(0);
  const value = part(view);
  useEffect(() => {
    let seen = value;
    const look = (): void => {
      const next = part(view);
      if (!Object.is(next, seen)) {
        seen = next;
        again((n) => n + 1);
      }
    };
    look();
    return listen(look);
  });
  return value;
}

// follow keeps the view true until what it returns is called. It says what the page is when the daemon
// wants a login, or is another than before.
export function follow(onPage: (p: Page) => void): () => void {
  let source: EventSource | undefined;
  let wait = firstWait;
  let timer: ReturnType<typeof setTimeout> | undefined; // of the silence, or until the next try
  let away: ReturnType<typeof setTimeout> | undefined; // until a page that nobody sees lets go
  let over = false;

  const close = (): void => {
    source?.close();
    source = undefined;
    clearTimeout(timer);
  };
  const later = (f: () => void, ms: number): void => {
    clearTimeout(timer);
    timer = setTimeout(f, ms);
  };
  const fail = (): void => {
    close();
    set(lost(view));
    if (over) return;
    later(() => void attempt(), wait);
    wait = Math.min(2 * wait, longestWait);
  };
  const alive = (next: View): void => {
    wait = firstWait;
    later(fail, silence);
    set(next);
  };
  const open = (): void => {
    close();
    const s = new EventSource("/v1/events");
    source = s;
    later(fail, silence);
    const message = (m: MessageEvent<string>): void => alive(apply(view, JSON.parse(m.data) as Event, Date.now()));
    s.addEventListener("whole", message);
    s.addEventListener("change", message);
    s.addEventListener("beat", (m: MessageEvent<string>) => alive(beat(view, (JSON.parse(m.data) as Event).time, Date.now())));
    s.onerror = fail;
  };
  // attempt asks first who we are to the daemon: a stream that is refused does not say why.
  const attempt = async (): Promise<void> => {
    try {
      const p = await api.page();
      if (over) return;
      onPage(p);
      if (p.state === "in") open();
      else close();
    } catch {
      fail();
    }
  };
  const seen = (): void => {
    clearTimeout(away);
    if (document.visibilityState === "hidden") {
      away = setTimeout(() => {
        close();
        set(lost(view));
      }, hidden);
    } else if (!source || !view.live) {
      wait = firstWait;
      void attempt();
    }
  };
  anew = (): void => {
    close();
    wait = firstWait;
    void attempt();
  };
  document.addEventListener("visibilitychange", seen);
  addEventListener("online", seen);
  open();
  return () => {
    over = true;
    anew = (): void => undefined;
    close();
    clearTimeout(away);
    set(nothing);
    document.removeEventListener("visibilitychange", seen);
    removeEventListener("online", seen);
  };
}
