"""The vocabulary and the adapters that every part of Sluiceway shares.

Role: ids, records of state, specs, the etcd and Kafka adapters, settings, logging, metrics, clock, errors.
Neighbours: imported by the scheduler, the worker, the client and the command line. It must import none of them.
"""
