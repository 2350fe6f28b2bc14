// Internet exit: whose traffic leaves where, the first row that fits decides; and where one thing's would leave.
import type { JSX } from "preact";
import { useState } from "preact/hooks";
import * as api from "../api";
import { rowsNow, setRows } from "../deeds";
import { added, catchAll, moved, removed, replaced, row, type Row } from "../exits";
import { sourceName } from "../house";
import { Icon } from "../icons";
import { t, tr } from "../i18n";
import { useView } from "../live";
import { Age, Ask, Button, Card, Choice, Deed, Form, State, Sure, Switch, Top, Wrong, useDeed } from "../parts";
import type { ExitRow, ExitTest } from "../status";
import { deviceName, short, sortDevices } from "../words";

export function ExitPage(): JSX.Element {
  const exits = useView((v) => v.house?.status.exits);
  const [adding, setAdding] = useState(false);
  if (!exits) return <Top title={t("nav.exit")} />;
  const rows = exits.rows ?? [];
  const whole = rows.some((r) => catchAll(row(r)));
  return (
    <>
      <Top title={t("nav.exit")} />
      <Card title={t("rows")} aside={<Button icon="plus" onClick={() => setAdding(true)}>{t("rows.add")}</Button>}>
        <p class="hint">{t("rows.hint")}</p>
        <ol class="exits">
          {rows.map((r, i) => (
            <RowCard key={(r.sources ?? []).join()} of={r} at={i} count={rows.length} />
          ))}
          {!whole && (
            <li class="exit last">
              <div class="head">
                <b>{t("rows.else")}</b>
                <State tone="ok">{t("now.direct")}</State>
              </div>
              <p class="hint">{t("rows.else.text")}</p>
            </li>
          )}
        </ol>
      </Card>
      <Tester />
      <Offer />
      {adding && <Edit close={() => setAdding(false)} />}
    </>
  );
}

function RowCard({ of: r, at, count }: { of: ExitRow; at: number; count: number }): JSX.Element {
  const view = useView((v) => v);
  const [editing, setEditing] = useState(false);
  const order = useDeed();
  const mine = row(r);
  const names = mine.sources.map((s) => sourceName(s, view)).join(", ");
  const rows = (): Row[] => rowsNow();
  const last = catchAll(mine);
  const move = (by: -1 | 1): void => void order.run(() => setRows(moved(rows(), at, by)));
  const next = useView((v) => v.house?.status.exits.rows?.[at + 1]);
  return (
    <li class={`exit ${last ? "last" : ""}`}>
      <div class="head">
        <b>{names}</b>
        <Now of={r} />
      </div>
      <p class="path">
        {mine.exits.map((x, i) => (
          <span key={x}>
            {i > 0 && <Icon name="next" size={16} />}
            {short(x)}
          </span>
        ))}
        {(mine.direct || mine.exits.length === 0) && (
          <span>
            {mine.exits.length > 0 && <Icon name="next" size={16} />}
            {mine.direct ? t("exit.direct") : t("exit.block")}
          </span>
        )}
      </p>
      {r.why && (
        <p class={r.now === "blocked" ? "notice bad" : "hint"}>
          {r.now === "blocked" ? tr("trouble.because", { why: <span lang="en">{r.why}</span> }) : <span lang="en">{r.why}</span>}
          {r.since && (
            <>
              {" "}
              {tr("since", { age: <Age of={r.since} /> })}
            </>
          )}
        </p>
      )}
      {(r.noIPv4 ?? r.noIPv6) && <p class="hint">{t("exit.onefamily", { family: r.noIPv4 ? "IPv4" : "IPv6" })}</p>}
      {r.now === "blocked" && mine.exits.length > 0 && (
        <Deed kind="main" icon="out" label={t("direct.go.who", { who: names })} run={() => setRows(replaced(rows(), at, { ...mine, direct: true }))}>
          {t("direct.go")}
        </Deed>
      )}
      {mine.exits.length > 0 && (
        <Switch
          on={!mine.direct}
          label={t("kill.who", { who: names })}
          text={t("kill")}
          words={[t("kill.off"), t("kill.on")]}
          set={(on) => setRows(replaced(rows(), at, { ...mine, direct: !on }))}
        />
      )}
      <div class="actions">
        {!last && (
          <>
            <Button icon="up" disabled={at === 0} busy={order.busy} label={t("up.what", { who: names })} onClick={() => move(-1)}>
              {t("up")}
            </Button>
            <Button icon="down" disabled={at + 1 >= count || (next !== undefined && catchAll(row(next)))} busy={order.busy} label={t("down.what", { who: names })} onClick={() => move(1)}>
              {t("down")}
            </Button>
          </>
        )}
        <Button icon="edit" label={t("edit.what", { who: names })} onClick={() => setEditing(true)}>
          {t("edit")}
        </Button>
        <Sure icon="trash" label={t("remove.what", { who: names })} title={t("rows.remove")} text={t("rows.remove.text", { who: names })} button={t("remove")} run={() => setRows(removed(rows(), at))}>
          {t("remove")}
        </Sure>
      </div>
      <Wrong text={order.error} />
      {editing && <Edit at={at} of={mine} close={() => setEditing(false)} />}
    </li>
  );
}

function Now({ of: r }: { of: ExitRow }): JSX.Element {
  if (r.now === "direct") return <State tone={(r.exits ?? [])[0] === "direct" ? "ok" : "warn"}>{t("now.direct")}</State>;
  if (r.now === "blocked") return <State tone={(r.exits ?? []).some((x) => x !== "block") ? "bad" : "off"}>{t("now.blocked")}</State>;
  return <State tone="ok">{t("now.exit", { exit: short(r.now) })}</State>;
}

