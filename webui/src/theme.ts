// Dark or light: as the browser is, unless the owner chose.
const remembered = "subnetd.theme";

export type Theme = "auto" | "light" | "dark";

export function theme(): Theme {
  const t = localStorage.getItem(remembered);
  return t === "light" || t === "dark" ? t : "auto";
}

export function applyTheme(): void {
  document.documentElement.dataset.theme = theme();
}

export function chooseTheme(t: Theme): void {
  localStorage.setItem(remembered, t);
  applyTheme();
}
