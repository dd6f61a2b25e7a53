// The button for colours: as the system, light, dark.

const WORDS = { auto: "as the system", light: "light", dark: "dark" };
const NEXT = { auto: "light", light: "dark", dark: "auto" };

export function setUpTheme(button, changed) {
  const root = document.documentElement;
  let theme = root.dataset.theme ?? "auto";
  const tell = () => {
    const words = `Colours: ${WORDS[theme]}`;
    button.setAttribute("aria-label", words);
    button.title = words;
  };
  button.addEventListener("click", () => {
    theme = NEXT[theme];
    if (theme === "auto") delete root.dataset.theme;
    else root.dataset.theme = theme;
    try {
      localStorage.setItem("streamvae-theme", theme);
    } catch {
      // Storage is off: chosen until the page is left.
    }
    tell();
    changed();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", changed);
  tell();
}
