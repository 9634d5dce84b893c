"""A provider's usage export or invoice beside the ledger: where the two differ, and by what class.

`shapes` are the forms of file that are known, `provider_export` reads one, `slots` brings both
sides to the same stretches of time, `comparison` finds the differences, `document` shows them.
"""
