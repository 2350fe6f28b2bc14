// Parts that the pages are made of.
import { createContext, type ComponentChildren, type JSX } from "preact";
import { useContext, useEffect, useId, useRef, useState } from "preact/hooks";
import { Refused } from "./api";
import { Icon, type IconName } from "./icons";
import { t } from "./i18n";
import { now, useView } from "./live";
import { age, clock, date } from "./words";

export type Tone = "ok" | "warn" | "bad" | "info" | "off";

const toneIcons: Record<Tone, IconName> = { ok: "ok", warn: "warn", bad: "bad", info: "info", off: "off" };

export function ToneIcon({ tone, size = 20 }: { tone: Tone; size?: number }): JSX.Element {
  return (
    <span class={`tone ${tone}`}>
      <Icon name={toneIcons[tone]} size={size} />
    </span>
  );
}

// State is a state in words. What is not known to be true now says as of when it was.
export function State({ tone, children }: { tone: Tone; children: ComponentChildren }): JSX.Element {
  const live = useView((v) => v.live);
  const at = useView((v) => (v.live ? 0 : v.at));
  return (
    <span class={`state ${live ? tone : "stale"}`}>
      <Icon name={live ? toneIcons[tone] : "clock"} size={16} />
      <span>
        {children}
        {!live && at > 0 && <small> {t("asof.short", { time: clock(at) })}</small>}
      </span>
    </span>
  );
}

// useClock draws anew twice a minute, for ages.
function useClock(): number {
  const [, tick] = useState(0);
  useEffect(() => {
    const timer = setInterval(() => tick((n) => n + 1), 30_000);
    return () => clearInterval(timer);
  }, []);
  return Date.now() + now().skew;
}

export function Age({ of }: { of: string }): JSX.Element {
  const at = useClock();
  return (
    <time dateTime={of} title={date(of)}>
      {age(at - Date.parse(of))}
    </time>
  );
}

// useDeed is something that is being done: whether it is, what went wrong, and how to begin. It is not begun twice: what began it
// need not be disabled meanwhile, which would take the focus from it.
export function useDeed(): { busy: boolean; error: string; run: (f: () => Promise<unknown>) => Promise<boolean> } {
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState("");
  const there = useRef(true);
  const going = useRef(false);
  useEffect(() => () => void (there.current = false), []);
  const run = async (f: () => Promise<unknown>): Promise<boolean> => {
    if (going.current) return false;
    going.current = true;
    setBusy(true);
    setError("");
    try {
      await f();
      return true;
    } catch (e) {
      const text = e instanceof Refused ? e.message : String(e);
      if (there.current) setError(text);
      return false;
    } finally {
      going.current = false;
      if (there.current) setBusy(false);
    }
  };
  return { busy, error, run };
}

interface ButtonProps {
  children: ComponentChildren;
  onClick?: () => void;
  kind?: "main" | "plain" | "danger";
  icon?: IconName;
  busy?: boolean;
  disabled?: boolean;
  submit?: boolean;
  label?: string; // for readers of the screen, if the words alone do not say which
  apart?: boolean; // it does nothing at the router, and works without it
  asks?: boolean; // it only asks the router something
  first?: boolean; // in a question: it has the focus at first
}

// Button changes something at the router: without contact, or for who may only look, it cannot.
export function Button(p: ButtonProps): JSX.Element {
  const live = useView((v) => v.live);
  const may = useMay();
  return (
    <button
      type={p.submit ? "submit" : "button"}
      autofocus={p.first}
      class={`button ${p.kind ?? "plain"}`}
      disabled={(p.disabled ?? false) || (!(p.apart ?? false) && (!live || !(may || (p.asks ?? false))))}
      aria-busy={p.busy}
      aria-disabled={p.busy}
      aria-label={p.label}
      onClick={p.onClick}
    >
      {p.icon && <Icon name={p.icon} size={20} />}
      <span>{p.children}</span>
    </button>
  );
}

// May says whether this browser may change things, or look only.
export const May = createContext(true);

export const useMay = (): boolean => useContext(May);

// Deed is a button with what it does, and what went wrong beside it.
export function Deed({ run, done, ...p }: Omit<ButtonProps, "onClick" | "busy"> & { run: () => Promise<unknown>; done?: string }): JSX.Element {
  const deed = useDeed();
  const [did, setDid] = useState(false);
  return (
    <span class="deed">
      <Button {...p} busy={deed.busy} onClick={() => void deed.run(run).then(setDid)} />
      {did && done && (
        <span class="done" role="status">
          {done}
        </span>
      )}
      <Wrong text={deed.error} />
    </span>
  );
}

