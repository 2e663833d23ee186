"""Runs of the chapters: one at a time, kept as a record, or many over a grid."""
