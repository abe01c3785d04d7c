// Before the first paint, and no module for that reason: the theme that was chosen here, or the system's.
"use strict";
(() => {
  const chosen = localStorage.getItem("stoker-theme");
  if (chosen) document.documentElement.dataset.theme = chosen;
})();
