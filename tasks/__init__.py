"""Everything that happens after the 202: collecting, running, settling, telling."""
