// Sharing: who may come in, who is in, and what they can reach.
import type { JSX } from "preact";
import { useEffect, useState } from "preact/hooks";
import * as api from "../api";
import { coordinator } from "../house";
import { t, tn } from "../i18n";
import { useView } from "../live";
import { Age, Ask, Button, Card, Copy, Deed, Facts, Few, Field, Form, Qr, State, Sure, Switch, Top, useMay } from "../parts";
import type { HomeKey, HomeNode, Invite } from "../status";
import { lasting, short } from "../words";
import { FilesCard } from "./files";
import { Knock } from "./home";

export function SharingPage(): JSX.Element {
  const house = useView((v) => v.house);
  if (!house) return <Top title={t("nav.sharing")} />;
  return (
    <>
      <Top title={t("nav.sharing")} />
      {(house.pending ?? []).map((p) => (
        <Knock key={p.code} of={p} />
      ))}
      {house.home ? (
        <>
          <Card title={t("invite")}>
            <InviteCard />
          </Card>
          <Members />
          <Keys />
        </>
      ) : (
        <Card title={t("invite")}>
          <p>{t("invite.elsewhere", { control: coordinator(house) })}</p>
        </Card>
      )}
      <FilesCard />
      <Networks />
    </>
  );
}

// InviteCard makes a key for one device, and shows once how it is used.
export function InviteCard(): JSX.Element {
  const [invite, setInvite] = useState<Invite | null>(null);
  const make = async (): Promise<void> => setInvite(await api.post<Invite>("/v1/home/invite", {}));
  if (!invite)
    return (
      <>
        <p>{t("invite.text")}</p>
        <Deed kind="main" icon="plus" run={make}>
          {t("invite.make")}
        </Deed>
      </>
    );
  return (
    <div class="invitation">
      <Qr text={invite.line} alt={t("qr.invite")} />
      <div>
        <p>{t("invite.scan")}</p>
        <h3>{t("invite.computer")}</h3>
        <Copy text={invite.line} what={t("invite.line")} />
        <h3>{t("invite.phone")}</h3>
        <p>{t("invite.phone.text")}</p>
        <Copy text={invite.url} what={t("invite.server")} />
        <Copy text={invite.key} what={t("invite.key")} />
        <p class="hint">{t("invite.until", { left: lasting(Date.parse(invite.expires) - Date.now()) })}</p>
        {!invite.outside && (
          <div class="notice info">
            <p>{t("invite.inside")}</p>
            {(invite.missing ?? []).map((m) => (
              <p key={m} lang="en">
                {m}
              </p>
            ))}
          </div>
        )}
        <Deed icon="plus" run={make}>
          {t("invite.another")}
        </Deed>
      </div>
    </div>
  );
}

function Members(): JSX.Element {
  const nodes = useView((v) => v.nodes);
  const sorted = [...nodes.values()].sort((a, b) => Number(b.online) - Number(a.online) || a.name.localeCompare(b.name));
  return (
    <Card title={t("nodes")} aside={<span class="count">{tn("devices.online", sorted.filter((n) => n.online).length)}</span>}>
      <Few of={sorted} empty={t("nodes.none")} each={(n) => <Node key={n.id} of={n} />} />
    </Card>
  );
}

function Node({ of: n }: { of: HomeNode }): JSX.Element {
  const [open, setOpen] = useState(false);
  return (
    <li class="row">
      <div class="who">
        <span class="text">
          <b>{short(n.name)}</b>
          <small>{[n.self ? t("nodes.self") : n.user, n.tags?.join(" "), n.os, n.addresses?.[0]].filter(Boolean).join(" · ")}</small>
          <span class="states">
            {n.online ? <State tone="ok">{t("online")}</State> : <State tone="off">{t("offline")}{n.lastSeen && <>, <Age of={n.lastSeen} /></>}</State>}
            {n.expired && <State tone="bad">{t("nodes.expired")}</State>}
            {(n.routes ?? []).some((r) => r.offered && !r.approved) && <State tone="warn">{t("nodes.routes.open")}</State>}
          </span>
        </span>
      </div>
      <Button apart label={t("edit.what", { who: short(n.name) })} icon="edit" onClick={() => setOpen(true)}>
        {t("edit")}
      </Button>
      {open && <NodeAsk of={n} close={() => setOpen(false)} />}
    </li>
  );
}

