"""Facts about a program: shapes, structure, cost, importance. Analysis only reads, it never edits."""
