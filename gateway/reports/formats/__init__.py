"""A document written in one format each: tables for terminals, text, pages, PDF, spreadsheets.

Every figure is the document's own; a format only says how it looks. Charts are drawn once
(`drawing`), as SVG and as PDF paths alike.
"""
