// System: this router in its mesh, its settings, its safety copies, its log, and this page.
import type { JSX } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";
import * as api from "../api";
import { coordinator } from "../house";
import { current, known, languages, speak, t, type Language } from "../i18n";
import { useView } from "../live";
import { Age, Button, Card, Choice, Copy, Deed, Facts, Field, Form, State, Sure, Switch, Top, useDeed, useMay, Wrong } from "../parts";
import type { LogLine, Page, Settings } from "../status";
import { chooseTheme, theme, type Theme } from "../theme";
import { change, changeUnsure } from "../trial";
import { clock, date } from "../words";
import { CertificatesCard } from "./certificates";
import { UpdateCard } from "./update";
import { JoinForm } from "./wizard";

export function SystemPage({ page, setPage }: { page: Page; setPage: (p: Page) => void }): JSX.Element {
  const may = useMay();
  return (
    <>
      <Top title={t("nav.system")} />
      <Router page={page} />
      {may && <MeshCard />}
      {may && <SettingsCards />}
      <UpdateCard page={page} />
      <CertificatesCard />
      {may && <Copies />}
      <Checks />
      {may && <Log />}
      <ThisPage page={page} setPage={setPage} />
    </>
  );
}

function Router({ page }: { page: Page }): JSX.Element | null {
  const h = useView((v) => v.house);
  const s = h?.status;
  if (!s) return null;
  const list = (of: readonly string[] | undefined): JSX.Element[] | undefined => of?.map((x) => <div key={x}>{x}</div>);
  return (
    <Card title={t("router")}>
      <Facts
        of={[
          [t("device.name"), s.name],
          [t("addresses"), list(s.addresses)],
          [t("router.mesh"), coordinator(h)],
          [t("router.contact"), s.lastContact && <Age of={s.lastContact} />],
          [t("router.key"), s.keyExpiry && date(s.keyExpiry)],
          [t("router.engine"), s.engine && (s.engine === "kernel" ? t("router.kernel") : t("router.userspace"))],
          [t("router.engine.why"), s.engineReason && <span lang="en">{s.engineReason}</span>],
          [t("router.udp"), s.udp ? <State tone="ok">{t("router.udp.yes")}</State> : <State tone="warn">{t("router.udp.no")}</State>],
          [t("router.port"), s.port],
          [t("router.endpoints"), list(s.endpoints)],
          [t("router.lans"), list(s.lans)],
          [t("router.resolver"), s.resolver && <span lang="en">{s.resolver}</span>],
          [t("router.version"), page.version ?? s.version],
        ]}
      />
    </Card>
  );
}

function MeshCard(): JSX.Element | null {
  const h = useView((v) => v.house);
  const [joining, setJoining] = useState(false);
  if (!h) return null;
  const down = h.status.phase === "down";
  return (
    <Card title={t("mesh")}>
      <p>{down ? t("stand.down.text") : t("mesh.now", { control: coordinator(h) })}</p>
      <div class="actions">
        {down && h.status.control && (
          <Deed kind="main" run={() => api.post("/v1/up", {})}>
            {t("next.down.up")}
          </Deed>
        )}
        {!h.home && (
          <Sure title={t("wizard.own")} text={t("mesh.toown.text")} button={t("wizard.own.go")} run={() => api.post("/v1/up", { control: "home" })}>
            {t("wizard.own.go")}
          </Sure>
        )}
        <Button onClick={() => setJoining(!joining)}>{t("wizard.join.go")}</Button>
        {!down && (
          <Sure kind="danger" title={t("mesh.down")} text={t("mesh.down.text")} button={t("mesh.down")} run={() => api.post("/v1/down")}>
            {t("mesh.down")}
          </Sure>
        )}
      </div>
      {joining && <JoinForm />}
    </Card>
  );
}

// SettingsCards ask for the settings when the page opens, and again after each change.
function SettingsCards(): JSX.Element | null {
  const [settings, setSettings] = useState<Settings | null>(null);
  const trial = useView((v) => v.house?.trial?.id);
  const load = (): Promise<void> => api.get<Settings>("/v1/settings").then(setSettings);
  useEffect(() => {
    void load().catch(() => undefined);
  }, [trial]);
  return settings && <SettingsForm of={settings} trial={trial !== undefined} load={load} />;
}

