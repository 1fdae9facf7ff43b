// What a search finds first: pages that explain, then the reference, then tests and history.
var Scorer = {
  score: (result) => {
    const [page, , , , score] = result;
    const asked = new URLSearchParams(window.location.search).get("q") ?? "";
    const plugin = asked.trim().toLowerCase().replace(/[ -]+/g, "_");
    if (page === `plugins/${plugin}`) return score + 40;
    if (page === "changes" || page === "releasing") return score - 40;
    if (page === "api/testing") return score - 30;
    if (page.startsWith("api/") || page === "architecture") return score - 10;
    if (/^(start|deliveries|loops|recipe|selections|schedules|strengths|writing)$/.test(page)) {
      return score + 3;
    }
    return score;
  },
  objNameMatch: 11,
  objPartialMatch: 6,
  objPrio: { 0: 15, 1: 5, 2: -5 },
  objPrioDefault: 0,
  title: 15,
  partialTitle: 7,
  term: 5,
  partialTerm: 2,
};
