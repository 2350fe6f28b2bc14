// The shell: who we are to the router decides between wizard, login and page; the address decides which page.
import type { JSX } from "preact";
import { useCallback, useEffect, useRef, useState } from "preact/hooks";
import * as api from "./api";
import { Icon, type IconName } from "./icons";
import { t, type Key } from "./i18n";
import { follow, useView } from "./live";
import { DevicePage } from "./pages/device";
import { DevicesPage } from "./pages/devices";
import { ExitPage } from "./pages/exit";
import { HomePage } from "./pages/home";
import { LoginPage } from "./pages/login";
import { PeerPage } from "./pages/peer";
import { SharingPage } from "./pages/sharing";
import { SystemPage } from "./pages/system";
import { Wizard } from "./pages/wizard";
import { Button, May, State } from "./parts";
import { usePath, type Path } from "./route";
import type { Page } from "./status";
import { TrialBar } from "./trial";
import { clock } from "./words";

const destinations: readonly (readonly [path: string, word: Key, icon: IconName])[] = [
  ["/", "nav.home", "house"],
  ["/devices", "nav.devices", "devices"],
  ["/exit", "nav.exit", "exit"],
  ["/sharing", "nav.sharing", "share"],
  ["/system", "nav.system", "system"],
];

// begun remembers that this browser is in the middle of the wizard, over a reload.
const begun = "subnetd.wizard";

export function App(): JSX.Element {
  const [page, setPage] = useState<Page | null>(null);
  const [contact, setContact] = useState(true);
  const [wizard, setWizard] = useState(sessionStorage.getItem(begun) !== null);
  const path = usePath();

  // A member of the mesh is known by the mesh: it needs no password.
  const take = useCallback(async (p: Page) => {
    const known = p.state === "login" && p.over === "mesh" && p.member;
    setPage(known ? await api.login({}).catch(() => p) : p);
  }, []);
  const look = useCallback(async () => {
    try {
      await take(await api.page());
      setContact(true);
    } catch {
      setContact(false);
    }
  }, [take]);
  useEffect(() => void look(), [look]);
  useEffect(() => api.whenLoggedOut(() => void look()), [look]);
  const inside = page?.state === "in";
  useEffect(() => (inside ? follow((p) => void take(p)) : undefined), [inside, take]);

  // Another place begins at its heading, for who reads the screen or has no mouse.
  const place = inside && !wizard ? "house" : (page?.state ?? "");
  const before = useRef("");
  useEffect(() => {
    if (before.current !== "") document.querySelector<HTMLElement>("main h1")?.focus({ preventScroll: true });
    before.current = place;
  }, [place]);

  const end = (): void => {
    sessionStorage.removeItem(begun);
    setWizard(false);
  };
  const begin = (p: Page): void => {
    sessionStorage.setItem(begun, "1");
    setWizard(true);
    setPage(p);
  };

  if (!page) return <Waiting contact={contact} again={() => void look()} />;
  if (page.state === "setup") return <Wizard page={page} begin={begin} end={end} />;
  if (page.state !== "in") return <LoginPage page={page} enter={setPage} again={() => void look()} />;
  return (
    <May.Provider value={page.owner ?? false}>
      {wizard ? <Wizard page={page} begin={begin} end={end} /> : <Shell page={page} path={path} setPage={setPage} />}
    </May.Provider>
  );
}

function Waiting({ contact, again }: { contact: boolean; again: () => void }): JSX.Element {
  return (
    <main class="alone" aria-busy={contact}>
      {contact ? (
        <p role="status">{t("loading")}</p>
      ) : (
        <div class="card">
          <h1>{t("nocontact")}</h1>
          <p>{t("nocontact.text")}</p>
          <Button kind="main" apart onClick={again}>
            {t("again")}
          </Button>
        </div>
      )}
    </main>
  );
}

function Shell({ page, path, setPage }: { page: Page; path: Path; setPage: (p: Page) => void }): JSX.Element {
  const live = useView((v) => v.live);
  const here = `/${path[0] ?? ""}`;
  return (
    <div class={live ? "shell" : "shell stale"}>
      <a class="skip" href="#main" onClick={skip}>
        {t("skip")}
      </a>
      <nav aria-label={t("nav")}>
        <p class="brand">
          <Icon name="house" size={22} />
          <span>{page.host ?? "subnetd"}</span>
        </p>
        <ul>
          {destinations.map(([to, word, icon]) => (
            <li key={to}>
              <a href={to} aria-current={here === to ? "page" : undefined}>
                <Icon name={icon} />
                <span>{t(word)}</span>
              </a>
            </li>
          ))}
        </ul>
        <div class="contact">
          <State tone="ok">{live ? t("live") : t("stale")}</State>
        </div>
      </nav>
      <main id="main" tabIndex={-1}>
        <Lost />
        <TrialBar />
        {!page.owner && <p class="notice info">{t("readonly", { who: page.who ?? page.member ?? "" })}</p>}
        <Place path={path} page={page} setPage={setPage} />
      </main>
    </div>
  );
}

const skip = (e: MouseEvent): void => {
  e.preventDefault();
  document.getElementById("main")?.focus();
};

function Place({ path, page, setPage }: { path: Path; page: Page; setPage: (p: Page) => void }): JSX.Element {
  const [first, second, third] = path;
  switch (first) {
    case "devices":
      if (second === "peer" && third) return <PeerPage key={third} name={third} />;
      if (second) return <DevicePage key={second} of={second} />;
      return <DevicesPage />;
    case "exit":
      return <ExitPage />;
    case "sharing":
      return <SharingPage />;
    case "system":
      return <SystemPage page={page} setPage={setPage} />;
  }
  return <HomePage />;
}

// Lost says that what is shown is as of then, while the router is out of reach.
function Lost(): JSX.Element {
  const live = useView((v) => v.live);
  const at = useView((v) => (v.live ? 0 : v.at));
  return (
    <div role="status" class="lost">
      {!live && (
        <p class="notice stale">
          <Icon name="clock" size={20} />
          <span>{at > 0 ? t("lost", { time: clock(at) }) : t("loading")}</span>
        </p>
      )}
    </div>
  );
}
