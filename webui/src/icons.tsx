// Icons: lines of one weight on a field of 24 by 24. They only go with words, so a reader of the screen passes them over.
import type { JSX } from "preact";

const lines = {
  house: "M3.500 11.500 12 4l8.500 7.500M6 10v10h12V10M10 20v-6h4v6",
  devices: "M3 5h12v9H3zM6 18h5M9 14v4M17 9h4v11h-4zM19 17.500v.1",
  exit: "M12 3a9 9 0 1 0 0 18 9 9 0 0 0 0-18M3 12h18M12 3c2.600 2.500 3.900 5.500 3.900 9s-1.300 6.500-3.900 9c-2.600-2.500-3.900-5.500-3.900-9S9.400 5.500 12 3",
  share: "M9 11a3.500 3.500 0 1 0 0-7 3.500 3.500 0 0 0 0 7M2.500 20c.4-3.800 2.900-6 6.500-6s6.100 2.200 6.500 6M18 8v6M15 11h6",
  system: "M4 7h9M17 7h3M4 17h3M11 17h9M15 4.500a2.500 2.500 0 1 0 0 5 2.500 2.500 0 0 0 0-5M9 14.500a2.500 2.500 0 1 0 0 5 2.500 2.500 0 0 0 0-5",
  printer: "M7 9V4h10v5M7 17H4V9h16v8h-3M7 14h10v6H7z",
  tv: "M3 6h18v11H3zM8 20.500h8",
  phone: "M7.500 3h9v18h-9zM11 18h2",
  computer: "M5 5h14v10H5zM2.500 19h19",
  nas: "M4 4h16v7H4zM4 13h16v7H4zM7.500 7.500v.1M7.500 16.500v.1M11 7.500h5M11 16.500h5",
  camera: "M4 5h16v9a8 8 0 0 1-16 0zM12 7.500a3.500 3.500 0 1 0 0 7 3.500 3.500 0 0 0 0-7",
  speaker: "M7 3h10v18H7zM12 11.500a3 3 0 1 0 0 6 3 3 0 0 0 0-6M12 7v.1",
  console: "M7 8h10a5 5 0 0 1 4.500 6.500c-.7 3-3 3.500-4.500 1.500H7c-1.500 2-3.800 1.500-4.500-1.500A5 5 0 0 1 7 8M8 10.500v3M6.500 12h3M16 11v.1M17.500 13.500v.1",
  network: "M3 13h18v6H3zM6.500 16v.1M10 16v.1M8 13V9M16 13V9M12 6.500v.1M9.500 5a4 4 0 0 1 5 0",
  thing: "M12 3l8 4.500v9L12 21l-8-4.500v-9zM4 7.500l8 4.500 8-4.500M12 12v9",
  ok: "M5 12.500l4.500 4.500L19 7.500",
  warn: "M12 4 2.500 20h19zM12 10v5M12 17.500v.1",
  bad: "M8 3.500h8l4.500 4.500v8L16 20.500H8L3.500 16V8zM12 7.500v5.500M12 16v.1",
  info: "M12 3a9 9 0 1 0 0 18 9 9 0 0 0 0-18M12 11v5.500M12 7.500v.1",
  off: "M5 12h14",
  clock: "M12 3a9 9 0 1 0 0 18 9 9 0 0 0 0-18M12 7v5.500l3.500 2",
  copy: "M9 9h11v11H9zM15 9V4H4v11h5",
  up: "M12 19V5M6 11l6-6 6 6",
  down: "M12 5v14M6 13l6 6 6-6",
  edit: "M4 20l1-4L16.500 4.500l3 3L8 19zM14 7l3 3",
  trash: "M4 7h16M9 7V4h6v3M6 7l1 13h10l1-13M10 11v5M14 11v5",
  wake: "M12 3v8M7 6.500a8 8 0 1 0 10 0",
  next: "M9 5l7 7-7 7",
  back: "M15 5l-7 7 7 7",
  plus: "M12 5v14M5 12h14",
  search: "M10.500 4a6.500 6.500 0 1 0 0 13 6.500 6.500 0 0 0 0-13M15.500 15.500 21 21",
  lock: "M5 11h14v9H5zM8 11V8a4 4 0 0 1 8 0v3M12 14.500v2",
  out: "M14 4h6v16h-6M3 12h12M11 8l4 4-4 4",
  relay: "M3 12h3M18 12h3M12 8v8M9 12h.1M15 12h.1M8 8h8v8H8z",
} as const;

export type IconName = keyof typeof lines;

export function Icon({ name, size = 24 }: { name: IconName; size?: number }): JSX.Element {
  return (
    <svg class="icon" viewBox="0 0 24 24" width={size} height={size} aria-hidden="true" focusable="false">
      <path d={lines[name]} />
    </svg>
  );
}

// kindIcon is the icon of a kind of device.
export const kindIcon = (kind: string | undefined): IconName => (kind !== undefined && kind in lines ? (kind as IconName) : "thing");
