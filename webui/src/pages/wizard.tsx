// The first run: a password, a mesh, what to share, and a code for the phone. Each step can be come back to later in the page.
import type { JSX } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";
import * as api from "../api";
import { Icon } from "../icons";
import { t, tr } from "../i18n";
import { joining } from "../join";
import { useView } from "../live";
import { Button, Copy, Deed, Field, Form, Few, Qr, State, Wrong } from "../parts";
import type { Page } from "../status";
import { deviceKey } from "../view";
import { deviceName, sortDevices } from "../words";
import { Reach } from "./devices";
import { InviteCard } from "./sharing";

type Step = "password" | "mesh" | "join" | "share" | "phone";
const steps: readonly Step[] = ["password", "mesh", "share", "phone"];

export function Wizard({ page, begin, end }: { page: Page; begin: (p: Page) => void; end: () => void }): JSX.Element {
  const [step, setStep] = useState<Step>(page.state === "in" ? "mesh" : "password");
  const at = steps.indexOf(step === "join" ? "mesh" : step);
  const to = (s: Step) => (): void => setStep(s);
  const box = useRef<HTMLElement>(null);
  useEffect(() => {
    scrollTo(0, 0);
    box.current?.querySelector("h1")?.focus({ preventScroll: true });
  }, [step]);
  return (
    <main class="alone wizard" ref={box}>
      <p class="brand">
        <Icon name="house" size={28} />
        <span>{page.host ?? "subnetd"}</span>
      </p>
      <ol class="steps" aria-label={t("wizard.steps")}>
        {steps.map((s, i) => (
          <li key={s} class={i < at ? "done" : ""} aria-current={i === at ? "step" : undefined}>
            <span>{i < at ? <Icon name="ok" size={16} /> : i + 1}</span>
          </li>
        ))}
      </ol>
      <div class="card">
        {step === "password" && <Password begin={begin} next={to("mesh")} />}
        {step === "mesh" && <Mesh own={to("share")} join={to("join")} />}
        {step === "join" && <Join back={to("mesh")} next={to("share")} />}
        {step === "share" && <Share next={to("phone")} />}
        {step === "phone" && <Phone end={end} />}
      </div>
    </main>
  );
}

function Password({ begin, next }: { begin: (p: Page) => void; next: () => void }): JSX.Element {
  const [first, setFirst] = useState("");
  const [again, setAgain] = useState("");
  const send = async (): Promise<void> => {
    if (first !== again) throw new api.Refused(0, t("password.differ"));
    begin(await api.post<Page>("/v1/page/setup", { password: first }));
    next();
  };
  return (
    <>
      <h1 tabIndex={-1}>{t("wizard.hello")}</h1>
      <p>{t("wizard.password.text")}</p>
      <Form apart button={t("next")} send={send}>
        <Field label={t("password.new")} type="password" complete="new-password" value={first} set={setFirst} hint={t("password.hint")} required min={8} />
        <Field label={t("password.again")} type="password" complete="new-password" value={again} set={setAgain} required min={8} />
      </Form>
    </>
  );
}

function Mesh({ own, join }: { own: () => void; join: () => void }): JSX.Element {
  const house = useView((v) => v.house);
  const start = async (): Promise<void> => {
    if (!house?.home || house.status.phase === "down") await api.post("/v1/up", { control: "home" });
    own();
  };
  return (
    <>
      <h1 tabIndex={-1}>{t("wizard.mesh")}</h1>
      <p>{t("wizard.mesh.text")}</p>
      <div class="choices">
        <section>
          <h2>{t("wizard.own")}</h2>
          <p>{t("wizard.own.text")}</p>
          <Deed kind="main" run={start}>
            {t("wizard.own.go")}
          </Deed>
        </section>
        <section>
          <h2>{t("wizard.join")}</h2>
          <p>{t("wizard.join.text")}</p>
          <Button onClick={join}>{t("wizard.join.go")}</Button>
        </section>
      </div>
    </>
  );
}

