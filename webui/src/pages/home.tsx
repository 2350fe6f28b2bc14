// Home: how the house stands in one sentence, what is not as it should be, and the last hour.
import type { JSX } from "preact";
import * as api from "../api";
import { exitsGoDirect } from "../deeds";
import { stand, troubles, type Trouble } from "../house";
import { Icon } from "../icons";
import { t, tn, tr } from "../i18n";
import { useView } from "../live";
import { Age, Button, Card, Copy, Deed, Qr, State, Sure, ToneIcon, Top } from "../parts";
import { go } from "../route";
import type { HomePending } from "../status";
import { TrafficPicture } from "../traffic";
import { clock } from "../words";

export function HomePage(): JSX.Element {
  return (
    <div class="home">
      <Hero />
      <Waiting />
      <Troubles />
      <Next />
      <Tiles />
      <TrafficPicture />
    </div>
  );
}

function Hero(): JSX.Element {
  const view = useView((v) => v);
  const s = stand(view);
  return (
    <section class={`hero ${view.live ? s.tone : "stale"}`}>
      <Top title={t("nav.home")} />
      <House />
      <div role="status">
        <State tone={s.tone}>{s.word}</State>
        <p class="sentence">
          {!view.live && view.at > 0 && <>{t("asof", { time: clock(view.at) })} </>}
          {s.sentence}
        </p>
      </div>
      {view.house?.status.lastContact && view.house.status.phase !== "down" && (
        <p class="hint">{tr("home.contact", { age: <Age of={view.house.status.lastContact} /> })}</p>
      )}
    </section>
  );
}

// House is the house with its door: open while the house is in the mesh.
function House(): JSX.Element {
  return (
    <svg class="picture" viewBox="0 0 120 96" aria-hidden="true" focusable="false">
      <path class="ground" d="M4 88h112" />
      <path class="wall" d="M22 46v42h76V46M12 52 60 12l48 40" />
      <path class="window" d="M30 56h14v14H30zM37 56v14M30 63h14" />
      <path class="room" d="M62 88V54h20v34" />
      <path class="door" d="M62 54l13 6v33l-13-5z" />
      <path class="shut" d="M62 88V54h20v34M77 72v.1" />
    </svg>
  );
}

// Next is what comes next for a house that is not in a mesh.
function Next(): JSX.Element | null {
  const house = useView((v) => v.house);
  const s = house?.status;
  if (s?.phase === "down")
    return (
      <Card title={t("next.down")}>
        <p>{t("next.down.text")}</p>
        <div class="actions">
          {s.control && (
            <Deed kind="main" run={() => api.post("/v1/up", {})}>
              {t("next.down.up")}
            </Deed>
          )}
          <Button kind={s.control ? "plain" : "main"} apart onClick={() => go("/system")}>
            {t("next.down.choose")}
          </Button>
        </div>
      </Card>
    );
  if (s?.loginURL && (s.phase === "needs-login" || s.phase === "waiting"))
    return (
      <Card title={t("next.login")}>
        <p>{t("next.login.text")}</p>
        <Qr text={s.loginURL} alt={t("qr.login")} />
        <Copy text={s.loginURL} what={t("address")} />
        <p>
          <a class="button main" href={s.loginURL} target="_blank" rel="noreferrer">
            {t("next.login.open")}
          </a>
        </p>
      </Card>
    );
  return null;
}

// Waiting is who stands at the door.
function Waiting(): JSX.Element | null {
  const pending = useView((v) => v.house?.pending);
  if (!pending?.length) return null;
  return (
    <section class="troubles" aria-label={t("pending")}>
      {pending.map((p) => (
        <Knock key={p.code} of={p} />
      ))}
    </section>
  );
}