function SettingsForm({ of: s, trial, load }: { of: Settings; trial: boolean; load: () => Promise<void> }): JSX.Element {
  const [hostname, setHostname] = useState(s.hostname);
  const [url, setURL] = useState(s.url);
  const [interfaces, setInterfaces] = useState((s.interfaces ?? []).join(" "));
  const [listen, setListen] = useState(s.listen);
  // What is filled in is what is in force, when that changes and after each trial, however it ended.
  useEffect(() => {
    if (trial) return;
    setHostname(s.hostname);
    setURL(s.url);
    setInterfaces((s.interfaces ?? []).join(" "));
    setListen(s.listen);
  }, [JSON.stringify(s), trial]);
  const send = async (): Promise<void> => {
    const safe = { ...(hostname === s.hostname ? {} : { hostname }), ...(url === s.url ? {} : { url }) };
    if (Object.keys(safe).length > 0) await change(safe);
    const list = interfaces.split(/[\s,]+/).filter(Boolean);
    const unsure = { ...(list.join(" ") === (s.interfaces ?? []).join(" ") ? {} : { interfaces: list }), ...(listen === s.listen ? {} : { listen }) };
    if (Object.keys(unsure).length > 0) await changeUnsure(unsure);
    else await load();
  };
  return (
    <Card title={t("settings")}>
      <Form button={t("save")} done={t("saved")} send={send}>
        <Field label={t("settings.hostname")} value={hostname} set={setHostname} hint={t("settings.hostname.hint")} />
        <Field label={t("settings.url")} value={url} set={setURL} hint={t("settings.url.hint")} placeholder="https://" />
        <Field label={t("settings.interfaces")} value={interfaces} set={setInterfaces} hint={t("settings.interfaces.hint", { found: (s.found ?? []).join(", ") })} />
        <Field label={t("settings.listen")} value={listen} set={setListen} hint={t("settings.listen.hint")} />
      </Form>
      <Switch on={s.snat} label={t("settings.snat")} text={t("settings.snat")} words={[t("off"), t("on")]} disabled={trial} set={(snat) => change({ snat }).then(load)} />
    </Card>
  );
}

function Copies(): JSX.Element {
  const file = useRef<HTMLInputElement>(null);
  const deed = useDeed();
  const [begun, setBegun] = useState(false);
  const name = (what: string): string => `subnetd-${what}-${new Date().toISOString().slice(0, 10)}.json`;
  return (
    <Card title={t("copies")}>
      <p>{t("copies.text")}</p>
      <div class="actions">
        <Deed kind="main" run={() => api.download("/v1/backup", name("backup"))}>
          {t("copies.save")}
        </Deed>
        <input
          ref={file}
          type="file"
          accept="application/json,.json"
          hidden
          aria-label={t("copies.file")}
          onChange={(e) => {
            const f = e.currentTarget.files?.[0];
            if (f) void deed.run(() => api.postFile("/v1/restore", f)).then(setBegun);
          }}
        />
        <Sure
          title={t("copies.restore")}
          text={t("copies.restore.text")}
          button={t("copies.file")}
          run={() => {
            file.current?.click();
            return Promise.resolve();
          }}
        >
          {t("copies.restore")}
        </Sure>
      </div>
      {begun && (
        <p class="notice info" role="status">
          {t("copies.begun")}
        </p>
      )}
      <Wrong text={deed.error} />
    </Card>
  );
}

function Checks(): JSX.Element {
  const may = useMay();
  const [result, setResult] = useState<unknown>(null);
  return (
    <Card title={t("checks")}>
      <p>{t("checks.text")}</p>
      <div class="actions">
        <Deed asks run={async () => setResult(await api.get("/v1/netcheck"))}>{t("checks.net")}</Deed>
        {may && <Deed run={() => api.download("/v1/diagnostics", `subnetd-diagnostics-${new Date().toISOString().slice(0, 10)}.json`)}>{t("checks.all")}</Deed>}
      </div>
      <div role="status">{isRecord(result) && <Facts of={Object.entries(result).map(([k, v]) => [known(`netcheck.${k}`) ?? k, plain(v)] as const)} />}</div>
    </Card>
  );
}

