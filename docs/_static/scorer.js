// The order of search results: a page named as what is asked for, then derivations, notebooks, text, and last the API.
var Scorer = {
  score: ([page, title, anchor, description, score]) => {
    const asked = (new URLSearchParams(window.location.search).get("q") || "").trim().toLowerCase().replace(/[\s-]+/g, "_");
    const [folder] = page.split("/");
    const named = page.split("/").pop() === asked || page.split("/").pop() === asked.replaceAll("_", "");
    const kind = { theory: 20, notebooks: 10, api: -10, proofs: -10 }[folder] || 0;
    return score + kind + (named && !anchor ? 200 : named ? 100 : 0);
  },
  objNameMatch: 11, objPartialMatch: 6, objPrio: { 0: 15, 1: 5, 2: -5 }, objPrioDefault: 0,
  title: 15, partialTitle: 7, term: 5, partialTerm: 2,
};
