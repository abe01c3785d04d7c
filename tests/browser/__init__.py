"""A package, so that pytest keeps one service and one browser for all of its files."""
