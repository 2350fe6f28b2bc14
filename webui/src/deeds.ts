// What several pages do at the router.
import * as api from "./api";
import { row, replaced, written, type Row } from "./exits";
import { now, patch } from "./live";
import type { Device, DeviceExpose } from "./status";
import { change } from "./trial";
import { deviceKey } from "./view";

// rowsNow are the rows in force.
export const rowsNow = (): Row[] => (now().house?.status.exits.rows ?? []).map(row);

// setRows puts these rows in the place of all there are.
export const setRows = (rows: readonly Row[]): Promise<void> => change({ rows: rows.map(written) });

// exitsGoDirect lets the sources of a row, counted from 1, go without an exit as long as none answers.
export const exitsGoDirect = (n: number): Promise<void> => {
  const rows = rowsNow();
  const blocked = rows[n - 1];
  return blocked ? setRows(replaced(rows, n - 1, { ...blocked, direct: true })) : Promise.resolve();
};

const told = (d: Device): void => patch({ devices: [d] });

export const expose = async (d: Device, as: Omit<DeviceExpose, "device"> = {}): Promise<void> =>
  told(await api.post<Device>("/v1/devices/expose", { device: deviceKey(d), ...as }));

export const hide = async (d: Device): Promise<void> => told(await api.post<Device>("/v1/devices/hide", { device: deviceKey(d) }));

export const rename = async (d: Device, name: string): Promise<void> =>
  told(await api.post<Device>("/v1/devices/name", { device: deviceKey(d), name }));

// serve has the router answer for a device's web page at that port, or not any more ("").
export const serve = async (d: Device, target: string): Promise<void> =>
  told(await api.post<Device>("/v1/devices/web", { device: deviceKey(d), target }));

export const wake = (d: Device): Promise<unknown> => api.post("/v1/devices/wake", { device: deviceKey(d) });

// exitOf sends one device through an exit, "direct", "block", or ("") as its rows say without it.
export const exitOf = (d: Device, exit: string): Promise<unknown> =>
  exit === "" ? api.post("/v1/exit/off", { devices: [d.mac] }) : api.post("/v1/exit/use", { exits: [exit], devices: [d.mac] });
