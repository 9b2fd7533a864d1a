// Results of a search: pages that show how to do something before those that tell its history.
// The weights are those of Sphinx; `score` adds what the section of a page is worth.
const SECTIONS = [
  [/^(guide|start|zh)\//, 6],
  [/^(calls|looking|family|layers|performance)$/, 4],
  [/^reference\//, 2],
  [/^(design|examples\/)/, 1],
  [/^(experiments|testing|outside|releasing|figures\/|development\/(changelog|benchmarks))/, -3],
];

var Scorer = {
  score: ([page, , , , score]) =>
    SECTIONS.reduce((sum, [names, worth]) => sum + (names.test(page) ? worth : 0), score),
  objNameMatch: 11,
  objPartialMatch: 6,
  objPrio: { 0: 15, 1: 5, 2: -5 },
  objPrioDefault: 0,
  title: 15,
  partialTitle: 7,
  term: 5,
  partialTerm: 2,
};
