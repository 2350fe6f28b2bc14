// Words of the page, by catalogue. English is part of the program; others are fetched when they are wanted.
import type { ComponentChildren } from "preact";
import en from "./words/en.json";

export type Key = keyof typeof en;
export type Plural<K extends Key = Key> = K extends `${infer P}.other` ? P : never;
export type Params = Record<string, string | number>;

export const languages = { en: "English", de: "Deutsch" } as const;
export type Language = keyof typeof languages;

const remembered = "subnetd.language";
let words: Record<string, string> = en;
let language: Language = "en";

export const current = (): Language => language;

// preferred is the language that was chosen here, else the first of the browser's that there is.
export function preferred(): Language {
  const wanted = [localStorage.getItem(remembered) ?? "", ...navigator.languages.map((l) => l.slice(0, 2))];
  return wanted.find((l): l is Language => l in languages) ?? "en";
}

// speak changes the language, and remembers it if the owner chose it.
export async function speak(l: Language, chosen = false): Promise<void> {
  words = l === "de" ? (await import("./words/de.json")).default : en;
  language = l;
  document.documentElement.lang = l;
  if (chosen) localStorage.setItem(remembered, l);
}

const text = (key: string): string => words[key] ?? (en as Record<string, string>)[key] ?? key;

export const t = (key: Key, params: Params = {}): string =>
  text(key).replace(/\{(\w+)\}/g, (hole, name: string) => String(params[name] ?? hole));

// tn is a text with a number in it: {n}.
export function tn(key: Plural, n: number, params: Params = {}): string {
  const form = new Intl.PluralRules(language).select(n) === "one" ? "one" : "other";
  return t(`${key}.${form}` as Key, { n: n.toLocaleString(language), ...params });
}

// tr is a text whose holes are filled with elements.
export function tr(key: Key, params: Record<string, ComponentChildren>): ComponentChildren[] {
  return text(key)
    .split(/\{(\w+)\}/)
    .map((part, i) => (i % 2 === 0 ? part : params[part]));
}

// known is the text of a key that may not be in the catalogue, such as one made of a problem's code.
export const known = (key: string): string | undefined => words[key] ?? (en as Record<string, string>)[key];
