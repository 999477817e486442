"""The night's report: what the day was, what was learned, what would change. One HTML page, nothing outside of it."""
