"""What others say that models cost: packages with price data, and sheets that people hand over.

Owns the reading of each source into the one form of `offers`, what differs between that and our
price book, and the appending of rows to its files. Nothing here runs while requests are served:
only the `prices` commands come here.

INVARIANTS
- A figure is taken exactly or not at all: what has more than nine digits, or no meter of ours, is
  said to be left out.
- A source that says 0 may mean that it does not know; 0 is taken only where it is asked for.
- Our files are only ever appended to, all of them or none.
"""
