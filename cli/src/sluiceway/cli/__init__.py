"""The `sluiceway` command, the stack of real servers for development and tests, and the demo.

Role: everything that a person types. Neighbours: all other members; nothing imports it but the tests.
"""
