"use strict";
// A link to a record opens the details it lies in, however one came to it.
(function () {
  function open() {
    var id = decodeURIComponent(location.hash.slice(1));
    var found = id && document.getElementById(id);
    if (!found) return;
    for (var at = found.parentElement; at; at = at.parentElement) {
      if (at.tagName === "DETAILS") at.open = true;
    }
    found.scrollIntoView();
  }
  addEventListener("hashchange", open);
  open();
})();