// Edit makes a row, or changes the one at a place.
function Edit({ at, of: r, close }: { at?: number; of?: Row; close: () => void }): JSX.Element {
  const view = useView((v) => v);
  const [sources, setSources] = useState<readonly string[]>(r?.sources ?? []);
  const [exits, setExits] = useState<readonly string[]>(r?.exits ?? []);
  const [direct, setDirect] = useState(r?.direct ?? false);
  const [wanted, setWanted] = useState("");
  const there = view.house?.status.exits.there ?? [];
  const all: [string, string][] = [
    ["lan", t("source.lan")],
    ["router", t("source.router")],
    ...(view.house?.status.lans ?? []).map((l) => [l, t("source.interface", { name: l })] as [string, string]),
    ...sortDevices(view.devices.values())
      .filter((d) => d.mac)
      .map((d) => [d.mac, deviceName(d)] as [string, string]),
  ];
  const shown = all.filter(([value, text]) => sources.includes(value) || `${text} ${value}`.toLowerCase().includes(wanted.toLowerCase())).slice(0, 30);
  const toggle = (list: readonly string[], value: string): string[] => (list.includes(value) ? list.filter((x) => x !== value) : [...list, value]);
  const send = async (): Promise<void> => {
    const made: Row = { sources: [...sources], exits: [...exits], direct: direct || (exits.length === 0 && direct) };
    const rows = rowsNow();
    await setRows(at === undefined ? added(rows, made) : replaced(rows, at, made));
    close();
  };
  return (
    <Ask title={at === undefined ? t("rows.add") : t("rows.edit")} close={close}>
      <Form button={t("save")} send={send}>
        <fieldset>
          <legend>{t("rows.who")}</legend>
          {all.length > 8 && (
            <div class="search">
              <Icon name="search" size={20} />
              <input type="search" value={wanted} onInput={(e) => setWanted(e.currentTarget.value)} aria-label={t("search")} placeholder={t("search")} />
            </div>
          )}
          <div class="checks">
            {shown.map(([value, text]) => (
              <label key={value} class="check">
                <input type="checkbox" checked={sources.includes(value)} onChange={() => setSources(toggle(sources, value))} />
                <span>{text}</span>
              </label>
            ))}
          </div>
        </fieldset>
        <fieldset>
          <legend>{t("rows.where")}</legend>
          {there.length === 0 && <p class="hint">{t("exit.nonethere")}</p>}
          <div class="checks">
            {[...new Set([...there, ...exits])].map((x) => (
              <label key={x} class="check">
                <input type="checkbox" checked={exits.includes(x)} onChange={() => setExits(toggle(exits, x))} />
                <span>
                  {short(x)}
                  {exits.includes(x) && exits.length > 1 && <small> {t("rows.nth", { n: exits.indexOf(x) + 1 })}</small>}
                </span>
              </label>
            ))}
          </div>
        </fieldset>
        <fieldset>
          <legend>{exits.length > 0 ? t("rows.none") : t("rows.noexit")}</legend>
          <div class="checks">
            <label class="check">
              <input type="radio" name="end" checked={!direct} onChange={() => setDirect(false)} />
              <span>{t("kill.on")}</span>
            </label>
            <label class="check">
              <input type="radio" name="end" checked={direct} onChange={() => setDirect(true)} />
              <span>{t("kill.off")}</span>
            </label>
          </div>
        </fieldset>
      </Form>
      <Button apart onClick={close}>
        {t("cancel")}
      </Button>
    </Ask>
  );
}

function Tester(): JSX.Element {
  const view = useView((v) => v);
  const [of, setOf] = useState("router");
  const [answer, setAnswer] = useState<ExitTest | null>(null);
  const things: [string, string][] = [
    ["router", t("source.router")],
    ...sortDevices(view.devices.values())
      .filter((d) => d.mac)
      .map((d) => [d.mac, deviceName(d)] as [string, string]),
  ];
  return (
    <Card title={t("tester")}>
      <Form asks button={t("tester.ask")} send={async () => setAnswer(await api.get<ExitTest>(api.query("/v1/exit/test", "of", of)))}>
        <Choice label={t("tester.what")} value={of} options={things} set={setOf} />
      </Form>
      <div role="status">
        {answer && (
          <p class="answer">
            {sourceName(answer.what, view)}: {answer.row ? <Now of={answer.row} /> : <State tone="ok">{t("now.direct")}</State>}{" "}
            <span class="hint">{answer.row ? t("tester.row", { n: answer.row.row }) : t("tester.norow")}</span>
            {answer.unsure && (
              <span class="hint" lang="en">
                {" "}
                {answer.unsure}
              </span>
            )}
          </p>
        )}
      </div>
    </Card>
  );
}

function Offer(): JSX.Element | null {
  const exits = useView((v) => v.house?.status.exits);
  if (!exits) return null;
  return (
    <Card title={t("offer")}>
      <p>{t("offer.text")}</p>
      <Switch on={exits.offer} label={t("offer.label")} text={t("offer.label")} words={[t("off"), t("on")]} set={(on) => api.post("/v1/exit/offer", { on })} />
      {exits.offer && !exits.approved && <p class="notice warn">{t("offer.unapproved")}</p>}
    </Card>
  );
}
