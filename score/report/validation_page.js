// Draws each chart in its place.
"use strict";
(async () => {
  const page = JSON.parse(document.getElementById("page-data").textContent);
  const views = {};
  for (const [id, spec] of Object.entries(page.charts)) {
    const embedded = await vegaEmbed(document.getElementById(id), spec, {
      renderer: "svg", actions: false, config: page.config, logLevel: 1 /* errors */,
    });
    views[id] = embedded.view;
  }
  window.headscore = { views, ready: true };
})();
