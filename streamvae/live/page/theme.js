// The colours chosen earlier, before anything is painted.
(() => {
  try {
    const chosen = localStorage.getItem("streamvae-theme");
    if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
  } catch {
    // Storage is off: the system's colours it is.
  }
})();
