// What scrolls sideways must be reachable by keyboard, and only then.
function reachable() {
  for (const box of document.querySelectorAll("pre, .table-wrapper, .cell_output, div.math, mjx-container")) {
    const scrolls = box.scrollWidth > box.clientWidth + 1 || box.scrollHeight > box.clientHeight + 1;
    if (scrolls && getComputedStyle(box).overflowX !== "visible") box.tabIndex = 0;
    else if (box.tabIndex === 0 && box.tagName !== "MJX-CONTAINER") box.removeAttribute("tabindex");
  }
}
addEventListener("load", reachable);
addEventListener("resize", reachable);
document.addEventListener("toggle", reachable, true); // a fold that opens
