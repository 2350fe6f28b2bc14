// Changes that could cut this browser off from the router: they are undone after a while unless the page, which by then
// has heard from the router again, says that it is still there.
import type { JSX } from "preact";
import { useEffect, useState } from "preact/hooks";
import * as api from "./api";
import { t } from "./i18n";
import { changed, now, useView } from "./live";
import { Deed, useMay } from "./parts";
import type { SettingsChange, Trial } from "./status";

// change puts settings in force and, once the router has been heard from after that, for good.
export async function change(c: SettingsChange): Promise<void> {
  const trial = await api.post<Trial>("/v1/settings", c);
  await api.page(); // the answer came by the new configuration
  await api.post("/v1/settings/confirm", { id: trial.id });
}

// changeUnsure is change for what may move the page to another address: the owner is asked, by the TrialBar.
export async function changeUnsure(c: SettingsChange): Promise<void> {
  await api.post<Trial>("/v1/settings", c);
  if (!now().house?.trial) await changed().catch(() => undefined);
}

export function TrialBar(): JSX.Element | null {
  const trial = useView((v) => v.house?.trial);
  const may = useMay();
  return trial && may ? <Bar key={trial.id} trial={trial} /> : null;
}

// patience is how long a change that the page confirms by itself may take before the owner is asked about it.
const patience = 3_000; // ms

function Bar({ trial }: { trial: Trial }): JSX.Element | null {
  const skew = useView((v) => v.skew);
  const [at, setAt] = useState(Date.now());
  const [from] = useState(at);
  useEffect(() => {
    const timer = setInterval(() => setAt(Date.now()), 1000);
    return () => clearInterval(timer);
  }, []);
  const left = Math.max(0, Math.round((Date.parse(trial.until) - at - skew) / 1000));
  if (at - from < patience && !asks(trial)) return null;
  return (
    <section class="notice warn trial" aria-label={t("trial.title")}>
      <p>{t("trial.text", { what: (trial.what ?? []).join(", "), seconds: left })}</p>
      <div class="actions">
        <Deed kind="main" run={() => api.post("/v1/settings/confirm", { id: trial.id })}>
          {t("trial.keep")}
        </Deed>
        <Deed run={() => api.post("/v1/settings/undo", { id: trial.id })}>{t("trial.undo")}</Deed>
      </div>
    </section>
  );
}

const asks = (trial: Trial): boolean => (trial.what ?? []).some((w) => w === "lan.interfaces" || w === "web.listen");
