// Where in the page we are: the path of the address, and the way there.
import { useEffect, useState } from "preact/hooks";

export type Path = readonly string[]; // its parts, decoded

const changed = "subnetd:path";

function parts(): Path {
  return location.pathname
    .split("/")
    .filter((p) => p !== "")
    .map((p) => {
      try {
        return decodeURIComponent(p).replaceAll("~", ".");
      } catch {
        return p;
      }
    });
}

// href is the address of a path. A dot in it would ask the daemon for a file.
export const href = (...path: string[]): string => "/" + path.map((p) => encodeURIComponent(p).replaceAll(".", "~")).join("/");

// go changes the path, as a link does.
export function go(to: string): void {
  if (to !== location.pathname) history.pushState(null, "", to);
  dispatchEvent(new CustomEvent(changed));
}

// usePath is the path, and follows it. A new one begins at the top, and a reader of the screen hears its heading.
export function usePath(): Path {
  const [path, set] = useState(parts);
  useEffect(() => {
    const look = (): void => set(parts());
    const follow = (e: MouseEvent): void => {
      const a = e.target instanceof Element ? e.target.closest("a") : null;
      if (!a || e.defaultPrevented || e.button !== 0 || e.ctrlKey || e.metaKey || e.shiftKey || e.altKey) return;
      if (a.target || a.hasAttribute("download") || a.origin !== location.origin) return;
      e.preventDefault();
      go(a.pathname);
    };
    addEventListener("popstate", look);
    addEventListener(changed, look);
    document.addEventListener("click", follow);
    return () => {
      removeEventListener("popstate", look);
      removeEventListener(changed, look);
      document.removeEventListener("click", follow);
    };
  }, []);
  const key = path.join("/");
  useEffect(() => {
    scrollTo(0, 0);
    document.querySelector<HTMLElement>("main h1")?.focus({ preventScroll: true });
  }, [key]);
  return path;
}