function NodeAsk({ of: n, close }: { of: HomeNode; close: () => void }): JSX.Element {
  const [name, setName] = useState(short(n.name));
  const node = String(n.id);
  const routes = n.routes ?? [];
  const approve = (prefix: string, on: boolean): Promise<unknown> =>
    api.post("/v1/home/nodes/routes", {
      node,
      routes: routes.filter((r) => (r.prefix === prefix ? on : r.approved)).map((r) => r.prefix),
    });
  return (
    <Ask title={short(n.name)} close={close}>
      <Facts
        of={[
          [t("addresses"), (n.addresses ?? []).map((a) => <div key={a}>{a}</div>)],
          [t("member.client"), n.client],
          [t("nodes.key"), n.keyExpiry ? <Age of={n.keyExpiry} /> : t("nodes.key.never")],
        ]}
      />
      <Form button={t("nodes.rename")} done={t("saved")} send={() => api.post("/v1/home/nodes/rename", { node, name })}>
        <Field label={t("device.name")} value={name} set={setName} required />
      </Form>
      {routes.length > 0 && <h3>{t("nodes.routes")}</h3>}
      {routes.map((r) => (
        <Switch key={r.prefix} on={r.approved} label={routeName(r.prefix)} text={routeName(r.prefix)} words={[t("nodes.routes.off"), t("nodes.routes.on")]} set={(on) => approve(r.prefix, on)} />
      ))}
      {!n.self && (
        <div class="actions">
          <Sure title={t("nodes.expire")} text={t("nodes.expire.text", { name: short(n.name) })} button={t("nodes.expire")} run={() => api.post("/v1/home/nodes/expire", { node })}>
            {t("nodes.expire")}
          </Sure>
          <Sure kind="danger" icon="trash" title={t("nodes.remove")} text={t("nodes.remove.text", { name: short(n.name) })} button={t("remove")} run={() => api.post("/v1/home/nodes/remove", { node }).then(close)}>
            {t("nodes.remove")}
          </Sure>
        </div>
      )}
      <Button apart onClick={close}>
        {t("close")}
      </Button>
    </Ask>
  );
}

const routeName = (prefix: string): string => (prefix === "0.0.0.0/0" || prefix === "::/0" ? `${t("nodes.routes.exit")} (${prefix})` : prefix);

// Keys are the invitations that were made. They are asked for when the page opens and after each change.
function Keys(): JSX.Element | null {
  const may = useMay();
  const nodes = useView((v) => v.nodes);
  const [keys, setKeys] = useState<HomeKey[]>([]);
  const load = (): Promise<void> => api.get<HomeKey[] | null>("/v1/home/keys").then((k) => setKeys(k ?? []));
  useEffect(() => {
    if (may) void load().catch(() => undefined);
  }, [may, nodes]);
  const open = keys.filter((k) => k.state === "good");
  if (open.length === 0) return null;
  return (
    <Card title={t("keys")}>
      <p class="hint">{t("keys.text")}</p>
      <ul class="rows">
        {open.map((k) => (
          <li class="row" key={k.id}>
            <div class="who">
              <span class="text">
                <b>
                  <code>{k.id}</code>
                </b>
                <small>{[k.reusable ? t("keys.reusable") : t("keys.once"), k.user, k.tags?.join(" ")].filter(Boolean).join(" · ")}</small>
              </span>
            </div>
            <Sure label={t("keys.revoke.what", { id: k.id })} title={t("keys.revoke")} text={t("keys.revoke.text")} button={t("keys.revoke")} run={() => api.post("/v1/home/keys/revoke", { id: k.id }).then(load)}>
              {t("keys.revoke")}
            </Sure>
          </li>
        ))}
      </ul>
    </Card>
  );
}

function Networks(): JSX.Element | null {
  const status = useView((v) => v.house?.status);
  const mode = useView((v) => v.house?.expose);
  const exposed = status?.exposed ?? [];
  const lans = status?.lans ?? [];
  return (
    <Card title={t("networks")}>
      <p>{mode === "all" ? t("mode.all") : mode === "none" ? t("mode.none") : t("networks.chosen")}</p>
      {lans.length > 0 && <p class="hint">{t("networks.lans", { names: lans.join(", ") })}</p>}
      <ul class="rows plain">
        {exposed.map((p) => (
          <li key={p}>
            <code>{p}</code>{" "}
            {status?.approved?.includes(p) ? <State tone="ok">{t("nodes.routes.on")}</State> : <State tone="warn">{t("nodes.routes.open")}</State>}
          </li>
        ))}
      </ul>
      <div class="actions">
        {mode === "all" ? (
          <Deed run={() => api.post("/v1/devices/mode", { expose: "chosen" })}>{t("mode.choose")}</Deed>
        ) : (
          <Sure title={t("mode.toall")} text={t("mode.toall.text")} button={t("mode.toall")} run={() => api.post("/v1/devices/mode", { expose: "all" })}>
            {t("mode.toall")}
          </Sure>
        )}
        {mode === "chosen" && <Deed run={() => api.post("/v1/devices/mode", { expose: "none" })}>{t("mode.tonone")}</Deed>}
      </div>
    </Card>
  );
}
