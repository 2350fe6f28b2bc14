// The router's whole system, where this router can be given another one: which it is, what the next start brings, an image for it.
import type { JSX } from "preact";
import { useRef, useState } from "preact/hooks";
import * as api from "../api";
import { t } from "../i18n";
import { useView } from "../live";
import { Button, Card, Facts, Field, Sure, useDeed, useMay, Wrong } from "../parts";
import { Digest } from "../sha256";
import type { Page, System, Updated } from "../status";

export function UpdateCard({ page }: { page: Page }): JSX.Element | null {
  const system = useView((v) => v.house?.status.system);
  const may = useMay();
  if (!system) return null;
  return (
    <Card title={t("update")}>
      <Facts of={[[t("router.version"), system.version]]} />
      {system.note && (
        <p class="notice warn" role="status" lang="en">
          {system.note}
        </p>
      )}
      {system.waiting && (
        <p class="notice info" role="status">
          {t("update.waiting")}
        </p>
      )}
      {may && page.over !== "mesh" && <Image system={system} />}
      {may && system.waiting && (
        <div class="actions">
          <Sure title={t("update.restart")} text={t("update.restart.text")} button={t("update.restart")} run={() => api.post("/v1/system/restart")}>
            {t("update.restart")}
          </Sure>
        </div>
      )}
      {may && page.over === "mesh" && <p>{t("update.athome")}</p>}
    </Card>
  );
}

// Image sends a file. How much of it the router has, it says itself, to every page that looks.
function Image({ system }: { system: System }): JSX.Element {
  const file = useRef<HTMLInputElement>(null);
  const [sum, setSum] = useState("");
  const [said, setSaid] = useState("");
  const deed = useDeed();
  const send = async (f: File): Promise<void> => {
    setSaid("");
    const wanted = sum.trim().toLowerCase() || (await digest(f));
    setSaid((await api.put<Updated>(`/v1/system/image/${encodeURIComponent(wanted)}`, f)).text);
  };
  const comes = system.update;
  return (
    <>
      <p>{t("update.text")}</p>
      <Field label={t("update.sum")} value={sum} set={setSum} hint={t("update.sum.hint")} />
      <input
        ref={file}
        type="file"
        hidden
        aria-label={t("update.file")}
        onChange={(e) => {
          const f = e.currentTarget.files?.[0];
          if (f) void deed.run(() => send(f));
          e.currentTarget.value = ""; // the same one may be sent again
        }}
      />
      <div class="actions">
        <Button kind="main" busy={deed.busy} disabled={comes !== undefined && !deed.busy} onClick={() => file.current?.click()}>
          {t("update.file")}
        </Button>
      </div>
      <div role="status">
        {(comes ?? deed.busy) && (
          <p>
            {t("update.comes")} <progress aria-label={t("update.comes")} max={comes?.size ?? 1} value={comes?.done ?? 0} />
          </p>
        )}
        {said && <p lang="en">{said}</p>}
      </div>
      <Wrong text={deed.error} />
    </>
  );
}

// digest reads a file a part at a time: it may be larger than what a phone has of memory.
async function digest(f: File): Promise<string> {
  const d = new Digest();
  const part = 1 << 20;
  for (let at = 0; at < f.size; at += part) d.update(new Uint8Array(await f.slice(at, at + part).arrayBuffer()));
  return d.hex();
}
