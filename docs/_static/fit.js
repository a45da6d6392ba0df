// A displayed formula that is wider than its column is set smaller, down to two thirds; below that, as on a phone, it scrolls and says so.
const fit = () => {
  const formulas = [...document.querySelectorAll('mjx-container[display="true"]')];
  for (const formula of formulas) formula.style.fontSize = formula.dataset.size ??= formula.style.fontSize; // as MathJax set it
  const found = formulas.map((f) => [parseFloat(getComputedStyle(f).fontSize), (0.98 * f.clientWidth) / f.scrollWidth]);
  formulas.forEach((formula, i) => {
    const [size, ratio] = found[i];
    if (ratio < 0.98) formula.style.fontSize = `${size * Math.max(ratio, 0.67)}px`;
    formula.closest("div.math")?.classList.toggle("scrolls", ratio < 0.67);
  });
};
window.addEventListener("load", () => (window.MathJax?.startup?.promise ?? Promise.resolve()).then(fit));
window.addEventListener("resize", fit);
