// The picture of the last hour: what came from the mesh above the line, what went to it below.
import type { JSX } from "preact";
import { t } from "./i18n";
import { useView } from "./live";
import { Card } from "./parts";
import { bytes, clock, rate } from "./words";

const width = 600;
const half = 56;
const points = 60;

// area is the outline of a series on one side of the middle line. The square root keeps the small beside the large visible.
export function area(series: readonly number[], most: number, side: 1 | -1): string {
  const step = width / (points - 1);
  const at = (n: number): number => half - side * (half - 2) * Math.sqrt(most > 0 ? n / most : 0);
  const from = points - series.length;
  const line = series.map((n, i) => `${((from + i) * step).toFixed(1)} ${at(n).toFixed(1)}`);
  return `M${(from * step).toFixed(1)} ${half}L${line.join("L")}L${width} ${half}z`;
}

export function TrafficPicture(): JSX.Element | null {
  const traffic = useView((v) => v.traffic);
  const all = traffic?.points ?? [];
  const last = all.at(-1);
  if (!traffic || !last || all.every((p) => p.rx + p.tx === 0)) return null;
  const sum = (f: (p: { rx: number; tx: number }) => number): number => all.reduce((n, p) => n + f(p), 0);
  const most = Math.max(1, ...all.map((p) => Math.max(p.rx, p.tx)));
  const until = Date.parse(traffic.until);
  const said = t("traffic.text", { rx: bytes(sum((p) => p.rx)), tx: bytes(sum((p) => p.tx)) });
  return (
    <Card title={t("traffic")}>
      <figure class="traffic">
        <svg viewBox={`0 0 ${width} ${2 * half}`} preserveAspectRatio="none" role="img" aria-label={said}>
          <path class="rx" d={area(all.map((p) => p.rx), most, 1)} />
          <path class="tx" d={area(all.map((p) => p.tx), most, -1)} />
          <path class="middle" d={`M0 ${half}H${width}`} />
        </svg>
        <div class="axis" aria-hidden="true">
          <span>{clock(until - points * traffic.seconds * 1000)}</span>
          <span>{clock(until)}</span>
        </div>
        <figcaption>
          <span class="key rx">{t("traffic.rx", { sum: bytes(sum((p) => p.rx)), rate: rate(last.rx, traffic.seconds) })}</span>
          <span class="key tx">{t("traffic.tx", { sum: bytes(sum((p) => p.tx)), rate: rate(last.tx, traffic.seconds) })}</span>
        </figcaption>
      </figure>
    </Card>
  );
}
