"use strict";
// The leaderboard: filters, ranking and cells of window.BOARD. The ranking is what reports/site/board.py
// computes; both are held against each other by a test.
(function () {
  var NOT_FAILED = ["skipped", "infra", "proven"];
  var PAGE = 150; // cells that are shown at once
  var ROWS = window.BOARD.rows.map(function (row) {
    var entry = {};
    window.BOARD.columns.forEach(function (name, n) { entry[name] = row[n]; });
    return entry;
  });
  var FILTERS = [
    ["task", "task"], ["dtype", "dtype"], ["dim", "head dim"], ["mask", "mask"], ["method", "method"],
    ["model", "model"], ["backend", "backend"], ["track", "track"], ["verdict", "verdict"], ["run", "run"],
  ];
  // These say which contenders are shown; cells are counted without them.
  var OF_CONTENDERS = ["method", "model", "backend", "track", "verdict"];
  var state = {};
  var sort = { ranks: ["", 1], entries: ["", 1] };
  var all = false;

  function el(name, attributes, children) {
    var made = document.createElement(name);
    Object.keys(attributes || {}).forEach(function (key) { made.setAttribute(key, attributes[key]); });
    [].concat(children === undefined ? [] : children).forEach(function (child) {
      made.append(child);
    });
    return made;
  }

  function chosen(without) {
    return ROWS.filter(function (e) {
      if (e.target !== state.target) return false;
      return FILTERS.every(function (f) {
        return (without || []).includes(f[0]) || !state[f[0]] || String(e[f[0]]) === state[f[0]];
      });
    });
  }

  function median(values) {
    var known = values.filter(function (v) { return v !== null; }).sort(function (a, b) { return a - b; });
    if (!known.length) return null;
    var middle = known.length >> 1;
    return known.length % 2 ? known[middle] : (known[middle - 1] + known[middle]) / 2;
  }

  function largest(values) {
    var known = values.filter(function (v) { return v !== null; });
    return known.length ? Math.max.apply(null, known) : null;
  }

  function frequent(names) {
    var count = new Map();
    names.forEach(function (name) { count.set(name, (count.get(name) || 0) + 1); });
    return Array.from(count.keys()).sort(function (a, b) { return count.get(b) - count.get(a); }).join(", ");
  }

  function cellsOf(entries) {
    var cells = {};
    entries.forEach(function (e) {
      if (e.best_human) (cells[e.run] = cells[e.run] || new Set()).add(e.task + " " + e.workload);
    });
    return cells;
  }

  function rankOf(own, cells) {
    var beside = own.filter(function (e) { return e.best_human; });
    var measured = beside.filter(function (e) { return e.speedup !== null; });
    var failed = beside.filter(function (e) {
      return e.speedup === null && !NOT_FAILED.includes(e.verdict);
    }).length;
    var sum = 0, up = 0, down = 0, n = measured.length;
    measured.forEach(function (e) {
      sum += Math.log(e.speedup);
      up += Math.pow(Math.log(e.high / e.speedup), 2);
      down += Math.pow(Math.log(e.speedup / e.low), 2);
    });
    return {
      run: own[0].run, contender: own[0].contender, kind: own[0].kind, backend: own[0].backend,
      kernel: own[0].kernel, measured: n, failed: failed, cells: cells,
      geomean: n ? Math.exp(sum / n) : null,
      low: n ? Math.exp((sum - Math.sqrt(down)) / n) : null,
      high: n ? Math.exp((sum + Math.sqrt(up)) / n) : null,
      counted: n + failed ? Math.exp((sum + failed * Math.log(window.FAILED)) / (n + failed)) : null,
      faster: beside.filter(function (e) { return e.standing === "faster"; }).length,
      noise: median(own.map(function (e) { return e.noise; })),
      tflops: largest(own.map(function (e) { return e.tflops; })),
      percent: largest(own.map(function (e) { return e.percent_of_peak; })),
      against: frequent(beside.map(function (e) { return e.best_human; })),
      whole: n + failed === cells,
    };
  }

  function rank(entries, cells) {
    var groups = new Map();
    entries.forEach(function (e) {
      var key = [e.run, e.contender, e.kind].join("\n");
      if (!groups.has(key)) groups.set(key, []);
      groups.get(key).push(e);
    });
    return Array.from(groups.values())
      .map(function (own) { return rankOf(own, (cells[own[0].run] || new Set()).size); })
      .filter(function (r) { return r.measured + r.failed; })
      .sort(function (a, b) {
        return b.whole - a.whole || b.counted - a.counted || order(a.run, b.run) || order(a.contender, b.contender);
      });
  }

  function order(a, b) { return a < b ? -1 : a > b ? 1 : 0; }

  function sorted(rows, by) {
    if (!by[0]) return rows;
    return rows.slice().sort(function (a, b) {
      var x = a[by[0]], y = b[by[0]];
      if (x === null || y === null) return (x === null) - (y === null); // what was not measured stays last
      return by[1] * order(x, y);
    });
  }

  // --- writing figures, as reports/text.py does ---

  function cpu() { return state.target === "cpu"; }
  function unit() { return cpu() ? "GFLOP/s" : "TFLOP/s"; }
  function rate(tflops) {
    var v = cpu() ? tflops * 1000 : tflops;
    return v >= 1000 ? v.toFixed(0) : v >= 1 ? v.toFixed(1) : String(Number(v.toPrecision(3)));
  }
  function ms(v) { return v >= 1 ? Number(v.toPrecision(4)) + " ms" : Number((1000 * v).toPrecision(4)) + " us"; }
  function length(n) { return n >= 1024 && n % 1024 === 0 ? n / 1024 + "k" : String(n); }
  function muted(said) { return el("span", { class: "muted" }, said); }
  function interval(e) { return muted("[" + e.low.toFixed(3) + ", " + e.high.toFixed(3) + "]"); }
  function percent(v, digits) { return v.toFixed(digits) + " %"; }

  function shape(e) {
    var heads = e.heads === e.kv_heads ? e.heads + " heads" : e.heads + "/" + e.kv_heads + " heads";
    var dim = e.dim === e.dim_v ? "d" + e.dim : "d" + e.dim + "/" + e.dim_v;
    var seq = e.seq_q === e.seq_k ? length(e.seq_k) : length(e.seq_q) + " x " + length(e.seq_k);
    return (e.label ? e.label + ", " : "") + [seq, "b" + e.batch, heads, dim, e.dtype].join(", ");
  }

  // --- tables ---

  var CELLS = [
    ["contender", "contender", function (e) { return e.kernel ? el("a", { href: e.kernel }, e.contender) : e.contender; }],
    ["task", "task", function (e) { return el("a", { href: "tasks/" + e.task.replace(/[^A-Za-z0-9_-]/g, "-") + ".html" }, e.task); }],
    ["seq_k", "shape", shape],
    ["verdict", "verdict", function (e) { return e.verdict; }],
    ["speedup", "speedup", function (e) {
      if (e.speedup === null) return muted(e.best_human ? "" : "no human baseline");
      var made = el("a", { href: e.link, title: "record " + e.record }, e.speedup.toFixed(3));
      return el("span", {}, [made, " ", interval(e), e.paired ? "" : muted(" not paired")]);
    }, "n"],
    ["standing", "beyond noise", function (e) { return e.standing; }],
    ["noise", "noise floor", function (e) { return e.noise === null ? "" : percent(100 * e.noise, 2); }, "n"],
    ["tflops", "throughput", function (e) { return e.tflops === null ? "" : rate(e.tflops) + " " + unit(); }, "n"],
    ["percent_of_peak", "of peak", function (e) {
      return e.percent_of_peak === null ? "" : percent(e.percent_of_peak, 1);
    }, "n"],
    ["time_ms", "device time", function (e) { return e.time_ms === null ? "" : ms(e.time_ms); }, "n"],
    ["best_human", "best human", function (e) { return e.best_human; }],
    ["run", "run", function (e) { return el("a", { href: e.link }, e.run); }],
  ];

  function showCells(entries) {
    var table = document.getElementById("entries");
    var found = sorted(entries, sort.entries);
    table.tHead.replaceChildren(el("tr", {}, CELLS.map(function (c) {
      return heading(c[0], c[1], c[3] || "", "entries");
    })));
    var shown = all ? found : found.slice(0, PAGE);
    table.tBodies[0].replaceChildren.apply(table.tBodies[0], shown.map(function (e) {
      var failed = e.speedup === null && !NOT_FAILED.includes(e.verdict) && e.verdict !== "ok";
      return el("tr", { class: e.kind === "baseline" ? "human" : "" }, CELLS.map(function (c) {
        var style = (c[3] || "") + (c[0] === "verdict" && failed ? " bad" : "") +
          (c[0] === "standing" && e.standing === "faster" && e.kind !== "baseline" ? " good" : "");
        var cell = el("td", { class: style }, c[2](e));
        if (c[0] === "verdict" && e.reason) cell.title = e.reason;
        return cell;
      }));
    }));
    var more = document.getElementById("more");
    more.hidden = shown.length === found.length;
    more.textContent = "Show all " + found.length.toLocaleString("en") + " cells";
  }

  function heading(key, said, style, table) {
    var by = sort[table];
    var direction = by[0] !== key ? "none" : by[1] > 0 ? "ascending" : "descending";
    var button = el("button", { type: "button" }, said);
    button.addEventListener("click", function () {
      var first = style === "n" ? -1 : 1; // figures: the largest first
      sort[table] = by[0] !== key ? [key, first] : by[1] === first ? [key, -first] : ["", 1];
      show();
      var again = document.querySelector("#" + table + ' [data-key="' + key + '"] button');
      if (again) again.focus();
    });
    return el("th", { scope: "col", class: style, "aria-sort": direction, "data-key": key }, button);
  }

  var RANKS = [
    ["", "#", "n"], ["contender", "contender", ""], ["counted", "speedup over the best human", "n"],
    ["faster", "ahead beyond noise", "n"], ["measured", "cells", "n"], ["noise", "noise floor", "n"],
    ["tflops", "best ", "n"], ["percent", "of peak", "n"], ["against", "best humans here", ""],
    ["run", "run", ""],
  ];

  function rankRow(r, place) {
    var speed = r.geomean === null ? muted("not measured") :
      el("span", {}, [el("b", {}, r.counted.toFixed(3)), " ", interval(r)]);
    var cells = [r.measured + "/" + r.cells].concat(
      r.failed ? [" ", el("span", { class: "bad" }, r.failed + " failed")] : []);
    var name = r.kind !== "baseline" && r.kernel && !/\(best of/.test(r.contender) ?
      el("a", { href: r.kernel }, r.contender) : r.contender;
    return el("tr", { class: r.kind === "baseline" ? "human" : "" }, [
      el("td", { class: "n" }, place),
      el("td", {}, [name, " ", muted(r.kind === "baseline" ? "human" : r.backend)]),
      el("td", { class: "n" }, speed),
      el("td", { class: "n" }, String(r.faster)),
      el("td", { class: "n" }, cells),
      el("td", { class: "n" }, r.noise === null ? muted("not taken") : percent(100 * r.noise, 2)),
      el("td", { class: "n" }, r.tflops === null ? "" : rate(r.tflops)),
      el("td", { class: "n" }, r.percent === null ? "" : percent(r.percent, 1)),
      el("td", {}, r.against),
      el("td", {}, el("a", { href: "runs/" + r.run + "/report.html" }, r.run)),
    ]);
  }

  function showRanks(ranks) {
    var table = document.getElementById("ranks");
    table.tHead.replaceChildren(el("tr", {}, RANKS.map(function (c) {
      if (!c[0]) return el("th", { scope: "col", class: "n" }, c[1]);
      return heading(c[0], c[0] === "tflops" ? c[1] + unit() : c[1], c[2], "ranks");
    })));
    var rows = [];
    var apart = false;
    sorted(ranks, sort.ranks).forEach(function (r) {
      if (!sort.ranks[0] && !r.whole && !apart) {
        apart = true;
        rows.push(el("tr", { class: "apart" },
          el("th", { colspan: "10", scope: "colgroup" }, "Tried in some of these cells only: no rank")));
      }
      rows.push(rankRow(r, r.whole ? String(ranks.indexOf(r) + 1) : ""));
    });
    if (!rows.length) {
      var none = "Nothing was measured beside a human baseline with these filters.";
      rows.push(el("tr", {}, el("td", { colspan: "10", class: "muted" }, none)));
    }
    table.tBodies[0].replaceChildren.apply(table.tBodies[0], rows);
  }

  // --- filters ---

  function options(key) {
    var others = FILTERS.map(function (f) { return f[0]; }).filter(function (name) { return name === key; });
    var found = new Set(chosen(others).map(function (e) { return String(e[key]); }));
    found.delete("");
    if (state[key]) found.add(state[key]);
    return Array.from(found).sort(function (a, b) {
      return isNaN(a) || isNaN(b) ? order(a, b) : a - b;
    });
  }

  function showFilters() {
    FILTERS.forEach(function (f) {
      var select = document.getElementById("f-" + f[0]);
      var choices = [el("option", { value: "" }, "all")].concat(options(f[0]).map(function (value) {
        return el("option", { value: value }, value);
      }));
      select.replaceChildren.apply(select, choices);
      select.value = state[f[0]] || "";
      select.className = state[f[0]] ? "set" : "";
    });
    document.querySelectorAll("#filters input[name=target]").forEach(function (input) {
      input.checked = input.value === state.target;
    });
  }

  function build() {
    var form = document.getElementById("filters");
    var targets = Array.from(new Set(ROWS.map(function (e) { return e.target; })));
    targets.sort(function (a, b) { return (b === window.START.target) - (a === window.START.target) || order(a, b); });
    targets.forEach(function (target) {
      var input = el("input", { type: "radio", name: "target", value: target });
      input.addEventListener("change", function () {
        var task = state.task;
        state = { target: target };
        if (ROWS.some(function (e) { return e.target === target && e.task === task; })) state.task = task;
        changed();
      });
      form.querySelector(".targets").append(el("label", {}, [input, target]));
    });
    FILTERS.forEach(function (f) {
      var select = el("select", { id: "f-" + f[0] });
      select.addEventListener("change", function () {
        state[f[0]] = select.value;
        changed();
      });
      form.querySelector(".selects").append(el("label", {}, [f[1], select]));
    });
    var reset = el("button", { type: "button" }, "Clear filters");
    reset.addEventListener("click", function () {
      state = { target: state.target };
      changed();
    });
    form.querySelector(".selects").append(el("div", { class: "reset" }, reset));
    document.getElementById("more").addEventListener("click", function () { all = true; show(); });
    form.hidden = false;
  }

  function changed() {
    all = false;
    var said = new URLSearchParams();
    ["target"].concat(FILTERS.map(function (f) { return f[0]; })).forEach(function (key) {
      if (state[key]) said.set(key, state[key]);
    });
    history.replaceState(null, "", "#" + said);
    show();
  }

  function read() {
    var said = new URLSearchParams(location.hash.slice(1));
    state = {};
    said.forEach(function (value, key) { state[key] = value; });
    if (!ROWS.some(function (e) { return e.target === state.target; })) {
      state = { target: window.START.target, task: window.START.task };
    }
  }

  function show() {
    var entries = chosen();
    var ranks = rank(entries, cellsOf(chosen(OF_CONTENDERS)));
    showFilters();
    showRanks(ranks);
    showCells(entries);
    var devices = Array.from(new Set(entries.map(function (e) { return e.device; })));
    var said = FILTERS.filter(function (f) { return state[f[0]]; }).map(function (f) {
      return f[1] + " " + state[f[0]];
    });
    document.getElementById("scope").textContent =
      [state.target].concat(said).join(", ") + (devices.length ? ". Device: " + devices.join(", ") : "") + ".";
    var cells = new Set(entries.map(function (e) { return e.run + " " + e.task + " " + e.workload; })).size;
    document.querySelector(".said").textContent = ranks.length + " contenders in " + cells + " cells, " +
      entries.length + " results.";
    window.RANKS = ranks; // for tests
  }

  build();
  read();
  show();
  addEventListener("hashchange", function () { read(); show(); });
})();
