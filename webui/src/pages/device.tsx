// One thing at home.
import type { JSX } from "preact";
import { useEffect, useState } from "preact/hooks";
import * as api from "../api";
import { exitOf, expose, rename, serve } from "../deeds";
import { Icon, kindIcon } from "../icons";
import { known, t, tn, tr } from "../i18n";
import { useView } from "../live";
import { Age, Card, Choice, Copy, Facts, Field, Form, Switch, Top, useDeed, useMay, Wrong } from "../parts";
import { href } from "../route";
import type { Device, DeviceLog, DeviceReach } from "../status";
import { date, deviceName, short } from "../words";
import { DeviceState, Reach, Wake } from "./devices";

export function DevicePage({ of }: { of: string }): JSX.Element {
  const device = useView((v) => v.devices.get(of));
  const known = useView((v) => v.house !== null);
  const back = [href("devices"), t("nav.devices")] as const;
  if (!device)
    return (
      <>
        <Top title={t("device.gone")} back={back} />
        {known && <p>{t("device.gone.text")}</p>}
      </>
    );
  return (
    <>
      <Top title={deviceName(device)} back={back}>
        <span class="badge large">
          <Icon name={kindIcon(device.kind)} size={32} />
        </span>
        <DeviceState of={device} />
      </Top>
      <InMesh of={device} />
      <Internet of={device} />
      <Named of={device} />
      <Known of={device} />
      <Reached of={device} />
    </>
  );
}

// InMesh is how the mesh reaches it: the switch and, once on, its name there, its ports, and waking.
function InMesh({ of: d }: { of: Device }): JSX.Element {
  const mode = useView((v) => v.house?.expose);
  const m = d.mesh;
  return (
    <Card title={t("device.mesh")}>
      {mode === "all" ? <p class="notice warn">{t("mode.all")}</p> : <Reach of={d} shown />}
      {!m && <p class="hint">{t("device.mesh.off")}</p>}
      {m?.missing && (
        <p class="notice warn">
          <span lang="en">{m.missing}</span>
        </p>
      )}
      {m?.name && !m.missing && (
        <>
          <p>{t("device.mesh.on")}</p>
          <Copy text={m.name} what={t("device.name")} />
          {(m.addresses ?? []).map((a) => (
            <Copy key={a} text={a} what={t("address")} />
          ))}
        </>
      )}
      {m && !m.all && <Limits key={(m.ports ?? []).join()} of={d} />}
      {m && !m.all && <Web key={m.web?.target} of={d} />}
    </Card>
  );
}

// Web is whether this router answers for its web pages, with a certificate.
function Web({ of: d }: { of: Device }): JSX.Element {
  const web = d.mesh?.web;
  const [target, setTarget] = useState(web?.target ?? "");
  return (
    <>
      <h3>{t("web")}</h3>
      <p class="hint">{t("web.text")}</p>
      {web && (web.url ? <Copy text={web.url} what={t("web.at")} /> : <p class="notice warn">{t("web.notyet")}</p>)}
      <Form button={t("save")} done={t("saved")} send={() => serve(d, target.trim())}>
        <Field label={t("web.port")} value={target} set={setTarget} hint={t("web.port.hint")} placeholder="80" />
      </Form>
    </>
  );
}

// own is the name under which the owner's file has a device: the first label of that in the mesh.
const own = (d: Device): { as?: string } => (d.mesh?.name ? { as: short(d.mesh.name) } : {});

function Limits({ of: d }: { of: Device }): JSX.Element {
  const [ports, setPorts] = useState((d.mesh?.ports ?? []).join(" "));
  const wish = (wake: boolean): Promise<void> =>
    expose(d, { ...own(d), ports: ports.split(/[\s,]+/).filter(Boolean), wake });
  return (
    <>
      <Form button={t("save")} done={t("saved")} send={() => wish(d.mesh?.wake ?? false)}>
        <Field label={t("ports")} value={ports} set={setPorts} hint={t("ports.hint")} placeholder="tcp/80 tcp/443" />
      </Form>
      {d.mac && <Switch on={d.mesh?.wake ?? false} label={t("wake.auto")} text={t("wake.auto")} words={[t("off"), t("on")]} set={wish} />}
    </>
  );
}