const isRecord = (v: unknown): v is Record<string, unknown> => typeof v === "object" && v !== null && !Array.isArray(v);

// plain is a value of a check in words.
function plain(v: unknown): string {
  if (typeof v === "boolean") return v ? t("yes") : t("no");
  if (typeof v === "string" || typeof v === "number") return String(v);
  if (Array.isArray(v)) return v.map(plain).join(", ");
  if (isRecord(v)) return Object.entries(v).map(([k, x]) => `${k}: ${plain(x)}`).join(", ");
  return "";
}

const kept = 512; // lines

// Log is the daemon's log, live while it is open.
function Log(): JSX.Element {
  const [open, setOpen] = useState(false);
  const [lines, setLines] = useState<readonly LogLine[]>([]);
  const box = useRef<HTMLDivElement>(null);
  useEffect(() => {
    if (!open) return;
    setLines([]);
    const source = new EventSource("/v1/logs");
    let fresh: LogLine[] = [];
    let frame = 0;
    source.addEventListener("log", (m: MessageEvent<string>) => {
      fresh.push(JSON.parse(m.data) as LogLine);
      frame ||= requestAnimationFrame(() => {
        const some = fresh;
        fresh = [];
        frame = 0;
        setLines((all) => [...all, ...some].slice(-kept));
      });
    });
    source.onerror = () => {
      source.close();
      setOpen(false);
    };
    return () => {
      source.close();
      cancelAnimationFrame(frame);
    };
  }, [open]);
  useEffect(() => {
    const b = box.current;
    if (b && b.scrollHeight - b.scrollTop - b.clientHeight < 200) b.scrollTop = b.scrollHeight;
  }, [lines]);
  return (
    <Card title={t("log")}>
      <Button apart onClick={() => setOpen(!open)}>
        {open ? t("log.close") : t("log.open")}
      </Button>
      {open && (
        <div class="log" ref={box} tabIndex={0} role="log" aria-label={t("log")} lang="en">
          {lines.map((l, i) => (
            <div key={i} class={l.level.toLowerCase()}>
              <time dateTime={l.time}>{clock(Date.parse(l.time))}</time> <b>{l.level}</b> {l.part && <i>{l.part}</i>} {l.text}
            </div>
          ))}
        </div>
      )}
    </Card>
  );
}

function ThisPage({ page, setPage }: { page: Page; setPage: (p: Page) => void }): JSX.Element {
  const [old, setOld] = useState("");
  const [fresh, setFresh] = useState("");
  const [, again] = useState(0);
  const themes: [Theme, string][] = [
    ["auto", t("theme.auto")],
    ["light", t("theme.light")],
    ["dark", t("theme.dark")],
  ];
  return (
    <Card title={t("page")}>
      <Choice label={t("language")} value={current()} options={Object.entries(languages)} set={(l) => void speak(l as Language, true).then(() => location.reload())} />
      <Choice
        label={t("theme")}
        value={theme()}
        options={themes}
        set={(v) => {
          chooseTheme(v as Theme);
          again((n) => n + 1);
        }}
      />
      {page.owner && (
        <Form button={t("password.change")} done={t("saved")} send={async () => setPage(await api.post<Page>("/v1/page/password", { ...(old ? { old } : {}), new: fresh }))}>
          <Field label={t("password.old")} type="password" complete="current-password" value={old} set={setOld} required={page.over !== "mesh"} />
          <Field label={t("password.new")} type="password" complete="new-password" value={fresh} set={setFresh} hint={t("password.hint")} required min={8} />
        </Form>
      )}
      <Deed asks run={async () => setPage(await api.post<Page>("/v1/page/logout"))}>{t("logout")}</Deed>
      <Copy text={location.origin} what={t("address")} />
    </Card>
  );
}
