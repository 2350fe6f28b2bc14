// Files: what members sent here, what is under way, and sending to them from this browser.
import type { JSX } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";
import * as api from "../api";
import { t } from "../i18n";
import { useView } from "../live";
import { Age, Button, Card, Choice, Copy, Facts, Few, Field, Form, Sure, useDeed, useMay, Wrong } from "../parts";
import type { Drop, DropFile, DropTransfer } from "../status";
import { bytes, deviceName, short } from "../words";

// useDrop asks how it stands when the page opens, and again each time that the router tells of news.
function useDrop(): [drop: Drop | null, look: () => Promise<void>] {
  const news = useView((v) => v.house?.drop);
  const [drop, set] = useState<Drop | null>(null);
  const look = (): Promise<void> => api.get<Drop>("/v1/drop").then(set);
  useEffect(() => void look().catch(() => undefined), [news]);
  return [drop, look];
}

export function FilesCard(): JSX.Element | null {
  const [drop, look] = useDrop();
  const may = useMay();
  if (!drop) return null;
  const files = drop.files ?? [];
  return (
    <Card title={t("files")}>
      <p>{t("files.text")}</p>
      {drop.missing && (
        <p class="notice warn" role="status" lang="en">
          {drop.missing}
        </p>
      )}
      {may && <Send targets={drop.targets ?? []} />}
      {(drop.transfers ?? []).length > 0 && (
        <ul class="rows">
          {(drop.transfers ?? []).map((x) => (
            <Transfer key={x.id} of={x} />
          ))}
        </ul>
      )}
      <h3>{t("files.arrived")}</h3>
      <Few of={files} empty={t("files.none")} first={10} each={(f) => <Arrived key={f.name} of={f} inbox={!drop.folder} look={look} />} />
      <Facts
        of={[
          [t("files.used"), bytes(drop.used)],
          [t("files.quota"), drop.quota > 0 && bytes(drop.quota)],
          [t("files.free"), bytes(drop.free)],
        ]}
      />
      {may && <Folder key={drop.folder} of={drop.folder ?? ""} look={look} />}
      {may && <FromHome of={drop} look={look} />}
    </Card>
  );
}

// Send takes files that are chosen, or dropped on it, one after the other.
function Send({ targets }: { targets: readonly string[] }): JSX.Element {
  const input = useRef<HTMLInputElement>(null);
  const deed = useDeed();
  const [to, setTo] = useState("");
  const [over, setOver] = useState(false);
  const [said, setSaid] = useState("");
  const target = targets.includes(to) ? to : (targets[0] ?? "");
  if (!target) return <p class="hint">{t("files.nobody")}</p>;
  const send = (files: readonly File[]): void =>
    void deed.run(async () => {
      setSaid("");
      for (const f of files) {
        await api.put(`${api.query("/v1/drop/send", "to", target)}&name=${encodeURIComponent(f.name)}`, f);
        setSaid(t("files.sent", { name: f.name, who: short(target) }));
      }
    });
  return (
    <div
      class={over ? "dropzone over" : "dropzone"}
      onDragOver={(e) => {
        e.preventDefault();
        setOver(true);
      }}
      onDragLeave={() => setOver(false)}
      onDrop={(e) => {
        e.preventDefault();
        setOver(false);
        send([...(e.dataTransfer?.files ?? [])]);
      }}
    >
      <Choice label={t("files.to")} value={target} options={targets.map((x) => [x, short(x)] as const)} set={setTo} />
      <input
        ref={input}
        type="file"
        multiple
        hidden
        aria-label={t("files.choose")}
        onChange={(e) => {
          send([...(e.currentTarget.files ?? [])]);
          e.currentTarget.value = ""; // the same one may be sent again
        }}
      />
      <div class="actions">
        <Button kind="main" busy={deed.busy} onClick={() => input.current?.click()}>
          {t("files.choose")}
        </Button>
        <span class="hint">{t("files.drop")}</span>
      </div>
      <p role="status">{said}</p>
      <Wrong text={deed.error} />
    </div>
  );
}

