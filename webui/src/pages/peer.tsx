// One member of the mesh, as seen from this router.
import type { JSX } from "preact";
import { useState } from "preact/hooks";
import * as api from "../api";
import { t } from "../i18n";
import { useView } from "../live";
import { Age, Card, Copy, Deed, Facts, Top } from "../parts";
import { href } from "../route";
import type { PingResult } from "../status";
import { bytes, milliseconds, short } from "../words";
import { PeerState } from "./devices";

export function PeerPage({ name }: { name: string }): JSX.Element {
  const peer = useView((v) => v.peers.get(name));
  const [pong, setPong] = useState("");
  const back = [href("devices"), t("nav.devices")] as const;
  if (!peer) return <Top title={t("member.gone")} back={back} />;
  const ping = async (): Promise<void> => {
    const r = await api.get<PingResult>(api.query("/v1/ping", "to", name));
    const rtt = milliseconds((r.path.rtt ?? 0) / 1e6);
    setPong(r.path.kind === "direct" ? t("ping.direct", { rtt }) : t("ping.relay", { rtt, relay: r.relay ?? "" }));
  };
  return (
    <>
      <Top title={short(name)} back={back}>
        <PeerState of={peer} />
      </Top>
      <Card title={t("member.way")}>
        <p>{way(peer.path, peer.online)}</p>
        {peer.reason && peer.path !== "direct" && (
          <p class="hint" lang="en">
            {peer.reason}
          </p>
        )}
        <Deed asks run={ping}>{t("ping")}</Deed>
        <p role="status">{pong}</p>
      </Card>
      <Card title={t("addresses")}>
        <Copy text={peer.name} what={t("device.name")} />
        {(peer.addresses ?? []).map((a) => (
          <Copy key={a} text={a} what={t("address")} />
        ))}
      </Card>
      <Card title={t("device.known")}>
        <Facts
          of={[
            [t("member.os"), peer.os],
            [t("member.endpoint"), peer.endpoint],
            [t("member.relay"), peer.relay],
            [t("member.routes"), peer.routes?.map((r) => <div key={r}>{r}</div>)],
            [t("member.traffic"), t("member.traffic.text", { rx: bytes(peer.rx), tx: bytes(peer.tx) })],
            [t("member.handshake"), peer.handshake && <Age of={peer.handshake} />],
          ]}
        />
      </Card>
    </>
  );
}

function way(path: string, online: boolean): string {
  if (path === "direct") return t("way.direct");
  if (path === "relay") return t("way.relay");
  return online ? t("way.idle") : t("way.none");
}
