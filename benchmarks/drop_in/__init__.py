"""The report card: every optimizer, as it comes, on small problems of many kinds."""
