// Changes that could cut this browser off from the router: they are undone after a while unless the page, which by then
// has heard from the router again, says that it is still there.
import type { JSX } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";
import * as api from "./api";
import { t } from "./i18n";
import { now, reopen, tried, useView } from "./live";
import { Button, Deed, useMay } from "./parts";
import type { SettingsChange, Trial } from "./status";

// change puts settings in force and, once the router has been heard from after that, for good.
export async function change(c: SettingsChange): Promise<void> {
  const trial = await api.post<Trial>("/v1/settings", c);
  await api.page(); // the answer came by the new configuration
  await api.post("/v1/settings/confirm", { id: trial.id });
}

// changeUnsure is change for what may move the page to another address: the owner is asked, by the TrialBar.
export async function changeUnsure(c: SettingsChange): Promise<void> {
  tried(await api.post<Trial>("/v1/settings", c));
  reopen();
}

export function TrialBar(): JSX.Element | null {
  const trial = useView((v) => v.house?.trial);
  const may = useMay();
  const undone = useUndone(trial);
  const [seen, setSeen] = useState("");
  if (!may) return null;
  return (
    <>
      {trial && <Bar key={trial.id} trial={trial} />}
      <div role="status" class="lost">
        {undone && undone.id !== seen && (
          <div class="notice info">
            <p>{t("trial.undone", { what: (undone.what ?? []).join(", ") })}</p>
            <Button apart onClick={() => setSeen(undone.id)}>
              {t("close")}
            </Button>
          </div>
        )}
      </div>
    </>
  );
}

// useUndone is the last trial that nobody ended within its time.
function useUndone(trial: Trial | undefined): Trial | undefined {
  const before = useRef<Trial | undefined>(undefined);
  const [undone, setUndone] = useState<Trial>();
  useEffect(() => {
    const was = before.current;
    before.current = trial;
    if (!trial && was && now().at >= Date.parse(was.until)) setUndone(was);
  }, [trial]);
  return undone;
}

// patience is how long a change that the page confirms by itself may take before the owner is asked about it.
const patience = 3_000; // ms

function Bar({ trial }: { trial: Trial }): JSX.Element | null {
  const skew = useView((v) => v.skew);
  const live = useView((v) => v.live);
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
      <p>
        {t("trial.text", { what: (trial.what ?? []).join(", "), seconds: left })} {!live && t("trial.lost")}
      </p>
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