function Join({ back, next }: { back: () => void; next: () => void }): JSX.Element {
  return (
    <>
      <h1 tabIndex={-1}>{t("wizard.join")}</h1>
      <JoinForm />
      <Joining next={next} />
      <Button apart onClick={back}>
        {t("back")}
      </Button>
    </>
  );
}

// JoinForm asks for a mesh by its server and, where there is one, a key.
export function JoinForm(): JSX.Element {
  const [url, setURL] = useState("");
  const [key, setKey] = useState("");
  const send = (): Promise<unknown> => api.post("/v1/up", joining(url, key));
  return (
    <Form button={t("join.go")} send={send}>
      <Field label={t("join.url")} value={url} set={setURL} hint={t("join.url.hint")} placeholder="https://" required />
      <Field label={t("join.key")} value={key} set={setKey} hint={t("join.key.hint")} />
    </Form>
  );
}

// Joining is how far it has got: a login that somebody has to open, an admin who has to say yes, or an error.
function Joining({ next }: { next: () => void }): JSX.Element | null {
  const s = useView((v) => v.house?.status);
  const home = useView((v) => v.house?.home);
  if (!s || home || s.phase === "down") return null;
  if (s.phase === "joined")
    return (
      <div role="status">
        <State tone="ok">{t("wizard.joined")}</State>
        <p>{tr("stand.joined.text", { name: <b>{s.name}</b>, mesh: <b>{s.domain}</b> })}</p>
        <Button kind="main" apart onClick={next}>
          {t("next")}
        </Button>
      </div>
    );
  return (
    <div role="status">
      <State tone="info">{s.phase === "waiting" ? t("stand.waiting") : s.phase === "needs-login" ? t("stand.login") : t("stand.connecting")}</State>
      <Wrong text={s.error ?? ""} />
      {s.loginURL && (
        <>
          <p>{t("next.login.text")}</p>
          <Qr text={s.loginURL} alt={t("qr.login")} />
          <Copy text={s.loginURL} what={t("address")} />
        </>
      )}
    </div>
  );
}

function Share({ next }: { next: () => void }): JSX.Element {
  const devices = useView((v) => v.devices);
  const lans = useView((v) => v.house?.status.lans ?? none);
  return (
    <>
      <h1 tabIndex={-1}>{t("wizard.share")}</h1>
      <p>{t("wizard.share.text")}</p>
      {lans.length > 0 && <p class="hint">{t("networks.lans", { names: lans.join(", ") })}</p>}
      <Few
        first={8}
        of={sortDevices(devices.values())}
        empty={t("devices.none")}
        each={(d) => (
          <li class="row" key={deviceKey(d)}>
            <span class="who">
              <span class="text">
                <b>{deviceName(d)}</b>
                <small>{[d.maker, d.addresses?.[0]].filter(Boolean).join(" · ")}</small>
              </span>
            </span>
            <Reach of={d} />
          </li>
        )}
      />
      <h2>{t("wizard.firewall")}</h2>
      <ul>
        <li>{t("wizard.firewall.in")}</li>
        <li>{t("wizard.firewall.mesh")}</li>
        <li>{t("wizard.firewall.page")}</li>
      </ul>
      <div class="actions">
        <Button kind="main" apart onClick={next}>
          {t("next")}
        </Button>
      </div>
    </>
  );
}

const none: readonly string[] = [];

function Phone({ end }: { end: () => void }): JSX.Element {
  const home = useView((v) => v.house?.home);
  return (
    <>
      <h1 tabIndex={-1}>{t("wizard.phone")}</h1>
      {home ? <InviteCard /> : <p>{t("wizard.phone.elsewhere")}</p>}
      <p class="hint">{t("wizard.end.text")}</p>
      <Button kind="main" apart onClick={end}>
        {t("wizard.end")}
      </Button>
    </>
  );
}
