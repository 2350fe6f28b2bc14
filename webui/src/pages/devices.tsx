// Devices: the things at home, each with its switch, and the members of the mesh.
import type { JSX } from "preact";
import { useState } from "preact/hooks";
import * as api from "../api";
import { expose, hide, wake } from "../deeds";
import { Icon, kindIcon } from "../icons";
import { t, tn } from "../i18n";
import { useView } from "../live";
import { Age, Ask, Card, Deed, Few, Field, Form, State, Switch, Top } from "../parts";
import { href } from "../route";
import type { Device, Peer } from "../status";
import { deviceKey } from "../view";
import { deviceName, milliseconds, short, sortDevices, sortPeers } from "../words";

// searched is how many things there are before a search makes sense.
const searched = 12;

export function DevicesPage(): JSX.Element {
  const [wanted, setWanted] = useState("");
  const devices = useView((v) => v.devices);
  const peers = useView((v) => v.peers);
  const fits = fit(wanted);
  const things = sortDevices(devices.values()).filter((d) => fits(d.name, d.maker, d.kind, d.mac, d.mesh?.name, ...(d.addresses ?? [])));
  const members = sortPeers(peers.values()).filter((p) => fits(p.name, p.os, ...(p.addresses ?? [])));
  return (
    <>
      <Top title={t("nav.devices")} />
      {devices.size + peers.size > searched && (
        <div class="search">
          <Icon name="search" size={20} />
          <input type="search" value={wanted} onInput={(e) => setWanted(e.currentTarget.value)} aria-label={t("search")} placeholder={t("search")} />
        </div>
      )}
      <Card title={t("devices.home")} aside={<span class="count">{tn("devices.online", things.filter((d) => d.online).length)}</span>}>
        <Mode />
        <Few of={things} empty={wanted ? t("search.none") : t("devices.none")} each={(d) => <Thing key={deviceKey(d)} of={d} />} />
      </Card>
      <Card title={t("devices.mesh")} aside={<span class="count">{tn("devices.online", members.filter((p) => p.online).length)}</span>}>
        <Few of={members} empty={wanted ? t("search.none") : t("members.none")} each={(p) => <Member key={p.name} of={p} />} />
      </Card>
    </>
  );
}

// fit is whether any of a thing's words has all that is searched for.
const fit = (wanted: string): ((...words: (string | undefined)[]) => boolean) => {
  const parts = wanted.toLowerCase().split(/\s+/).filter(Boolean);
  return (...words) => {
    const all = words.join(" ").toLowerCase();
    return parts.every((p) => all.includes(p));
  };
};

// Mode says so if things are reached that nobody chose, or none may be.
function Mode(): JSX.Element | null {
  const mode = useView((v) => v.house?.expose);
  if (mode === undefined || mode === "chosen") return mode === "chosen" ? <p class="hint">{t("mode.chosen")}</p> : null;
  return (
    <div class={`notice ${mode === "all" ? "warn" : "info"}`}>
      <p>{mode === "all" ? t("mode.all") : t("mode.none")}</p>
      <Deed run={() => api.post("/v1/devices/mode", { expose: "chosen" })}>{t("mode.choose")}</Deed>
    </div>
  );
}

function Thing({ of: d }: { of: Device }): JSX.Element {
  const mode = useView((v) => v.house?.expose);
  return (
    <li class="row">
      <a class="who" href={href("devices", deviceKey(d))}>
        <span class={`badge ${d.mesh ? "shared" : ""}`}>
          <Icon name={kindIcon(d.kind)} />
        </span>
        <span class="text">
          <b>{deviceName(d)}</b>
          <small>{[d.maker, where(d)].filter(Boolean).join(" · ")}</small>
          <DeviceState of={d} />
        </span>
      </a>
      {mode === "all" ? d.mesh?.all && <span class="hint">{t("mode.all.short")}</span> : <Reach of={d} />}
    </li>
  );
}

// where is a thing's address, unless it is what the thing is called by.
const where = (d: Device): string => d.addresses?.[0] && d.addresses[0] !== deviceName(d) ? d.addresses[0] : d.mac;

export function DeviceState({ of: d }: { of: Device }): JSX.Element {
  return (
    <span class="states">
      {d.online ? (
        <State tone="ok">{t("online")}</State>
      ) : (
        <State tone="off">
          {t("offline")}
          {d.lastSeen && (
            <>
              , <Age of={d.lastSeen} />
            </>
          )}
        </State>
      )}
      {d.mesh?.missing && <State tone="warn">{t("device.notyet")}</State>}
      {d.exit === "blocked" && <State tone="bad">{t("device.blocked")}</State>}
      {d.exit && d.exit !== "blocked" && d.exit !== "direct" && <State tone="info">{t("device.exit", { exit: short(d.exit) })}</State>}
    </span>
  );
}

// Reach is the switch that makes a thing a member of the mesh. One without a name is asked for it.
export function Reach({ of: d, shown }: { of: Device; shown?: boolean }): JSX.Element {
  const [naming, setNaming] = useState(false);
  const set = async (on: boolean): Promise<unknown> => {
    if (!on) return hide(d);
    if (d.name) return expose(d);
    setNaming(true);
    return undefined;
  };
  return (
    <>
      <Switch
        on={d.mesh !== undefined}
        label={t("reach.what", { name: deviceName(d) })}
        text={shown ? t("reach") : undefined}
        words={[t("reach.off"), t("reach.on")]}
        set={set}
      />
      {naming && <Naming of={d} close={() => setNaming(false)} />}
    </>
  );
}

function Naming({ of: d, close }: { of: Device; close: () => void }): JSX.Element {
  const [name, setName] = useState("");
  return (
    <Ask title={t("naming")} close={close}>
      <Form button={t("naming.done")} send={() => expose(d, { as: name.trim().toLowerCase() }).then(close)}>
        <Field label={t("device.name")} value={name} set={setName} hint={t("naming.hint")} required />
      </Form>
    </Ask>
  );
}

function Member({ of: p }: { of: Peer }): JSX.Element {
  return (
    <li class="row">
      <a class="who" href={href("devices", "peer", p.name)}>
        <span class="badge">
          <Icon name={osIcon(p.os)} />
        </span>
        <span class="text">
          <b>{short(p.name)}</b>
          <small>{[p.os, p.addresses?.[0]].filter(Boolean).join(" · ")}</small>
          <PeerState of={p} />
        </span>
      </a>
      <Icon name="next" size={20} />
    </li>
  );
}

export function PeerState({ of: p }: { of: Peer }): JSX.Element {
  const rtt = p.rtt ? `, ${milliseconds(p.rtt)}` : "";
  if (!p.online) return <State tone="off">{t("offline")}</State>;
  if (p.path === "direct") return <State tone="ok">{t("path.direct", { rtt })}</State>;
  if (p.path === "relay") return <State tone="info">{t("path.relay", { rtt })}</State>;
  return <State tone="ok">{t("online")}</State>;
}

const osIcon = (os: string | undefined): "phone" | "computer" | "tv" => {
  const name = (os ?? "").toLowerCase();
  if (name === "ios" || name === "android") return "phone";
  return name === "tvos" ? "tv" : "computer";
};

// Wake turns a thing on, from afar.
export const Wake = ({ of: d }: { of: Device }): JSX.Element => (
  <Deed icon="wake" disabled={!d.mac} done={t("wake.sent")} run={() => wake(d)}>
    {t("wake")}
  </Deed>
);
