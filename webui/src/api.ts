// Questions to the daemon: JSON over the page's own origin.
import { t } from "./i18n";
import type { Page, PageSecret } from "./status";

// Refused is an answer that is no success. Its message is the daemon's sentence.
export class Refused extends Error {
  constructor(
    readonly status: number, // of HTTP; 0: no answer at all
    message: string,
    readonly retry = 0, // seconds to wait
  ) {
    super(message);
  }
}

async function ask(path: string, init: RequestInit): Promise<Response> {
  let answer: Response;
  try {
    answer = await fetch(path, { credentials: "same-origin", cache: "no-store", ...init });
  } catch {
    throw new Refused(0, t("error.contact"));
  }
  if (answer.ok) return answer;
  let said: { error?: string; retry?: number } = {};
  try {
    said = (await answer.json()) as typeof said;
  } catch {
    // Something between us and the daemon has answered.
  }
  if (answer.status === 401) onLogout();
  throw new Refused(answer.status, said.error ?? t("error.status", { n: answer.status }), said.retry ?? 0);
}

let onLogout = (): void => undefined;

// whenLoggedOut sets what happens when the daemon no longer knows this browser.
export function whenLoggedOut(f: () => void): void {
  onLogout = f;
}

export async function get<T>(path: string): Promise<T> {
  return (await (await ask(path, {})).json()) as T;
}

const json = (body: unknown): RequestInit => ({
  method: "POST",
  headers: { "Content-Type": "application/json" },
  body: typeof body === "string" ? body : JSON.stringify(body),
});

export async function post<T = unknown>(path: string, body: object = {}): Promise<T> {
  return (await (await ask(path, json(body))).json()) as T;
}

// postFile sends a file that holds JSON, as it is.
export async function postFile(path: string, file: Blob): Promise<void> {
  await ask(path, json(await file.text()));
}

// put sends a file as it is.
export async function put<T>(path: string, file: Blob): Promise<T> {
  return (await (await ask(path, { method: "PUT", headers: { "Content-Type": "application/octet-stream" }, body: file })).json()) as T;
}

// download asks for a file and hands it to the browser to be kept.
export async function download(path: string, name: string): Promise<void> {
  const blob = await (await ask(path, json({}))).blob();
  const a = document.createElement("a");
  a.href = URL.createObjectURL(blob);
  a.download = name;
  a.click();
  setTimeout(() => URL.revokeObjectURL(a.href), 60_000);
}

export const query = (path: string, name: string, value: string): string => `${path}?${name}=${encodeURIComponent(value)}`;

export const page = (): Promise<Page> => get("/v1/page");
export const login = (secret: PageSecret): Promise<Page> => post("/v1/page/login", secret);