export const Wrong = ({ text }: { text: string }): JSX.Element | null =>
  text === "" ? null : (
    <p class="wrong" role="alert">
      <Icon name="bad" size={16} />
      <span>{text}</span>
    </p>
  );

interface SwitchProps {
  on: boolean;
  label: string; // what it switches, for readers of the screen
  text?: string | undefined; // and for who sees it beside what it is about
  words: readonly [off: string, on: string];
  set: (on: boolean) => Promise<unknown>;
  disabled?: boolean;
}

// Switch turns something at the router on or off. It shows what is, not what was asked for.
export function Switch({ on, label, text, words, set, disabled }: SwitchProps): JSX.Element {
  const live = useView((v) => v.live);
  const may = useMay();
  const deed = useDeed();
  return (
    <span class="switching">
      <button
        type="button"
        role="switch"
        class="switch"
        aria-checked={on}
        aria-label={label}
        aria-busy={deed.busy}
        disabled={(disabled ?? false) || !live || !may}
        onClick={() => void deed.run(() => set(!on))}
      >
        {text && <span class="label">{text}</span>}
        <span class="word">{words[on ? 1 : 0]}</span>
        <span class="track">
          <span class="knob">
            <Icon name={on ? "ok" : "off"} size={16} />
          </span>
        </span>
      </button>
      <Wrong text={deed.error} />
    </span>
  );
}

interface FieldProps {
  label: string;
  value: string;
  set: (value: string) => void;
  hint?: string;
  type?: "text" | "password";
  complete?: string; // of the browser: which of its memories fits
  placeholder?: string;
  required?: boolean;
  min?: number;
}

export function Field(p: FieldProps): JSX.Element {
  const id = useId();
  const type = p.type === "password" ? ({ type: "password" } as const) : ({ type: "text" } as const);
  return (
    <div class="field">
      <label for={id}>{p.label}</label>
      <input
        id={id}
        {...type}
        value={p.value}
        onInput={(e) => p.set(e.currentTarget.value)}
        placeholder={p.placeholder}
        required={p.required}
        minLength={p.min}
        autocomplete={p.complete ?? "off"}
        autocapitalize="none"
        spellcheck={false}
        aria-describedby={p.hint ? `${id}-hint` : undefined}
      />
      {p.hint && (
        <p class="hint" id={`${id}-hint`}>
          {p.hint}
        </p>
      )}
    </div>
  );
}

interface ChoiceProps {
  label: string;
  value: string;
  options: readonly (readonly [value: string, text: string])[];
  set: (value: string) => void;
  disabled?: boolean;
}

export function Choice(p: ChoiceProps): JSX.Element {
  const id = useId();
  return (
    <div class="field">
      <label for={id}>{p.label}</label>
      <select id={id} value={p.value} disabled={p.disabled} onChange={(e) => p.set(e.currentTarget.value)}>
        {p.options.map(([value, text]) => (
          <option key={value} value={value} selected={value === p.value}>
            {text}
          </option>
        ))}
      </select>
    </div>
  );
}

// Form sends what was filled in; its one button is at the end.
export function Form({ children, send, button, apart, asks, done }: { children: ComponentChildren; send: () => Promise<unknown>; button: string; apart?: boolean; asks?: boolean; done?: string }): JSX.Element {
  const deed = useDeed();
  const [did, setDid] = useState(false);
  return (
    <form
      class="form"
      onSubmit={(e) => {
        e.preventDefault();
        void deed.run(send).then(setDid);
      }}
    >
      {children}
      <Wrong text={deed.error} />
      <div class="actions">
        <Button kind="main" submit busy={deed.busy} apart={apart ?? false} asks={asks ?? false}>
          {button}
        </Button>
        {did && done && (
          <span class="done" role="status">
            {done}
          </span>
        )}
      </div>
    </form>
  );
}

export function Card({ title, children, id, aside }: { title?: string; children: ComponentChildren; id?: string; aside?: ComponentChildren }): JSX.Element {
  const heading = useId();
  return (
    <section class="card" id={id} aria-labelledby={title ? heading : undefined}>
      {title && (
        <header>
          <h2 id={heading}>{title}</h2>
          {aside}
        </header>
      )}
      {children}
    </section>
  );
}

