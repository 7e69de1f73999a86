"""From records as fetched to Arrow tables with a widening schema: nothing is lost and no record stops its neighbours.

`json_records` decodes one block on a thread, `registry` advances the shared schema in etcd, `blocks` joins the two,
`unify` brings blocks of several schema versions under one, `restore` gives records back for verification.
"""
