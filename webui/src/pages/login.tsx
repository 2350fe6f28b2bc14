// Login: the page's password. Or the sentence that says why there is none to be given.
import type { JSX } from "preact";
import { useState } from "preact/hooks";
import * as api from "../api";
import { Icon } from "../icons";
import { t } from "../i18n";
import { Button, Field, Form } from "../parts";
import type { Page } from "../status";

export function LoginPage({ page, enter, again }: { page: Page; enter: (p: Page) => void; again: () => void }): JSX.Element {
  const [password, setPassword] = useState("");
  const shut = page.state === "shut";
  return (
    <main class="alone">
      <div class="card">
        <p class="brand">
          <Icon name={shut ? "lock" : "house"} size={28} />
          <span>{page.host ?? "subnetd"}</span>
        </p>
        <h1 tabIndex={-1}>{shut ? t("shut") : t("login")}</h1>
        {shut ? (
          <>
            <p lang="en">{page.text}</p>
            <Button kind="main" apart onClick={again}>
              {t("again")}
            </Button>
          </>
        ) : (
          <Form apart button={t("login.go")} send={async () => enter(await api.login({ password }))}>
            <Field label={t(page.root ? "password.root" : "password")} type="password" complete="current-password" value={password} set={setPassword} required />
            {(page.retry ?? 0) > 0 && <p class="notice warn">{t("login.retry", { n: page.retry ?? 0 })}</p>}
          </Form>
        )}
      </div>
    </main>
  );
}
