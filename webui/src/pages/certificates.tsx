// Certificates: the home's root, which a device must trust once, and what was made with it.
import type { JSX } from "preact";
import { useEffect, useState } from "preact/hooks";
import * as api from "../api";
import { t } from "../i18n";
import { Card, Copy, Facts, Few, Qr, State } from "../parts";
import type { Certificate, Certificates } from "../status";
import { date } from "../words";

// CertificatesCard asks once, when the page opens. A router without a mesh has no certificates.
export function CertificatesCard(): JSX.Element | null {
  const [of, set] = useState<Certificates | null>(null);
  useEffect(() => {
    void api.get<Certificates>("/v1/cert").then(set).catch(() => undefined);
  }, []);
  if (!of) return null;
  return (
    <Card title={t("certs")}>
      <p>{t("certs.text", { domain: of.domain })}</p>
      {of.url && (
        <div class="invitation">
          <Qr text={of.url} alt={t("certs.qr")} />
          <div>
            <p>{t("certs.scan")}</p>
            <Copy text={of.url} what={t("address")} />
          </div>
        </div>
      )}
      <div class="actions">
        <Root form="crt">{t("certs.computer")}</Root>
        <Root form="mobileconfig">{t("certs.apple")}</Root>
        <Root form="der">{t("certs.other")}</Root>
      </div>
      <Facts
        of={[
          [t("device.name"), of.name],
          [t("certs.fingerprint"), <code key="f">{of.fingerprint}</code>],
          [t("certs.until"), date(of.until)],
          [t("certs.acme"), of.directory],
        ]}
      />
      <h3>{t("certs.issued")}</h3>
      <Few of={of.issued ?? []} empty={t("certs.none")} each={(c) => <Issued key={c.since + (c.names ?? []).join()} of={c} />} />
    </Card>
  );
}

const Root = ({ form, children }: { form: string; children: string }): JSX.Element => (
  <a class="button plain" href={`/v1/cert/root/${form}`} download={`root.${form}`}>
    <span>{children}</span>
  </a>
);

const Issued = ({ of: c }: { of: Certificate }): JSX.Element => (
  <li class="row">
    <div class="who">
      <span class="text">
        <b>{(c.names ?? []).join(", ")}</b>
        <small>{c.acme ? t("certs.byitself") : t("certs.byowner")}</small>
        <span class="states">
          {c.revoked ? <State tone="off">{t("certs.revoked", { date: date(c.revoked) })}</State> : <State tone="ok">{t("certs.good", { date: date(c.until) })}</State>}
        </span>
      </span>
    </div>
  </li>
);
