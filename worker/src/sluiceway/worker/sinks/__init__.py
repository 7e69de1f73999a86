"""Where records become durable: one sink class a kind of sink, each with its own way to exactly-once."""
