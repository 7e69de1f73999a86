"""Producer and consumer for virtual topics, for applications.

Role: the light-weight library that application teams install. It is empty until virtual topics exist.
Neighbours: `sluiceway.common` for specs and errors. It must never import the scheduler or a worker.
"""