export function Knock({ of: p }: { of: HomePending }): JSX.Element {
  return (
    <article class="trouble info">
      <ToneIcon tone="info" />
      <div>
        <h2>{t("pending.who", { name: p.hostname || t("pending.unnamed") })}</h2>
        <p>
          {tr("pending.text", { code: <code>{p.code}</code>, age: <Age of={p.since} />, from: p.from ?? "?", os: p.os ?? t("pending.os") })}
        </p>
        <div class="actions">
          <Deed kind="main" icon="ok" label={t("pending.approve.who", { name: p.hostname })} run={() => api.post("/v1/home/nodes/approve", { code: p.code })}>
            {t("pending.approve")}
          </Deed>
        </div>
        <p class="hint">{t("pending.ignore")}</p>
      </div>
    </article>
  );
}

function Troubles(): JSX.Element | null {
  const view = useView((v) => v);
  const all = troubles(view);
  if (all.length === 0) return null;
  return (
    <section class="troubles" aria-label={t("troubles")}>
      {all.map((p, i) => (
        <TroubleCard key={`${p.code} ${i}`} of={p} />
      ))}
    </section>
  );
}

function TroubleCard({ of: p }: { of: Trouble }): JSX.Element {
  return (
    <article class={`trouble ${p.tone}`}>
      <ToneIcon tone={p.tone} />
      <div>
        <h2>{p.title}</h2>
        {p.cause && (
          <p lang={p.code === "relay-only" ? undefined : "en"}>{p.row ? tr("trouble.because", { why: p.cause }) : p.cause}</p>
        )}
        {p.since && <p class="hint">{tr("since", { age: <Age of={p.since} /> })}</p>}
        {p.fix && (
          <p class="hint" lang="en">
            {p.fix}
          </p>
        )}
        <div class="actions">
          <Remedy of={p} />
        </div>
      </div>
    </article>
  );
}

// Remedy is the one thing to do about a trouble.
function Remedy({ of: p }: { of: Trouble }): JSX.Element | null {
  const { row } = p;
  if (row)
    return (
      <Deed kind="main" icon="out" label={t("direct.go.who", { who: p.title })} run={() => exitsGoDirect(row.row)}>
        {t("direct.go")}
      </Deed>
    );
  switch (p.code) {
    case "key-expired":
    case "key-expiry":
      return (
        <Sure kind="main" title={t("renew")} text={t("renew.text")} button={t("renew")} run={() => api.post("/v1/up", {})}>
          {t("renew")}
        </Sure>
      );
    case "routes-unapproved":
    case "exit-unapproved":
    case "route-overlap":
      return <Way to="/sharing" text={t("goto.sharing")} />;
    case "exit-unusable":
    case "exit-family":
    case "exit-interface":
      return <Way to="/exit" text={t("goto.exit")} />;
    case "device-outside":
      return <Way to="/devices" text={t("goto.devices")} />;
    case "relay-only":
      return <Way to="/system" text={t("goto.netcheck")} />;
  }
  return <Way to="/system" text={t("goto.system")} />;
}

const Way = ({ to, text }: { to: string; text: string }): JSX.Element => (
  <a class="button plain" href={to}>
    <span>{text}</span>
    <Icon name="next" size={20} />
  </a>
);

// Tiles are the counts, each the way to what it counts.
function Tiles(): JSX.Element | null {
  const view = useView((v) => v);
  if (!view.house) return null;
  const devices = [...view.devices.values()];
  const peers = [...view.peers.values()];
  const shared = devices.filter((d) => d.mesh).length;
  const tile = (href: string, n: number, text: string): JSX.Element => (
    <li>
      <a class="tile" href={href}>
        <b>{n}</b>
        <span>{text}</span>
      </a>
    </li>
  );
  return (
    <ul class="tiles">
      {tile("/devices", devices.filter((d) => d.online).length, tn("tile.athome", devices.length))}
      {tile("/devices", shared, t("tile.shared"))}
      {tile("/sharing", peers.filter((p) => p.online).length, tn("tile.members", peers.length))}
      {view.house.status.phase !== "down" && (
        <li>
          <Invite />
        </li>
      )}
    </ul>
  );
}

const Invite = (): JSX.Element => (
  <a class="tile invite" href="/sharing">
    <Icon name="plus" size={28} />
    <span>{t("tile.invite")}</span>
  </a>
);
