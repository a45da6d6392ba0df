// A displayed formula that is wider than its column is set smaller, down to two thirds; below that, as on a phone, it scrolls.
const fit = () => {
  for (const formula of document.querySelectorAll('mjx-container[display="true"]')) {
    formula.style.fontSize = "";
    const size = parseFloat(getComputedStyle(formula).fontSize);
    const ratio = formula.clientWidth / formula.scrollWidth;
    if (ratio < 1) formula.style.fontSize = `${size * Math.max(0.98 * ratio, 0.67)}px`;
  }
};
window.addEventListener("load", () => (window.MathJax?.startup?.promise ?? Promise.resolve()).then(fit));
window.addEventListener("resize", fit);
