"""Dtypes and promotion, symbolic sizes, shapes, numerical policies and effects: the words in which types are written."""
