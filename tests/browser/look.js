// What the tests ask of a page, as one who only has a keyboard or a phone would.

window.look = {
  all: () => [...document.querySelectorAll("*")],

  text: (one) => one.outerHTML.slice(0, 120),

  /** Tell what has the focus: whether a ring is drawn around it, and whether it can be seen where it is. */
  at() {
    const at = document.activeElement;
    if (at === document.body) return null;
    // The ring of a choice that is drawn as a button is around its words.
    const label = at.closest("label");
    const ringed = (one) => {
      const { outlineStyle, outlineWidth } = getComputedStyle(one);
      return outlineStyle !== "none" && parseFloat(outlineWidth) > 0;
    };
    const box = at.getClientRects()[0]; // of words that are broken, the first line
    const middle = (from, to, most) => (Math.max(from, 0) + Math.min(to, most)) / 2;
    const over = document.elementFromPoint(middle(box.left, box.right, innerWidth), middle(box.top, box.bottom, innerHeight));
    return {
      index: look.all().indexOf(at),
      what: look.text(at),
      ringed: ringed(at) || Boolean(label && at.nextElementSibling && ringed(at.nextElementSibling)),
      seen: Boolean(over && (at.contains(over) || label?.contains(over))),
    };
  },

  /** Return what can be used, in the order of the page. Of a group of radio buttons the tabulator stops at the chosen one. */
  usable() {
    const kinds = 'a[href], button, input, select, textarea, summary, [tabindex="0"]';
    const can = (one) =>
      one.matches(kinds) &&
      !one.disabled &&
      one.type !== "hidden" &&
      one.checkVisibility({ visibilityProperty: true }) &&
      (one.type !== "radio" || one.checked);
    return look.all().filter(can).map((one) => ({ index: look.all().indexOf(one), what: look.text(one) }));
  },

  /** Return what makes the page scroll sideways, and the tables that do so although their rows are cards by now. */
  wide() {
    if (document.documentElement.scrollWidth <= innerWidth) {
      const cards = [...document.querySelectorAll(".scroll:has(> table.stack)")];
      return cards.filter((one) => one.scrollWidth > one.clientWidth + 1).map(look.text);
    }
    const parts = [...document.querySelectorAll("main *, header *")];
    return parts.filter((one) => one.getBoundingClientRect().right > innerWidth + 1).map(look.text);
  },

  /** Let the next stop of the tabulator be the first of the page, whatever had the focus. */
  begin() {
    document.body.tabIndex = -1;
    document.body.focus();
    document.body.removeAttribute("tabindex");
  },
};