// Facts is names and values; what has no value is not there.
export function Facts({ of }: { of: readonly (readonly [name: string, value: ComponentChildren])[] }): JSX.Element {
  return (
    <dl class="facts">
      {of
        .filter(([, value]) => value !== undefined && value !== "" && value !== null && value !== false)
        .map(([name, value]) => (
          <div key={name}>
            <dt>{name}</dt>
            <dd>{value}</dd>
          </div>
        ))}
    </dl>
  );
}

// Copy is a text to be taken along.
export function Copy({ text, what }: { text: string; what: string }): JSX.Element {
  const [did, setDid] = useState(false);
  const box = useRef<HTMLElement>(null);
  const copy = async (): Promise<void> => {
    try {
      await navigator.clipboard.writeText(text);
      setDid(true);
    } catch {
      // A page without TLS has no clipboard: the text is chosen, for the owner to copy.
      if (box.current) getSelection()?.selectAllChildren(box.current);
    }
  };
  return (
    <div class="copy">
      <code ref={box}>{text}</code>
      <button type="button" class="button plain" aria-label={t("copy.what", { what })} onClick={() => void copy()}>
        <Icon name={did ? "ok" : "copy"} size={20} />
        <span aria-live="polite">{did ? t("copied") : t("copy")}</span>
      </button>
    </div>
  );
}

// Ask is a question in front of the page. It is closed by its answer, by Escape, or by its other button.
export function Ask({ title, children, close }: { title: string; children: ComponentChildren; close: () => void }): JSX.Element {
  const box = useRef<HTMLDialogElement>(null);
  const heading = useId();
  useEffect(() => {
    const before = document.activeElement;
    box.current?.showModal();
    return () => {
      if (before instanceof HTMLElement) before.focus();
    };
  }, []);
  return (
    <dialog ref={box} aria-labelledby={heading} onClose={close}>
      <h2 id={heading}>{title}</h2>
      {children}
    </dialog>
  );
}

// Sure is a button that asks once more before it does what cannot be undone.
export function Sure({ title, text, button, run, ...p }: Omit<ButtonProps, "onClick" | "busy"> & { title: string; text: string; button: string; run: () => Promise<unknown> }): JSX.Element {
  const [open, setOpen] = useState(false);
  const deed = useDeed();
  return (
    <>
      <Button {...p} onClick={() => setOpen(true)} />
      {open && (
        <Ask title={title} close={() => setOpen(false)}>
          <p>{text}</p>
          <Wrong text={deed.error} />
          <div class="actions">
            <Button kind="danger" busy={deed.busy} onClick={() => void deed.run(run).then((ok) => ok && setOpen(false))}>
              {button}
            </Button>
            <Button apart first onClick={() => setOpen(false)}>
              {t("cancel")}
            </Button>
          </div>
        </Ask>
      )}
    </>
  );
}

// Few shows the first of a long list, and the rest when it is wanted.
export function Few<T>({ of, each, empty, first = 40 }: { of: readonly T[]; each: (item: T) => JSX.Element; empty: string; first?: number }): JSX.Element {
  const [all, setAll] = useState(false);
  if (of.length === 0) return <p class="empty">{empty}</p>;
  return (
    <>
      <ul class="rows">{(all ? of : of.slice(0, first)).map(each)}</ul>
      {!all && of.length > first && (
        <Button apart onClick={() => setAll(true)}>
          {t("showall", { n: of.length })}
        </Button>
      )}
    </>
  );
}

// Top is a page's heading, to which the focus goes when the page opens.
export function Top({ title, back, children }: { title: string; back?: readonly [href: string, text: string]; children?: ComponentChildren }): JSX.Element {
  useEffect(() => {
    document.title = `${title} · subnetd`;
  }, [title]);
  return (
    <header class="top">
      {back && (
        <a class="back" href={back[0]}>
          <Icon name="back" size={20} />
          {back[1]}
        </a>
      )}
      <h1 tabIndex={-1}>{title}</h1>
      {children}
    </header>
  );
}

// Qr is a code for a phone's camera, drawn by the router.
export const Qr = ({ text, alt }: { text: string; alt: string }): JSX.Element => (
  <img class="qr" src={`/v1/qr?text=${encodeURIComponent(text)}`} alt={alt} width="280" height="280" />
);
