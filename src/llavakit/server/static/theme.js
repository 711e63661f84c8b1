"use strict";
// Before the first paint: a theme that was chosen earlier, so that nothing flashes.
try {
  const chosen = localStorage.getItem("llavakit.theme");
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
} catch { /* storage switched off: the system's theme holds */ }
