"""Reports over the ledger that finance can use: asked for, added up, shown.

`definition` says what is asked (pure), `traffic` is where it is read (roll-ups for whole hours,
rows for the rest: `spans`), `sums` adds it up, with costs split by meter (`splits`) and what rating
runs changed (`corrected`). `cost`, `meters`, `quality` and `rows` make a `document` of it (tables,
charts, a foot), and `formats` writes a document in one of six. `focus` exports for finance's own
tools, `reconciliation` puts a provider's bill beside the ledger. Reads only. Knows neither the
command line nor what is in force; who calls says which backend is of which kind.

INVARIANTS
- Money is integer nano-USD from the row to the last digit; a share or a unit cost is worked out
  from exact sums. What has no known price is counted and never 0.
- A request belongs to the period it started in, all its attempts with it: sums by request and by
  attempt are over the same traffic and agree.
- The same definition over the same rows and corrections has the same digest, also when the rows
  went by retention and their sums are left.
"""
