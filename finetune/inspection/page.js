"use strict";
// What the page cannot do by itself: keys from row to row and from token to token, and a line that tells a token's id.
(() => {
  const rows = [...document.querySelectorAll("details.row")];
  const told = document.getElementById("told");
  const openAll = document.getElementById("open-all");

  const tell = (token) => {
    const tokens = [...token.closest(".tokens").querySelectorAll(".t")];
    const trained = token.closest("mark") ? "trained" : "not trained";
    const kind = token.classList.contains("chip") ? " · control token" : "";
    const place = `${tokens.indexOf(token) + 1} of ${tokens.length}`;
    told.textContent = `${token.title} · ${JSON.stringify(token.textContent)} · ${trained}${kind} · ${place}`;
    told.hidden = false;
  };

  const step = (box, event) => {
    const tokens = [...box.querySelectorAll(".t")];
    const here = tokens.indexOf(document.activeElement);
    const places = { ArrowRight: here + 1, ArrowLeft: here - 1, Home: 0, End: tokens.length - 1 };
    if (!(event.key in places) || event.ctrlKey || event.metaKey || event.altKey) return;
    const token = tokens[Math.min(Math.max(places[event.key], 0), tokens.length - 1)];
    token.tabIndex = -1;
    token.focus();
    event.preventDefault();
  };

  for (const box of document.querySelectorAll(".tokens")) {
    box.addEventListener("keydown", (event) => step(box, event));
    box.addEventListener("focusin", (event) => event.target !== box && tell(event.target));
    box.addEventListener("mouseover", (event) => event.target.classList.contains("t") && tell(event.target));
  }

  document.addEventListener("keydown", (event) => {
    const direction = { j: 1, k: -1 }[event.key];
    if (!direction || event.ctrlKey || event.metaKey || event.altKey || !rows.length) return;
    const here = rows.findIndex((row) => row.contains(document.activeElement));
    const next = here < 0 ? 0 : Math.min(Math.max(here + direction, 0), rows.length - 1);
    rows[next].querySelector("summary").focus();
    rows[next].scrollIntoView({ block: "nearest" });
  });

  const name = () => {
    openAll.textContent = rows.every((row) => row.open) ? "Close all rows" : "Open all rows";
  };
  openAll.addEventListener("click", () => {
    const opens = !rows.every((row) => row.open);
    for (const row of rows) row.open = opens;
    name();
  });
  openAll.hidden = rows.length === 0;
  name();
})();
