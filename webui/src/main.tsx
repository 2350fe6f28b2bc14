import { render } from "preact";
import { App } from "./app";
import { preferred, speak } from "./i18n";
import { applyTheme } from "./theme";

applyTheme();
const root = document.getElementById("app");
if (root) void speak(preferred()).finally(() => render(<App />, root));
