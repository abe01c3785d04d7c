// Before the first paint, and no module for that reason: the theme that was chosen here, or the system's.
"use strict";
(() => {
  try {
    const chosen = localStorage.getItem("stoker-theme");
    if (chosen) document.documentElement.dataset.theme = chosen;
  } catch {
    // A browser that keeps nothing for this site: the system's theme.
  }
})();