function Transfer({ of: x }: { of: DropTransfer }): JSX.Element {
  const text = t(x.sending ? "files.leaves" : "files.comes", { name: x.name, who: short(x.peer) });
  return (
    <li class="row">
      <div class="who">
        <span class="text">
          <b>{text}</b>
          <small>{x.waits ? t("files.waits") : x.size < 0 ? bytes(x.done) : t("files.done", { done: bytes(x.done), size: bytes(x.size) })}</small>
          {x.size > 0 && <progress aria-label={text} max={x.size} value={x.done} />}
        </span>
      </div>
    </li>
  );
}

function Arrived({ of: f, inbox, look }: { of: DropFile; inbox: boolean; look: () => Promise<void> }): JSX.Element {
  const may = useMay();
  return (
    <li class="row">
      <div class="who">
        <span class="text">
          <b>{f.name}</b>
          <small>
            {bytes(f.size)}
            {f.from && <> · {short(f.from)}</>} · <Age of={f.at} />
          </small>
        </span>
      </div>
      {may && inbox && (
        <span class="actions">
          <a class="button plain" href={api.query("/v1/drop/file", "name", f.name)} download={f.name} aria-label={t("files.get.what", { name: f.name })}>
            <span>{t("files.get")}</span>
          </a>
          <Sure kind="danger" icon="trash" label={t("files.remove.what", { name: f.name })} title={t("files.remove")} text={t("files.remove.text", { name: f.name })} button={t("remove")} run={() => api.post("/v1/drop/remove", { name: f.name }).then(look)}>
            {t("remove")}
          </Sure>
        </span>
      )}
    </li>
  );
}

function Folder({ of, look }: { of: string; look: () => Promise<void> }): JSX.Element {
  const [folder, setFolder] = useState(of);
  return (
    <Form button={t("save")} done={t("saved")} send={() => api.post("/v1/drop/folder", { folder: folder.trim() }).then(look)}>
      <Field label={t("files.folder")} value={folder} set={setFolder} hint={t("files.folder.hint")} placeholder="/mnt/usb/drop" />
    </Form>
  );
}

// FromHome is what at home may send by plain HTTP, and where to.
function FromHome({ of: drop, look }: { of: Drop; look: () => Promise<void> }): JSX.Element | null {
  const devices = useView((v) => v.devices);
  const deed = useDeed();
  const from = drop.from ?? [];
  if (!drop.address) return null;
  const allow = (device: string, on: boolean): void => void deed.run(() => api.post("/v1/drop/allow", { device, allow: on }).then(look));
  const others = [...devices.values()].filter((d) => d.mac && !from.includes(d.mac)).map((d) => [d.mac, deviceName(d)] as const);
  const name = (x: string): string => {
    const d = devices.get(x);
    return x === "lan" ? t("source.lan") : d ? deviceName(d) : x;
  };
  return (
    <>
      <h3>{t("files.home")}</h3>
      <p class="hint">{t("files.home.text")}</p>
      <Copy text={`curl -T photo.jpg ${drop.address}/${short(drop.targets?.[0] ?? "phone")}/`} what={t("files.home.line")} />
      <ul class="rows">
        {from.map((x) => (
          <li class="row" key={x}>
            <div class="who">
              <span class="text">
                <b>{name(x)}</b>
              </span>
            </div>
            <Button label={t("files.home.forbid.what", { who: name(x) })} onClick={() => allow(x, false)}>
              {t("files.home.forbid")}
            </Button>
          </li>
        ))}
      </ul>
      <Choice label={t("files.home.allow")} value="" options={[["", t("files.home.pick")], ...(from.includes("lan") ? [] : [["lan", t("source.lan")] as const]), ...others]} disabled={deed.busy} set={(x) => x && allow(x, true)} />
      <Wrong text={deed.error} />
    </>
  );
}
