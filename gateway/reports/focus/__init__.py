"""The FOCUS export: cost and usage in the FinOps Foundation's columns, equal to the ledger.

`export` streams rows to a file, `rows` makes one of each group of what was metered, `columns` says
which columns each version has. Source: the FOCUS specification 1.2 and 1.3 (docs/focus.md).
"""