function Internet({ of: d }: { of: Device }): JSX.Element | null {
  const exits = useView((v) => v.house?.status.exits);
  const live = useView((v) => v.live);
  const may = useMay();
  const deed = useDeed();
  if (!exits || !d.mac) return null;
  const row = exits.rows?.find((r) => r.row === d.exitRow);
  const ownRow = row?.sources?.includes(d.mac) ? row : undefined;
  const chosen = ownRow ? (ownRow.exits?.[0] ?? "") : "";
  const options = [
    ["", t("exit.ashouse")],
    ["direct", t("exit.direct")],
    ...(exits.there ?? []).map((x) => [x, t("exit.by", { exit: short(x) })]),
    ["block", t("exit.block")],
    ...(chosen && chosen !== "direct" && chosen !== "block" && !exits.there?.includes(chosen) ? [[chosen, short(chosen)]] : []),
  ] as [string, string][];
  return (
    <Card title={t("device.internet")}>
      <p>{leaving(d)}</p>
      {d.exit === "blocked" && row?.why && <p class="notice bad">{tr("trouble.because", { why: <span lang="en">{row.why}</span> })}</p>}
      <Choice
        label={t("device.internet.choose")}
        value={chosen}
        options={options}
        disabled={deed.busy || !live || !may}
        set={(exit) => void deed.run(() => exitOf(d, exit))}
      />
      <Wrong text={deed.error} />
      {(exits.there ?? []).length === 0 && <p class="hint">{t("exit.nonethere")}</p>}
    </Card>
  );
}

function leaving(d: Device): string {
  switch (d.exit) {
    case "":
    case undefined:
      return t("device.internet.unknown");
    case "direct":
      return t("device.internet.direct");
    case "blocked":
      return t("device.internet.blocked");
  }
  return t("device.internet.by", { exit: short(d.exit) });
}

function Named({ of: d }: { of: Device }): JSX.Element | null {
  const [name, setName] = useState(d.name ?? "");
  if (!d.mac) return null;
  const from = d.nameFrom ? known(`from.${d.nameFrom}`) : undefined;
  return (
    <Card title={t("device.name")}>
      <Form button={t("save")} done={t("saved")} send={() => rename(d, name.trim().toLowerCase())}>
        <Field label={t("device.called")} value={name} set={setName} hint={from ?? t("naming.hint")} />
      </Form>
    </Card>
  );
}

function Known({ of: d }: { of: Device }): JSX.Element {
  return (
    <Card title={t("device.known")} aside={<Wake of={d} />}>
      <Facts
        of={[
          [t("device.maker"), d.maker],
          [t("device.kind"), d.kind ? (known(`kind.${d.kind}`) ?? d.kind) : undefined],
          [t("device.mac"), d.mac && <span>{d.mac}{d.private && <small> {t("device.private")}</small>}</span>],
          [t("addresses"), d.addresses?.length ? d.addresses.map((a) => <div key={a}>{a}</div>) : undefined],
          [t("device.interface"), d.interface],
          [t("device.services"), d.services?.map((s) => <div key={s}>{known(`service.${s}`) ?? s}</div>)],
          [t("device.first"), d.firstSeen && date(d.firstSeen)],
          [t("device.last"), d.online ? t("age.now") : d.lastSeen && <Age of={d.lastSeen} />],
        ]}
      />
    </Card>
  );
}

// Reached is who of the mesh reached it lately. It is asked for once, when the page opens.
function Reached({ of: d }: { of: Device }): JSX.Element | null {
  const may = useMay();
  const [log, setLog] = useState<DeviceReach[]>([]);
  const addresses = (d.addresses ?? []).join(" ");
  useEffect(() => {
    if (!may) return;
    void api
      .get<DeviceLog>("/v1/devices/log")
      .then((l) => setLog((l.reached ?? []).filter((r) => addresses.split(" ").includes(r.to))))
      .catch(() => undefined);
  }, [addresses, may]);
  if (!d.mesh || log.length === 0) return null;
  return (
    <Card title={t("reached")}>
      <ul class="rows plain">
        {log.slice(0, 20).map((r) => (
          <li key={r.from + r.to}>
            <b>{r.who ? short(r.who) : r.from}</b>{" "}
            <span class="hint">
              {tn("reached.times", r.flows)}
              {r.last && (
                <>
                  , <Age of={r.last} />
                </>
              )}
            </span>
          </li>
        ))}
      </ul>
    </Card>
  );
}
